"""What a measurement runs in: the machine, the versions, what is loaded, and at what price."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Iterable

from clients import ADAPTERS

#: What an application imports, beside the bare ``import windback``.
IMPORT = "from windback import Windback"


def environment() -> dict[str, str]:
    """This one's, without proxies: the sink is next door."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def imports(clients: list[str], times: int) -> dict[str, float]:
    """Median milliseconds of an import in a fresh process, by client."""
    statements = {name: ADAPTERS[name].imports for name in clients if ADAPTERS[name].imports}
    if "windback" in clients:
        statements[IMPORT] = IMPORT
    code = "import time; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1e3)"
    took: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(times):
        for name, statement in statements.items():
            took[name].append(float(python(code.format(statement))))
    return {name: statistics.median(each) for name, each in took.items()}


def loaded_by_windback() -> list[str]:
    """What should not be loaded by ``import windback``, and is."""
    heavy = ("httpx", "tenacity", "anyio", "asyncio")
    return python(f"import sys, windback; print(*(name for name in {heavy} if name in sys.modules))").split()


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout


def describe() -> dict[str, str]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "CPU": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions(clients: Iterable[str]) -> dict[str, str]:
    """The versions of the distributions that are installed."""
    found = {}
    for client in clients:
        package = ADAPTERS[client].package
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
