"""From a pack to tensors: the second straight line.

store -> container (all validated) -> base digests equal, or refuse -> coding -> codec -> tensors, their digest equal,
or refuse -> state dict or run directory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from petlpack import coding, container
from petlpack.codecs.base import MOST_ELEMENTS, Piece, Unit
from petlpack.codecs.registry import codec
from petlpack.container import Container, Manifest, ReplacedError, Sections
from petlpack.errors import BaseError, DamageError, UnknownFormatError, UsageError, printable
from petlpack.parallel import Progress, count_jobs, ordered_map
from petlpack.store import Store
from petlpack.template import Slot, Template, parse_template
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import DTYPES, Bits, DType
from petlpack.tensors.tensor import PIECE, Tensor, as_bytes

if TYPE_CHECKING:
    import torch

MAX_SHARED = 1 << 28
"""Bytes that a kept file may decode to: 256 MB, many times the largest tokenizer."""

MAX_TEMPLATE = 1 << 25
"""Bytes of a template: 32 MB describe a hundred thousand tensors, and parsing a hostile one stays cheap."""

TEMPLATES = 64
"""Templates that a pack keeps in memory: tasks of one kind share one."""

RECENT = 4
"""Units that lazy reads keep decoded: 4 of 2^20 weights are 8-16 MB."""


@dataclass(frozen=True)
class Plan:
    """How the tensors of a task are found: unchanged ones in the base, aliases in others, the rest in units."""

    slots: tuple[Slot, ...]
    unchanged: frozenset[int]
    aliases: Mapping[int, int]

    @property
    def stored(self) -> list[Slot]:
        """The tensors that the sections hold."""
        return [
            slot for i, slot in enumerate(self.slots) if i not in self.unchanged and i not in self.aliases and slot.size
        ]

    def to_params(self) -> dict[str, Any]:
        """Return the manifest's form: indices into the template's tensors."""
        return {"unchanged": sorted(self.unchanged), "aliases": [list(pair) for pair in sorted(self.aliases.items())]}


def parse_plan(params: Mapping[str, Any], slots: tuple[Slot, ...]) -> Plan:
    """Parse and check the plan in a manifest's parameters; raises DamageError."""
    if set(params) != {"unchanged", "aliases"}:
        raise DamageError("manifest has other parameters than unchanged and aliases")
    try:
        plan = Plan(slots, frozenset(params["unchanged"]), {alias: other for alias, other in params["aliases"]})
        taken = [*plan.unchanged, *plan.aliases, *plan.aliases.values()]
        if not all(type(i) is int and 0 <= i < len(slots) for i in taken):
            raise ValueError("an index beyond the tensors")
        for i in plan.unchanged:
            base = slots[i].base
            if base is None or base.shape != slots[i].shape:
                raise ValueError(f"'{slots[i].name}' is said to be unchanged, and the base has no such tensor")
        for alias, other in plan.aliases.items():
            if (slots[alias].dtype, slots[alias].shape) != (slots[other].dtype, slots[other].shape):
                raise ValueError(f"'{slots[alias].name}' is said to equal '{slots[other].name}' of another shape")
        if plan.aliases.keys() & {*plan.unchanged, *plan.aliases.values()}:
            raise ValueError("an alias of an alias")
        if plan.to_params() != dict(params):
            raise ValueError("its lists are not in canonical order")
    except (TypeError, ValueError) as error:
        raise DamageError(f"manifest has parameters that make no sense: {printable(str(error))}") from error
    return plan


def read_template(store: Store, sha256: str) -> Template:
    """Read and parse a template; raises DamageError."""
    return parse_template(read_shared(store, sha256, MAX_TEMPLATE), f"shared part {sha256}")


def read_shared(store: Store, sha256: str, most: int = MAX_SHARED) -> bytes:
    """Read a shared part of at most so many bytes, and check that it decodes to what its name says.

    Raises DamageError.
    """
    path = store.shared_path(sha256)
    if not path.is_file():
        raise DamageError(
            f"shared part {sha256} is missing from pack '{printable(str(store.path))}'",
            hint="restore the file from a copy of the pack, or encode the runs that need it again",
        )
    opened = container.read(path)
    rows = opened.manifest.sections
    manifest = opened.manifest
    made = Manifest("shared", "bytes", rows, (), sha256, {}, {})
    if manifest != made or [(row.name, row.dtype) for row in rows] != [("content", "U8")]:
        raise DamageError(f"'{printable(str(path))}' is not a shared part of bytes")
    if rows[0].count > most:
        raise DamageError(f"'{printable(str(path))}' claims {rows[0].count:,} bytes, at most {most:,} are read")
    array = coding.Array(DTYPES["U8"], rows[0].count, max(1, rows[0].count))
    data = opened.open_sections().read(rows[0])
    content = bytes(coding.decode(rows[0].coder, data, array, rows[0].name))
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamageError(f"'{printable(str(path))}' decodes to something else than its name says")
    return content


