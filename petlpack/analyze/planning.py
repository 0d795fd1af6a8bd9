"""What every codec would make of runs: measured on the real tensors, cheapest first, with nothing left behind.

Each offer is encoded into a temporary pack, so its bytes are those of real files. Of large full fine-tunes a sample of
units can stand for the whole: then an offer says how far its bytes may be from the truth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.analyze.offers import FailedPlan, Offer, PackPlan, Plans, RunPlan
from petlpack.analyze.sampling import Sampler
from petlpack.codecs.codec import Codec, Way
from petlpack.codecs.registry import codecs_for
from petlpack.encoding.bases import choose_base
from petlpack.encoding.encode import default_name, encode
from petlpack.encoding.request import Request
from petlpack.errors import PetlpackError, RunError, UsageError, kept, printable
from petlpack.errors.arguments import PART, check, optional, paths_of
from petlpack.layouts.options import NOTHING, Options, Setting
from petlpack.layouts.registry import options_of, read_run
from petlpack.layouts.run import Run
from petlpack.layouts.selection import MAX_FILE, Selection
from petlpack.pack import Pack
from petlpack.parallel import Progress, count_jobs
from petlpack.records.facts import Facts
from petlpack.store import PACK_JSON
from petlpack.tensors.base import Base, Bases, is_model, open_bases
from petlpack.tensors.folders import folders_below


def plan(
    runs: str | Path | Sequence[str | Path],
    base: Bases | None = None,
    *,
    sample: float | None = None,
    settings: Mapping[str, str | bool] | None = None,
    drop: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    max_file: int = MAX_FILE,
    jobs: int | None = None,
    progress: Callable[[str], Progress | None] | None = None,
) -> Plans:
    """Measure what every codec that applies would make of runs. Writes to a temporary directory only, and removes it.

    `base`, `settings`, `drop`, `keep` and `max_file` are as in `encode`. `sample` is the share of a full fine-tune's
    units to measure, between 0 and 1; by default everything is. `progress` is called with what is measured next, and
    returns what is told the bytes done. A run that fails does not stop the others. Raises BaseError where the given
    base is none, UsageError.
    """
    paths = paths_of("runs", runs)
    check("sample", sample, optional(PART), "sample is the share of the weights to measure")
    chosen, threads = options_of(settings, Selection.of(drop, keep, max_file)), count_jobs(jobs)
    opened = None if base is None else open_bases(base)
    done: list[RunPlan] = []
    failed: list[FailedPlan] = []
    names: dict[str, Path] = {}
    with _scratch() as place:
        planner = _Planner(Path(place), opened, sample, chosen, threads, progress)
        for path in paths:
            try:
                _refuse_taken(path, names)
                done.append(planner.plan_of(path))
            except (PetlpackError, OSError) as error:
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = place  # a full disk's error names no file
                failed.append(FailedPlan(str(path), kept(error)))
        return Plans(tuple(done), planner.pack_of(done), tuple(failed))


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """Lend a temporary directory where $TMPDIR says, and not elsewhere: the disk that it names may be the large one.

    Raises UsageError where that cannot be. What cannot be deleted in it stays, and is no failure of the plan.
    """
    named = os.environ.get("TMPDIR") or None
    try:
        place = tempfile.mkdtemp(prefix="petlpack-plan-", dir=named)
    except OSError as error:
        raise UsageError(
            f"cannot create a temporary directory in '{printable(named or 'the default places')}': {error.strerror}",
            hint="set TMPDIR to a directory with space for the largest task of a run",
        ) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _refuse_taken(path: Path, names: dict[str, Path]) -> None:
    """Refuse a run whose task could not be in one pack with those of earlier ones; raises UsageError."""
    name = default_name(path)
    other = names.setdefault(name.lower(), path)
    if other is path:
        return
    if other.resolve() == path.resolve():
        raise UsageError(f"'{printable(str(path))}' is given twice", hint="give each run once")
    raise UsageError(
        f"'{printable(str(path))}' would become task '{name}', but so would '{printable(str(other))}'",
        hint="plan it separately, and encode it with --task NAME",
    )


@dataclass(frozen=True)
class _Try:
    """One way of a codec, which is measured; without a codec, what `--codec auto` would do."""

    codec: Codec | None
    way: Way
    flag: str | None = None
    """A setting of the run's layout that it switches on."""
    lost: str = NOTHING
    """What is lost by the settings that the run is read with."""

    @property
    def codec_id(self) -> str:
        return "auto" if self.codec is None else self.codec.id

    @property
    def settings(self) -> dict[str, str]:
        """What it switches on."""
        return {} if self.flag is None else {self.flag: "true"}

    @property
    def options(self) -> tuple[str, ...]:
        """The options as the command line wants them."""
        words = ["--codec", self.codec_id]
        words += ["--level", self.way.level] if self.way.level != "small" else []
        words += ["--density", f"{self.way.density:g}"] if self.way.density is not None else []
        words += [word for name, value in self.settings.items() for word in ("--set", f"{name}={value}")]
        return tuple(words)


