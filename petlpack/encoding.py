"""From a run to a pack: the first straight line.

run directory -> layout reader -> module -> codec -> sections -> coders -> container -> decoded again and compared ->
store, the shared parts first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petlpack import coding, container
from petlpack.codecs.base import Codec, Section, Unit
from petlpack.codecs.registry import CODECS, codecs_for, wanted_codec
from petlpack.codecs.registry import codec as registered_codec
from petlpack.coding.base import Level
from petlpack.container import Encoded as EncodedSection
from petlpack.decoding import given_of, joined, with_kinds
from petlpack.errors import BaseError, DamageError, PetlpackError, RunError, UsageError, printable
from petlpack.layouts.base import LeftOut, Run
from petlpack.layouts.options import Options
from petlpack.layouts.registry import options_of, read_run
from petlpack.loading import Task, open_base
from petlpack.parallel import Progress, count_jobs, ordered_map
from petlpack.parts import BYTES, Part, Templates, part_params, part_slots, unreadable
from petlpack.preparing import Digests, SharedTensors, Work, prepare
from petlpack.store import Store, check_task_name
from petlpack.template import Slot
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class Encoded:
    """What `encode` did: the task, its bytes, the shared parts it uses (sha256 -> bytes), what was left out."""

    name: str
    method: str
    layout: str
    codec: str
    exact: bool
    nbytes: int
    source_bytes: int
    seconds: float
    shared: dict[str, int]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]


def encode(
    run_dir: str | Path,
    pack: str | Path,
    base: str | Path | Base | None = None,
    *,
    task: str | None = None,
    codec: str = "auto",
    level: Level = "small",
    settings: Mapping[str, str | bool] | None = None,
    density: float | None = None,
    replace: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[Encoded]:
    """Encode the tasks of one run into a pack, which is made if there is none; most runs hold one task.

    `base` is the pretrained checkpoint (directory, weights file or `Base`), by default the directory that the run's own
    config names. `task` is the task's name, by default the directory's; several tasks are called `<task>.<theirs>`.
    `codec` "auto" keeps the codec whose task file is smallest. `settings` say what the run's directory does not (its
    combine rule, activation, ...), and what to keep of it: `keep_experts` and `keep_retriever` what averaging and
    inference drop, `bake` a produced prefix in the place of the network that makes it. `density` keeps only that share
    of the changes of a full fine-tune, the largest ones. Raises RunError, BaseError, UsageError, or TaskError (name
    taken and not `replace`), and then leaves the pack as it was.
    """
    started = time.perf_counter()
    if level not in ("fast", "small"):
        raise UsageError(f"no level '{printable(level)}'", hint="choose fast or small")
    if density is not None and not 0 < density < 1:
        raise UsageError(f"a density of {density:g}", hint="it is the share of the weights to keep, between 0 and 1")
    run_dir = Path(run_dir)
    name = check_task_name(task if task is not None else default_name(run_dir))
    if codec != "auto":
        wanted_codec(codec)
    options = options_of(settings or {})
    runs = read_run(run_dir, options)
    names = [name] if len(runs) == 1 else _names(name, runs)
    opened_base = _find_base(runs[0], base, codec)
    size = _size(base) if opened_base is None and base is not None else None
    with Store.creating(pack) as store, contextlib.ExitStack() as scratch:
        for own in names:  # before anything is encoded; the commit asks again
            store.refuse_taken(own, replace=replace)
        writer = _Writer(store, scratch, opened_base, level, count_jobs(jobs), progress, size)
        written = [writer.write(own, run, codec, density, options) for own, run in zip(names, runs, strict=True)]
        for one in written:  # all of a run or none: asked once more before the first goes in
            store.refuse_taken(one.name, replace=replace)
        contents = {sha256 for one in written for sha256 in one.shared if sha256 not in writer.parts}
        damaged = writer.damaged | unreadable(store, contents)
        for one in written:
            store.put(one.name, one.path, one.shared, damaged, replace=replace)
            damaged -= one.shared.keys()  # written again, once
        seconds = (time.perf_counter() - started) / len(written)
        return [_encoded(one, store, seconds) for one in written]


def default_name(run_dir: Path) -> str:
    """Return the task's name where none is given: the directory's, or the file's without its suffix."""
    if run_dir.is_file():
        return run_dir.stem
    return run_dir.name if run_dir.name not in ("", "..") else run_dir.resolve().name


