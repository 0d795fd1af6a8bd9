"""`petlpack forecast`: what storage will take and cost when a pack has more tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import petlpack
from petlpack_cli.command import base_option, command, figure_options, pack_argument, price_options
from petlpack_cli.output import Output

COUNTS = "1e2..1e6"
"""Numbers of tasks that are foretold where none are given."""


@command(
    "forecast",
    "petlpack forecast glue.pack",
    "petlpack forecast glue.pack --at 1e2..1e6 --price-per-gb-month 0.023",
    "petlpack forecast glue.pack --at 500,5000 --growth 20/day --plot glue.svg",
)
@pack_argument()
@click.option(
    "--at", "counts", metavar="N..N", default=COUNTS, help=f"Numbers of tasks: {COUNTS} (the default), or 100,2000."
)
@base_option("The pretrained model, for its size where the tasks do not record it.")
@price_options()
@figure_options
def run(out: Output, pack: Path, counts: str, base: Path | None, **options: Any) -> int | None:
    """Predict storage and its cost as tasks are added, if they are like those of a pack.

    Compares this pack with one LoRA a task and with dense models; with --growth it also shows when each number of tasks
    is reached. No weights are decoded. docs/accounting.md states the model.
    """
    return forecast_pack(out, pack, counts, base, **options)


def forecast_pack(
    out: Output,
    pack: Path,
    counts: str,
    base: Path | None,
    *,
    price: float | None,
    egress: float | None,
    growth: str | None,
    lora_rank: int | None,
    plot: Path | None,
    html: Path | None,
) -> int | None:
    """Make a forecast from a pack and print it; returns the exit code."""
    from petlpack_cli.output import figures
    from petlpack_cli.output.forecast import print_forecast

    figures.refuse_one_file(plot, html)
    opened = None if base is None else petlpack.Base(base)
    with out.progress() as progress:
        stats = petlpack.stats(pack, opened, lora_rank=lora_rank, progress=progress.bytes(str(pack)))
    figures.refuse_nothing_readable(stats, stats.errors)
    forecast = stats.forecast(
        petlpack.parse_counts(counts),
        price_per_gb_month=price,
        egress_per_gb=egress,
        growth_per_day=None if growth is None else _per_day(growth),
    )
    figures.write_figures(out, stats, forecast, plot, html)
    if out.as_json:
        out.json(stats.to_json(forecast=forecast))
    else:
        print_forecast(out, forecast)
    return figures.told_damage(out, stats.errors)


def _per_day(text: str) -> float:
    number, _, unit = text.partition("/")
    try:
        if unit not in ("", "day"):
            raise ValueError(unit)
        return float(number)
    except ValueError:
        raise click.UsageError(f"--growth needs N/day, got '{text}'", click.get_current_context()) from None
