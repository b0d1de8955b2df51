"""Check what a release would publish: `make release-check`.

It builds the wheel and the sdist twice and compares them, looks into them, and installs the wheel into empty
environments: the package alone, with README's first block, and with each extra. The builds and the
environments need a package index, or uv's cache: `--offline` shows which.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, NoReturn

from windback.devserver import DevServer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BIN = Path(sys.executable).parent
WHEEL_LIST = ROOT / "tests" / "data" / "wheel.txt"
SBOM = ROOT / "tests" / "data" / "windback.cdx.json"
#: What each extra is for: this must work with the extra alone.
USES = {
    "cli": "from windback.cli import main; import sys; sys.argv = ['windback', '--version']; main()",
    "dev-server": "import windback.devserver.app",
    "django": "import django; from django.conf import settings; settings.configure(); import windback.django",
    "fastapi": "import windback.fastapi",
    "flask": "import windback.flask",
    "metrics": "import windback.prometheus",
    "opentelemetry": "import windback.opentelemetry",
    "redis": "import windback; windback.Windback('sk_test_x', broker='redis://127.0.0.1:1/0').close()",
    "sqlalchemy": "import windback.sqlalchemy",
}


def fail(message: str) -> NoReturn:
    """End with a message."""
    sys.exit(f"release-check: {message}")


def run(*command: object, **variables: str) -> str:
    """Run a command and return its output; fail if it fails."""
    ended = subprocess.run(
        [str(each) for each in command],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        fail(f"{' '.join(str(each) for each in command)}\n{ended.stdout}")
    return ended.stdout


def build(directory: Path, epoch: str) -> List[Path]:
    """Build the sdist, and the wheel from it, and return both."""
    run(BIN / "uv", "build", "--quiet", f"--out-dir={directory}", SOURCE_DATE_EPOCH=epoch)
    return sorted(path for path in directory.iterdir() if path.suffix in {".whl", ".gz"})


def version() -> str:
    """Return the version, which is in one place."""
    text = (ROOT / "src" / "windback" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else fail("there is no __version__")


def names_in(wheel: Path) -> List[str]:
    """Return the names of a wheel's files, without the version."""
    with zipfile.ZipFile(wheel) as opened:
        return sorted(name.replace(f"-{version()}.dist-info", ".dist-info") for name in opened.namelist())


def sbom() -> str:
    """Return the bill of materials: this package holds no other, and needs these."""
    needed = [re.split(r"[<>=!; ]", line, maxsplit=1) for line in PROJECT["dependencies"]]
    names = sorted({parts[0] for parts in needed})
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component("windback", licence="MIT")},
        "components": [component(name) for name in names],
        "dependencies": [
            {"ref": "pkg:pypi/windback", "dependsOn": [f"pkg:pypi/{name}" for name in names]},
            *({"ref": f"pkg:pypi/{name}"} for name in names),
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def component(name: str, licence: str = "") -> Dict[str, object]:
    """Return one component of the bill; its version is the installer's choice, within the wheel's ranges."""
    found: Dict[str, object] = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "purl": f"pkg:pypi/{name}",
    }
    return {**found, "licenses": [{"license": {"id": licence}}]} if licence else found


def check_files(wheel: Path, sdist: Path) -> None:
    """Check what both archives contain."""
    if names_in(wheel) != WHEEL_LIST.read_text(encoding="utf-8").split():
        fail(f"the wheel has other files than {WHEEL_LIST.name}; to accept: make release-check ARGS=--write")
    with zipfile.ZipFile(wheel) as opened:
        inside = f"windback-{version()}.dist-info/sboms/{SBOM.name}"
        if opened.read(inside).decode() != sbom():
            fail(f"{inside} is old: make release-check ARGS=--write")
    with tarfile.open(sdist) as opened_sdist:
        top = f"windback-{version()}/"
        names = {name[len(top) :] for name in opened_sdist.getnames()}
    missing = {"README.md", "CHANGELOG.md", "LICENSE", "docs/index.md", "tests/conftest.py"} - names
    if missing:
        fail(f"the sdist has no {sorted(missing)}")
    private = sorted(name for name in names if re.match(r"\.(?:venv|nox|site|git/)", name))
    if private:
        fail(f"the sdist has {private[:3]}")


def pythons() -> Iterator[Path]:
    """Yield the supported Pythons that are on PATH, oldest first."""
    for line in PROJECT["classifiers"]:
        found = re.search(r"Python :: (3\.\d+)$", line)
        python = shutil.which(f"python{found[1]}") if found else None
        if found and python is None:
            print(f"  NOT TRIED: there is no python{found[1]} on PATH")
        elif python:
            yield Path(python)


def try_out(wheel: Path, python: Path, flags: List[str]) -> None:
    """Install the wheel for one Python: alone, with README's first block; then with each extra."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[0]
    with tempfile.TemporaryDirectory() as folder:
        for extra in ["", *USES]:
            environment = Path(folder, extra or "alone")
            run(BIN / "uv", "venv", "--quiet", "--python", python, environment)
            installed = environment / "bin" / "python"
            wanted = f"windback[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
            run(BIN / "uv", "pip", "install", "--quiet", *flags, "--python", installed, wanted)
            if extra:
                run(installed, "-W", "error", "-c", USES[extra])
                continue
            with DevServer() as server:
                run(installed, "-W", "error", "-c", block, WINDBACK_BASE_URL=server.url)
                server.wait("feature_used")
    print(f"  {python.name}: alone and with README's first block, and with each of {', '.join(USES)}")


def main() -> None:
    """Check a release, or write the files that it compares with."""
    parser = argparse.ArgumentParser(description="Check what a release would publish.")
    parser.add_argument("--write", action="store_true", help="update the files that are compared")
    parser.add_argument("--out", type=Path, help="keep what passed all checks in this directory")
    parser.add_argument("--no-install", action="store_true", help="install nothing")
    parser.add_argument("--offline", action="store_true", help="install from uv's cache alone")
    parser.add_argument("--only", nargs="*", help="try these Pythons alone, such as python3.8")
    chosen = parser.parse_args()
    if set(USES) != set(PROJECT["optional-dependencies"]):
        fail("each extra needs an entry in USES, and the other way round")
    if chosen.write:
        SBOM.write_text(sbom(), encoding="utf-8")
    epoch = run("git", "log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        files, again = build(Path(first), epoch), build(Path(second), epoch)
        if chosen.write:
            (wheel,) = (path for path in files if path.suffix == ".whl")
            WHEEL_LIST.write_text("\n".join(names_in(wheel)) + "\n", encoding="utf-8")
        sdist, wheel = sorted(files, key=lambda path: path.suffix)
        print(f"built {wheel.name} and {sdist.name}")
        if [path.read_bytes() for path in files] != [path.read_bytes() for path in again]:
            fail("built twice, they differ")
        print("  built twice, they are equal, byte for byte")
        run(BIN / "twine", "check", "--strict", *files)
        print("  twine check --strict: the metadata is right and README renders")
        run(BIN / "check-wheel-contents", wheel)
        check_files(wheel, sdist)
        print(f"  the wheel has the files of {WHEEL_LIST.name}, and its bill of materials")
        for python in pythons():
            if not chosen.no_install and python.name in (chosen.only or [python.name]):
                try_out(wheel, python, ["--offline"] if chosen.offline else [])
        if chosen.out:
            chosen.out.mkdir(parents=True, exist_ok=True)
            for path in files:
                shutil.copy2(path, chosen.out)


if __name__ == "__main__":
    main()