def _names(name: str, runs: Sequence[Run]) -> list[str]:
    """Return the names of the tasks of a run that holds several; what no task name can hold becomes a hyphen."""
    names = [check_task_name(f"{name}.{re.sub('[^A-Za-z0-9._-]', '-', run.task)}") for run in runs]
    for own, run in zip(names, runs, strict=True):
        if [other.lower() for other in names].count(own.lower()) > 1:
            raise RunError(
                f"'{printable(str(run.path))}' has several tasks that would be called '{own}'",
                hint="encode their directories one by one, each with --task",
            )
    return names


def _find_base(run: Run, base: str | Path | Base | None, codec: str) -> Base | None:
    """Open the base that a run needs: the one given, else the one that the run names; raises BaseError without one."""
    if not run.needs_base or (codec != "auto" and not wanted_codec(codec).uses_base):
        return None
    opened = open_base(base, run.base_name)
    if opened is not None:
        return opened
    told = f"; it names '{printable(run.base_name)}', which is no directory here" if run.base_name else ""
    without = [one for one in codecs_for(run.module) if not one.uses_base and not run.on_base]
    raise BaseError(
        f"'{printable(str(run.path))}' ({run.method}) needs its base, and no base was given{told}",
        hint="give the pretrained model's directory with --base"
        + "".join(f"; --codec {one.id} stores the run without a base" for one in without),
    )


def _size(base: str | Path | Base) -> tuple[int, int]:
    """Return the float numbers and the bytes of a base that is only named for the accounting; reads its headers."""
    tensors = (base if isinstance(base, Base) else Base(base)).tensors.values()
    return sum(t.size for t in tensors if t.dtype.kind == "float"), sum(t.nbytes for t in tensors)


@dataclass(frozen=True)
class _Written:
    """A task file in scratch, decoded once and found equal, and the shared parts that it needs."""

    name: str
    path: Path
    run: Run
    codec: str
    exact: bool
    shared: Mapping[str, bytes]


def _encoded(one: _Written, store: Store, seconds: float) -> Encoded:
    return Encoded(
        name=one.name,
        method=one.run.method,
        layout=one.run.layout,
        codec=one.codec,
        exact=one.exact,
        nbytes=store.task_path(one.name).stat().st_size,
        source_bytes=one.run.weight_bytes,
        seconds=seconds,
        shared={sha256: store.shared_path(sha256).stat().st_size for sha256 in one.shared},
        left_out=one.run.left_out,
        warnings=one.run.warnings,
    )


class _DeclinedError(Exception):
    """A codec declined a unit."""


