"""`windback init FRAMEWORK`: the lines that an application needs, printed, or written where they go.

A file is changed only if the place for each line is clear from its syntax tree. Otherwise it is left alone,
and the lines are printed with the reason.
"""

from __future__ import annotations

import ast
import io
import os
from enum import Enum
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Tuple

import typer

from .common import CommandError, command, main_app
from .terminal import write_line

_SKIPPED = {"node_modules", "site-packages", "build", "dist", "venv", "env", "migrations", "tests", "test"}
#: More files than an application of its own has: this is not the folder of one.
_MOST_FILES = 2_000
_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
#: Longer than the file of an application, in bytes: most of those are data.
_LONGEST_FILE = 1_000_000


class Framework(str, Enum):
    """What `init` knows."""

    fastapi = "fastapi"
    flask = "flask"
    django = "django"
    celery = "celery"
    aws_lambda = "lambda"


class _Recipe(NamedTuple):
    """What a framework needs. makes: the class whose instance is the application; "{app}" is its name."""

    imports: str
    after: str
    makes: str
    page: str


_RECIPES = {
    Framework.fastapi: _Recipe(
        "from windback.fastapi import WindbackMiddleware",
        "{app}.add_middleware(WindbackMiddleware)",
        "FastAPI",
        "fastapi",
    ),
    Framework.flask: _Recipe(
        "from windback.flask import FlaskWindback", "wb = FlaskWindback({app})", "Flask", "flask"
    ),
    Framework.celery: _Recipe("from windback import Windback", "client = Windback()", "Celery", "celery"),
    Framework.django: _Recipe(
        "",
        'INSTALLED_APPS += ["windback.django"]\nMIDDLEWARE += ["windback.django.WindbackMiddleware"]',
        "",
        "django",
    ),
    Framework.aws_lambda: _Recipe(
        "from windback.serverless import flush_after", "@flush_after", "", "serverless"
    ),
}

TEST = """\
from windback import get_client
from windback.testing import CapturedEvents


def test_an_event_is_tracked(windback_events: CapturedEvents) -> None:
    get_client().track_event("signup", "jane@example.com", {"plan": "pro"})  # call your own code here
    windback_events.assert_tracked("signup", customer_email="jane@example.com")
"""
TEST_PATH = Path("tests") / "test_windback.py"
CI = "env:\n  WINDBACK_ENABLED: 0  # nothing is sent, and no key is needed"


@command(
    main_app,
    "init",
    "print the lines that an application needs, with a test and a line for CI",
    "Looks at the Python files here. --write writes the lines and the test; a file in which their place "
    "is not clear is left alone. Status 0, or 1 if --write could not write all.",
)
def init(
    framework: Framework = typer.Argument(..., show_default=False, help="which framework"),
    write: bool = typer.Option(False, "--write", help="write the lines and the test"),
    file: Optional[Path] = typer.Option(
        None, "--file", metavar="PATH", show_default=False, help="the file of the application"
    ),
) -> int:
    """Run the command; the exit code."""
    recipe = _RECIPES[framework]
    found, reason = _find(framework, recipe, file)
    _print_lines(recipe, found)
    if found is None:
        _write_part(f"nothing is changed: {reason}")
        return 1 if write else 0
    if not write:
        _write_part(f"--write puts them into {found.path} and {TEST_PATH}")
        return 0
    found.path.write_bytes(found.changed.encode())
    _write_part(f"{found.path}: written")
    return _write_test()


def _write_test() -> int:
    """Write the test, if nothing is in its place; the exit code. It is written below this folder only."""
    if TEST_PATH.parent.is_symlink():
        write_line(f"{TEST_PATH}: not written, because {TEST_PATH.parent} is a symbolic link")
        return 1
    TEST_PATH.parent.mkdir(exist_ok=True)
    try:
        with TEST_PATH.open("x", encoding="utf-8") as file:  # follows no link
            file.write(TEST)
    except FileExistsError:
        write_line(f"{TEST_PATH}: is there, and left alone")
    else:
        write_line(f"{TEST_PATH}: written")
    return 0


def _write_part(text: str) -> None:
    write_line("")
    write_line(text)


class _Found(NamedTuple):
    """The file of an application, and what it would be. name: of the application."""

    path: Path
    name: str
    changed: str


