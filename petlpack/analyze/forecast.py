"""What storage will take and cost when there are more tasks: this pack's mix, one LoRA a task, a dense model a task.

The model is `petlpack.analyze.growth`; docs/accounting.md states it with a worked example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from petlpack.analyze.growth import MOST_TASKS, Growth, counts_up_to
from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import TEXT, check, number, optional

if TYPE_CHECKING:
    from petlpack.analyze.stats import Stats

GB = 1e9
"""Bytes of a gigabyte, as disks and clouds are sold."""

LEAST_NUMBER, MOST_NUMBER = 1e-9, 1e12
"""Prices and growth beyond these are slips of a finger, and would make figures that nobody can print."""

DECADES = 3
"""A range of more powers of ten than this is told at powers of ten, a shorter one at 1, 2 and 5 times them, too."""


@dataclass(frozen=True)
class Cost:
    """What one way to keep tasks takes: bytes in all, money a month to keep them, money to send each task once."""

    bytes: int
    bytes_per_task: int
    monthly: float | None
    transfer: float | None


@dataclass(frozen=True)
class ForecastRow:
    """So many tasks, the days until then, and what each way takes; None for a way or a price that is not known."""

    tasks: int
    days: float | None
    pack: Cost
    lora: Cost | None
    dense: Cost | None


@dataclass(frozen=True)
class Forecast:
    """What storage will take. `error` is the share by which the bytes of the pack may be off (95 %)."""

    rows: tuple[ForecastRow, ...]
    tasks_now: int
    error: float | None
    price_per_gb_month: float | None
    egress_per_gb: float | None
    growth_per_day: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the value of "forecast" in what `petlpack forecast --json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class _Rates:
    """What bytes cost and how fast tasks come; None where it was not said."""

    price_per_gb_month: float | None
    egress_per_gb: float | None
    growth_per_day: float | None

    def __post_init__(self) -> None:
        """Raise UsageError for a number that makes no sense."""
        names = {"price": self.price_per_gb_month, "egress price": self.egress_per_gb, "growth": self.growth_per_day}
        what = f"0, or from {LEAST_NUMBER:g} to {MOST_NUMBER:g}"
        rule = optional(number(what, lambda value: value == 0 or LEAST_NUMBER <= value <= MOST_NUMBER))
        for name, value in names.items():
            check(name, value, rule, "correct the number")

    def cost(self, nbytes: float, count: int) -> Cost:
        """Return what so many bytes of so many tasks cost."""
        monthly, transfer = (
            None if price is None else nbytes / GB * price for price in (self.price_per_gb_month, self.egress_per_gb)
        )
        return Cost(round(nbytes), round(nbytes / count), monthly, transfer)

    def days(self, more: int) -> float | None:
        """Return the days until there are so many more tasks."""
        return max(0.0, more / self.growth_per_day) if self.growth_per_day else None


def forecast(
    stats: Stats,
    counts: Sequence[int],
    *,
    price_per_gb_month: float | None = None,
    egress_per_gb: float | None = None,
    growth_per_day: float | None = None,
) -> Forecast:
    """Foretell storage, monthly cost and transfer at these numbers of tasks; the base is not counted.

    Prices are for 10^9 bytes, in any currency. Raises UsageError for a number that makes no sense, and for a pack
    without a task that can be read.
    """
    growth = stats.growth
    if growth is None:
        raise UsageError(
            f"pack '{printable(stats.pack)}' has no readable task to forecast from", hint="encode a run first"
        )
    rates = _Rates(price_per_gb_month, egress_per_gb, growth_per_day)
    if not counts or not all(1 <= count <= MOST_TASKS for count in counts):
        raise UsageError(
            f"numbers of tasks must be from 1 to {MOST_TASKS:,}, got {list(counts)}",
            hint="give at least one number, such as 100",
        )
    rows = tuple(_row(stats, growth, rates, count) for count in counts)
    error = growth.error if math.isfinite(growth.error) else None
    return Forecast(rows, growth.tasks, error, price_per_gb_month, egress_per_gb, growth_per_day)


def _row(stats: Stats, growth: Growth, rates: _Rates, count: int) -> ForecastRow:
    def each(nbytes: float | None) -> Cost | None:
        return None if nbytes is None else rates.cost(count * nbytes, count)

    pack = rates.cost(growth.at(count), count)
    return ForecastRow(count, rates.days(count - growth.tasks), pack, each(stats.lora_bytes), each(stats.dense_bytes))


def parse_counts(text: str) -> list[int]:
    """Parse `1e2..1e6`, or `100,2000`, into numbers of tasks, rising; raises UsageError for anything else."""
    check("text", text, TEXT, "write a range, 1e2..1e6, or a list, 10,100")
    span = text.split("..")
    if len(span) == 2:
        first, last = map(_parse_count, span)
        if first > last:
            raise UsageError(
                f"range of tasks goes down, from {first:,} to {last:,}", hint="give the smaller number first"
            )
        steps = [count for count in counts_up_to(last) if count >= first]
        if last > first * 10**DECADES:
            steps = [count for count in steps if math.log10(count).is_integer()]
        return sorted({first, *steps, last})
    return sorted({_parse_count(word) for word in text.split(",")})


def _parse_count(word: str) -> int:
    try:
        value = float(word)
        count = int(value)
    except (ValueError, OverflowError):
        count, value = 0, math.nan
    if count != value or not 1 <= count <= MOST_TASKS:
        raise UsageError(
            f"numbers of tasks must be integers from 1 to {MOST_TASKS:,}, got '{printable(word)}'",
            hint="write a range, 1e2..1e6, or a list, 10,100",
        )
    return count