class _Writer:
    """Writes the tasks of one call into scratch files, and knows the parts that they share."""

    def __init__(
        self,
        store: Store,
        scratch: contextlib.ExitStack,
        base: Base | None,
        level: Level,
        jobs: int,
        progress: Progress | None,
        base_size: tuple[int, int] | None,
    ) -> None:
        self._store, self._scratch, self._base, self._level = store, scratch, base, level
        self._jobs, self._progress = jobs, progress
        self._digests = Digests(jobs)
        self._base_size = base_size
        self.parts: dict[str, Path] = {}
        """Where the shared parts of tensors are, by sha256."""
        self.damaged: set[str] = set()
        """Those of them that the pack has, and that cannot be read there."""

    def write(self, name: str, run: Run, wanted: str, density: float | None, options: Options) -> _Written:
        """Write one task by the codec whose file is smallest; raises RunError where the wanted one does not suit."""
        best: Path | None = None
        work: Work | None = None
        for codec in _candidates(run, wanted, density):
            rule = codec.rule_of(run.module)
            if work is None or work.template.rule != rule:
                work = self._prepare(run, rule, density, options)
                _check_rule(run, codec, work)
            self._write_parts(work, codec)
            path = self._scratch.enter_context(self._store.scratch())
            suits = self._write_task(path, work, codec, asked=density is not None)
            if suits and (best is None or path.stat().st_size < best.stat().st_size):
                best, best_id, best_work = path, codec.id, work
        if best is None:
            raise RunError(
                f"codec '{wanted}' does not suit '{printable(str(run.path))}': too many weights differ from the base",
                hint="--codec auto chooses the codec that takes the fewest bytes",
            )
        templates = Templates(self._store)
        templates.put(next(iter(best_work.content)), best_work.plan.name, best_work.template)
        task = Task(self._store, name, best, templates, self.parts)
        _compare(task, self._base, self._jobs)
        shared = _SharedFiles(best_work.content, {part.sha256: self.parts[part.sha256] for part in best_work.parts})
        return _Written(name, best, run, best_id, task.exact, shared)

    def _prepare(self, run: Run, rule: Mapping[str, Any] | None, density: float | None, options: Options) -> Work:
        said = {**options.to_facts(), **({} if density is None else {"density": density})}
        work = prepare(
            run,
            self._base,
            self._jobs,
            rule=rule,
            density=density,
            digests=self._digests,
            base_size=self._base_size,
        )
        return dataclasses.replace(work, facts=dataclasses.replace(work.facts, options=said))

    def _write_task(self, path: Path, work: Work, codec: Codec, *, asked: bool) -> bool:
        """Write the task file by one codec; returns False where the codec declines the run, and was not `asked`."""
        kinds = codec.kinds(work.template.rule)
        shared = [
            (slot, tensor)
            for slots, part in zip(_shared_slots(work, kinds), work.parts, strict=True)
            for slot, tensor in zip(slots, part.tensors, strict=True)
        ]
        units = codec.units(with_kinds(work.plan.stored, kinds), [slot for slot, _ in shared])

        def manifest_of(rows: tuple[container.SectionRow, ...]) -> container.Manifest:
            parts = (next(iter(work.content)), *(part.sha256 for part in work.parts))
            return container.Manifest(
                "task", codec.id, rows, parts, work.decoded, work.plan.to_params(), work.facts.to_json()
            )

        try:
            self._write_file(path, codec, units, work.tensors, manifest_of, dict(shared), may_decline=not asked)
        except _DeclinedError:
            return False
        return True

    def _write_parts(self, work: Work, codec: Codec) -> None:
        """Write the shared parts of tensors that are not in the pack yet, each once in a call."""
        self.damaged |= unreadable(self._store, [part.sha256 for part in work.parts if part.sha256 not in self.parts])
        for slots, part in zip(_shared_slots(work, codec.kinds(work.template.rule)), work.parts, strict=True):
            if part.sha256 in self.parts:
                continue
            path = self._scratch.enter_context(self._store.scratch())
            missing = part.sha256 in self.damaged
            try:  # a copy, for nobody may need the part before this task does, and a gc may take it
                if not missing:
                    shutil.copyfile(self._store.shared_path(part.sha256), path)
            except FileNotFoundError:
                missing = True
            if missing:
                self._write_part(path, part, part_slots(slots), codec)
            self.parts[part.sha256] = path

    def _write_part(self, path: Path, part: SharedTensors, slots: list[Slot], codec: Codec) -> None:
        tensors = {slot.name: tensor for slot, tensor in zip(slots, part.tensors, strict=True)}

        def manifest_of(rows: tuple[container.SectionRow, ...]) -> container.Manifest:
            return container.Manifest("shared", codec.id, rows, (), part.sha256, part_params(slots), {})

        self._write_file(path, codec, codec.units(slots), tensors, manifest_of, {})
        Part(path, part.sha256).check()

    def _write_file(
        self,
        path: Path,
        codec: Codec,
        units: list[Unit],
        tensors: Mapping[str, Tensor],
        manifest_of: Callable[[tuple[container.SectionRow, ...]], container.Manifest],
        shared: Mapping[Slot, Tensor],
        *,
        may_decline: bool = False,
    ) -> None:
        names = [name for unit in units for name in codec.sections(unit)]
        limit = sum(unit.size * (unit.dtype.itemsize + 1) for unit in units) + 1024 * (1 + len(names))
        with path.open("wb") as file:
            container.write(file, names, limit, self._sections(codec, units, tensors, shared, may_decline), manifest_of)

    def _sections(
        self,
        codec: Codec,
        units: list[Unit],
        tensors: Mapping[str, Tensor],
        shared: Mapping[Slot, Tensor],
        may_decline: bool,
    ) -> Iterator[EncodedSection]:
        total, done = sum(unit.size * unit.dtype.itemsize for unit in units), 0

        def encode_unit(unit: Unit) -> tuple[Unit, list[EncodedSection]]:
            given = given_of(unit, self._base, shared.__getitem__)
            tuned = joined([tensors[p.slot.name].read_flat(p.start, p.stop) for p in unit.pieces])
            if may_decline and codec.declines(unit, tuned, given):
                raise _DeclinedError
            return unit, [_encode_section(section, self._level) for section in codec.encode(unit, tuned, given)]

        for unit, encoded in ordered_map(encode_unit, units, self._jobs):
            yield from encoded
            done += unit.size * unit.dtype.itemsize
            if self._progress is not None:
                self._progress(done, total)


