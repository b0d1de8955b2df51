"""The matrix: every supported Python, with the oldest and the newest dependencies.

The Pythons are those of the classifiers in `pyproject.toml`, so they are named once; nox looks for them
on PATH. The tests run against the built wheel, not against the tree.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Sequence

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types_ends", "tests"]
nox.options.error_on_missing_interpreters = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
#: The oldest, and the newest that this machine has.
ENDS = [PYTHONS[0], next((each for each in reversed(PYTHONS) if shutil.which(f"python{each}")), PYTHONS[-1])]
#: Four, whatever the cores: the tests wait more than they compute.
SIDE_BY_SIDE = ["-n", "4"]
EXTRAS = list(PYPROJECT["project"]["optional-dependencies"])


def group(name: str) -> Sequence[str]:
    """Return the requirements of a dependency group."""
    return nox.project.dependency_groups(PYPROJECT, name)


def install(session: nox.Session, dependencies: str) -> None:
    """Install the built wheel with the oldest or the newest dependencies that the ranges allow."""
    session.install("uv")
    # Not `session.create_tmp`, which makes it the tests' own: their paths would be long, and in this project.
    with TemporaryDirectory() as folder:
        arguments = [f"windback @ {build_wheel(session, Path(folder)).as_uri()}", *group("test")]
        if dependencies == "lowest":
            # Only our own ranges are taken at their lower end: the tools of the group `test` stay new.
            pins = Path(folder) / "lowest.txt"
            session.run_install(
                *("uv", "pip", "compile", "--quiet", "--no-deps", "--resolution=lowest-direct"),
                *(f"--extra={name}" for name in EXTRAS),
                *("--group=demo", f"--output-file={pins}", "pyproject.toml"),
                silent=True,
            )
            # OpenTelemetry's instrumentations that belong to the oldest API load pkg_resources.
            arguments += [f"--constraint={pins}", "setuptools<81"]
        session.install(*arguments)


@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", ["lowest", "highest"])
def tests(session: nox.Session, dependencies: str) -> None:
    """Run the tests with the oldest or the newest dependencies that the ranges allow."""
    install(session, dependencies)
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs)


@nox.session(python=ENDS)
def ends(session: nox.Session) -> None:
    """Run the unit and contract tests: oldest Python and dependencies, newest Python and dependencies."""
    install(session, "lowest" if session.python == PYTHONS[0] else "highest")
    session.run("pytest", *SIDE_BY_SIDE, "tests/unit", "tests/contract", *session.posargs)


def build_wheel(session: nox.Session, directory: Path) -> Path:
    """Build the wheel into *directory* and return its path."""
    session.run_install("uv", "build", "--quiet", "--wheel", f"--out-dir={directory}")
    (wheel,) = directory.glob("*.whl")
    return wheel.resolve()


@nox.session
def lint(session: nox.Session) -> None:
    """Check formatting, ruff's rules, spelling and pyproject.toml."""
    session.install("codespell", "ruff", "validate-pyproject")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("codespell")
    session.run("validate-pyproject", "pyproject.toml")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types on this Python."""
    check_types(session)


@nox.session(python=ENDS)
def types_ends(session: nox.Session) -> None:
    """Check the types on the oldest and on the newest Python."""
    check_types(session)


def check_types(session: nox.Session) -> None:
    """Run both type checkers; the public surface must be clean in each."""
    session.install("--editable", ".", *group("dev"))
    session.run("mypy")
    python = session.run("python", "-c", "import sys; print(sys.executable)", silent=True) or ""
    session.run("pyright", "--pythonpath", python.strip())


@nox.session
def audit(session: nox.Session) -> None:
    """Look both ends of the ranges up in an advisory database; arguments after `--` go to pip-audit."""
    session.install("pip-audit", "uv")
    session.run("python", "tests/audit.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, beside the peers; arguments after `--` go to `benchmarks/run.py`."""
    session.install(".[cli]", "--requirement", "benchmarks/requirements.txt")
    session.run("python", "benchmarks/run.py", *session.posargs)
