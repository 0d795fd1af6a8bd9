"""Step 5: task files and the shared parts that they need, each decoded once before anything goes into the pack."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.codecs.codec import Codec
from petlpack.codecs.units import Unit
from petlpack.container import Manifest, SectionRow
from petlpack.decoding.task import Task
from petlpack.encoding.check import check_modules
from petlpack.encoding.cut import cut, shared_slots, unsuited
from petlpack.encoding.describe import Described
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import Prepared, prepare
from petlpack.encoding.request import Request
from petlpack.encoding.share import SharedTensors
from petlpack.errors import DamageError, LimitError, PetlpackError, RunError, UnknownFormatError, printable
from petlpack.layouts.run import Run
from petlpack.parallel import Progress
from petlpack.records.slot import Slot
from petlpack.records.template_parts import Origin
from petlpack.sections.allowance import FREE, UNBOUNDED
from petlpack.sections.parts import Part, part_params, part_slots, unreadable
from petlpack.sections.predict import Predictions
from petlpack.sections.shared import write_shared
from petlpack.sections.write import DeclinedError, ManifestOf, SectionWriter, write_file
from petlpack.store import Store
from petlpack.tensors.base import Base
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class Written:
    """A task file in scratch, decoded once and found equal, and the shared parts that it needs."""

    name: str
    path: Path
    run: Run
    codec: str
    exact: bool
    shared: SharedFiles
    base: Origin | None
    warnings: tuple[str, ...]


class TaskWriter:
    """Writes the tasks of one call into scratch files, and knows the parts that they share."""

    def __init__(
        self,
        store: Store,
        scratch: contextlib.ExitStack,
        base: Base | None,
        request: Request,
        jobs: int,
        progress: Progress | None,
    ) -> None:
        """Write into scratch files of a store; a base that a run is not coded against is one that it is bound to."""
        self._store, self._scratch, self._base, self._request = store, scratch, base, request
        self._jobs, self._progress = jobs, progress
        self._digests = Digests(jobs)
        self.parts: dict[str, Path] = {}
        """Where the shared parts that a reader parses are, by sha256: tensors, templates, tables of bases."""
        self.damaged: set[str] = set()
        """Those of them that the pack has, and that cannot be read there."""

    def write(self, name: str, run: Run) -> Written:
        """Write one task by the codec whose file is smallest; raises RunError where the wanted one does not suit."""
        best: tuple[Path, Codec, Prepared] | None = None
        prepared: Prepared | None = None
        declined: list[RunError] = []
        for codec in self._request.candidates(run):
            rule = codec.rule_of(run.module)
            if prepared is None or prepared.described.template.rule != rule:
                prepared = self._prepare(run, rule)
                check_modules(prepared, codec)
            self._write_parts(prepared, codec)
            path = self._scratch.enter_context(self._store.scratch())
            try:
                self._write_task(path, prepared, codec)
            except DeclinedError as error:
                declined.append(unsuited(run, codec, error.reason))
                continue
            if best is None or path.stat().st_size < best[0].stat().st_size:
                best = path, codec, prepared
        if best is None:
            raise _none_suits(run, declined)
        return self._compared(name, *best)

    def _prepare(self, run: Run, rule: Mapping[str, Any] | None) -> Prepared:
        """Make a run ready, and note what was asked of it."""
        density = self._request.density
        against = self._request.needs_base(run)
        prepared = prepare(run, self._base, self._digests, rule=rule, density=density, against=against)
        return prepared.noting(
            {**self._request.options.to_facts(), **({} if density is None else {"density": density})}
        )

    def _compared(self, name: str, path: Path, codec: Codec, prepared: Prepared) -> Written:
        """Decode a written file once as a reader does, and return it; its parts are where this call wrote them."""
        described = prepared.described
        self._write_contents(described)
        with _as_written(name):
            task = Task(self._store, name, path, parts=self.parts, max_bytes=UNBOUNDED)
            task.load(self._base).check(jobs=self._jobs)
        named = (*described.read_first, *(part.sha256 for part in prepared.parts))
        parts = {sha256: self.parts[sha256] for sha256 in named}
        return Written(
            name,
            path,
            prepared.run,
            codec.id,
            task.exact,
            SharedFiles(described.contents, parts),
            described.template.origin,
            (*prepared.warnings, *self._beyond_limits(name, path, prepared)),
        )

    def _beyond_limits(self, name: str, path: Path, prepared: Prepared) -> tuple[str, ...]:
        """Say where a reader with the usual limits refuses a task, so equal are its weights."""
        if sum(tensor.nbytes for tensor in prepared.matched.tensors.values()) > FREE:
            try:
                Task(self._store, name, path, parts=self.parts).load(self._base)
            except LimitError as error:
                return (f"{error.message}: who reads it has to allow more with --max-bytes",)
        return ()

    def _write_task(self, path: Path, prepared: Prepared, codec: Codec) -> None:
        """Write the task file by one codec; raises DeclinedError where that declines a run not pruned for it."""
        units = cut(prepared, codec)
        self._write_file(
            path,
            codec,
            units.units,
            prepared.matched.tensors,
            units.predictions,
            task_manifest(codec, prepared),
            may_decline=self._request.density is None,
        )

    def _write_parts(self, prepared: Prepared, codec: Codec) -> None:
        """Write the shared parts of tensors that are not in the pack yet, each once in a call."""
        new = [part.sha256 for part in prepared.parts if part.sha256 not in self.parts]
        self.damaged |= unreadable(self._store, new)
        kinds = codec.kinds(prepared.described.template.rule)
        for slots, part in zip(shared_slots(prepared, kinds), prepared.parts, strict=True):
            path = None if part.sha256 in self.parts else self._copied(part.sha256)
            if path is not None:
                self._write_part(path, part, part_slots(slots), codec)

    def _write_contents(self, described: Described) -> None:
        """Write the template and the base's table where the pack has none: a task is compared by reading both."""
        new = [sha256 for sha256 in described.read_first if sha256 not in self.parts]
        self.damaged |= unreadable(self._store, new)
        for sha256 in new:
            path = self._copied(sha256)
            if path is not None:
                path.write_bytes(write_shared(described.contents[sha256]))

    def _copied(self, sha256: str) -> Path | None:
        """Give a shared part a scratch file, a copy of the pack's; return that where it is still to be written.

        A copy, for nobody may need the part before this task does, and a gc may take it.
        """
        self.parts[sha256] = path = self._scratch.enter_context(self._store.scratch())
        if sha256 in self.damaged:
            return path
        try:
            shutil.copyfile(self._store.shared_path(sha256), path)
        except FileNotFoundError:
            return path
        return None

    def _write_part(self, path: Path, part: SharedTensors, slots: list[Slot], codec: Codec) -> None:
        tensors = {slot.name: tensor for slot, tensor in zip(slots, part.tensors, strict=True)}

        def manifest_of(rows: tuple[SectionRow, ...]) -> Manifest:
            return Manifest("shared", codec.id, rows, (), part.sha256, params=part_params(slots))

        self._write_file(path, codec, codec.units(slots), tensors, Predictions(), manifest_of)
        Part(path, part.sha256).check()

    def _write_file(
        self,
        path: Path,
        codec: Codec,
        units: list[Unit],
        tensors: Mapping[str, Tensor],
        predictions: Predictions,
        manifest_of: ManifestOf,
        *,
        may_decline: bool = False,
    ) -> None:
        writer = SectionWriter(codec, self._request.level, self._jobs, self._progress)
        encoded = writer.encode(units, tensors, predictions, may_decline=may_decline)
        with path.open("wb") as file:
            write_file(file, codec, units, (section for sections in encoded for section in sections), manifest_of)


