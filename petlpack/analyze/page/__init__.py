"""What a pack costs, as one page: a file of HTML that holds its style, its program and its data, and asks for nothing.

Every text of a pack is data in it: escaped here, and written by the page's program as text alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from petlpack.analyze.forecast import Cost, Forecast
from petlpack.analyze.output import new_file, refuse_suffix
from petlpack.analyze.rows import TaskRow
from petlpack.errors import printable
from petlpack.version import __version__

if TYPE_CHECKING:
    from petlpack.analyze.stats import Stats

SUFFIXES = (".html", ".htm")
UNSAFE = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&"}
"""What could end the element that the data stands in; the rest of JSON's text is ASCII."""

Named = Callable[[str], int]
"""Gives a text its number in the list of texts: methods and sections have few names and many tasks."""


def write_page(path: Path, stats: Stats, forecast: Forecast | None = None) -> None:
    """Write the page to a new or replaced file, `.html` or `.htm`; the same figures give the same bytes.

    Raises UsageError for another suffix and for what `new_file` refuses, and OSError where the file cannot be written;
    then nothing is left behind.
    """
    refuse_suffix(path, SUFFIXES, "a page")
    content = page(stats, forecast).encode()
    with new_file(path, stats.pack) as temporary:
        temporary.write_bytes(content)


def page(stats: Stats, forecast: Forecast | None = None) -> str:
    """Return the page as text. Its policy lets a browser run this one program, and load nothing."""
    css, js = _source("page.css"), _source("page.js")
    return Template(_source("page.html")).substitute(
        policy=f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=html.escape(_name(stats)),
        css=css,
        js=js,
        data=json.dumps(_data(stats, forecast), separators=(",", ":"), allow_nan=False).translate(UNSAFE),
    )


def _source(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _name(stats: Stats) -> str:
    """Return the path of the pack; of one like `.`, which names nothing, the directory's name."""
    path = Path(stats.pack)
    return printable((path.name not in ("", "..") and stats.pack) or path.resolve().name or stats.pack)


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _data(stats: Stats, forecast: Forecast | None) -> dict[str, Any]:
    """Return what the page shows; rows are lists, which page.js takes apart."""
    texts: dict[str, int] = {}

    def named(text: str) -> int:
        return texts.setdefault(printable(text), len(texts))

    return {
        "version": __version__,
        "pack": _name(stats),
        "disk": stats.disk_bytes,
        "other": stats.other_bytes,
        "lost": stats.damaged_bytes,
        "runs": sum(row.run_bytes for row in stats.tasks),
        "next": stats.marginal_bytes,
        "least": stats.least_marginal_bytes,
        "dense": _finite(stats.dense_bytes),
        "base": _finite(stats.base_bytes),
        "rank": stats.lora_rank,
        "even": {"dense": stats.break_even.dense, "lora": stats.break_even.lora, "runs": stats.break_even.runs},
        "tasks": [_task(row, named) for row in stats.tasks],
        "shared": [[row.sha256, printable(row.role), row.bytes, row.tasks] for row in stats.shared],
        "amortized": [
            [
                row.tasks,
                row.bytes_per_task,
                row.run_bytes_per_task,
                _finite(row.lora_bytes_per_task),
                _finite(row.dense_bytes_per_task),
            ]
            for row in stats.amortized
        ],
        "damaged": [[printable(name), printable(why)] for name, why in sorted(stats.damaged.items())],
        "forecast": None if forecast is None else _forecast(forecast),
        "texts": list(texts),
    }


def _task(row: TaskRow, named: Named) -> list[Any]:
    nbytes = row.bytes
    return [
        printable(row.name),
        named(row.method),
        named(row.codec),
        row.exact,
        _finite(row.error),
        nbytes.payload,
        nbytes.head,
        nbytes.files,
        nbytes.header,
        nbytes.share,
        _finite(row.dense_bytes),
        None if row.score is None else [row.score.value, named(row.score.metric)],
        [number for section in row.sections for number in (named(section.name), section.nbytes)],
    ]


def _forecast(forecast: Forecast) -> dict[str, Any]:
    return {
        "error": _finite(forecast.error),
        "price": forecast.price_per_gb_month,
        "egress": forecast.egress_per_gb,
        "daily": forecast.growth_per_day,
        "rows": [
            [row.tasks, _finite(row.days), _cost(row.pack), _cost(row.lora), _cost(row.dense)] for row in forecast.rows
        ],
    }


def _cost(cost: Cost | None) -> list[float | None] | None:
    return None if cost is None else [_finite(cost.bytes), _finite(cost.monthly), _finite(cost.transfer)]


def _finite(value: float | None) -> float | None:
    """Return the value; None for one that is infinite, or would be in the page: JSON cannot say it."""
    return value if value is not None and abs(value) <= sys.float_info.max else None
