"""A real Prometheus that scrapes the example's application, one with a broker, and a relay."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import httpx
from calls import eventually
from commands import COMMAND
from ports import free_port
from redis_server import RedisServer
from servers import environment

from windback.devserver import DevServer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "monitoring"
MISSING = "no {}: `make pytest` installs it; without make, your system's package prometheus has both"


def program(name: str) -> str:
    """Return the path of prometheus or promtool. Without it the test fails: nothing is skipped."""
    found = shutil.which(name)
    assert found is not None, MISSING.format(name)
    return found


def queries_of_dashboard(interval: str) -> Dict[str, str]:
    """Return all queries of the dashboard by panel and letter, with Grafana's variables filled in."""
    dashboard = json.loads((EXAMPLE / "dashboard.json").read_text(encoding="utf-8"))
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", interval)
        .replace("$project", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def expressions_of_alerts() -> Dict[str, str]:
    """Return the expressions of the alerts by name, as promtool and Prometheus read them: one line each."""
    text = (EXAMPLE / "alerts.yml").read_text(encoding="utf-8")
    found = re.findall(
        r"- alert: (\w+)\n(?:\s+#[^\n]*\n)*\s+expr: (?:>-\n)?(.*?)\n\s+(?:for|labels):", text, re.DOTALL
    )
    return {name: " ".join(expression.split()) for name, expression in found}


class Monitoring:
    """The processes. All of them end with `close`."""

    def __init__(
        self, folder: Path, server: DevServer, redis: RedisServer, *, per_second: float = 50, queue: int = 200
    ) -> None:
        self._stack = ExitStack()
        self._server = server
        self._folder = folder
        ports = [free_port() for _ in range(4)]
        self.url = f"http://127.0.0.1:{ports[3]}"
        app = [sys.executable, str(EXAMPLE / "app.py"), "--per-second", str(per_second)]
        app += ["--queue", str(queue), "--port"]
        try:
            self._start("app", [*app, str(ports[0])])
            self._start("with-broker", [*app, str(ports[1])], WINDBACK_BROKER=redis.url)
            relay = ["relay", "--broker", redis.url, "--listen", str(ports[2])]
            self._start("relay", [*COMMAND, *relay])
            self._start_prometheus(ports)
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, command: List[str], **more: str) -> None:
        output = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command, env=environment(self._server.url, **more), stdout=output, stderr=output, cwd=self._folder
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def _start_prometheus(self, ports: List[int]) -> None:
        config = (EXAMPLE / "prometheus.yml").read_text(encoding="utf-8")
        apps = f"127.0.0.1:{ports[0]}, 127.0.0.1:{ports[1]}"
        for old, new in (
            ("localhost:9100", apps),
            ("localhost:9464", f"127.0.0.1:{ports[2]}"),
            ("15s", "1s"),
        ):
            assert old in config
            config = config.replace(old, new)
        (self._folder / "prometheus.yml").write_text(config, encoding="utf-8")
        shutil.copy(EXAMPLE / "alerts.yml", self._folder)
        listen = f"--web.listen-address={self.url[len('http://') :]}"
        storage = f"--storage.tsdb.path={self._folder / 'data'}"
        self._start("prometheus", [program("prometheus"), "--config.file=prometheus.yml", listen, storage])
        eventually(self._is_ready, within_s=60)
        eventually(lambda: len(self.query("up == 1")) == 3, within_s=60)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _get(self, path: str, **parameters: object) -> List[Dict[str, object]]:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]["result"]

    def query(self, expression: str) -> List[Dict[str, object]]:
        """Return the series of an expression, now."""
        return self._get("query", query=expression)

    def value(self, expression: str) -> Optional[float]:
        """Return the one value of an expression; None if it has none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None  # type: ignore[index]

    def history(
        self, expression: str, start: float, end: float, step: float
    ) -> Iterator[Tuple[Dict[str, str], List[Tuple[float, float]]]]:
        """Yield the labels and the points of each series."""
        for series in self._get("query_range", query=expression, start=start, end=end, step=step):
            points = [(float(at), float(value)) for at, value in series["values"]]  # type: ignore[attr-defined]
            yield series["metric"], points  # type: ignore[misc]

    def close(self) -> None:
        """Kill all of them."""
        self._stack.close()
