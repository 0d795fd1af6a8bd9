"""From a run to a pack: the first straight line.

run directory -> layout reader -> module -> codec -> sections -> coders -> container -> decoded again and compared ->
store, the shared parts first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petlpack import coding, container
from petlpack.codecs.base import Codec, Section, Unit
from petlpack.codecs.registry import codec as registered_codec
from petlpack.codecs.registry import wanted_codec
from petlpack.coding.base import Level
from petlpack.container import Encoded as EncodedSection
from petlpack.errors import BaseError, DamageError, PetlpackError, RunError, UsageError, printable
from petlpack.layouts.base import LeftOut, Run
from petlpack.layouts.registry import read_run
from petlpack.loading import MAX_SHARED, Plan, Task, open_base, predict, unreadable, whole_digest
from petlpack.modules import Dense, Plain
from petlpack.parallel import Progress, count_jobs, ordered_map
from petlpack.store import Store, check_task_name
from petlpack.template import Slot, Template
from petlpack.tensors.base import Base, BaseRef
from petlpack.tensors.casting import can_cast
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.names import match_names
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
    replace: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """Encode one run into a pack, which is made if there is none.

    `base` is the pretrained checkpoint (directory, weights file or `Base`), by default the directory that the run's own
    config names. `task` is the task's name, by default the directory's. `codec` "auto" keeps the codec whose task
    file is smallest. Raises RunError, BaseError, UsageError, or TaskError (name taken and not `replace`), and then
    leaves the pack as it was.
    """
    started = time.perf_counter()
    if level not in ("fast", "small"):
        raise UsageError(f"no level '{printable(level)}'", hint="choose fast or small")
    run_dir = Path(run_dir)
    name = check_task_name(task if task is not None else default_name(run_dir))
    if codec != "auto":
        wanted_codec(codec)
    if not replace and (Path(pack) / "pack.json").exists():
        Store(pack).refuse_taken(name)  # before anything is read; the commit asks again
    run = read_run(run_dir)
    opened_base = _find_base(run, base, codec)
    work = prepare(run, opened_base, count_jobs(jobs))
    with Store.creating(pack) as store, contextlib.ExitStack() as scratch:
        if not replace:
            store.refuse_taken(name)
        best, best_id = None, ""
        for codec_id in _candidates(run, codec):
            path = scratch.enter_context(store.scratch())
            written = _write(path, work, registered_codec(codec_id), level, count_jobs(jobs), progress)
            if written and (best is None or path.stat().st_size < best.stat().st_size):
                best, best_id = path, codec_id
        if best is None:
            raise RunError(
                f"codec '{codec}' does not suit '{printable(str(run_dir))}': too many weights differ from the base",
                hint="--codec auto chooses the codec that takes the fewest bytes",
            )
        _compare(Task(store, name, best, {next(iter(work.shared)): work.template}), opened_base, jobs)
        nbytes = best.stat().st_size
        store.put(name, best, _SharedFiles(work.shared), unreadable(store, work.shared), replace=replace)
        shared = {sha256: store.shared_path(sha256).stat().st_size for sha256 in work.shared}
    return Encoded(
        name=name,
        method=run.method,
        layout=run.layout,
        codec=best_id,
        exact=registered_codec(best_id).exact,
        nbytes=nbytes,
        source_bytes=run.weight_bytes,
        seconds=time.perf_counter() - started,
        shared=shared,
        left_out=run.left_out,
        warnings=run.warnings,
    )


def default_name(run_dir: Path) -> str:
    """Return the task's name where none is given: the directory's, or the file's without its suffix."""
    if run_dir.is_file():
        return run_dir.stem
    return run_dir.name if run_dir.name not in ("", "..") else run_dir.resolve().name


def _candidates(run: Run, codec: str) -> list[str]:
    """Return the codecs to try, the cheap refusal first."""
    if codec != "auto":
        return [codec]
    return ["sparse", "ulp"] if isinstance(run.module, Dense) else ["plain"]