def _none_suits(run: Run, declined: Sequence[RunError]) -> RunError:
    """Return the error of a run that no codec took: the one that was wanted, or each of those that were tried."""
    if len(declined) == 1:
        return declined[0]
    return RunError(
        "; ".join(error.message for error in declined) or f"no codec takes '{printable(str(run.path))}' by itself",
        hint="`petlpack codecs` lists the codecs: choose one with --codec ID",
    )


def task_manifest(codec: Codec, prepared: Prepared) -> ManifestOf:
    """Return what makes the manifest of a task."""
    described = prepared.described
    parts = (described.template_sha256, *(part.sha256 for part in prepared.parts))
    params, facts = described.sources.to_params(), described.facts.to_json()

    def manifest_of(rows: tuple[SectionRow, ...]) -> Manifest:
        return Manifest("task", codec.id, rows, parts, described.sums.sha256, described.sums.checksum, params, facts)

    return manifest_of


@contextlib.contextmanager
def _as_written(name: str) -> Iterator[None]:
    """Tell what a reader refuses of a written task as the writer's error: no file is in a pack that is not read."""
    try:
        yield
    except (DamageError, UnknownFormatError) as error:
        raise PetlpackError(
            f"task '{name}' as written does not decode to the run: {error.message}",
            hint="the run's files changed while they were read, or this is a bug; nothing was put into the pack",
            code=error.code,
        ) from error


class SharedFiles(Mapping[str, bytes]):
    """The files of shared parts by sha256, made when asked for: most are in the pack already, and zstd takes time."""

    def __init__(self, contents: Mapping[str, bytes], parts: Mapping[str, Path]) -> None:
        """Make files of contents, and take those of parts from where they are written."""
        self._contents, self._parts = contents, parts
        self._made: dict[str, bytes] = {}

    def make(self, store: Store, damaged: Collection[str]) -> None:
        """Make what a pack lacks before its lock is held: a tokenizer takes seconds, and other writers would wait."""
        for sha256 in self._contents:
            if sha256 not in self._parts and (sha256 in damaged or not store.shared_path(sha256).exists()):
                self._made[sha256] = write_shared(self._contents[sha256])

    def __getitem__(self, sha256: str) -> bytes:
        if sha256 in self._parts:
            return self._parts[sha256].read_bytes()
        return self._made.get(sha256) or write_shared(self._contents[sha256])

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._contents, *self._parts]))

    def __len__(self) -> int:
        return len({*self._contents, *self._parts})
