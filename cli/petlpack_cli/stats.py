"""`petlpack stats`: what a pack costs, to the byte; what runs cost that were never packed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petlpack.errors import DamageError, UsageError, printable
from petlpack_cli.command import SOME_FAILED, base_option, command, jobs_option
from petlpack_cli.output import Output
from petlpack_cli.output.errors import describe, worst

if TYPE_CHECKING:
    import petlpack
    from petlpack.analyze.forecast import Forecast
    from petlpack.analyze.tables import Table

KEYS = ("task", "method", "codec", "section", "tensor")
"""What a table can be by, as in the library, which is not imported for the help."""

PACK_ONLY = (
    *("task", "by", "sort", "filters", "at", "lora_rank", "bounds", "forecast", "price", "egress", "growth", "plot"),
    *("html", "csv", "md"),
)
"""Options that make no sense for directories that were never packed."""


@command(
    "stats",
    "petlpack stats glue.pack",
    "petlpack stats glue.pack --by section --bounds --base models/bert-base",
    "petlpack stats glue.pack --filter 'method=PROPETL*' --sort total --csv",
    "petlpack stats glue.pack --forecast 1e2..1e6 --price-per-gb-month 0.023",
    "petlpack stats glue.pack --html glue.html --plot glue.svg",
    "petlpack stats runs/",
)
@click.argument("paths", metavar="PACK | RUN_DIR...", nargs=-1, type=click.Path())
@click.option("--task", metavar="NAME", help="One task: its sections and the parts that it needs.")
@click.option("--by", type=click.Choice(KEYS), help="One table: bytes by task, method, codec, section or tensor.")
@click.option("--sort", metavar="COLUMN[:asc|desc]", help="Order the table by a column.")
@click.option(
    "--filter", "filters", metavar="EXPR", multiple=True, help="Rows to show: 'method=lora', 'total>1MB'; repeatable."
)
@click.option("--all", "everything", is_flag=True, help="Every row, not only the 20 biggest.")
@click.option("--csv", is_flag=True, help="The table with exact numbers as CSV.")
@click.option("--md", is_flag=True, help="The table as Markdown.")
@click.option("--at", metavar="N,N", help="Bytes a task at these numbers of tasks, too.")
@base_option("The pretrained model: its size, where the tasks do not tell; the prediction, for --bounds.")
@click.option("--bounds", is_flag=True, help="Decode every section and tell its entropy bound; takes time.")
@click.option("--lora-rank", metavar="R", type=click.IntRange(min=1), help="Rank of the LoRA compared with; 8.")
@click.option("--forecast", metavar="N..N", help="What storage takes at 1e2..1e6 tasks.")
@click.option("--price-per-gb-month", "price", metavar="X", type=float, help="Money for 10^9 bytes a month.")
@click.option("--egress", metavar="X", type=float, help="Money for sending 10^9 bytes.")
@click.option("--growth", metavar="N/day", help="New tasks a day: tells when a number of tasks is reached.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw an .svg or .png; needs matplotlib.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write one page with all figures.")
@jobs_option
def run(
    out: Output, paths: tuple[str, ...], base: Path | None, everything: bool, jobs: int | None, **options: Any
) -> int | None:
    """Account for every byte of a pack, or of directories that were never packed.

    Of a pack (by default $PETLPACK_PACK, else ./pack): what each task takes as payload, head, kept files, header and
    share of what tasks have in common; the sum is the sum of the sizes of all files. What a task costs as tasks grow,
    what the next one will take, and from how many tasks on the pack takes less than dense models or LoRAs. No weights
    are decoded, but for --bounds.

    Of anything else: what weights, training state, duplicates, tensors equal to the base, tokenizers and caches take.
    Nothing is unpickled. docs/accounting.md defines every figure.
    """
    pack = _pack_of(paths)
    if pack is None:
        _refuse(PACK_ONLY, options, f"is for a pack, and '{paths[0]}' is none")
        return _survey(out, [Path(path) for path in paths], base, everything, jobs)
    if jobs is not None:
        raise click.UsageError("--jobs is for directories of runs", click.get_current_context())
    if options["task"] is not None:
        _refuse([name for name in PACK_ONLY if name not in ("task", "bounds")], options, "does not go with --task")
        _one_task(out, pack, base, options["task"], bounds=options["bounds"])
        return None
    return _pack(out, pack, base, everything, **options)


def _refuse(names: Sequence[str], options: Mapping[str, object], why: str) -> None:
    """Raise UsageError for the first of some options that was given; a price of 0 was."""
    for name in names:
        if options[name] is not None and options[name] is not False and options[name] != ():
            flag = {"filters": "filter", "price": "price-per-gb-month"}.get(name, name.replace("_", "-"))
            raise click.UsageError(f"--{flag} {why}", click.get_current_context())


def _pack_of(paths: Sequence[str]) -> Path | None:
    """Return the pack that is meant; None where directories are that were never packed."""
    from petlpack.store import is_pack

    if not paths:
        return Path(os.environ.get("PETLPACK_PACK") or "pack")
    if "" in paths:
        raise UsageError("a path is empty", hint="look at the variable that it comes from")
    if len(paths) == 1 and not Path(paths[0]).exists():
        raise UsageError(
            f"no pack at '{printable(paths[0])}', and no run", hint="give a pack, or directories that trainings wrote"
        )
    packs = [path for path in paths if is_pack(Path(path))]
    if packs and len(paths) > 1:
        raise UsageError(
            f"'{printable(packs[0])}' is a pack among {len(paths)} paths", hint="give one pack, or directories of runs"
        )
    return Path(packs[0]) if packs else None


def _survey(out: Output, paths: Sequence[Path], base: Path | None, everything: bool, jobs: int | None) -> int | None:
    import petlpack
    from petlpack_cli.output.rows import MOST
    from petlpack_cli.output.survey import print_survey

    with out.progress() as progress:
        found = petlpack.survey(paths, base, jobs=jobs, progress=progress.bytes(str(paths[0])))
    if out.as_json:
        out.json(found.to_json())
    else:
        print_survey(out, found, None if everything else MOST)
    if found.runs or found.packs:
        return SOME_FAILED if found.problems else None
    if not out.as_json:
        click.echo(f"Error: no pack and no run in {', '.join(printable(str(path)) for path in paths)}", err=True)
        click.echo(
            "Hint: a run has model.safetensors, adapter_config.json with its adapter, or a checkpoint-N", err=True
        )
    return 1


def _pack(
    out: Output,
    pack: Path,
    base: Path | None,
    everything: bool,
    *,
    at: str | None,
    lora_rank: int | None,
    by: str | None,
    forecast: str | None,
    plot: Path | None,
    html: Path | None,
    **options: Any,
) -> int | None:
    import petlpack
    from petlpack.analyze.bases import LORA_RANK
    from petlpack.analyze.forecast import parse_counts
    from petlpack_cli.output import pack_stats

    prices = {name: options.pop(name) for name in ("price", "egress", "growth")}
    given = {"by": by, "at": at, **options}
    if forecast is None:
        _refuse(list(prices), prices, "is for --forecast")
    else:
        _refuse(("by", "sort", "filters", "csv", "md", "at", "bounds"), given, "does not go with --forecast")
    _refuse_together(out, csv=options["csv"], md=options["md"])
    key = _key(by, **options)
    if key is not None:
        _refuse(("at",), given, "does not go with one table")
    opened = None if base is None else petlpack.Base(base)
    with out.progress() as progress:
        counts = [] if at is None else parse_counts(at)
        rank = LORA_RANK if lora_rank is None else lora_rank
        found = petlpack.stats(pack, opened, at=counts, lora_rank=rank, progress=progress.bytes(str(pack)))
        table, failed = _table(found, key, opened, progress.bytes(str(pack)), **options)
    damaged = {**found.inventory.damaged, **failed}
    if not found.tasks and damaged and (forecast is not None or plot is not None):
        pack_stats.print_damaged(damaged)
        raise DamageError(f"pack '{printable(str(pack))}' has no task that can be read")
    seen = None if forecast is None else _forecast(found, forecast, **prices)
    _write(out, found, seen, plot, html)
    if out.as_json:
        shown = {} if table is None else table.to_json()
        out.json({**found.to_json(), **shown, **({} if seen is None else {"forecast": seen.to_json()})})
    elif table is not None:
        pack_stats.print_table(out, table, everything, _columns(options), csv=options["csv"], md=options["md"])
    elif seen is not None:
        pack_stats.print_forecast(out, found, seen)
    else:
        pack_stats.print_pack(out, found, everything, counts)
    if not out.as_json:
        pack_stats.print_damaged(damaged)
    return worst(describe(error) for error in damaged.values())


def _columns(options: Mapping[str, Any]) -> list[str]:
    """Return the columns that a sort and filters are about, which are shown, too."""
    words = [options["sort"] or "", *options["filters"]]
    return [match[0] for word in words if (match := re.match("[a-z_]+", word.strip()))]


def _key(
    by: str | None, *, bounds: bool, sort: str | None, filters: tuple[str, ...], csv: bool, md: bool, **_: object
) -> str | None:
    """Return what the one table that is asked for is by; None where the whole account is."""
    if by is None and not (bounds or sort or filters or csv or md):
        return None
    key = by or ("section" if bounds else "task")
    if bounds and key != "section":
        raise click.UsageError("--bounds is for --by section", click.get_current_context())
    return key


def _table(
    found: petlpack.Stats,
    key: str | None,
    base: petlpack.Base | None,
    progress: Any,
    *,
    bounds: bool,
    sort: str | None,
    filters: tuple[str, ...],
    **_: object,
) -> tuple[Table | None, Mapping[str, Exception]]:
    """Return the one table that is asked for, None where the whole account is, and what could not be decoded for it."""
    from petlpack.analyze import tables
    from petlpack.store import Store

    if key is None:
        return None, {}
    measured, failed = tables.measure(found, Store(found.pack), base, progress) if bounds else (None, {})
    table = tables.selected(tables.table_by(key, found, measured), filters)
    return table if sort is None else tables.ordered(table, sort), failed


def _forecast(
    found: petlpack.Stats, counts: str, *, price: float | None, egress: float | None, growth: str | None
) -> Forecast:
    from petlpack.analyze.forecast import forecast, parse_counts

    return forecast(
        found,
        parse_counts(counts),
        price_per_gb_month=price,
        egress_per_gb=egress,
        growth_per_day=None if growth is None else _per_day(growth),
    )


def _per_day(text: str) -> float:
    number, _, unit = text.partition("/")
    try:
        if unit not in ("", "day"):
            raise ValueError(unit)
        return float(number)
    except ValueError:
        raise click.UsageError(f"--growth wants N/day, not '{text}'", click.get_current_context()) from None


def _write(out: Output, found: petlpack.Stats, seen: Forecast | None, plot: Path | None, html: Path | None) -> None:
    if plot is not None and html is not None and plot.resolve() == html.resolve():
        raise click.UsageError(f"--plot and --html are both '{plot}'", click.get_current_context())
    if plot is not None:
        from petlpack.analyze.plots import write_plot

        write_plot(plot, found, seen)
        out.talk(f"wrote {plot}")
    if html is not None:
        from petlpack.analyze.page import write_page

        write_page(html, found, seen)
        out.talk(f"wrote {html}")


def _refuse_together(out: Output, **formats: bool) -> None:
    chosen = [name for name, wanted in {**formats, "json": out.as_json}.items() if wanted]
    if len(chosen) > 1:
        raise click.UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other", click.get_current_context())


def _one_task(out: Output, pack: Path, base: Path | None, task: str, *, bounds: bool) -> None:
    from petlpack.analyze.one import audit
    from petlpack_cli.output.one_task import print_one

    found = audit(pack, task, base, bounds=bounds)
    if out.as_json:
        out.json(found.to_json())
    else:
        print_one(out, found)