def _find_base(run: Run, base: str | Path | Base | None, codec: str) -> Base | None:
    """Open the base that a run needs: the one given, else the one that the run names; raises BaseError without one."""
    if codec == "plain" or (codec == "auto" and isinstance(run.module, Plain)):
        return None
    opened = open_base(base, run.base_name)
    if opened is not None:
        return opened
    told = f"; it names '{printable(run.base_name)}', which is no directory here" if run.base_name else ""
    raise BaseError(
        f"'{printable(str(run.path))}' is a {run.method} and no base was given{told}",
        hint="give the pretrained model's directory with --base; --codec plain stores the run without a base",
    )


@dataclass(frozen=True)
class Work:
    """A run made ready for any codec: its tensors, template, what need not be stored, and the digest of the whole."""

    run: Run
    tensors: dict[str, Tensor]
    base: Base | None
    template: Template
    plan: Plan
    decoded: str
    shared: dict[str, bytes]
    """Shared parts by sha256, the template first."""


def prepare(run: Run, base: Base | None, jobs: int) -> Work:
    """Match the run with its base, and digest every tensor once: equal digests are tensors that need no bytes."""
    tensors = dict(run.module.tensors)
    refs = _match(tensors, base, jobs) if base is not None else {}
    kept = {name: _read_kept(path) for name, path in run.kept.items()}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}
    head = run.module.head if isinstance(run.module, Plain) else frozenset(tensors.keys() - refs.keys())
    template = Template(run.headers, _plain_text(run.base_name), refs, head, files)
    digests = list(ordered_map(lambda slot: tensors[slot.name].sha256(), template.slots, jobs))
    text = template.to_json()
    return Work(
        run=run,
        tensors=tensors,
        base=base,
        template=template,
        plan=_plan(template.slots, digests, tensors, base),
        decoded=whole_digest(digests),
        shared={hashlib.sha256(text).hexdigest(): text, **{files[name]: content for name, content in kept.items()}},
    )


def _match(tensors: dict[str, Tensor], base: Base, jobs: int) -> dict[str, BaseRef]:
    """Return the base tensor of every tensor that has one; those whose dtypes cannot be compared have none."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    matches = match_names(shapes, {name: tensor.shape for name, tensor in base.tensors.items()})
    usable = {
        name: other
        for name, other in matches.items()
        if tensors[name].size and can_cast(base.tensors[other].dtype, tensors[name].dtype)
    }
    return dict(zip(usable, ordered_map(base.ref, usable.values(), jobs), strict=True))


def _plain_text(name: str | None) -> str | None:
    """Return a base's name as a template keeps it: none where it is no text, for it is only a hint to people."""
    return name if name is not None and name.isprintable() else None


