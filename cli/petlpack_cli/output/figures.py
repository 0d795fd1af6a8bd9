"""What `stats` and `forecast` do with a pack's figures beside printing them: files for people, and what is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from petlpack import DamageError, PetlpackError, printable
from petlpack_cli.output import Output
from petlpack_cli.output.errors import describe, worst

if TYPE_CHECKING:
    from petlpack import Forecast, Stats


def refuse_one_file(plot: Path | None, html: Path | None) -> None:
    """Raise UsageError where a plot and a page would be the same file."""
    if plot is not None and html is not None and plot.resolve() == html.resolve():
        raise click.UsageError(f"--plot and --html name the same file, '{plot}'", click.get_current_context())


def refuse_nothing_readable(stats: Stats, errors: Mapping[str, Exception]) -> None:
    """Raise DamageError where no task is left to draw or to forecast from; what may not be read is no damage."""
    if not stats.tasks and errors:
        print_damaged(errors)
        denied = all(isinstance(error, OSError) for error in errors.values())
        raise (PetlpackError if denied else DamageError)(f"pack '{printable(stats.pack)}' has no readable task")


def write_figures(out: Output, stats: Stats, forecast: Forecast | None, plot: Path | None, html: Path | None) -> None:
    """Write the plot and the page that were asked for."""
    if plot is not None:
        stats.write_plot(plot, forecast)
        out.talk(f"wrote {plot}")
    if html is not None:
        stats.write_page(html, forecast)
        out.talk(f"wrote {html}")


def told_damage(out: Output, errors: Mapping[str, Exception]) -> int | None:
    """Name what could not be read, unless JSON did; return the exit code."""
    if not out.as_json:
        print_damaged(errors)
    return worst(describe(error) for error in errors.values())


def print_damaged(errors: Mapping[str, Exception]) -> None:
    """Name what could not be read on stderr, tasks with one reason together, with what to do about it."""
    reasons: dict[tuple[str, str | None], list[str]] = {}
    for name, error in errors.items():
        problem = describe(error)
        reasons.setdefault((problem.message, problem.hint), []).append(name)
    for (message, hint), names in reasons.items():
        some = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
        advice = hint or "unreadable tasks count on disk only; run `petlpack verify` for details"
        click.echo(f"Error: {printable(some)}: {printable(message)}", err=True)
        click.echo(f"Hint: {printable(advice)}", err=True)
