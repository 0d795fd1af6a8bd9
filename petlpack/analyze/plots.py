"""What a pack costs, as one figure for a report: SVG or PNG, the same bytes for the same pack.

Needs matplotlib (`pip install 'petlpack[report]'`), which is imported when a figure is written and not before. Only its
object-oriented side is used, in its own default style: what a program or a user has set for matplotlib changes nothing
here, and nothing here changes that.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from petlpack.analyze.forecast import Cost, Forecast
from petlpack.analyze.growth import FIRST_COUNTS, MOST_TASKS, Growth
from petlpack.analyze.output import new_file, refuse_suffix
from petlpack.analyze.rows import TaskRow
from petlpack.errors import PetlpackError, UsageError, printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from petlpack.analyze.stats import Stats

SUFFIXES = (".svg", ".png")
MOST_BARS = 15
"""Tasks with a bar of their own; one more is shown, several are their mean."""
STEPS = 16
"""Places in each power of ten where the curve of a pack is drawn."""
MOST_TICKS = 7
MOST_DRAWN = 1000
"""Points beyond which an SVG holds them as an image: 10,000 take 40 kB so, and 1 MB as shapes."""
MOST_SCORE = 1e12
"""Scores beyond are none that a linear axis could show."""
MOST_BYTES = 1e36
"""Bytes beyond are not drawn: a rank, or what a run states of its base, can make them as large as numbers get."""
LEAST_SHARE = 0.01
"""Where the band of a forecast ends below: zero has no place on a logarithmic axis."""
LONGEST = 24
"""Characters of a name that are shown."""

PACK, LORA, DENSE = "#0072B2", "#D55E00", "#009E73"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7")
"""Of methods and kinds of sections. All are from the palette of Okabe and Ito (2008), made for colour-blind people."""
OTHERS = "#000000"
"""Of those that have no colour of their own."""
PARTS = {"head": "#D55E00", "kept files": "#F0E442", "manifest, header": "#666666", "share of shared parts": "#BBBBBB"}
"""What of a task is not its method's payload, with its colour."""

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "figure.dpi": 120,
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 120,
    "svg.fonttype": "none",
    "svg.hashsalt": "petlpack",
    "text.parse_math": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
MARGIN = 0.025
"""Share of a logarithmic axis that lies before its first and behind its last value: room for half a mark."""
WIDTH = 10.0
"""Inches, of which a legend beside its panel takes about a third."""

Entries = list[tuple["Artist", str]]
Panel = tuple[float, "Callable[[Axes], Entries]"]
"""Height in inches, and what draws it and returns the entries of its legend."""


def write_plot(path: Path, stats: Stats, forecast: Forecast | None = None) -> None:
    """Write a figure of what a pack costs, and will cost, to a new or replaced file: `.svg` or `.png`.

    Raises UsageError for another suffix, for what `new_file` refuses and for a pack without a task that can be read,
    PetlpackError without matplotlib, and OSError where the file cannot be written; then nothing is left behind.
    """
    refuse_suffix(path, SUFFIXES, "a plot")
    suffix = path.suffix.lower()
    if not stats.tasks or stats.growth is None:
        raise UsageError(f"pack '{printable(stats.pack)}' has no task to plot", hint="encode a run first")
    try:
        import matplotlib.style
    except ImportError as error:
        raise PetlpackError(
            "plots need matplotlib, which cannot be imported", hint="pip install 'petlpack[report]'"
        ) from error
    image, title = io.BytesIO(), _title(stats)
    with matplotlib.style.context(["default", STYLE]):
        figure = _figure(title, list(_panels(stats, stats.growth, forecast)))
        metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": "petlpack", "Title": title}
        figure.savefig(image, format=suffix[1:], metadata=metadata)
    with new_file(path, stats.pack) as temporary:
        temporary.write_bytes(image.getvalue())


def _title(stats: Stats) -> str:
    name = _shown(Path(stats.pack).resolve().name or "pack")
    return f"{name}: {_count(len(stats.tasks), 'task')}, {_bytes(stats.disk_bytes)} on disk"


