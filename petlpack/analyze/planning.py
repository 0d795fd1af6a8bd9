"""What every codec would make of runs: measured on the real tensors, cheapest first, with nothing left behind.

Each offer is encoded into a temporary pack, so its bytes are those of real files. Of large full fine-tunes a sample of
units can stand for the whole: then an offer says how far its bytes may be from the truth.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petlpack.analyze.sampling import Sampler, refuse_many
from petlpack.coding.base import Level
from petlpack.encoding import CODECS_OF, default_name, encode
from petlpack.errors import BaseError, PetlpackError, RunError, UsageError, printable
from petlpack.layouts.base import Run
from petlpack.layouts.options import FLAGS, Options
from petlpack.layouts.registry import read_run
from petlpack.loading import open_base
from petlpack.modules import Dense, Generator, Masked, Mixture, Plain
from petlpack.pack import Pack
from petlpack.parallel import Progress, count_jobs
from petlpack.preparing import prepare
from petlpack.store import PACK_JSON, check_task_name
from petlpack.tensors.base import Base

NOTHING = "nothing"


@dataclass(frozen=True)
class Way:
    """One way to encode a kind of module: codec and options of `encode`, and what is lost.

    Without its `flag` nothing is lost where nothing in the run depends on that.
    """

    codec: str
    level: Level = "small"
    density: float | None = None
    flag: str | None = None
    lost: str = NOTHING

    @property
    def options(self) -> tuple[str, ...]:
        """The options as the command line wants them."""
        words = ["--codec", self.codec]
        words += ["--level", self.level] if self.level != "small" else []
        words += ["--density", f"{self.density:g}"] if self.density is not None else []
        words += [f"--{self.flag.replace('_', '-')}"] if self.flag is not None else []
        return tuple(words)

    def arguments(self) -> dict[str, Any]:
        """Return the options as `encode` wants them."""
        flags = {self.flag: True} if self.flag is not None else {}
        return {"codec": self.codec, "level": self.level, "density": self.density, **flags}


WAYS: Mapping[type, tuple[Way, ...]] = {
    Dense: (
        Way("ulp"),
        Way("ulp", level="fast"),
        Way("sparse"),
        Way("sparse", density=0.05),
        Way("sparse", density=0.005),
        Way("plain"),
    ),
    Plain: (Way("plain"), Way("plain", flag="keep_experts")),
    Masked: (Way("mask"), Way("mask", flag="bake", lost="the network; one rounding")),
    Mixture: (Way("merge", lost="all but the average"), Way("merge", flag="keep_experts")),
    Generator: (Way("hyper", lost="the retriever"), Way("hyper", flag="keep_retriever")),
}
"""What is measured of each kind of module. 0.005 is what diff pruning keeps, 0.05 ten times that."""


@dataclass(frozen=True)
class Offer:
    """One way to encode a run: what it costs and loses, and the command; or why it is refused.

    `nbytes` are those of the tasks' own files, `shared` those of the parts that they need, by sha256.
    """

    codec: str
    options: tuple[str, ...]
    command: tuple[str, ...]
    refused: PetlpackError | None = None
    nbytes: int = 0
    shared: Mapping[str, int] = field(default_factory=dict)
    exact: bool = False
    loss: str = ""
    density: float | None = None
    """Share of the base's weights that differ, where only so many changes are kept."""
    error: float | None = None
    """The largest absolute difference of a weight from the run's, where changes are lost."""
    error_bytes: int = 0
    """How far `nbytes` may be from the truth, 19 times of 20: 0 where everything was measured."""
    sampled_share: float = 1.0
    """Share of the stored weights that was measured."""
    auto: bool = False
    """Whether `--codec auto` takes this one."""

    @property
    def label(self) -> str:
        """The codec with its options, for people."""
        return " ".join(self.options[1:])

    @property
    def shared_bytes(self) -> int:
        """Bytes of the shared parts, which other tasks may need, too."""
        return sum(self.shared.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of the tasks and of what they share."""
        return self.nbytes + self.shared_bytes


@dataclass(frozen=True)
class RunPlan:
    """What each codec that applies would make of one run, the cheapest in all first, those refused last.

    `source_bytes` are those of the run's weight files, `directory_bytes` those of everything in its directory.
    """

    path: str
    layout: str
    method: str
    tasks: int
    source_bytes: int
    directory_bytes: int
    offers: tuple[Offer, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> Offer | None:
        """What `encode` takes by itself; where it takes nothing the cheapest that is exact, None without any."""
        exact = [offer for offer in self.offers if offer.refused is None and offer.exact]
        return next((offer for offer in exact if offer.auto), exact[0] if exact else None)


@dataclass(frozen=True)
class PackPlan:
    """The best offer of every run together, as a pack. Its `nbytes` are the sum of its parts, pack.json among them.

    `commands` make it: one, where the runs take the same options.
    """

    runs: int
    tasks: int
    nbytes: int
    error_bytes: int
    own_bytes: int
    shared_bytes: int
    other_bytes: int
    source_bytes: int
    directory_bytes: int
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Failed:
    """A run that cannot be planned, and why."""

    path: str
    error: PetlpackError | OSError


@dataclass(frozen=True)
class Plans:
    """What `plan` found of each run, and of all of them as one pack; None where no run can be in it."""

    runs: tuple[RunPlan, ...]
    pack: PackPlan | None
    failed: tuple[Failed, ...]


def plan(
    runs: Sequence[str | Path],
    base: str | Path | Base | None = None,
    *,
    sample: float | None = None,
    settings: Mapping[str, str] | None = None,
    jobs: int | None = None,
    progress: Callable[[str], Progress | None] | None = None,
) -> Plans:
    """Measure what every codec that applies would make of runs. Writes to a temporary directory only, and removes it.

    `base` and `settings` are as in `encode`. `sample` is the share of a full fine-tune's units to measure, between 0
    and 1; by default everything is. `progress` is called with what is measured next, and returns what is told the
    bytes done. A run that fails does not stop the others. Raises BaseError where the given base is none, UsageError.
    """
    runs = [runs] if isinstance(runs, (str, Path)) else runs
    if sample is not None and not 0 < sample < 1:
        raise UsageError(f"a sample of {sample:g}", hint="it is the share of the units to measure, between 0 and 1")
    Options(settings or {})
    opened = Base(base) if isinstance(base, (str, Path)) else base
    done: list[RunPlan] = []
    failed: list[Failed] = []
    names: dict[str, Path] = {}
    with _scratch() as place:
        planner = _Planner(Path(place), opened, sample, settings or {}, count_jobs(jobs), progress)
        for path in runs:
            try:
                _refuse_taken(Path(path), names)
                done.append(planner.plan(Path(path)))
            except (PetlpackError, OSError) as error:
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = place  # a full disk's error names no file
                failed.append(Failed(str(path), error))
        return Plans(tuple(done), planner.pack_of(done), tuple(failed))


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Make the temporary directory where $TMPDIR says, and not elsewhere: the disk that it names may be the large one.

    Raises UsageError where that cannot be.
    """
    named = os.environ.get("TMPDIR") or None
    try:
        return tempfile.TemporaryDirectory(prefix="petlpack-plan-", dir=named)
    except OSError as error:
        raise UsageError(
            f"no temporary directory can be made in '{printable(named or 'the usual places')}': {error.strerror}",
            hint="set TMPDIR to a directory with room for one run's largest task",
        ) from error


def _refuse_taken(path: Path, names: dict[str, Path]) -> None:
    """Refuse a run whose task could not be in one pack with those of earlier ones; raises UsageError."""
    try:
        name = check_task_name(default_name(path))
    except UsageError as error:
        raise UsageError(error.message, hint="rename it, or encode it by itself, with --task NAME") from error
    other = names.setdefault(name.lower(), path)
    if other is path:
        return
    if other.resolve() == path.resolve():
        raise UsageError(f"'{printable(str(path))}' is given twice", hint="name each run once")
    raise UsageError(
        f"'{printable(str(path))}' would be task '{name}', which is taken by '{printable(str(other))}'",
        hint="plan it by itself, and encode it with --task NAME",
    )


class _Planner:
    """Measures the runs of one call, and knows what they have in common."""

    def __init__(
        self,
        place: Path,
        base: Base | None,
        sample: float | None,
        settings: Mapping[str, str],
        jobs: int,
        progress: Callable[[str], Progress | None] | None,
    ) -> None:
        self._place, self._base, self._sample, self._settings = place, base, sample, settings
        self._jobs, self._progress = jobs, progress
        self._named: dict[str, Base] = {}
        self._files: dict[str, dict[Path, int]] = {}

    def plan(self, path: Path) -> RunPlan:
        """Measure one run; raises what its only offers are refused with."""
        runs, options, refused = self._read(path)
        offers = [*refused, *self._measure(path, runs, _ways(runs, options))]
        measured = [offer for offer in offers if offer.refused is None]
        if not measured:
            assert offers[0].refused is not None
            raise offers[0].refused
        self._files[str(path)] = _files_of(path)
        return RunPlan(
            path=str(path),
            layout=runs[0].layout,
            method=runs[0].method,
            tasks=len(runs),
            source_bytes=sum(run.weight_bytes for run in runs),
            directory_bytes=sum(self._files[str(path)].values()),
            offers=(
                *sorted(_with_auto(measured, runs[0]), key=lambda offer: offer.total_bytes),
                *(offer for offer in offers if offer.refused is not None),
            ),
            warnings=tuple(dict.fromkeys(text for run in runs for text in run.warnings)),
        )

    def pack_of(self, plans: Sequence[RunPlan]) -> PackPlan | None:
        """Put the best offers of the runs together; a part that several need is written once, by the first."""
        chosen = [(plan, plan.best) for plan in plans]
        offers = [(plan, offer) for plan, offer in chosen if offer is not None]
        if not offers:
            return None
        shared = {sha256: size for _, offer in reversed(offers) for sha256, size in offer.shared.items()}
        own = sum(offer.nbytes for _, offer in offers)
        files = {path: size for plan, _ in offers for path, size in self._files[plan.path].items()}
        together: dict[tuple[str, ...], list[str]] = {}
        for plan, offer in offers:
            together.setdefault(() if offer.auto else offer.options, []).append(plan.path)
        return PackPlan(
            runs=len(offers),
            tasks=sum(plan.tasks for plan, _ in offers),
            nbytes=own + sum(shared.values()) + len(PACK_JSON),
            error_bytes=math.isqrt(sum(offer.error_bytes**2 for _, offer in offers)),
            own_bytes=own,
            shared_bytes=sum(shared.values()),
            other_bytes=len(PACK_JSON),
            source_bytes=sum(plan.source_bytes for plan, _ in offers),
            directory_bytes=sum(files.values()),
            commands=tuple(self._command(paths, options) for options, paths in together.items()),
        )

    def _read(self, path: Path) -> tuple[Sequence[Run], Options, list[Offer]]:
        """Read a run; one that is refused without a flag is read with it, and the refusal is an offer, too.

        That is AdaMix which routes at random: its experts have no average, and can be kept.
        """
        options = Options(self._settings)
        try:
            return read_run(path, options), options, []
        except RunError as error:
            flag = next((flag for flag in FLAGS if flag in options.used), None)
            if flag is None:
                raise
            options = Options(self._settings, **{flag: True})  # type: ignore[arg-type]
            return read_run(path, options), options, [self._offer(path, Way("merge"), refused=error)]

    def _measure(self, path: Path, runs: Sequence[Run], ways: Sequence[Way]) -> Iterator[Offer]:
        sampler = None
        for way in ways:
            try:
                base = self._base_for(runs[0], way)
                if self._sample is None or not isinstance(runs[0].module, Dense):
                    yield self._encode(path, way, base)
                    continue
                if way.density is not None:
                    raise RunError(
                        "not measured on a sample, for which changes are the largest shows in all of them only",
                        hint="leave out --sample",
                    )
                sampler = sampler or Sampler(runs[0], self._sample, self._jobs)
                found = sampler.measure(way.codec, way.level, base, self._moved(path, way))
                yield self._offer(path, way, exact=True, loss=NOTHING, **found)
            except PetlpackError as error:
                yield self._offer(path, way, refused=self._why(runs[0], way, error))

    def _why(self, run: Run, way: Way, error: PetlpackError) -> PetlpackError:
        """Return why a way is refused: of `sparse` by itself, with the share of weights that changed."""
        if way == Way("sparse") and self._sample is None and isinstance(error, RunError):
            try:
                refuse_many(prepare(run, self._base_for(run, way), self._jobs), self._jobs)
            except PetlpackError as counted:
                return counted
        return error

    def _encode(self, path: Path, way: Way, base: Base | None) -> Offer:
        """Encode a run into a pack of its own, and take that away again."""
        pack = self._place / "pack"
        try:
            tasks = encode(
                path,
                pack,
                base,
                settings=self._settings,
                jobs=self._jobs,
                progress=self._moved(path, way),
                **way.arguments(),
            )
            facts = [Pack(pack)[task.name].manifest.facts for task in tasks]
        finally:
            shutil.rmtree(pack, ignore_errors=True)
        density = facts[0].get("density") if way.density is not None else None
        error = max(facts[0]["error"].values(), default=0.0) if density is not None else None
        return self._offer(
            path,
            way,
            nbytes=sum(task.nbytes for task in tasks),
            shared={sha256: size for task in reversed(tasks) for sha256, size in task.shared.items()},
            exact=all(task.exact for task in tasks),
            loss=f"up to {error:g} a weight" if error else way.lost,
            density=density,
            error=error,
        )

    def _base_for(self, run: Run, way: Way) -> Base | None:
        """Return the base to give to `encode`, each opened once; raises BaseError where the way needs one."""
        if self._base is not None or way.codec == "plain" or not run.needs_base:
            return self._base
        name = run.base_name
        if name is not None and name not in self._named:
            found = open_base(None, name)
            if found is not None:
                self._named[name] = found
        if name is None or name not in self._named:
            told = f"; it names '{printable(name)}', which is no directory here" if name else ""
            raise BaseError(
                f"'{printable(str(run.path))}' ({run.method}) needs its base, and no base was given{told}",
                hint="give the pretrained model's directory with --base",
            )
        return self._named[name]

    def _moved(self, path: Path, way: Way) -> Progress | None:
        return None if self._progress is None else self._progress(f"{default_name(path)}: {' '.join(way.options[1:])}")

    def _offer(self, path: Path, way: Way, **found: Any) -> Offer:
        return Offer(way.codec, way.options, self._command([str(path)], way.options), **found)

    def _command(self, paths: Iterable[str], options: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command that encodes runs so: what was said of them here is said there."""
        runs = [f"./{path}" if path.startswith("-") else path for path in paths]
        base = [] if self._base is None else ["--base", str(self._base.path)]
        said = [word for name, value in self._settings.items() for word in ("--set", f"{name}={value}")]
        return ("petlpack", "encode", *runs, *base, *said, *options)


def _ways(runs: Sequence[Run], options: Options) -> list[Way]:
    """Return the ways that differ for a run: those with a flag where something in the run depends on it.

    A run that was read with a flag is encoded with it.
    """
    ways = WAYS[type(runs[0].module)]
    if any(getattr(options, flag) for flag in FLAGS):
        return [way for way in ways if way.flag is not None and getattr(options, way.flag)]
    without = [way for way in ways if way.flag is None]
    flagged = [way for way in ways if way.flag is not None and way.flag in options.used]
    return [*(way if flagged else dataclasses.replace(way, lost=NOTHING) for way in without), *flagged]


def _with_auto(offers: Sequence[Offer], run: Run) -> list[Offer]:
    """Mark the offer that `--codec auto` takes: of its candidates, in its order, the first whose file is smallest."""
    known = CODECS_OF[type(run.module)]
    candidates = [offer for codec_id in known for offer in offers if offer.options == Way(codec_id).options]
    best = min(candidates, key=lambda offer: offer.nbytes, default=None)
    return [dataclasses.replace(offer, auto=offer is best) for offer in offers]


def _files_of(path: Path) -> dict[Path, int]:
    """Return all files of a run with their bytes, by where they really are."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file.resolve(): file.stat().st_size for file in files}
