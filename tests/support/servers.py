"""Applications in the servers that people run them in: started, asked, and ended by a signal."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from ports import free_port

import windback

SOURCE = Path(windback.__file__).resolve().parents[1]
#: A machine that does much else at the same time takes this long to start a server.
STARTS_WITHIN_S = 60.0


def environment(url: str, **more: str) -> Dict[str, str]:
    """Return that of an application which sends to *url*: nothing of whoever runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
    return {
        **inherited,
        "PYTHONPATH": str(SOURCE),
        "PYTHONFAULTHANDLER": "1",
        "WINDBACK_API_KEY": "sk_test_1",
        "WINDBACK_PROJECT_SLUG": "my-project",
        "WINDBACK_BASE_URL": url,
        **more,
    }


class AppServer:
    """A server in a process group of its own, in a folder with the files of the application.

    "{port}" in the command is a free port.
    """

    def __init__(
        self,
        folder: Path,
        files: Dict[str, str],
        command: Sequence[str],
        url: str,
        *,
        path: str = "/health",
        **more: str,
    ) -> None:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
        self.port = free_port()
        self._output = (folder / "output").open("w+b")
        self._process = subprocess.Popen(
            [each.replace("{port}", str(self.port)) for each in command],
            cwd=folder,
            env=environment(url, **more),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self.wait_until_up(path)
        except BaseException:
            self.close()
            raise

    def wait_until_up(self, path: str) -> None:
        deadline_s = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                self.get(path)
            except (OSError, http.client.HTTPException):
                assert self._process.poll() is None, f"the server ended:\n{self.output()}"
                assert time.monotonic() < deadline_s, f"the server did not start:\n{self.output()}"
                time.sleep(0.05)
            else:
                return

    def get(self, path: str, method: str = "GET", body: Optional[bytes] = None, **headers: str) -> int:
        """Return the status of one request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            response.read()
            return response.status

    def get_all(self, paths: Sequence[str], at_once: int = 4) -> List[int]:
        """Return the statuses of many requests, some of them at the same time."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(self.get, paths))

    def output(self) -> str:
        self._output.flush()
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def end(self, how: int = signal.SIGTERM, within_s: float = 60.0) -> str:
        """Send the main process a signal, wait for its end, and return what it printed."""
        self._process.send_signal(how)
        return self.wait(within_s)

    def signal(self, how: int) -> None:
        """Send the main process a signal."""
        self._process.send_signal(how)

    def signal_group(self, how: int) -> None:
        """Send a signal to all processes of the server, as a terminal does at Ctrl-C."""
        os.killpg(self._process.pid, how)

    def wait(self, within_s: float = 60.0) -> str:
        """Wait for its end, and return what it printed."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end:\n{self.output()}") from None
        return self.output()

    @property
    def status(self) -> Optional[int]:
        return self._process.poll()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not self._output.closed:
            self._output.close()

    def __enter__(self) -> AppServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: Newer ones end by the signal that they received, without Python's exit handlers.
UVICORN_ENDS_BY_SIGNAL = tuple(map(int, metadata.version("uvicorn").split(".")[:2])) >= (0, 29)
UVICORN = [sys.executable, "-m", "uvicorn", "--port", "{port}", "--log-level", "warning"]
GUNICORN = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning"]