class _Planner:
    """Measures the runs of one call, and knows what they have in common."""

    def __init__(
        self,
        place: Path,
        bases: Sequence[Base] | None,
        sample: float | None,
        options: Options,
        jobs: int,
        progress: Callable[[str], Progress | None] | None,
    ) -> None:
        self._place, self._bases, self._sample = place, bases, sample
        self._settings, self._selection = options.settings, options.selection
        self._jobs, self._progress = jobs, progress
        self._named: dict[str, Base] = {}
        self._chosen: dict[tuple[Path, bool], Base | None] = {}
        """The base of a run, by its path and by whether it is needed: the same for all ways that need one."""
        self._files: dict[str, dict[Path, int]] = {}
        self._told: list[str] = []

    def plan_of(self, path: Path) -> RunPlan:
        """Measure one run; raises what its only offers are refused with."""
        runs, options, refused = self._read(path)
        self._told = []
        offers = [*refused, *self._measure(path, runs, _tries(runs[0], options))]
        measured = [offer for offer in offers if offer.refused is None]
        if not measured:
            assert offers[0].refused is not None
            raise offers[0].refused
        self._files[str(path)] = self._files_of(path)
        return RunPlan(
            path=str(path),
            layout=runs[0].layout,
            method=runs[0].method,
            tasks=len(runs),
            source_bytes=sum(run.weight_bytes for run in runs),
            directory_bytes=sum(self._files[str(path)].values()),
            offers=(
                *sorted(self._with_auto(measured, runs[0]), key=lambda offer: offer.total_bytes),
                *(offer for offer in offers if offer.refused is not None),
            ),
            warnings=tuple(dict.fromkeys([*(text for run in runs for text in run.warnings), *self._told])),
        )

    def pack_of(self, plans: Sequence[RunPlan]) -> PackPlan | None:
        """Put the best offers of the runs together; a part that several need is written once, by the first."""
        chosen = [(run, run.best) for run in plans]
        offers = [(run, offer) for run, offer in chosen if offer is not None]
        if not offers:
            return None
        shared = {sha256: size for _, offer in reversed(offers) for sha256, size in offer.shared.items()}
        own_bytes = sum(offer.nbytes for _, offer in offers)
        files = {path: size for run, _ in offers for path, size in self._files[run.path].items()}
        together: dict[tuple[str, ...], list[str]] = {}
        for run, offer in offers:
            together.setdefault(() if offer.auto else offer.options, []).append(run.path)
        return PackPlan(
            runs=len(offers),
            tasks=sum(run.tasks for run, _ in offers),
            nbytes=own_bytes + sum(shared.values()) + len(PACK_JSON),
            error_bytes=math.isqrt(sum(offer.error_bytes**2 for _, offer in offers)),
            own_bytes=own_bytes,
            shared_bytes=sum(shared.values()),
            other_bytes=len(PACK_JSON),
            source_bytes=sum(run.source_bytes for run, _ in offers),
            directory_bytes=sum(files.values()),
            commands=tuple(self._command(paths, options) for options, paths in together.items()),
        )

    def _files_of(self, path: Path) -> dict[Path, int]:
        """Return all files of a run with their bytes, by where they really are; tell what could not be read."""

        def tell(error: OSError) -> None:
            self._told.append(
                f"'{printable(str(error.filename))}' cannot be read, and is not counted: {error.strerror}"
            )

        below = (folder / name for folder, names in folders_below(path, unread=tell) for name in names)
        files = [path] if path.is_file() else [file for file in below if file.is_file()]
        return {file.resolve(): file.stat().st_size for file in files}

    def _read(self, path: Path) -> tuple[Sequence[Run], Options, list[Offer]]:
        """Read a run; where its refusal names a flag as the remedy, with that, and the refusal is an offer, too."""
        options = self._options(self._settings)
        try:
            return read_run(path, options), options, []
        except RunError as error:
            if error.flag is None or error.flag in self._settings:
                raise
            options = self._options({**self._settings, error.flag: "true"})
            return read_run(path, options), options, [self._offer(path, _Try(None, Way()), refused=error)]

    def _options(self, settings: Mapping[str, str]) -> Options:
        """Return what is said of a run, of whose globs none is known to be used yet."""
        return options_of(settings, dataclasses.replace(self._selection, used=set()))

    def _measure(self, path: Path, runs: Sequence[Run], tries: Sequence[_Try]) -> Iterator[Offer]:
        samplers: dict[str | None, Sampler] = {}
        for attempt in tries:
            try:
                base = self._base_for(runs[0], attempt)
                if self._sample is None or attempt.codec is None or not _can_sample(runs):
                    yield self._encode(path, attempt, base)
                    continue
                if attempt.way.density is not None:
                    raise RunError(
                        "cannot be measured on a sample: finding the largest changes takes all weights",
                        hint="omit --sample",
                    )
                if attempt.flag not in samplers:
                    samplers[attempt.flag] = self._sampler(path, attempt, self._sample)
                sampler, moved = samplers[attempt.flag], self._moved(path, attempt)
                figures = sampler.measure(attempt.codec, attempt.way.level, base, moved)
                self._told += sampler.warnings
                yield self._offer(path, attempt, loss=attempt.lost, **figures)
            except PetlpackError as error:
                yield self._offer(path, attempt, refused=kept(error))

    def _sampler(self, path: Path, attempt: _Try, share: float) -> Sampler:
        """Return what samples a run, read with what is switched on."""
        options = self._options({**self._settings, **attempt.settings})
        (run,) = read_run(path, options)
        return Sampler(run, share, self._jobs, options.to_facts())

    def _encode(self, path: Path, attempt: _Try, base: Base | None) -> Offer:
        """Encode a run into a pack of its own, and take that away again."""
        pack = self._place / "pack"
        try:
            tasks = encode(
                path,
                pack,
                base,
                settings={**self._settings, **attempt.settings},
                jobs=self._jobs,
                progress=self._moved(path, attempt),
                codec=attempt.codec_id,
                level=attempt.way.level,
                density=attempt.way.density,
                drop=self._selection.drop,
                keep=self._selection.keep,
                max_file=self._selection.max_file,
            )
            facts = [Pack(pack)[task.name].facts for task in tasks]
            self._told += [text for task in tasks for text in task.warnings]
        finally:
            shutil.rmtree(pack, ignore_errors=True)
        density = facts[0].density if attempt.way.density is not None else None
        error = facts[0].error or 0.0 if density is not None else None
        return self._offer(
            path,
            attempt,
            nbytes=sum(task.nbytes for task in tasks),
            shared={sha256: size for task in reversed(tasks) for sha256, size in task.shared.items()},
            exact=all(task.exact for task in tasks),
            loss=_lost([*_lost_changes(facts[0]), attempt.lost]),
            density=density,
            error=error,
        )

    def _with_auto(self, offers: Sequence[Offer], run: Run) -> list[Offer]:
        """Mark the offer that `--codec auto` takes: of its candidates, in its order, the first whose file is smallest.

        With what was said of the run, but without settings that only the offer switches on.
        """
        flags = [None, *(name for name, value in self._settings.items() if value == "true")]
        codecs = [codec for codec in codecs_for(run.module) if type(run.module) not in codec.on_request]
        tried = [_Try(codec, Way(), flag).options for codec in codecs for flag in flags]
        candidates = [offer for options in tried for offer in offers if offer.options == options]
        best = min(candidates, key=lambda offer: offer.nbytes, default=None)
        return [dataclasses.replace(offer, auto=offer is best) for offer in offers]

    def _base_for(self, run: Run, attempt: _Try) -> Base | None:
        """Return the base to give to `encode`, each opened once; raises BaseError where the codec needs one."""
        way = attempt.way
        request = Request(attempt.codec_id, way.level, way.density, Options())
        needed, bases = request.needs_base(run), self._bases
        if (run.path, needed) not in self._chosen:
            if bases is None and run.base_name is not None and is_model(run.base_name) and needed:
                if run.base_name not in self._named:
                    self._named[run.base_name] = Base(run.base_name)
                bases = [self._named[run.base_name]]
            chosen = choose_base(run, bases, request, self._jobs)
            self._told += chosen.warnings
            self._chosen[run.path, needed] = chosen.base
        return self._chosen[run.path, needed]

    def _moved(self, path: Path, attempt: _Try) -> Progress | None:
        return (
            None if self._progress is None else self._progress(f"{default_name(path)}: {' '.join(attempt.options[1:])}")
        )

    def _offer(self, path: Path, attempt: _Try, **figures: Any) -> Offer:
        return Offer(attempt.codec_id, attempt.options, self._command([str(path)], attempt.options), **figures)

    def _command(self, paths: Iterable[str], options: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command that encodes runs so: what was said of them here is said there."""
        runs = [f"./{path}" if path.startswith("-") else path for path in paths]
        base = [word for opened in self._bases or () for word in ("--base", str(opened.path))]
        known = {word.partition("=")[0] for word in options}
        others = [(name, value) for name, value in self._settings.items() if name not in known]
        settings = [word for name, value in others for word in ("--set", f"{name}={value}")]
        return ("petlpack", "encode", *runs, *base, *settings, *self._selection.words, *options)


def _can_sample(runs: Sequence[Run]) -> bool:
    """Tell whether a sample can stand for runs: for one whole model, of which nothing is another task's, too."""
    return len(runs) == 1 and runs[0].whole and not runs[0].parts


def _tries(run: Run, options: Options) -> list[_Try]:
    """Return what differs for a run: every way of its codecs, and each codec with each flag that its layout asked for.

    A run that was read with a flag is encoded with it, by every codec.
    """
    flags = {asked: options.wants(asked) for asked in list(options.used.values()) if asked.flag}
    on = next((flag for flag, wanted in flags.items() if wanted), None)
    tries: list[_Try] = []
    for codec in codecs_for(run.module):
        ways = codec.takes[type(run.module)]
        tries += [_try(codec, way, on, flags) for way in ways]
        tries += [_try(codec, Way(), flag, flags) for flag in flags if on is None]
    return tries


def _try(codec: Codec, way: Way, flag: Setting | None, flags: Mapping[Setting, bool]) -> _Try:
    """Return a way of a codec with a flag switched on, and what that and the other flags as they are lose."""
    lost = [asked.lost(on=wanted or asked == flag) for asked, wanted in flags.items()]
    return _Try(codec, way, None if flag is None else flag.name, _lost(lost))


def _lost_changes(facts: Facts) -> list[str]:
    """Return what keeping only the largest changes lost, if it lost any."""
    if facts.density is None or facts.exact:
        return []
    return [f"up to {facts.error:g} a weight" if facts.error else "signs of zeros"]


def _lost(parts: Iterable[str]) -> str:
    """Return several losses as one text."""
    return "; ".join(text for text in dict.fromkeys(parts) if text != NOTHING) or NOTHING
