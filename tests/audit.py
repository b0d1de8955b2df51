"""Look up both ends of the dependency ranges in an advisory database: ``make audit``.

For the oldest and the newest Python, the lowest and the highest versions that users can install are resolved
and given to pip-audit. An advisory whose fix this Python could have is an error: the bound is to be raised.
Further arguments go to pip-audit, such as ``--vulnerability-service osv``.

The exit status is 0 also where no database can be reached; then the last line begins with NOT AUDITED.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
#: A version with a known advisory. Where it is not found, nothing would be.
KNOWN = ("h11==0.14.0", "CVE-2025-43859")


class Finding(NamedTuple):
    """An advisory for one of the versions, and the versions that fix it."""

    package: str
    version: str
    advisory: str
    fixes: List[str]


def audit(pins: Sequence[str], options: Sequence[str]) -> List[Finding]:
    """Return what pip-audit finds. Raises LookupError if the database can't be reached or lacks a package."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        requirements.write_text("\n".join(pins), encoding="utf-8")
        done = run(
            *(sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off"),
            *(f"--requirement={requirements}", "--format=json", f"--output={report}", *options),
        )
        try:
            found = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
        except (OSError, ValueError):
            lines = done.stderr.strip().splitlines() or ["pip-audit wrote no report"]
            raise LookupError(lines[-1]) from None
    skipped = [each["skip_reason"] for each in found if "skip_reason" in each]
    if skipped:
        raise LookupError(skipped[0])
    return [
        Finding(each["name"], each["version"], " ".join([one["id"], *one["aliases"]]), one["fix_versions"])
        for each in found
        for one in each["vulns"]
    ]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the audit's environment."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def compiled(python: str, *arguments: str) -> List[str]:
    """Return the pins that uv resolves for *python*. Raises LookupError if there are none."""
    command = (sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate")
    done = run(*command, f"--python-version={python}", *arguments)
    if done.returncode:
        raise LookupError(done.stderr.strip())
    return [line for line in done.stdout.splitlines() if "==" in line]


def pins_of(python: str, end: str) -> List[str]:
    """Return what *python* gets with all extras and the demo, at the lowest or highest end of our ranges."""
    extras = [f"--extra={name}" for name in extras_of(PYPROJECT.read_text(encoding="utf-8"))]
    extras.append("--group=demo")
    if end == "highest":
        return compiled(python, *extras, str(PYPROJECT))
    with tempfile.TemporaryDirectory() as folder:
        lowest = Path(folder, "lowest.txt")
        pins = compiled(python, "--no-deps", "--resolution=lowest-direct", *extras, str(PYPROJECT))
        lowest.write_text("\n".join(pins), encoding="utf-8")
        return compiled(python, *extras, f"--constraint={lowest}", str(PYPROJECT))


def extras_of(pyproject: str) -> List[str]:
    """Return the names of all extras."""
    section = pyproject.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return re.findall(r"^([a-z-]+) = \[", section, re.MULTILINE)


def fixes_for(finding: Finding, python: str) -> List[str]:
    """Return the fixed versions that *python* can install."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.in")
        for fix in finding.fixes:
            wanted.write_text(f"{finding.package}=={fix}", encoding="utf-8")
            try:
                compiled(python, "--no-deps", str(wanted))
            except LookupError:
                continue
            found.append(fix)
    return found


def main(options: Sequence[str]) -> int:
    """Audit, print what was found, and return the exit status."""
    try:
        errors = audit_all(options)
    except LookupError as error:
        print(f"NOT AUDITED: {error}")
        return 0
    print(f"audited: bounds to raise: {errors}")
    return 1 if errors else 0


def audit_all(options: Sequence[str]) -> int:
    """Audit both ends on the oldest and the newest Python, and return how many bounds are to be raised."""
    known, advisory = KNOWN
    if not any(advisory in each.advisory for each in audit([known], options)):
        raise LookupError(f"the database has no {advisory} for {known}, so it would miss others, too")
    text = PYPROJECT.read_text(encoding="utf-8")
    minors = sorted(map(int, re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)))
    errors = 0
    for python in (f"3.{minors[0]}", f"3.{minors[-1]}"):
        for end in ("lowest", "highest"):
            pins = pins_of(python, end)
            findings = audit(pins, options)
            print(f"Python {python}, {end}: packages: {len(pins)}, advisories: {len(findings)}")
            for each in findings:
                fixes = fixes_for(each, python)
                remedy = f"raise the bound to {fixes[0]}" if fixes else f"no fix for Python {python}"
                print(f"  {each.package} {each.version}: {each.advisory}: {remedy}")
                errors += bool(fixes)
    return errors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
