"""The tables' most telling columns as bars, on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from medians import Results

COLOURS = {"floor": "#9aa0a6", "windback": "#c2410c"}
PEER = "#3b6ea5"

#: Title, step, field.
PANELS = (
    ("call, 1 thread: p50, µs", "1 thread", "p50"),
    ("call, 8 threads: p99.9, µs", "8 threads", "p99.9"),
    ("call, 32 busy threads: p99, µs", "32 busy threads", "p99"),
    ("8 busy threads: slowdown", "8 busy threads", "slowdown"),
    ("CPU ms per 1,000 events", "end to end", "cpu"),
    ("end to end: events/s (more is better)", "end to end", "rate"),
)


def draw(results: Results, path: Path) -> bool:
    """Draw what there are results of; False if there are none, as with `--steps`."""
    found = (
        (title, {client: results.get(step, client, field) for client in results.clients})
        for title, step, field in PANELS
    )
    panels = [(title, values) for title, values in found if any(values.values())]
    if not panels:
        return False
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.75 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in [*axes][len(panels) :]:
        axis.set_axis_off()
    for axis, (title, values) in zip(axes, panels):
        bars(axis, title, values)
    figure.suptitle(f"windback and its peers, {results.raw['date']}, {results.raw['machine']['Python']}")
    figure.savefig(path, dpi=110)
    return True


def bars(axis: Axes, title: str, values: dict[str, float | None]) -> None:
    shown = {client: value for client, value in reversed(values.items()) if value is not None}
    drawn = axis.barh(
        list(shown), list(shown.values()), color=[COLOURS.get(client, PEER) for client in shown]
    )
    axis.bar_label(drawn, [label(value) for value in shown.values()], padding=3, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def label(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
