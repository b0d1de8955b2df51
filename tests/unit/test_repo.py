"""What the files of the project say about each other is true."""

from __future__ import annotations

import ast
import os
import re
import stat
import sys
import traceback
from pathlib import Path

import pytest

import windback

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = [
    match[1]
    for match in (re.search(r"Python :: (3\.\d+)$", line) for line in PYPROJECT["project"]["classifiers"])
    if match
]
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def project_files():
    """Yield the project's own files: not what git, tools and builds leave in the tree."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if (name in {".ci", ".github"} or not name.startswith("."))
            and name not in {"__pycache__", "build", "dist"}
        ]
        # In a linked worktree `.git` is a file.
        kept = (name for name in names if name != ".git" and not name.startswith(".coverage"))
        yield from (Path(folder, name) for name in kept)


def read(path):
    return path.read_text(encoding="utf-8", errors="replace")


def test_the_version_is_in_one_place():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"] == {"path": "src/windback/__init__.py"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", windback.__version__)


def test_the_oldest_python_is_the_same_everywhere():
    oldest = PYTHONS[0]
    assert PYPROJECT["project"]["requires-python"] == f">={oldest}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == oldest
    assert "({}, {})".format(*oldest.split(".")) in read(ROOT / "Makefile")


def test_the_classifiers_name_every_python_from_the_oldest_to_the_newest():
    minors = [int(version.split(".")[1]) for version in PYTHONS]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_nox_tests_the_pythons_of_the_classifiers():
    noxfile = read(ROOT / "noxfile.py")
    assert "PYTHONS = nox.project.python_versions(PYPROJECT)" in noxfile
    assert re.search(r"@nox\.session\(python=PYTHONS\)\n@nox\.parametrize\([^\n]+\)\ndef tests\(", noxfile)


def test_this_python_is_one_of_the_classifiers():
    assert "{}.{}".format(*sys.version_info) in PYTHONS


@pytest.mark.parametrize("extra", [None, "dev-server", "metrics", "redis"])
def test_each_dependency_has_a_lower_bound(extra):
    project = PYPROJECT["project"]
    dependencies = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    assert dependencies
    assert [line for line in dependencies if ">=" not in line.split(";")[0]] == []


def test_what_developers_install_is_in_groups_and_not_published():
    groups = PYPROJECT["dependency-groups"]
    assert {"include-group": "test"} in groups["dev"]
    assert {"include-group": "demo"} in groups["test"]
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(extras) & {"dev", "test", "demo"} == set()
    (tested,) = (line for line in groups["test"] if str(line).startswith("windback["))
    assert set(tested[len("windback[") : -1].split(",")) == set(extras)


def test_the_changelog_has_a_place_for_what_comes_and_no_line_twice():
    text = read(ROOT / "CHANGELOG.md")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", each) for each in headings[1:])
    begins = [line[:60] for line in re.findall(r"^- (.+)$", text, re.MULTILINE)]
    assert [each for each in begins if begins.count(each) > 1] == []


def test_the_docs_have_one_address():
    urls = PYPROJECT["project"]["urls"]
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["site_url"]
    assert windback.errors.DOCS == urls["Documentation"] == site
    assert windback.QueueFullError("no room", code="QUEUE_FULL").url == f"{site}errors.html#queue_full"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="earlier Pythons have no notes")
def test_a_traceback_ends_with_the_address_of_cause_and_cure():
    error = windback.InvalidEventError("must be text", path="event")
    shown = "".join(traceback.format_exception_only(type(error), error))
    assert shown.endswith("\nCause and cure: https://docs.windbackai.com/python/errors.html#invalid_event\n")
    assert "docs.windbackai" not in str(error)


def test_the_ci_script_calls_make_test_and_can_be_run():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    commands = [line for line in read(script).splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"


def test_each_target_of_the_makefile_is_in_its_help():
    makefile = read(ROOT / "Makefile")
    documented = set(re.findall(r"^([a-z-]+):.*  ## .", makefile, re.MULTILINE))
    assert TARGETS == documented == set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))


def test_each_make_command_of_the_guides_exists():
    named = {
        target
        for path in GUIDES
        for target in re.findall(r"(?:^|`|\$ )make ([a-z-]+)", read(path), re.MULTILINE)
    }
    assert {"demo", "test"} <= named
    assert named - TARGETS == set()


def test_each_public_name_is_in_the_documentation():
    words = {word for path in GUIDES for word in re.findall(r"\w+", read(path))}
    public = {name for name in windback.__all__ if not name.startswith("_")}
    assert sorted(public - words) == []


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"(?<![\w.])/(?:work|home|root|tmp/w)\b", id="a path of one machine"),
        pytest.param(r"pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)", id="the host of a package index"),
    ],
)
def test_no_file_names(pattern):
    files = list(project_files())
    assert Path(__file__).resolve() in files
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}"
        for path, text in ((path, read(path)) for path in files)
        for hit in re.finditer(pattern, text)
    ]
    assert found == []


def test_actions_of_workflows_are_pinned_to_a_commit_and_name_its_version():
    workflow = read(ROOT / ".github" / "workflows" / "publish.yml")
    used = re.findall(r"uses: (.+)", workflow)
    assert len(used) >= 5
    assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []
    assert re.findall(r"^ +(3\.\d+)$", workflow, re.MULTILINE) == PYTHONS


def test_type_checkers_see_each_example_of_the_readme():
    examples = re.findall(r"```python\n(.*?)```", read(ROOT / "README.md"), re.DOTALL)
    checked = read(ROOT / "tests" / "typing" / "readme.py")
    assert len(examples) >= 4
    assert [example for example in examples if example not in checked] == []


def private_reaches(path):
    """Yield where a file of tests reads a private name of what it tests."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("windback"):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in NOT_TESTED:
            names = [node.attr]
        else:
            continue
        for name in names:
            if name[0] == "_" and name[:2] != "__" and name not in NAMED_TUPLES:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}"


#: The test itself, and the standard library.
NOT_TESTED = {"self", "cls", "_thread", "os", "sys"}
#: The public methods of named tuples begin so.
NAMED_TUPLES = {"_asdict", "_fields", "_replace"}


def test_tests_reach_into_few_private_parts():
    """What many tests need from the inside is in tests/support/inside.py, which is found if it moves."""
    found = [
        each
        for path in (ROOT / "tests").rglob("*.py")
        if path.name != "inside.py"
        for each in private_reaches(path)
    ]
    assert len(found) < 30, "\n".join(found)


#: The client has both twins of each method side by side, and their docstrings.
LARGE = {"src/windback/client.py"}


def test_no_file_of_the_package_is_longer_than_600_lines():
    for path in (ROOT / "src").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= 600 or name in LARGE, f"{name} has {length} lines: split it by what it decides"
