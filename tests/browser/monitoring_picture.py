"""Draw docs/images/monitoring.svg: the panels of examples/monitoring/dashboard.json, from a real Prometheus.

`make screenshots` runs this. It takes two minutes: the API is well, fails for 40 s, and rejects for 5 s.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from html import escape
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from monitoring import EXAMPLE, ROOT, Monitoring
from redis_server import MISSING, RedisServer, find_redis_server

from windback.devserver import DevServer

PICTURE = ROOT / "docs" / "images" / "monitoring.svg"
#: What the API does, and for how long (seconds).
STORY = ((None, 20), (503, 40), (None, 35), (400, 5), (None, 20))
COLUMNS, WIDTH, HEIGHT, GAP = 3, 400, 230, 14
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 34, 62
COLORS = ("#2563a8", "#c2410c", "#2f7d4f", "#8a3fa0", "#8a6d00", "#b3214f")
STEP_S = 1.0


class Line(NamedTuple):
    """A series of a panel."""

    label: str
    points: List[Tuple[float, float]]


def main() -> None:
    binary = find_redis_server()
    if binary is None:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory() as folder, DevServer() as server:
        redis = RedisServer(binary, Path(folder))
        redis.start()
        monitoring = Monitoring(Path(folder), server, redis, per_second=50, queue=1000)
        try:
            start = time.time()
            for status, seconds in STORY:
                server.faults([] if status is None else [{"status": status}])
                time.sleep(seconds)
            panels = read(monitoring, start, time.time())
        finally:
            monitoring.close()
            redis.close()
    PICTURE.write_text(drawn(panels, sum(seconds for _, seconds in STORY)), encoding="utf-8")


def read(monitoring: Monitoring, start: float, end: float) -> Dict[str, List[Line]]:
    """Return the series of each panel, with times from 0."""
    dashboard = json.loads((EXAMPLE / "dashboard.json").read_text(encoding="utf-8"))
    found: Dict[str, List[Line]] = {}
    for panel in dashboard["panels"]:
        lines = found.setdefault(panel["title"], [])
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5s").replace("$project", ".*")
            for labels, points in monitoring.history(query, start, end, STEP_S):
                # One project: its name says nothing here.
                text = re.sub(r" ?\{\{project\}\}", "", target["legendFormat"])
                text = re.sub(r"\{\{(\w+)\}\}", lambda name, labels=labels: labels.get(name[1], ""), text)
                lines.append(Line(text.strip(), [(at - start, value) for at, value in points]))
        assert lines, f"{panel['title']} has no data"
    return found


def drawn(panels: Dict[str, List[Line]], seconds: int) -> str:
    """Return the picture."""
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>The dashboard during an outage</title><style>text { font: 11px sans-serif }</style>",
        f'<rect width="{width}" height="{height}" fill="#eef0f3"/>',
    ]
    for number, (title, lines) in enumerate(panels.items()):
        row, column = divmod(number, COLUMNS)
        x, y = GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + GAP)
        parts.append(f'<g transform="translate({x} {y})">{panel(title, lines, seconds)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def panel(title: str, lines: List[Line], seconds: int) -> str:
    """Return one panel."""
    top = max((value for line in lines for _, value in line.points), default=0) * 1.1 or 1
    bottom = HEIGHT - BOTTOM

    def place(at: float, value: float) -> str:
        x = LEFT + at / seconds * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{bottom - value / top * (bottom - TOP):.1f}"

    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff"/>',
        f'<text x="12" y="20" style="font-size: 13px" fill="#1d2430">{escape(title)}</text>',
    ]
    for share in (0, 0.5, 1):
        value = top / 1.1 * share
        x, y = place(0, value).split(",")
        end = WIDTH - RIGHT
        parts.append(f'<line x1="{x}" y1="{y}" x2="{end}" y2="{y}" stroke="#d9dde3"/>')
        label = f'x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#4a5361"'
        parts.append(f"<text {label}>{shown(value)}</text>")
    for at in range(0, seconds + 1, 30):
        x, _ = place(at, 0).split(",")
        anchor = "end" if at == seconds else "middle"
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="{anchor}" fill="#4a5361">{at} s</text>')
    x, y = 12.0, float(bottom + 34)
    for number, line in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        path = " ".join(place(*point) for point in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        room = 22 + 6.2 * len(line.label)
        if x + room > WIDTH:
            x, y = 12.0, y + 16
        parts.append(f'<rect x="{x:.0f}" y="{y - 7:.0f}" width="10" height="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="{y:.0f}" fill="#1d2430">{escape(line.label)}</text>')
        x += room
    return "\n".join(parts)


def shown(value: float) -> str:
    """Return a number of an axis."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


if __name__ == "__main__":
    main()
