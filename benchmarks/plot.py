"""The picture: how many times longer viewfs takes than each of the others, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.contenders import CONTENDERS, VIEWFS
from benchmarks.figures import Figures
from benchmarks.images import IMAGES, Image
from benchmarks.measurements import MEASUREMENTS, MOUNTING, title_of
from benchmarks.results import Results

__all__ = ["write_plot"]

#: Distinguishable by those who don't see red and green apart (Okabe and Ito).
_COLOURS = {
    "kernel": "#222222",
    "fuse2fs": "#d55e00",
    "fuse2fs, caching": "#e69f00",
    "squashfuse": "#56b4e9",
    "squashfuse_ll": "#0072b2",
    "ratarmount": "#cc79a7",
}
_ROW_INCHES = 0.42
_STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "viewfs",
    "svg.fonttype": "path",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


def write_plot(results: Results, path: Path) -> None:
    """A row of panels for each image, cold on the left, warm on the right; no picture if nothing can be compared."""
    figures = Figures(results)
    images = [image for image in IMAGES if _rows(figures, image)]
    if not images:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    heights = [len(_rows(figures, image)) + 1.6 for image in images]
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            len(images), 2, figsize=(11, sum(heights) * _ROW_INCHES + 1.2), squeeze=False, sharey="row", sharex=True,
            height_ratios=heights, layout="constrained",
        )  # fmt: skip
        for axes, image in zip(grid, images, strict=True):
            rows = _rows(figures, image)
            for panel, phase in zip(axes, ("cold", "warm"), strict=True):
                _draw(panel, figures, image, phase, rows)
        _legend(figure, figures, images)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _peers(figures: Figures, image: Image) -> list[str]:
    there = figures.contenders(image.name)
    return [one.name for one in CONTENDERS if one.name in there and one is not VIEWFS]


def _rows(figures: Figures, image: Image) -> list[str]:
    """Measurements with something to compare."""
    return [
        measurement
        for measurement in (*MOUNTING, *MEASUREMENTS)
        if any(
            figures.ratio(image.name, peer, measurement, "cold") or figures.bound(image.name, peer, measurement, "cold")
            for peer in _peers(figures, image)
        )
    ]


def _draw(panel: Axes, figures: Figures, image: Image, phase: str, rows: Sequence[str]) -> None:
    peers = _peers(figures, image)
    for row, measurement in enumerate(rows):
        if row % 2 == 0:
            panel.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
        for number, peer in enumerate(peers):
            y = row + (number - (len(peers) - 1) / 2) * 0.76 / len(peers)
            if (bound := figures.bound(image.name, peer, measurement, phase)) is not None:
                panel.plot(bound, y, "<", color=_COLOURS[peer], markerfacecolor="white", markersize=6, zorder=3)
            ratio = figures.ratio(image.name, peer, measurement, phase)
            if ratio is None:
                continue
            panel.plot([ratio.low, ratio.high], [y, y], color=_COLOURS[peer], linewidth=1.6, alpha=0.55, zorder=2)
            panel.plot(ratio.median, y, "o", color=_COLOURS[peer], markersize=5, zorder=3)
    panel.axvline(1, color="#666666", linewidth=1, zorder=1)
    panel.set_xscale("log")
    panel.set_title(f"{image.title}: {phase}", loc="left", fontweight="bold", fontsize=10)
    panel.set_yticks(range(len(rows)), [title_of(measurement).replace("`", "") for measurement in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelbottom=True)
    panel.grid(axis="x", which="major", color="#dddddd", linewidth=0.7, zorder=0)
    panel.xaxis.set_major_locator(LogLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: plt.Figure, figures: Figures, images: Sequence[Image]) -> None:
    shown = {peer for image in images for peer in _peers(figures, image)}
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=5, linewidth=1.6, label=peer)
        for peer, colour in _COLOURS.items()
        if peer in shown
    ]
    handles.append(
        Line2D(
            [], [], color="#666666", marker="<", markerfacecolor="white", linewidth=0, label="less: it took too long"
        )
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel("time of viewfs / time of the other: ← viewfs takes less · viewfs takes longer →", fontsize=9)