def unreadable(store: Store, shared: Iterable[str]) -> set[str]:
    """Return those of the shared parts that are in the store, but damaged, and so have to be written again."""
    damaged = set()
    for sha256 in shared:
        try:
            if store.shared_path(sha256).exists():
                read_shared(store, sha256)
        except (DamageError, UnknownFormatError):
            damaged.add(sha256)
    return damaged


def is_directory(name: str) -> bool:
    """Tell whether a name from a config is a directory here; any text may stand there."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def open_base(base: str | Path | Base | None, named: str | None) -> Base | None:
    """Open the base that is given, else the one that a run named, if that is a directory here; None without either."""
    if isinstance(base, Base):
        return base
    if base is not None:
        return Base(base)
    return Base(named) if named is not None and is_directory(named) else None


class Task:
    """One task of a pack. Opening it reads and checks its header and manifest only."""

    def __init__(
        self, store: Store, name: str, path: Path | None = None, templates: dict[str, Template] | None = None
    ) -> None:
        """Open a task by name; `path` where its file is not in its place yet, `templates` those read before, by sha256.

        Raises TaskError where there is no such task, DamageError where its file is not as it was written.
        """
        self.name = name
        self._store = store
        self._templates = {} if templates is None else templates
        self._path = path or store.find_task(name)
        self._container = container.read(self._path)
        if self.manifest.kind != "task" or len(self.manifest.shared) != 1:
            raise DamageError(f"'{printable(str(self._container.path))}' is not a task")

    def __repr__(self) -> str:
        """Show name, codec and bytes."""
        return f"Task({self.name!r}, codec={self.codec!r}, nbytes={self.nbytes})"

    @property
    def manifest(self) -> Manifest:
        """The validated manifest."""
        return self._container.manifest

    @property
    def codec(self) -> str:
        """Id of the codec."""
        return self.manifest.codec

    @property
    def method(self) -> str:
        """How the run was trained, in words."""
        return printable(str(self.manifest.facts.get("method", "unknown")))

    @property
    def exact(self) -> bool:
        """Whether every bit of the run comes back."""
        return codec(self.codec).exact

    @property
    def nbytes(self) -> int:
        """Bytes of the task's own file."""
        return self._container.nbytes

    @property
    def payload(self) -> dict[str, int]:
        """Bytes of each section."""
        return {row.name: self._container.section_bytes(row.name) for row in self.manifest.sections}

    @property
    def template(self) -> Template:
        """What the task has in common with others: tensors, base, kept files."""
        sha256 = self.manifest.shared[0]
        if sha256 not in self._templates:
            if len(self._templates) == TEMPLATES:
                self._templates.clear()
            self._templates[sha256] = read_template(self._store, sha256)
        return self._templates[sha256]

    def load(self, base: str | Path | Base | None = None) -> TaskTensors:
        """Return the tensors, lazily: a mapping whose tensors are decoded when their bits are asked for.

        `base` is the base's directory, its weights file, or an opened `Base`, which keeps its digests; by default the
        directory that the run's own config names. Raises BaseError where the base is missing or another one,
        DamageError where the pack's bytes are not those that were written.
        """
        opened, sections = self._open()
        return TaskTensors(self.name, opened, sections, self.template, self._find_base(base))

    def check_bytes(self) -> None:
        """Read every section and check its digest, decoding nothing; raises DamageError."""
        opened, sections = self._open()
        for row in opened.manifest.sections:
            sections.read(row)

    def state_dict(self, base: str | Path | Base | None = None, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Return every tensor as a torch tensor on `device`, bit for bit; checks the digest of the whole."""
        for header in self.template.headers.values():
            for name, entry in header.entries.items():
                if entry.dtype not in DTYPES:
                    raise UnknownFormatError(
                        f"tensor '{printable(name)}' is {printable(entry.dtype)}, which is carried as bytes only",
                        hint="`decode` writes it back as it was",
                    )
        return {name: Tensor.of(bits, slot.dtype).torch().to(device) for name, slot, bits in self.load(base).read_all()}

    def decode(
        self,
        out: str | Path,
        base: str | Path | Base | None = None,
        *,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write the run back to a new directory `out`: weight files bit for bit, kept files byte for byte.

        The directory appears only when it is complete. Raises UsageError where `out` exists and is not empty.
        """
        out = Path(out).resolve()
        if out == Path.cwd():
            raise UsageError("cannot decode into the current directory", hint="give a new directory to decode into")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError(f"'{printable(str(out))}' exists already", hint="give a new directory to decode into")
        out.parent.mkdir(parents=True, exist_ok=True)
        half_written = out.parent / f".petlpack-{uuid.uuid4().hex}"
        try:
            half_written.mkdir()
            for name, sha256 in self.template.files.items():
                target = half_written / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(read_shared(self._store, sha256))
            self._write_weights(half_written, self.load(base), jobs, progress)
            if out.exists():
                out.rmdir()
            half_written.rename(out)
        finally:
            shutil.rmtree(half_written, ignore_errors=True)
        return out

    def _write_weights(
        self, directory: Path, tensors: TaskTensors, jobs: int | None, progress: Progress | None
    ) -> None:
        """Write the weight files: each header verbatim, then the tensors at their offsets as they are decoded."""
        with contextlib.ExitStack() as stack:
            places: dict[str, tuple[BinaryIO, int]] = {}
            for name, header in self.template.headers.items():
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                file: BinaryIO = stack.enter_context(path.open("wb"))
                file.write(header.head_bytes())
                file.truncate(header.file_size)
                places |= {name: (file, header.data_start + entry.start) for name, entry in header.entries.items()}
            for slot, start, bits in tensors.stream(jobs=jobs, progress=progress):
                file, offset = places[slot.name]
                file.seek(offset + start * slot.dtype.itemsize)
                file.write(as_bytes(bits))

    def _open(self) -> tuple[Container, Sections]:
        """Open the file for reading; one that was replaced since the task was opened is taken as it is now."""
        while True:
            try:
                return self._container, self._container.open_sections()
            except ReplacedError:
                self._container = container.read(self._path)

    def _find_base(self, base: str | Path | Base | None) -> Base | None:
        if base is None and not self.template.base:
            return None
        named = self.template.base_name
        opened = open_base(base, named)
        if opened is not None:
            return opened
        told = f"; its run named '{printable(named)}'" if named else ""
        raise BaseError(
            f"task '{self.name}' needs its base to be decoded{told}", hint="give the base's directory with --base"
        )


class TaskTensors(Mapping[str, Tensor]):
    """The tensors of a task by name, decoded on demand."""

    def __init__(self, name: str, opened: Container, sections: Sections, template: Template, base: Base | None) -> None:
        """Check the manifest against the template; `base` may be None where the task needs none."""
        self._path, self._manifest, self._sections, self._base = opened.path, opened.manifest, sections, base
        self._codec = codec(opened.manifest.codec)
        self._plan = parse_plan(opened.manifest.params, template.slots)
        if sum(slot.size for slot in self._plan.stored) > len(opened.manifest.sections) * MOST_ELEMENTS:
            raise DamageError(f"task '{name}' claims more weights than its sections can hold")
        self._units = self._codec.units(self._plan.stored)
        self._rows = {row.name: row for row in opened.manifest.sections}
        expected = [section for unit in self._units for section in self._codec.section_names(unit)]
        if expected != list(self._rows):
            raise DamageError(
                f"task '{name}' has {len(self._rows)} sections, its tensors need {len(expected)}: "
                f"{', '.join(expected[:3])} ..."
            )
        self._index = {slot.name: i for i, slot in enumerate(self._plan.slots)}
        self._parts: dict[str, list[tuple[Unit, Piece, int]]] = {}
        for unit in self._units:
            offset = 0
            for piece in unit.pieces:
                self._parts.setdefault(piece.slot.name, []).append((unit, piece, offset))
                offset += piece.size
        self._recent: dict[str, Bits] = {}
        self._recent_lock = threading.Lock()

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor; nothing is decoded before its bits are read."""
        index = self._index[name]
        index = self._plan.aliases.get(index, index)
        slot = self._plan.slots[index]
        reader = self._read_base if index in self._plan.unchanged else self._read_units
        return Tensor(slot.dtype, slot.shape, functools.partial(reader, slot))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the weight files."""
        return iter(self._index)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._index)

    def stream(self, *, jobs: int | None = None, progress: Progress | None = None) -> Iterator[tuple[Slot, int, Bits]]:
        """Yield every element once, as (tensor, first flat element, bits); a few pieces are in memory at a time.

        After the last piece the digest of the whole is compared with the manifest's; raises DamageError.
        """
        digest = _WholeDigest(self._plan)
        total, done = sum(slot.nbytes for slot in self._plan.slots), 0
        for slot, start, bits in self._all_pieces(count_jobs(jobs)):
            digest.update(slot, bits)
            yield slot, start, bits
            done += bits.nbytes
            if progress is not None:
                progress(done, total)
        if digest.hexdigest() != self._manifest.decoded:
            raise DamageError(
                f"'{printable(str(self._path))}' decodes to sha256 {digest.hexdigest()}, "
                f"its manifest says {self._manifest.decoded}"
            )

    def read_all(self, *, jobs: int | None = None) -> Iterator[tuple[str, Slot, Bits]]:
        """Decode everything in parallel and return (name, slot, bits in the tensor's shape), checked as a whole."""
        arrays = {slot.name: np.empty(slot.size, slot.dtype.bits) for slot in self._plan.slots}
        for slot, start, bits in self.stream(jobs=jobs):
            arrays[slot.name][start : start + len(bits)] = bits
        return iter([(slot.name, slot, arrays[slot.name].reshape(slot.shape)) for slot in self._plan.slots])

    def _all_pieces(self, jobs: int) -> Iterator[tuple[Slot, int, Bits]]:
        for unit, bits in ordered_map(lambda unit: (unit, self._decode_unit(unit)), self._units, jobs):
            offset = 0
            for piece in unit.pieces:
                yield piece.slot, piece.start, bits[offset : offset + piece.size]
                offset += piece.size
        for i in sorted({*self._plan.unchanged, *self._plan.aliases}):
            slot = self._plan.slots[i]
            tensor = self[slot.name]
            for start in range(0, slot.size, PIECE):
                yield slot, start, tensor.read_flat(start, min(start + PIECE, slot.size))

    def _decode_unit(self, unit: Unit) -> Bits:
        return self._codec.decode(unit, self._read_section, predict(self._base, unit) if unit.from_base else None)

    def _recently_decoded(self, unit: Unit) -> Bits:
        """Decode a unit, or return it from among the last few: neighbouring tensors stand in one unit."""
        with self._recent_lock:
            if unit.name not in self._recent:
                if len(self._recent) == RECENT:
                    del self._recent[next(iter(self._recent))]
                self._recent[unit.name] = self._decode_unit(unit)
            return self._recent[unit.name]

    def _read_section(self, name: str, dtype: DType, counts: range, row: int, given: Bits | None) -> Bits:
        section = self._rows[name]
        if section.dtype != dtype.name or section.count not in counts:
            raise DamageError(
                f"section '{name}' is {section.count} elements of {section.dtype}, "
                f"its tensors need {counts[-1]} of {dtype.name}"
            )
        array = coding.Array(dtype, section.count, row or max(1, section.count), given)
        return coding.decode(section.coder, self._sections.read(section), array, name)

    def _read_units(self, slot: Slot, start: int, stop: int) -> Bits:
        out = np.empty(stop - start, slot.dtype.bits)
        for unit, piece, offset in self._parts.get(slot.name, ()):
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                shift = offset - piece.start
                out[first - start : last - start] = self._recently_decoded(unit)[first + shift : last + shift]
        return out

    def _read_base(self, slot: Slot, start: int, stop: int) -> Bits:
        assert slot.base is not None
        return needed(self._base).predict(slot.base, slot.dtype, start, stop)


def needed(base: Base | None) -> Base:
    """Return the base; raises BaseError where there is none."""
    if base is None:
        raise BaseError("the task needs its base to be decoded", hint="give the base's directory with --base")
    return base


def predict(base: Base | None, unit: Unit) -> Bits:
    """Return what the base says of a unit's elements, rounded to the unit's dtype."""
    pieces = []
    for piece in unit.pieces:
        assert piece.slot.base is not None
        pieces.append(needed(base).predict(piece.slot.base, unit.dtype, piece.start, piece.stop))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class _WholeDigest:
    """The sha256 of a whole task: of the tensors' own sha256 digests, in the order of the template."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._hashes = {slot.name: hashlib.sha256() for slot in plan.slots}

    def update(self, slot: Slot, bits: Bits) -> None:
        self._hashes[slot.name].update(as_bytes(bits))

    def hexdigest(self) -> str:
        return whole_digest([self._hashes[slot.name].hexdigest() for slot in self._plan.slots])


def whole_digest(digests: list[str]) -> str:
    """Return the digest of a whole task from the sha256 of each tensor, in the order of the template."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()