def _check_rule(run: Run, codec: Codec, work: Work) -> None:
    """Raise RunError where the run's tensors do not fit its rule, or the modules that come out are none."""
    try:
        rebuilt = codec.rebuild(work.template.rule, work.tensors)
        for tensor in rebuilt.tensors.values() if rebuilt is not None else ():
            tensor.read_flat(0, min(1, tensor.size))
    except DamageError as error:
        raise RunError(
            f"'{printable(str(run.path))}': {error.message}",
            hint="its files belong to different runs, or are not whole",
        ) from error
    if rebuilt is None or rebuilt.kind != "adapter":
        return
    names = {id(tensor): name for name, tensor in work.tensors.items()}
    for name, down in rebuilt.tensors.items():
        place, _, part = name.rpartition(".down.")
        if part != "weight" or len(down.shape) != 2:
            continue
        narrow, width = down.shape
        wanted = {"down.bias": (narrow,), "up.weight": (width, narrow), "up.bias": (width,)}
        for other, shape in wanted.items():
            found = rebuilt.tensors.get(f"{place}.{other}")
            if found is not None and found.shape != shape:
                source = names.get(id(found), f"{place}.{other}")
                raise RunError(
                    f"'{printable(str(run.path))}': '{printable(source)}' is {list(found.shape)}, "
                    f"the adapter at '{printable(place)}' needs {list(shape)}",
                    hint="its files belong to different runs, or are not whole",
                )


def _shared_slots(work: Work, kinds: Mapping[str, str]) -> list[list[Slot]]:
    """Return the slots of each shared part as the task sees them; one that no file has is nameless."""
    known = {slot.name: slot for slot in with_kinds(work.template.slots, kinds)}
    return [
        [
            known[like] if name is not None else dataclasses.replace(known[like], name="", part=(number, i))
            for i, (name, like) in enumerate(zip(part.names, part.like, strict=True))
        ]
        for number, part in enumerate(work.parts)
    ]


def _candidates(run: Run, wanted: str, density: float | None) -> list[Codec]:
    """Return the codecs to try; raises UsageError for one that cannot take the run."""
    kind, known = type(run.module), codecs_for(run.module)
    if wanted == "auto":
        tried = [codec for codec in known if kind not in codec.on_request]
    elif not (tried := [codec for codec in known if codec.id == wanted]) and density is None:
        raise UsageError(
            f"codec '{wanted}' does not take '{printable(str(run.path))}' ({run.method})",
            hint=f"choose one of auto, {', '.join(codec.id for codec in known)}",
        )
    if density is None:
        return tried
    pruning = [codec for codec in tried if kind in codec.prunes]
    if not pruning:
        ids = " or ".join(codec_id for codec_id in CODECS if registered_codec(codec_id).prunes)
        raise UsageError(
            f"a density is for a full fine-tune by codec {ids}, not for '{printable(str(run.path))}' "
            f"({run.method}) by codec {wanted}",
            hint="leave out the density",
        )
    return pruning


def _encode_section(section: Section, level: Level) -> EncodedSection:
    coder_id, data = coding.encode(section.bits, section.array, section.coders, level)
    return EncodedSection(section.name, coder_id, section.array.dtype.name, section.array.count, data)


def _compare(task: Task, base: Base | None, jobs: int) -> None:
    """Decode a written task once; its digest must be the run's, so no file stands in a pack that does not decode."""
    try:
        for _ in task.load(base).stream(jobs=jobs):
            pass
    except DamageError as error:
        raise PetlpackError(
            f"what was written for task '{task.name}' does not decode to the run: {error.message}",
            hint="the run's files changed while they were read, or this is a bug; nothing was put into the pack",
        ) from error


class _SharedFiles(Mapping[str, bytes]):
    """The files of shared parts by sha256, made when asked for: most are in the pack already, and zstd takes time."""

    def __init__(self, contents: Mapping[str, bytes], parts: Mapping[str, Path]) -> None:
        self._contents, self._parts = contents, parts

    def __getitem__(self, sha256: str) -> bytes:
        if sha256 in self._parts:
            return self._parts[sha256].read_bytes()
        return shared_file(self._contents[sha256])

    def __iter__(self) -> Iterator[str]:
        return iter([*self._contents, *self._parts])

    def __len__(self) -> int:
        return len(self._contents) + len(self._parts)


def shared_file(content: bytes) -> bytes:
    """Return the bytes of the shared part that holds `content`."""
    bits = np.frombuffer(content, np.uint8)
    array = coding.Array(DTYPES["U8"], len(bits), max(1, len(bits)))
    coder_id, data = coding.encode(bits, array, ("planes",), "small")
    section = EncodedSection("content", coder_id, "U8", len(bits), data)
    digest = hashlib.sha256(content).hexdigest()
    file = io.BytesIO()

    def manifest_of(rows: tuple[container.SectionRow, ...]) -> container.Manifest:
        return container.Manifest("shared", BYTES, rows, (), digest, {}, {})

    container.write(file, ["content"], len(data) + 1024, iter([section]), manifest_of)
    return file.getvalue()
