"""The experiment's two figures, as SVG: the same bytes for the same results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from data import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from report import Line

from petlpack.analyze.plots import STYLE

GROUPS = (
    ("#666666", "o", ("full", "last-layer", "bitfit", "adapter", "lora")),
    ("#0072B2", "s", ("propetl",)),
    ("#E69F00", "^", ("adamix",)),
    ("#009E73", "D", ("diff",)),
    ("#CC79A7", "P", ("pha",)),
)
"""Families of rows: colour (Okabe and Ito 2008), mark, how their ids begin."""
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def _group(line: Line) -> tuple[str, str]:
    """Return the colour and the mark of a row's family."""
    return next((colour, mark) for colour, mark, ids in GROUPS if any(line.row.id.startswith(start) for start in ids))


def _numbered(found: Sequence[Line]) -> list[tuple[int, Line]]:
    """Return the rows trained on all examples with their numbers, which both figures have in common."""
    return list(enumerate((line for line in found if line.row.examples is None and not line.row.check), 1))


def _save(path: Path, draw: Callable[[Axes], None]) -> None:
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(10.0, 5.2), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.xaxis.label.set_fontsize(9)
        figure.legend(loc="outside right center", fontsize=7)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "petlpack", "Title": path.stem})


def _bytes(value: float, _: object = None) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def draw_scores(path: Path, found: Sequence[Line]) -> None:
    """Draw accuracy against bytes a task, a point for each row trained on all examples, with the seeds' spread."""

    def draw(axes: Axes) -> None:
        for number, line in _numbered(found):
            colour, mark = _group(line)
            label = f"{number}  {line.row.title}"
            axes.errorbar(
                line.takes, line.mean, yerr=line.spread, fmt=mark, color=colour, capsize=2, markersize=5, label=label
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_bytes)
        axes.set_xlabel("bytes a task in a pack of five, head and share of shared parts with it")
        axes.set_ylabel("test accuracy, mean of five tasks, %")
        axes.set_title("Score against bytes a task (bars: the seeds)")
        _put_numbers(axes, _numbered(found))

    _save(path, draw)


def _put_numbers(axes: Axes, numbered: Sequence[tuple[int, Line]]) -> None:
    """Write each point's number beside it, on the side where it is farthest from points and other numbers."""
    pixels = axes.figure.dpi / 72
    points = [axes.transData.transform((line.takes, line.mean)) / pixels for _, line in numbered]
    taken = list(points)
    for (number, line), point in zip(numbered, points, strict=True):
        others = [other for other in taken if other is not point]
        x, y = max(SIDES, key=lambda side: min(FAR, *(math.dist(point + side, other) for other in others)))
        taken.append(np.add(point, (x, y)))
        axes.annotate(
            str(number),
            (line.takes, line.mean),
            xytext=(x, y),
            textcoords="offset points",
            fontsize=8,
            color=_group(line)[0],
            ha="center",
            va="center",
        )


SIDES = ((10, 6), (-10, 6), (10, -6), (-10, -6), (14, 0), (-14, 0), (10, 14), (-10, -14))
"""Where a number may stand, in points from its mark."""
FAR = 12
"""A number that is so many points from all others is far enough."""


def draw_amortised(path: Path, found: Sequence[Line]) -> None:
    """Draw bytes a task, the shared parts divided by the number of tasks, against that number."""

    def draw(axes: Axes) -> None:
        styles = ("-", "--", ":", "-.")
        seen: dict[str, int] = {}
        for number, line in _numbered(found):
            colour, _ = _group(line)
            style = styles[seen.get(colour, 0) % len(styles)]
            seen[colour] = seen.get(colour, 0) + 1
            own = line.takes - line.part("share")
            takes = [own + line.shared / count for count in COUNTS]
            axes.plot(COUNTS, takes, style, color=colour, linewidth=1.3, label=f"{number}  {line.row.title}")
            at = (1.15 + 0.25 * (number % 6)) * COUNTS[-1]  # side by side: many lines end at nearly one height
            axes.annotate(str(number), (at, takes[-1]), fontsize=7, color=colour, va="center", ha="center")
        dense = found[0].bytes[0]["dense"]
        axes.plot(COUNTS, [dense for _ in COUNTS], color="#000000", linewidth=1, label="a whole model each")
        axes.axvline(len(TASKS), color="#BBBBBB", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(0.85, 3 * COUNTS[-1])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(_bytes)
        axes.set_xlabel("tasks (measured: 5)")
        axes.set_ylabel("bytes a task, the base not counted")
        axes.set_title("Bytes a task as tasks grow, shared parts spread over them")

    _save(path, draw)
