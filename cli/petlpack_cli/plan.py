"""`petlpack plan`: what every codec would make of runs."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

import petlpack
from petlpack_cli.command import SOME_FAILED, bases_option, command, file_options, jobs_option, settings_option
from petlpack_cli.output import Output
from petlpack_cli.output.errors import describe, error_lines
from petlpack_cli.output.sizes import count, ratio, size

FEW = 3
"""Runs of which every offer is shown; of more it is the best of each, unless --all."""


@command(
    "plan",
    "petlpack plan runs/sst2 --base models/bert-base",
    "petlpack plan runs/* --base models/bert-base --all",
    "petlpack plan runs/llama-sft --base models/llama --sample 0.05",
)
@click.argument("runs", metavar="RUN_DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@bases_option("The pretrained model that the runs started from; by default the one that each run's config names.")
@click.option(
    "--sample",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Measure only this share of a full fine-tune, and show how far off the bytes may be.",
)
@settings_option("What a run does not record itself, as in `petlpack encode`.")
@file_options
@click.option("--all", "all_offers", is_flag=True, help=f"Show every offer of every run, even of more than {FEW} runs.")
@jobs_option()
def run(
    out: Output,
    runs: tuple[Path, ...],
    base: tuple[Path, ...] | None,
    sample: float | None,
    settings: dict[str, str],
    all_offers: bool,
    jobs: int | None,
    **files: Any,
) -> int | None:
    """Show how small each codec would make runs, and all of them as one pack, before anything is packed.

    Every codec that applies is tried on the real tensors, in a temporary directory ($TMPDIR) that is removed again, so
    the bytes are those of real files. Offers are listed cheapest first, with the command for each; those that
    `petlpack encode` chooses by itself are marked (auto). Of several runs, those that fail do not stop the rest.
    """
    with _stopped_like_an_interrupt(), out.progress() as progress:
        plans = petlpack.plan(runs, base, sample=sample, settings=settings, jobs=jobs, progress=progress.bytes, **files)
    if plans.failed and len(runs) == 1:
        raise plans.failed[0].error
    if out.as_json:
        out.json(plans.to_json())
    elif out.quiet:
        out.names([_text(planned.best.command) for planned in plans.runs if planned.best is not None])
    else:
        _print(out, plans, every=all_offers or len(plans.runs) <= FEW)
    if not out.as_json:
        for planned in plans.runs:
            for text in planned.warnings:
                out.warn(f"{planned.path}: {text}")
        for failed in plans.failed:
            click.echo(error_lines(describe(failed.error), f"{failed.path}: "), err=True)
    return SOME_FAILED if plans.failed else None


@contextlib.contextmanager
def _stopped_like_an_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it cleans up, and then exit with 128 + the signal.

    One that is ignored, as `nohup` has it, stays so; the second one does not stop the cleaning.
    """
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        if not came:
            came.append(number)
            raise KeyboardInterrupt

    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    here = threading.current_thread() is threading.main_thread()  # no other thread may set what signals do
    taken = [number for number in known if here and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        if came:
            raise SystemExit(128 + came[0]) from None
        raise
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _text(words: Sequence[str]) -> str:
    """Return a command as a shell takes it."""
    return shlex.join(words)


def _label(offer: petlpack.Offer) -> str:
    return offer.label + (" (auto)" if offer.auto else "")


def _print(out: Output, plans: petlpack.Plans, *, every: bool) -> None:
    if every:
        for planned in plans.runs:
            _print_run(out, planned)
    elif plans.runs:
        _print_best(out, plans.runs)
    if plans.pack is not None:
        shown = [offer.command for planned in plans.runs for offer in planned.offers] if every else []
        _print_pack(out, plans.pack, shown)


def _print_run(out: Output, planned: petlpack.RunPlan) -> None:
    """Print every offer of a run, then what is refused, then the commands in the order of the offers."""
    tasks = f", {count(planned.tasks, 'task')}" if planned.tasks > 1 else ""
    out.line(f"{planned.path}: {planned.method}{tasks}, {size(planned.source_bytes)} of weights")
    offers = [offer for offer in planned.offers if offer.refused is None]
    sampled = any(offer.sampled_share < 1 for offer in offers)
    out.table(
        {
            "Offer": "name",
            "Own file" if planned.tasks == 1 else "Own files": "number",
            "Shared": "number",
            "Total": "number",
            **({"+-": "number"} if sampled else {}),
            "Ratio": "number",
            "Lost": "name",
        },
        [
            (
                _label(offer),
                size(offer.nbytes),
                size(offer.shared_bytes),
                size(offer.total_bytes),
                *((size(offer.error_bytes) if offer.error_bytes else "none",) if sampled else ()),
                ratio(planned.source_bytes, offer.total_bytes),
                offer.loss,
            )
            for offer in offers
        ],
    )
    if sampled:
        least = min(offer.sampled_share for offer in offers)
        out.line(f"From a sample of {100 * least:.3g} % of the weights or more; +- is the 95 % confidence interval.")
    for text, labels in _refused(planned.offers).items():
        out.line(f"Not {', '.join(labels)}: {text}.")
    out.line()
    out.names([_text(offer.command) for offer in offers])
    out.line()


def _refused(offers: Sequence[petlpack.Offer]) -> dict[str, list[str]]:
    """Return the reasons for which offers are refused, each once, with the offers."""
    reasons: dict[str, list[str]] = {}
    for offer in offers:
        if offer.refused is not None:
            hint = f" ({offer.refused.hint})" if offer.refused.hint else ""
            reasons.setdefault(f"{offer.refused.message}{hint}", []).append(_label(offer))
    return reasons


def _print_best(out: Output, plans: Sequence[petlpack.RunPlan]) -> None:
    """Print the best offer of each run."""
    out.table(
        {"Run": "name", "Method": "text", "Best": "name", "From": "number", "To": "number", "From / to": "number"},
        [(planned.path, planned.method, *_best_cells(planned)) for planned in plans],
    )
    out.line("Use --all to show every offer of every run.")
    out.line()


def _best_cells(planned: petlpack.RunPlan) -> tuple[str, str, str, str]:
    if planned.best is None:
        return "nothing exact", size(planned.source_bytes), "-", "-"
    to = planned.best.nbytes
    return _label(planned.best), size(planned.source_bytes), size(to), ratio(planned.source_bytes, to)


def _print_pack(out: Output, pack: petlpack.PackPlan, shown: Sequence[Sequence[str]]) -> None:
    """Print what all runs make together, and the commands for it that are not shown already."""
    about = f" (+- {size(pack.error_bytes)})" if pack.error_bytes else ""
    per_task = f", {size(pack.nbytes / pack.tasks)} a task" if pack.tasks > 1 else ""
    out.line(
        f"{count(pack.runs, 'run')} of {size(pack.source_bytes)} would make a pack of {size(pack.nbytes)}{about} "
        f"({_smaller(pack.source_bytes, pack.nbytes)}){per_task}."
    )
    shared = f"Shared parts are {size(pack.shared_bytes)} of it. " if pack.shared_bytes else ""
    runs = "the run" if pack.runs == 1 else "the runs"
    out.line(f"{shared}All files of {runs} are {size(pack.directory_bytes)}.")
    commands = [_text(words) for words in pack.commands if words not in shown]
    if commands:
        out.line()
        out.names(commands)


def _smaller(before: int, after: int) -> str:
    return f"{ratio(before, after)} smaller" if after <= before else f"{ratio(after, before)} larger"
