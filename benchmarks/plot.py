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


def draw(results: Results, path: Path) -> None:
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (title, step, field) in zip(axes.flat, PANELS):
        bars(axis, title, {client: results.get(step, client, field) for client in results.clients})
    figure.suptitle(f"windback and its peers, {results.raw['date']}, {results.raw['machine']['Python']}")
    figure.savefig(path, dpi=110)


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