def _print_lines(recipe: _Recipe, found: Optional[_Found]) -> None:
    name = "app" if found is None else found.name
    lines = [*recipe.imports.splitlines(), *recipe.after.format(app=name).splitlines()]
    write_line("# the application" if found is None else f"# {found.path}")
    for line in lines:
        write_line(line)
    _write_part(f"# {TEST_PATH}")
    for line in TEST.splitlines():
        write_line(line)
    _write_part("# CI, such as a workflow of GitHub")
    for line in CI.splitlines():
        write_line(line)
    _write_part(f"# more: docs/integrations/{recipe.page}.md; the key is read from WINDBACK_API_KEY")


def _find(framework: Framework, recipe: _Recipe, file: Optional[Path]) -> Tuple[Optional[_Found], str]:
    """Return the application, or why there is none that can be changed."""
    places: List[_Found] = []
    reason = ""
    for path in [file] if file is not None else _files():
        text, tree = _read(path)
        if tree is None:
            reason = f"{path} is not Python that can be read" if file is not None else reason
            continue
        statements = _places(framework, recipe, tree)
        if statements and "windback" in text:
            return None, f"{path} has windback already"
        for name, changes in statements:
            changed = _changed(text, [*_import_of(recipe, tree), *changes])
            try:
                ast.parse(changed)
            except SyntaxError:
                reason = f"the lines do not fit into {path}"
                continue
            places.append(_Found(path, name, changed))
    if len(places) == 1:
        return places[0], ""
    if places:
        names = ", ".join(f"{each.path} ({each.name})" for each in places[:4])
        return (
            None,
            f"there is more than one place: {names}; name the file by --file, or add the lines yourself",
        )
    return None, reason or f"no {framework.value} application was found here"


def _read(path: Path) -> Tuple[str, Optional[ast.Module]]:
    """Return the text of a file and its syntax tree; None for what is not Python, or too long or too deep."""
    try:
        # A FIFO is not to be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK)) as file:
            if not path.is_file():
                raise CommandError(f"{path}: is not a file")
            data = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    if len(data) > _LONGEST_FILE:
        return "", None
    try:
        text = data.decode()
        return text, ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", None


def _files() -> Iterator[Path]:
    count = 0
    waiting = [Path()]
    while waiting:
        folder = waiting.pop()
        if not os.access(folder, os.R_OK | os.X_OK):  # of another user
            continue
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or path.name.startswith(".") or path.name in _SKIPPED:
                continue
            if path.is_dir():
                if os.access(path, os.X_OK) and not (path / "pyvenv.cfg").exists():
                    waiting.append(path)
            elif path.suffix == ".py" and path.is_file() and os.access(path, os.R_OK):
                count += 1
                if count > _MOST_FILES:
                    raise CommandError(
                        "there are too many Python files here; name the application's by --file"
                    )
                yield path


#: Lines to insert, and after which line.
_Change = Tuple[int, str]


def _places(framework: Framework, recipe: _Recipe, tree: ast.Module) -> List[Tuple[str, List[_Change]]]:
    """Return where the lines go: once for each application that the module makes."""
    if framework is Framework.django:
        names = {_assigned(node): node for node in tree.body}
        lists = [names.get("INSTALLED_APPS"), names.get("MIDDLEWARE")]
        if all(isinstance(node, ast.Assign) and isinstance(node.value, ast.List) for node in lists):
            last = max(node.end_lineno or 0 for node in tree.body)
            return [("settings", [(last, recipe.after)])]
        return []
    if framework is Framework.aws_lambda:
        return [
            (node.name, [(_first_line(node) - 1, recipe.after)])
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and [each.arg for each in node.args.args] == ["event", "context"]
        ]
    return [
        (name, [(node.end_lineno or 0, recipe.after.format(app=name))])
        for node in tree.body
        for name in [_assigned(node)]
        if name and isinstance(node, ast.Assign) and _called(node.value) == recipe.makes
    ]


def _assigned(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return ""


def _called(node: ast.expr) -> str:
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _first_line(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(each.lineno for each in node.decorator_list)])


def _import_of(recipe: _Recipe, tree: ast.Module) -> List[_Change]:
    """Return the import, after the last one at the top of the module."""
    if not recipe.imports:
        return []
    imports = [node.end_lineno or 0 for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return [(max(imports, default=0), recipe.imports)]


def _changed(text: str, changes: List[_Change]) -> str:
    """Return *text* with lines inserted; the ends of its lines stay as they are."""
    lines = [*io.StringIO(text, newline="")]  # as Python counts them; `splitlines` ends some within a string
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    for after, new in sorted(changes, reverse=True):
        if after and not lines[after - 1].endswith(("\n", "\r")):
            lines[after - 1] += end
        lines.insert(after, "".join(line + end for line in new.splitlines()))
    return "".join(lines)
