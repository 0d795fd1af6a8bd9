"""`petlpack stats`: what a pack costs, to the byte; also another spelling of `survey` and of `forecast`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

import petlpack
from petlpack_cli.command import (
    PATH,
    base_option,
    command,
    every_row_option,
    figure_options,
    jobs_option,
    max_bytes_option,
    price_options,
)
from petlpack_cli.forecast import forecast_pack
from petlpack_cli.output import Output
from petlpack_cli.survey import survey_runs

KEYS = ("task", "method", "codec", "section", "tensor")
"""What a table can be by, as in the library, which is not imported for the help."""

OF_TABLE = ("by", "sort", "filters", "csv", "md", "bounds")
OF_FORECAST = ("price", "egress", "growth")
OF_BOTH = ("lora_rank", "plot", "html")
"""Options that the account of a pack and its forecast have in common."""


@dataclass(frozen=True)
class AskedTable:
    """The one table that the options ask for, if they do."""

    by: str | None
    sort: str | None
    filters: tuple[str, ...]
    csv: bool
    md: bool
    bounds: bool

    @property
    def key(self) -> str | None:
        """What the table is by; None where the whole account is asked for."""
        if self.by is None and not (self.bounds or self.sort or self.filters or self.csv or self.md):
            return None
        return self.by or ("section" if self.bounds else "task")

    @property
    def columns(self) -> list[str]:
        """The columns that the sort and the filters are about, which are shown, too."""
        words = [self.sort or "", *self.filters]
        return [match[0] for word in words if (match := re.match("[a-z_]+", word.strip()))]


@command(
    "stats",
    "petlpack stats glue.pack",
    "petlpack stats glue.pack --by section --bounds --base models/bert-base",
    "petlpack stats glue.pack --filter 'method=PROPETL*' --sort total --csv",
    "petlpack stats glue.pack --html glue.html --plot glue.svg",
)
@click.argument("paths", metavar="[PACK]", nargs=-1, type=PATH)
@click.option("--task", metavar="NAME", help="One task: its sections and the shared parts it uses.")
@click.option("--by", type=click.Choice(KEYS), help="One table: bytes by task, method, codec, section or tensor.")
@click.option("--sort", metavar="COLUMN[:asc|desc]", help="Order the table by a column.")
@click.option(
    "--filter", "filters", metavar="EXPR", multiple=True, help="Rows to show: 'method=lora', 'total>1MB'; repeatable."
)
@every_row_option
@click.option("--csv", is_flag=True, help="The table with exact numbers as CSV.")
@click.option("--md", is_flag=True, help="The table as Markdown.")
@click.option("--at", metavar="N,N", help="Also show bytes per task at these numbers of tasks.")
@base_option("The pretrained model: for its size where the tasks do not record it, and for --bounds.")
@click.option("--bounds", is_flag=True, help="Decode every section and show its entropy bound; slow.")
@figure_options
@click.option("--forecast", metavar="N..N", hidden=True)
@price_options(hidden=True)
@max_bytes_option
@jobs_option(hidden=True)
def run(
    out: Output, paths: tuple[Path, ...], base: Path | None, everything: bool, jobs: int | None, **options: Any
) -> int | None:
    """Account for every byte of a pack.

    The pack is $PETLPACK_PACK by default, else ./pack. Shows what each task takes as payload, head, kept files, header
    and share of what tasks have in common, which adds up to the sizes of all files; what a task costs as tasks are
    added, what the next one will take, and from how many tasks on the pack takes less than dense models or LoRAs. No
    weights are decoded, except with --bounds. docs/accounting.md defines every figure.

    Directories that were never packed are accounted for as by `petlpack survey`.
    """
    pack = _pack_of(paths)
    if pack is None:
        _refuse(options, options, f"needs a pack, but '{paths[0]}' is not a pack")
        return survey_runs(out, paths, None if base is None else [base], everything, jobs)
    if jobs is not None:
        raise click.UsageError("--jobs works with `petlpack survey` only", click.get_current_context())
    if options["task"] is not None:
        _refuse(set(options) - {"task", "bounds", "max_bytes"}, options, "cannot be used with --task")
        _one_task(out, pack, base, options["task"], bounds=options["bounds"], max_bytes=options["max_bytes"])
        return None
    both = {name: options[name] for name in OF_BOTH}
    if options["forecast"] is not None:
        _refuse((*OF_TABLE, "at"), options, "cannot be used with a forecast")
        prices = {name: options[name] for name in OF_FORECAST}
        return forecast_pack(out, pack, options["forecast"], base, **prices, **both)
    _refuse(OF_FORECAST, options, "works with `petlpack forecast` only")
    asked = AskedTable(**{field.name: options[field.name] for field in fields(AskedTable)})
    if asked.key is not None:
        _refuse(["at"], options, "cannot be used with a single table")
    return _account(out, pack, base, everything, asked, at=options["at"], max_bytes=options["max_bytes"], **both)


def _refuse(names: Iterable[str], options: Mapping[str, object], why: str) -> None:
    """Raise UsageError for the first of some options that was given; a price of 0 was."""
    for name, value in options.items():
        if name in names and value is not None and value is not False and value != ():
            flag = {"filters": "filter", "price": "price-per-gb-month"}.get(name, name.replace("_", "-"))
            raise click.UsageError(f"--{flag} {why}", click.get_current_context())


def _pack_of(paths: Sequence[Path]) -> Path | None:
    """Return the pack that is meant; None where directories are that were never packed."""
    if not paths:
        return Path(os.environ.get("PETLPACK_PACK") or "pack")
    if len(paths) == 1 and not paths[0].exists():
        raise petlpack.UsageError(
            f"no pack or run at '{petlpack.printable(str(paths[0]))}'",
            hint="give a pack, or output directories of training runs",
        )
    packs = [path for path in paths if petlpack.is_pack(path)]
    if packs and len(paths) > 1:
        raise petlpack.UsageError(
            f"got {len(paths)} paths, but '{petlpack.printable(str(packs[0]))}' is a pack, which must be given alone",
            hint="give one pack, or directories of runs",
        )
    return packs[0] if packs else None


def _account(
    out: Output,
    pack: Path,
    base: Path | None,
    everything: bool,
    asked: AskedTable,
    *,
    at: str | None,
    max_bytes: int | None,
    lora_rank: int | None,
    plot: Path | None,
    html: Path | None,
) -> int | None:
    """Print the whole account of a pack, or the one table that is asked for; returns the exit code."""
    from petlpack_cli.output import figures, pack_stats

    _refuse_together(csv=asked.csv, md=asked.md, json=out.as_json)
    if asked.bounds and asked.key != "section":
        raise click.UsageError("--bounds needs --by section", click.get_current_context())
    figures.refuse_one_file(plot, html)
    opened = None if base is None else petlpack.Base(base)
    counts = [] if at is None else petlpack.parse_counts(at)
    with out.progress() as progress:
        moved = progress.bytes(str(pack))
        stats = petlpack.stats(pack, opened, at=counts, lora_rank=lora_rank, max_bytes=max_bytes, progress=moved)
        table = None if asked.key is None else _table(stats, asked, opened, progress.bytes(str(pack)))
    errors = {**stats.errors, **({} if table is None else table.failed)}
    if plot is not None:
        figures.refuse_nothing_readable(stats, errors)
    figures.write_figures(out, stats, None, plot, html)
    if out.as_json:
        out.json(stats.to_json(table))
    elif table is not None:
        pack_stats.print_table(out, table, everything, asked.columns, csv=asked.csv, md=asked.md)
    else:
        pack_stats.print_pack(out, stats, everything, counts)
    return figures.told_damage(out, errors)


def _table(
    stats: petlpack.Stats, asked: AskedTable, base: petlpack.Base | None, moved: Callable[[int, int], None] | None
) -> petlpack.Table:
    """Return the one table that is asked for."""
    return stats.table(
        asked.key or "task", filters=asked.filters, sort=asked.sort, bounds=asked.bounds, base=base, progress=moved
    )


def _refuse_together(**formats: bool) -> None:
    chosen = [name for name, wanted in formats.items() if wanted]
    if len(chosen) > 1:
        raise click.UsageError(f"--{chosen[0]} and --{chosen[1]} cannot be used together", click.get_current_context())


def _one_task(out: Output, pack: Path, base: Path | None, task: str, *, bounds: bool, max_bytes: int | None) -> None:
    """Print the account of one task."""
    from petlpack_cli.output.one_task import print_one

    audit = petlpack.audit(pack, task, base, bounds=bounds, max_bytes=max_bytes)
    if out.as_json:
        out.json(audit.to_json())
    else:
        print_one(out, audit)
