"""The environments that a measurement may need beside this one, each with an interpreter of its own.

They are made once, inside this one, and made again when what they hold changes.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from clients import ADAPTERS

HERE = Path(__file__).resolve().parent

#: What is installed beside the clients and what they need, by the name of the environment.
BESIDE: dict[str, tuple[str, ...]] = {"base install": (), "rich, click, trio": ("rich", "click", "trio")}

#: By the name of an environment and of a client.
Interpreters = dict[tuple[str, str], str]


def interpreters(clients: list[str], versions: dict[str, str]) -> Interpreters:
    """The interpreter of each environment for each client; the versions are those of this environment."""
    shared = ["-e", str(HERE.parent)]
    shared += [
        f"{package}=={version}"
        for package, version in versions.items()
        if package not in ("windback", "confluent-kafka")
    ]
    found = {}
    for name, beside in BESIDE.items():
        for client in clients:
            alone = ADAPTERS[client].alone
            if alone:
                contents = [f"{ADAPTERS[client].package}=={alone}", *beside]
                found[name, client] = made(f"{client}, {name}", contents)
            else:
                found[name, client] = made(name, [*shared, *beside])
    return found


def made(name: str, contents: list[str]) -> str:
    folder = Path(sys.prefix) / "environments" / name.replace(", ", "-").replace(" ", "-")
    python, stamp = folder / "bin" / "python", folder / "contents"
    # An environment that depends on the settings of the project changes with them.
    wanted = "\n".join([*contents, (HERE.parent / "pyproject.toml").read_text() if "-e" in contents else ""])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing the environment {name!r}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *contents], check=True)
        stamp.write_text(wanted)
    return str(python)
