"""The matrix: every supported Python, with the oldest and the newest dependencies.

The Pythons are those of the classifiers in `pyproject.toml`, so they are named once; nox looks for them
on PATH. The tests run against the built wheel, not against the tree.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)


@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", ["lowest", "highest"])
def tests(session: nox.Session, dependencies: str) -> None:
    """Run the tests with the oldest or the newest dependencies that the ranges allow."""
    tmp = Path(session.create_tmp())
    session.install("uv")
    arguments = [f"windback[test] @ {build_wheel(session, tmp).as_uri()}"]
    if dependencies == "lowest":
        # Only our own ranges are taken at their lower end: the tools of the `test` extra stay new.
        pins = tmp / "lowest.txt"
        session.run_install(
            *("uv", "pip", "compile", "--quiet", "--no-deps", "--resolution=lowest-direct"),
            *("--extra=cli", "--extra=demo", "--extra=metrics", "--extra=redis"),
            *(f"--output-file={pins}", "pyproject.toml"),
            silent=True,
        )
        arguments.append(f"--constraint={pins}")
    session.install(*arguments)
    session.run("pytest", "-n", "auto", *session.posargs)


def build_wheel(session: nox.Session, directory: Path) -> Path:
    """Build the wheel into *directory* and return its path."""
    for old in directory.glob("*.whl"):
        old.unlink()
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


@nox.session(python=[PYTHONS[0], PYTHONS[-1]])
def types(session: nox.Session) -> None:
    """Check the types on the oldest and on the newest Python."""
    session.install("--editable", ".[dev]")
    session.run("mypy")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, beside the peers; arguments after `--` go to `benchmarks/run.py`."""
    session.install(".[cli]", "--requirement", "benchmarks/requirements.txt")
    session.run("python", "benchmarks/run.py", *session.posargs)