def _read_kept(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_SHARED:
        raise RunError(f"'{printable(str(path))}' is {size:,} bytes, a kept file has at most {MAX_SHARED:,}")
    return path.read_bytes()


def _plan(slots: tuple[Slot, ...], digests: list[str], tensors: dict[str, Tensor], base: Base | None) -> Plan:
    """Find the tensors that equal the base's, and those that equal another of the run (tied weights)."""
    unchanged = {
        i
        for i, slot in enumerate(slots)
        if base is not None and slot.base is not None and _equals_base(slot, digests[i], tensors[slot.name], base)
    }

    def cheapest_first(i: int) -> tuple[bool, bool, int]:
        return i not in unchanged, slots[i].base is None, i

    aliases: dict[int, int] = {}
    first: dict[tuple[object, ...], int] = {}
    for i in sorted(range(len(slots)), key=cheapest_first):
        other = first.setdefault((slots[i].dtype, slots[i].shape, digests[i]), i)
        if other != i and slots[i].size and i not in unchanged:
            aliases[i] = other
    return Plan(slots, frozenset(unchanged), aliases)


def _equals_base(slot: Slot, digest: str, tensor: Tensor, base: Base) -> bool:
    """Tell whether a tensor is the base's, bit for bit, after rounding to its dtype."""
    ref = slot.base
    assert ref is not None
    if ref.shape != slot.shape:
        return False
    if ref.dtype == slot.dtype:
        return ref.sha256 == digest
    start = 0
    for piece in tensor.pieces():
        if not np.array_equal(piece, base.predict(ref, slot.dtype, start, start + len(piece))):
            return False
        start += len(piece)
    return True


class _DoesNotSuitError(Exception):
    """A codec declined a unit."""


def _write(path: Path, work: Work, codec: Codec, level: Level, jobs: int, progress: Progress | None) -> bool:
    """Write the task file by one codec; returns False where the codec does not suit the run."""
    units = codec.units(work.plan.stored)
    names = [name for unit in units for name in codec.section_names(unit)]
    facts = {
        "layout": work.run.layout,
        "method": work.run.method,
        "dense_bytes": sum(slot.nbytes for slot in work.template.slots),
    }
    limit = sum(unit.size * (unit.dtype.itemsize + 1) for unit in units) + 1024 * (1 + len(names))

    def manifest_of(rows: tuple[container.SectionRow, ...]) -> container.Manifest:
        template = next(iter(work.shared))
        return container.Manifest("task", codec.id, rows, (template,), work.decoded, work.plan.to_params(), facts)

    try:
        with path.open("wb") as file:
            container.write(file, names, limit, _sections(units, work, codec, level, jobs, progress), manifest_of)
    except _DoesNotSuitError:
        return False
    return True


def _sections(
    units: list[Unit], work: Work, codec: Codec, level: Level, jobs: int, progress: Progress | None
) -> Iterator[EncodedSection]:
    total, done = sum(unit.size * unit.dtype.itemsize for unit in units), 0

    def encode_unit(unit: Unit) -> tuple[Unit, list[EncodedSection]]:
        predicted = predict(work.base, unit) if unit.from_base else None
        sections = codec.encode(unit, _gather(unit, work.tensors), predicted)
        if sections is None:
            raise _DoesNotSuitError
        return unit, [_encode_section(section, level) for section in sections]

    for unit, encoded in ordered_map(encode_unit, units, jobs):
        yield from encoded
        done += unit.size * unit.dtype.itemsize
        if progress is not None:
            progress(done, total)


def _encode_section(section: Section, level: Level) -> EncodedSection:
    coder_id, data = coding.encode(section.bits, section.array, section.coders, level)
    return EncodedSection(section.name, coder_id, section.array.dtype.name, section.array.count, data)


def _gather(unit: Unit, tensors: dict[str, Tensor]) -> Bits:
    """Return a unit's elements, one tensor behind another."""
    pieces = [tensors[piece.slot.name].read_flat(piece.start, piece.stop) for piece in unit.pieces]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _compare(task: Task, base: Base | None, jobs: int | None) -> None:
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

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def __getitem__(self, sha256: str) -> bytes:
        return shared_file(self._contents[sha256])

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)


def shared_file(content: bytes) -> bytes:
    """Return the bytes of the shared part that holds `content`."""
    bits = np.frombuffer(content, np.uint8)
    array = coding.Array(DTYPES["U8"], len(bits), max(1, len(bits)))
    coder_id, data = coding.encode(bits, array, ("planes",), "small")
    section = EncodedSection("content", coder_id, "U8", len(bits), data)
    digest = hashlib.sha256(content).hexdigest()
    file = io.BytesIO()

    def manifest_of(rows: tuple[container.SectionRow, ...]) -> container.Manifest:
        return container.Manifest("shared", "bytes", rows, (), digest, {}, {})

    container.write(file, ["content"], len(data) + 1024, iter([section]), manifest_of)
    return file.getvalue()
