"""What `petlpack forecast` prints: what storage will take, and where a price is given what it will cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from petlpack_cli.output import Output
from petlpack_cli.output.sizes import count, ratio, size

if TYPE_CHECKING:
    from petlpack import Forecast

SCALE = 20
"""Characters of the scale on which a forecast's bytes are shown."""


def print_forecast(out: Output, forecast: Forecast) -> None:
    """Print what storage will take, and cost where a price is given."""
    _print_costs(out, forecast, "Storage", "bytes")
    if forecast.price_per_gb_month is not None:
        out.line()
        _print_costs(out, forecast, "Cost per month", "monthly")
    if forecast.egress_per_gb is not None:
        out.line()
        _print_costs(out, forecast, "Cost to send all once", "transfer")
    if not out.quiet:
        out.line()
        out.line(_reliability(forecast))
        out.line(_conclusion(forecast))


def _reliability(forecast: Forecast) -> str:
    """Say what the forecast is made from, and how far it may be off."""
    source = f"Predicted from {count(forecast.tasks_now, 'task')} of this mix"
    if forecast.error is None:
        return f"{source}, which does not show how much tasks differ."
    return f"{source}; the pack's figures may be off by {100 * forecast.error:.2g} % (95 % confidence)."


def _conclusion(forecast: Forecast) -> str:
    """Say in one sentence what the largest number of tasks takes."""
    last = forecast.rows[-1]
    dense = days = ""
    if last.dense is not None:
        dense = f", as dense models {size(last.dense.bytes)} ({ratio(last.dense.bytes, last.pack.bytes)})"
    if last.days:
        days = f", in {_days(last.days)} days"
    takes = "takes" if last.tasks == 1 else "take"
    tasks = f"{count(last.tasks, 'task')} like these"
    return f"{tasks} {takes} {size(last.pack.bytes)}{dense}{days}; the base is not counted."


def _print_costs(out: Output, forecast: Forecast, title: str, figure: str) -> None:
    """Print one figure of every way to keep tasks; of bytes also where they lie on a scale of powers of ten."""
    in_bytes, dated = figure == "bytes", forecast.growth_per_day is not None
    figures: list[dict[str, float | None]] = [
        {
            letter: None if cost is None else getattr(cost, figure)
            for letter, cost in (("P", row.pack), ("L", row.lora), ("D", row.dense))
        }
        for row in forecast.rows
    ]
    known = [value for row in figures for value in row.values() if value is not None]
    out.table(
        {
            **{title: "name"},
            **({"Day": "number"} if dated else {}),
            **{"This pack": "number", "LoRA each": "number", "Dense each": "number"},
            **({"Pack, LoRA, Dense": "text"} if in_bytes else {}),
        },
        [
            (
                count(row.tasks, "task"),
                *([_days(row.days)] if dated else []),
                *("-" if value is None else size(value) if in_bytes else _money(value) for value in values.values()),
                *([_on_scale(values, min(known), max(known))] if in_bytes else []),
            )
            for row, values in zip(forecast.rows, figures, strict=True)
        ],
    )


def _on_scale(values: dict[str, float | None], least: float, most: float) -> str:
    """Return a line with each letter where its value lies between `least` and `most`, by powers; the first wins."""
    line = ["."] * SCALE
    for letter, value in reversed(values.items()):
        if value:
            span = math.log(most / least) or 1
            line[round((SCALE - 1) * math.log(value / least) / span)] = letter
    return "".join(line)


def _days(days: float | None) -> str:
    return "now" if not days else "<1" if days < 1 else f"{math.ceil(days):,}"


def _money(value: float) -> str:
    return "<0.01" if 0 < value < 0.01 else f"{value:,.2f}"
