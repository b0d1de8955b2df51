"""How the sender process is started: no file in the application's directories can run in it.

Python puts the working directory, PYTHONPATH or the folder of a script first on the path, so a `json.py` in
one of these would run in the sender and could read the key. So the sender runs isolated (`-I`). Its path
is the interpreter's own, then the folders in which this package and its requirements are installed.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import List, Optional

#: Modules outside of the standard library that the sender imports; missing ones are left out.
_NEEDED = (
    *(
        "windback",
        "anyio",
        "certifi",
        "exceptiongroup",
        "h11",
        "httpcore",
        "httpx",
        "idna",
        "orjson",
        "redis",
    ),
    *("sniffio", "tenacity", "typing_extensions"),
)


def command(executable: str, code: str) -> List[str]:
    """Return the command that runs *code*, with the flags of this process that affect how code is loaded."""
    flags = ["-I", *["-O"] * sys.flags.optimize]
    if sys.flags.no_site:
        flags.append("-S")
    if sys.flags.dont_write_bytecode:
        flags.append("-B")
    if sys.flags.utf8_mode:
        flags += ["-X", "utf8"]
    return [executable, *flags, "-c", code]


def path() -> List[str]:
    """Return the folders that the sender needs in addition to the interpreter's own."""
    folders = (_folder_of(name) for name in _NEEDED)
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def _folder_of(name: str) -> Optional[str]:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # a replacement that a test put into sys.modules
        return None
    if spec is None or spec.origin is None:
        return None
    folder = os.path.dirname(os.path.abspath(spec.origin))  # noqa: PTH100, PTH120 - it may be in an archive
    if spec.submodule_search_locations is not None:
        folder = os.path.dirname(folder)  # noqa: PTH120
    # This process already trusts its loaded modules. Others are trusted where they were installed: a file of
    # that name in the working directory was not.
    return folder if name in sys.modules or _is_installed(folder, name) else None


def _is_installed(folder: str, name: str) -> bool:
    with suppress(OSError):
        return any(
            entry.name.endswith(".dist-info") and entry.name.lower().startswith(f"{name}-")
            for entry in Path(folder).iterdir()
        )
    return False