def _figure(title: str, panels: Sequence[Panel]) -> Figure:
    """Draw panels below one another, each with its legend beside it."""
    from matplotlib.figure import Figure

    heights = [height for height, _ in panels]
    figure = Figure((WIDTH, 0.4 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr, call-arg]
    figure.suptitle(title, fontsize=12)
    column = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (_, draw) in zip(column, panels, strict=True):
        entries = draw(axes)
        axes.legend(*zip(*entries, strict=True), loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


def _panels(stats: Stats, growth: Growth, forecast: Forecast | None) -> Iterator[Panel]:
    """Yield the panels that have something to show."""
    yield 3.6, lambda axes: _draw_amortized(axes, stats, growth)
    yield 1.0 + 0.23 * min(len(stats.tasks) + 1, MOST_BARS + 2), lambda axes: _draw_tasks(axes, stats.tasks)
    scored = [row for row in stats.tasks if row.score is not None and abs(row.score.value) <= MOST_SCORE]
    if scored:
        yield 3.6, lambda axes: _draw_scores(axes, scored)
    if forecast is not None:
        yield 3.6, lambda axes: _draw_forecast(axes, forecast, stats)


# Panels


def _draw_amortized(axes: Axes, stats: Stats, growth: Growth) -> Entries:
    """Draw bytes a task against tasks: the pack, a LoRA each, a dense model each, and where they cross."""
    crossings = stats.break_even
    marks = [count for count in (growth.tasks, crossings.lora, crossings.dense) if count is not None]
    last = min(max(FIRST_COUNTS, 10 * max(marks)), MOST_TASKS)
    entries, seen = _draw_growth(axes, growth, last, _drawn(stats.base_bytes) if stats.dense_bytes else None)
    dense = "dense models,\nthe base counted with the pack"
    for nbytes, crossing, colour, style, label, other in (
        (_drawn(stats.lora_bytes), crossings.lora, LORA, "--", f"one LoRA of rank {stats.lora_rank} a task", "LoRA"),
        (_drawn(stats.dense_bytes), crossings.dense, DENSE, "-.", "one dense model a task", dense),
    ):
        if nbytes:
            seen.append(nbytes)
            (line,) = axes.plot((1, last), (nbytes, nbytes), color=colour, linestyle=style)
            entries.append((line, f"{label}: {_bytes(nbytes)}"))
        if nbytes and crossing is not None:
            (point,) = axes.plot(crossing, nbytes, "D", color=colour)
            entries.append((point, f"from {_count(crossing, 'task')} on smaller than {other}"))
    axes.set(title="Bytes a task", xlabel="tasks", ylabel="bytes a task")
    _log_axis(axes, "x", (1, last), _number)
    _log_axis(axes, "y", seen, _bytes)
    return entries


def _draw_growth(axes: Axes, growth: Growth, last: int, base: float | None) -> tuple[Entries, list[float]]:
    """Draw bytes a task of a pack up to `last` tasks, without and with a base; returns them, too."""
    powers = range(STEPS * (len(str(last)) - 1) + 1)
    counts = sorted({growth.tasks, last, *(round(10 ** (power / STEPS)) for power in powers)})
    each, known = [growth.at(count) / count for count in counts], counts.index(growth.tasks)
    (now,) = axes.plot(growth.tasks, each[known], "o", color=PACK)
    entries: Entries = [(now, f"this pack: {_count(growth.tasks, 'task')} of {_bytes(each[known])}")]
    if known:
        (line,) = axes.plot(counts[: known + 1], each[: known + 1], color=PACK)
        entries.append((line, "some of its tasks"))
    (line,) = axes.plot(counts[known:], each[known:], color=PACK, linestyle=":")
    entries.append((line, "more tasks of the same mix"))
    if not base:
        return entries, each
    whole = [nbytes + base / count for nbytes, count in zip(each, counts, strict=True)]
    (line,) = axes.plot(counts, whole, color=PACK, linewidth=0.8)
    return [*entries, (line, "the same with the base, once")], each + whole


def _draw_tasks(axes: Axes, tasks: Sequence[TaskRow]) -> Entries:
    """Draw a bar for each of the biggest tasks, stacked by what its bytes are for; the other tasks as their mean."""
    rows = sorted(tasks, key=lambda row: (-row.bytes.takes, row.name))
    most = MOST_BARS if len(rows) > MOST_BARS + 1 else len(rows)
    bars, others = [_parts([row]) for row in rows[:most]], rows[most:]
    names = [_shown(row.name) for row in rows[:most]]
    if others:
        bars.append({part: nbytes / len(others) for part, nbytes in _parts(others).items()})
        names.append(f"mean of {len(others):,} others,\n{_bytes(sum(row.bytes.takes for row in others))} in all")
    ends = [0.0] * len(bars)
    entries: Entries = []
    for label, colour, members in _layers(_parts(rows)):
        widths = [float(sum(parts[member] for member in members if member in parts)) for parts in bars]
        entries.append((axes.barh(range(len(bars)), widths, 0.75, ends, color=colour).patches[0], label))
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, end in enumerate(ends):
        axes.annotate(_bytes(end), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(title="Bytes by task and section", xlabel="bytes", ylim=(len(bars) - 0.4, -0.6))
    axes.set_yticks(range(len(bars)), names)
    axes.tick_params("y", length=0)
    axes.grid(False, axis="y")
    _linear_axis(axes, max(ends))
    return entries


def _draw_scores(axes: Axes, scored: Sequence[TaskRow]) -> Entries:
    """Draw the scores of one metric, the commonest, against bytes: a point for each task."""
    metrics = Counter(row.score.metric for row in scored if row.score is not None)
    metric = min(metrics, key=lambda name: (-metrics[name], name))
    rows = [row for row in scored if row.score is not None and row.score.metric == metric]
    left = len(scored) - len(rows)
    methods = Counter(row.method for row in rows)
    entries: Entries = []
    for label, colour, members in _coloured(methods, "methods"):
        drawn = [
            (float(row.bytes.takes), row.score.value) for row in rows if row.score is not None and row.method in members
        ]
        places, values = zip(*drawn, strict=True)
        many = len(rows) > MOST_DRAWN
        points = axes.scatter(places, values, 6 if many else 24, color=colour, alpha=0.75, linewidth=0)
        points.set_rasterized(many)
        entries.append((points, f"{label} ({_count(len(drawn), 'task')})"))
    note = f" ({_count(left, 'task')} of other metrics left out)" if left else ""
    axes.set(title=f"Score against bytes{note}", xlabel="bytes of the task, with its share of shared parts")
    axes.set_ylabel(_shown(metric))
    _log_axis(axes, "x", [row.bytes.takes for row in rows], _bytes)
    return entries


def _draw_forecast(axes: Axes, forecast: Forecast, stats: Stats) -> Entries:
    """Draw total bytes against tasks: the pack with the band of 95 %, a LoRA each, a dense model each."""
    rows = sorted(forecast.rows, key=lambda row: row.tasks)
    counts = [row.tasks for row in rows]
    entries: Entries = []
    seen: list[float] = []
    for colour, style, label, costs in (
        (PACK, "-", "this pack's mix", [row.pack for row in rows]),
        (LORA, "--", f"one LoRA of rank {stats.lora_rank} a task", [row.lora for row in rows]),
        (DENSE, "-.", "one dense model a task", [row.dense for row in rows]),
    ):
        totals = [float(cost.bytes) for cost in costs if cost is not None and _drawn(cost.bytes) is not None]
        if costs[-1] is not None and len(totals) == len(counts):
            (line,) = axes.plot(counts, totals, color=colour, linestyle=style, marker="o", markersize=3.5)
            entries.append((line, f"{label}: {_total(costs[-1])}"))
            seen += totals
    if forecast.error is not None:
        lows, highs = (
            [min(row.pack.bytes * (1 + sign * forecast.error), MOST_BYTES) for row in rows] for sign in (-1, 1)
        )
        lows = [max(low, row.pack.bytes * LEAST_SHARE) for low, row in zip(lows, rows, strict=True)]
        band = axes.fill_between(counts, lows, highs, color=PACK, alpha=0.2, linewidth=1)
        entries.insert(1, (band, f"its 95 % band: ± {100 * forecast.error:.3g} %"))
        seen += [*lows, *highs]
    axes.set(title=f"Storage to come, up to {_count(counts[-1], 'task')}", xlabel="tasks", ylabel="bytes in all")
    _log_axis(axes, "x", counts, _number)
    _log_axis(axes, "y", seen, _bytes)
    return entries


def _total(cost: Cost) -> str:
    if cost.monthly is None or not math.isfinite(cost.monthly):
        return _bytes(cost.bytes)
    return f"{_bytes(cost.bytes)}, {_money(cost.monthly)} a month"


# What is drawn


def _drawn(nbytes: float | None) -> float | None:
    """Return bytes, or None where they are not known or are more than an axis could show."""
    return nbytes if nbytes is not None and nbytes <= MOST_BYTES else None


def _parts(rows: Iterable[TaskRow]) -> dict[str, float]:
    """Return the bytes of tasks by what they are for."""
    parts: Counter[str] = Counter()
    for row in rows:
        for section in row.sections:
            parts[section.kind] += section.nbytes
        parts["kept files"] += row.bytes.files
        parts["manifest, header"] += row.bytes.header
        parts["share of shared parts"] += row.bytes.share
    return {**parts}


def _layers(parts: Mapping[str, float]) -> Iterator[tuple[str, str, Collection[str]]]:
    """Yield label, colour and parts of each layer of bars: the method's sections first."""
    yield from _coloured({part: nbytes for part, nbytes in parts.items() if part not in PARTS}, "kinds of sections")
    yield from ((part, colour, [part]) for part, colour in PARTS.items() if parts.get(part))


def _coloured(weights: Mapping[str, float], noun: str) -> Iterator[tuple[str, str, Collection[str]]]:
    """Yield label, colour and names: each of the heaviest names by itself, the others in one."""
    names = sorted(weights, key=lambda name: (-weights[name], name))
    yield from ((_shown(name), colour, [name]) for name, colour in zip(names, COLOURS, strict=False))
    others = frozenset(names[len(COLOURS) :])
    if others:
        yield f"{len(others):,} other {noun}", OTHERS, others


# Axes and texts


def _log_axis(axes: Axes, name: Literal["x", "y"], values: Iterable[float], label: Callable[[float], str]) -> None:
    """Make an axis logarithmic, from the round number below the values to the one above, with a few labelled ticks."""
    steps = _steps(*_ends(values))
    decades = [step for step in steps if str(step).strip("0") == "1"]
    ladders = (steps, *(decades[::every] for every in range(1, len(steps))))
    ticks = next(ladder for ladder in ladders if len(ladder) <= MOST_TICKS)
    margin = (steps[-1] / steps[0]) ** MARGIN
    axes.set(**{f"{name}lim": (steps[0] / margin, steps[-1] * margin), f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_ticks([*map(float, ticks)], [label(tick) for tick in ticks])
    axis.minorticks_off()


def _linear_axis(axes: Axes, most: float) -> None:
    """Let the x axis begin at zero, with a few ticks in bytes and room for a text behind the longest bar."""
    end = 1.2 * max(most, 1)
    step = next(step for step in _steps(1, end) if step * MOST_TICKS > end)
    ticks = range(0, math.ceil(end), step)
    axes.set_xlim(0, end)
    axes.set_xticks([*map(float, ticks)], [_bytes(tick) for tick in ticks])


def _ends(values: Iterable[float]) -> tuple[float, float]:
    """Return the smallest and the largest value, at least 1: zero has no place on a logarithmic axis."""
    places = [max(value, 1) for value in values]
    return min(places), max(places)


def _steps(low: float, high: float) -> list[int]:
    """Return 1, 2, 5 times powers of ten, at least two, from the last up to `low` to the first from `high` on."""
    steps = [digit * 10**power for power in range(len(f"{high:.0f}") + 1) for digit in (1, 2, 5)]
    first = max(place for place, step in enumerate(steps) if step <= low)
    last = min(place for place, step in enumerate(steps) if step >= high)
    return steps[first : max(last, first + 1) + 1]


def _bytes(nbytes: float) -> str:
    """Return bytes with a decimal unit and three digits: 999 B, 1 kB, 12.5 MB."""
    power = 0
    while nbytes >= 999.5 and power < len(UNITS) - 1:
        nbytes, power = nbytes / 1000, power + 1
    return f"{nbytes if power else round(nbytes):.3g} {UNITS[power]}"


def _number(value: float) -> str:
    """Return a whole round number: 10,000, 5M, 1tn."""
    for scale, name in ((1e12, "tn"), (1e9, "bn"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:,.0f}{name}"
    return f"{value:,.0f}"


def _money(value: float) -> str:
    return f"{value:,.2f}" if 1 <= value < 1e9 else f"{value:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shown(text: str) -> str:
    """Return a text of anyone as one short line: what has no glyph is escaped, the middle of a long one left out."""
    known = _glyphs()
    text = "".join(c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in printable(text))
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}"


@lru_cache(1)
def _glyphs() -> frozenset[int]:
    """Return the characters of matplotlib's own font: it warns of any other."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
