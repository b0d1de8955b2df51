"""How this package starts Python: no file of the caller's directories can run in the new process.

Python puts the working directory, PYTHONPATH or the folder of a script first on the path. A `json.py` in one
of these would run in a process that gets the key. So each process is started isolated (`-I`). Its path is the
interpreter's own, and after that the folders in which its requirements are installed.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Iterable, List, Optional, Set

#: `-X` options that only print something, or make everything slow.
_REPORTS = ("importtime", "perf", "perf_jit", "showalloccount", "showrefcount", "tracemalloc")


def command(executable: str, code: str) -> List[str]:
    """Return the command that runs *code*, with the flags of this process that change how code runs.

    `-I` stands for `-E`, `-s` and `-P`, so these are kept, whether this process has them or not.
    """
    flags = ["-I", *["-O"] * sys.flags.optimize, *["-b"] * sys.flags.bytes_warning]
    if sys.flags.no_site:
        flags.append("-S")
    if sys.flags.dont_write_bytecode:
        flags.append("-B")
    given = sys._xoptions  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - documented anyway
    options = {name: value for name, value in given.items() if name not in _REPORTS}
    # What environment variables, which `-I` does not read, turned on.
    if sys.flags.utf8_mode:
        options.setdefault("utf8", True)
    if sys.flags.dev_mode:
        options.setdefault("dev", True)
    if sys.pycache_prefix is not None:
        options["pycache_prefix"] = sys.pycache_prefix
    for name, value in options.items():
        flags += ["-X", name if value is True else f"{name}={value}"]
    for warning in sys.warnoptions:
        flags += ["-W", warning]
    return [executable, *flags, "-c", code]


def path(needed: Iterable[str]) -> List[str]:
    """Return the folders that the modules *needed* are in; of what is not installed, none."""
    callers = _callers_folders()
    folders = (_folder_of(name, callers) for name in ("windback", *needed))
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def _folder_of(name: str, callers: Set[str]) -> Optional[str]:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # a stand-in that a test put into sys.modules
        return None
    if spec is None or spec.origin is None:
        return None
    folder = os.path.dirname(os.path.abspath(spec.origin))  # noqa: PTH100, PTH120 - it may be in an archive
    if spec.submodule_search_locations is not None:
        folder = os.path.dirname(folder)  # noqa: PTH120
    # What this process has loaded it trusts already. Anything else is trusted where it was installed: a file
    # of that name in the working directory was not.
    is_trusted = name in sys.modules or (folder not in callers and _is_installed(folder, name))
    return folder if is_trusted else None


def _callers_folders() -> Set[str]:
    """Return the folders that Python puts first on the path: anybody may have put a file there."""
    folders = {"", *sys.path[:1]}
    with suppress(OSError):  # it may be gone
        folders.add(os.getcwd())  # noqa: PTH109 - compared with text
    main = sys.modules.get("__main__")
    program: object = getattr(main, "__file__", None)
    if isinstance(program, str):
        package: object = getattr(main, "__package__", None)
        above = package.count(".") + 1 if isinstance(package, str) and package else 0  # `-m package`
        parents = Path(os.path.abspath(program)).parents  # noqa: PTH100 - Python follows no link either
        folders.update(map(str, [*parents][: above + 1]))
    return folders


def _is_installed(folder: str, name: str) -> bool:
    with suppress(OSError):
        return any(
            entry.name.endswith(".dist-info") and entry.name.lower().startswith(f"{name}-")
            for entry in Path(folder).iterdir()
        )
    return False
