"""The tensors of a task by name, decoded on demand, and the sums of them all."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from petlpack.codecs.registry import codec
from petlpack.container import Container, Sections
from petlpack.container.manifest import Manifest
from petlpack.errors import DamageError, naming, printable
from petlpack.parallel import Progress, count_jobs
from petlpack.records.slot import Slot, with_kinds
from petlpack.records.sources import Sources, parse_sources
from petlpack.records.template import Template
from petlpack.sections.parts import Part
from petlpack.sections.predict import Predictions
from petlpack.sections.read import DecodedSection, SectionReader
from petlpack.tensors.base import Base, needed
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import PIECE, Sums, Tensor, as_bytes


class TaskTensors(Mapping[str, Tensor]):
    """The tensors of a task by name, decoded on demand."""

    def __init__(
        self,
        name: str,
        opened: Container,
        sections: Sections,
        template: Template,
        parts: list[Part],
        base: Base | None,
    ) -> None:
        """Check the manifest against the template and the parts; `base` may be None where no tensor needs it."""
        self._path, self._manifest, self._base, self._shared = opened.path, opened.manifest, base, parts
        self._base_refs = template.base_refs
        with naming(opened.path):
            self.sources = parse_sources(opened.manifest.params, template.slots)
            known = codec(opened.manifest.codec)
            kinds = known.kinds(template.rule)
        shared = _shared_tensors(name, template, with_kinds(template.slots, kinds), parts)
        stored = with_kinds(self.sources.stored, kinds)
        predictions = Predictions(base, shared)
        self._reader = SectionReader(f"task '{name}'", opened, sections, known, stored, predictions)
        self._index = {slot.name: i for i, slot in enumerate(self.sources.slots)}

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor; nothing is decoded before its bits are read."""
        index = self._index[name]
        index = self.sources.aliases.get(index, index)
        slot = self.sources.slots[index]
        if slot.part is not None:
            return self._shared[slot.part[0]].tensor(slot.part[1])
        reader = self._read_base if index in self.sources.unchanged else self._reader.read
        return Tensor(slot.dtype, slot.shape, functools.partial(reader, slot))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the weight files."""
        return iter(self._index)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._index)

    def stream(self, *, jobs: int | None = None, progress: Progress | None = None) -> Iterator[tuple[Slot, int, Bits]]:
        """Yield every element once, as (tensor, first flat element, bits); a few pieces are in memory at a time.

        After the last piece the checksum of the whole is compared with the manifest's; raises DamageError.
        """
        return self._stream((_CHECKSUM,), jobs, progress)

    def _stream(
        self, sums: Sequence[_Sum], jobs: int | None, progress: Progress | None
    ) -> Iterator[tuple[Slot, int, Bits]]:
        wholes = [_Whole(self.sources, kind) for kind in sums]
        total, done = sum(slot.nbytes for slot in self.sources.slots), 0
        for slot, start, bits in self._all_pieces(count_jobs(jobs)):
            for whole in wholes:
                whole.update(slot, bits)
            yield slot, start, bits
            done += bits.nbytes
            if progress is not None:
                progress(done, total)
        for whole in wholes:
            whole.compare(self._path, self._manifest)

    def check(self, *, jobs: int | None = None, progress: Progress | None = None) -> None:
        """Decode all and forget it, and compare every digest, those of the base's tensors too; raises PetlpackError."""
        for ref in self._base_refs:  # first, for a checksum then comes along
            needed(self._base).check_digest(ref)
        for _ in self._stream((_CHECKSUM, _DIGEST), jobs, progress):
            pass

    def read_all(self, *, jobs: int | None = None) -> Iterator[tuple[str, Slot, Bits]]:
        """Decode everything in parallel and return (name, slot, bits in the tensor's shape), checked as a whole."""
        arrays = {slot.name: np.empty(slot.size, slot.dtype.bits) for slot in self.sources.slots}
        for slot, start, bits in self.stream(jobs=jobs):
            arrays[slot.name][start : start + len(bits)] = bits
        return iter([(slot.name, slot, arrays[slot.name].reshape(slot.shape)) for slot in self.sources.slots])

    def sections(self) -> Iterator[DecodedSection]:
        """Yield every section of the task's own decoded, with its prediction."""
        return self._reader.sections()

    def _all_pieces(self, jobs: int) -> Iterator[tuple[Slot, int, Bits]]:
        yield from self._reader.pieces(jobs)
        for i, slot in enumerate(self.sources.slots):
            if slot.part is None and i not in self.sources.unchanged and i not in self.sources.aliases:
                continue
            tensor = self[slot.name]
            for start in range(0, slot.size, PIECE):
                yield slot, start, tensor.read_flat(start, min(start + PIECE, slot.size))

    def _read_base(self, slot: Slot, start: int, stop: int) -> Bits:
        assert slot.base is not None
        return needed(self._base).predict(slot.base, slot.dtype, start, stop)


def _shared_tensors(name: str, template: Template, slots: list[Slot], parts: list[Part]) -> dict[Slot, Tensor]:
    """Return the tensors of all parts as the task sees them; one without a name is of the kind of its neighbours."""
    if len(parts) != len(template.parts):
        raise DamageError(
            f"task '{name}' has {len(parts)} shared parts of tensors, its template needs {len(template.parts)}",
            code="part-tensors",
        )
    by_name = {slot.name: slot for slot in slots}
    shared = {}
    for number, (names, part) in enumerate(zip(template.parts, parts, strict=True)):
        if len(names) != len(part.slots):
            raise DamageError(
                f"shared part {part.sha256} has {len(part.slots)} tensors, task '{name}' needs {len(names)}",
                code="part-tensors",
            )
        kinds = {held.kind: by_name[called].kind for called, held in zip(names, part.slots, strict=True) if called}
        for i, (called, held) in enumerate(zip(names, part.slots, strict=True)):
            slot = replace(held, name="", part=(number, i), kind=kinds.get(held.kind, ""))
            if called is not None:
                slot = by_name[called]
            if (slot.dtype, slot.shape) != (held.dtype, held.shape):
                raise DamageError(
                    f"tensor '{printable(slot.name)}' is {slot.dtype.name} {list(slot.shape)}, "
                    f"but {held.dtype.name} {list(held.shape)} in shared part {part.sha256}",
                    code="part-tensors",
                )
            shared[slot] = part.tensor(i)
    return shared


@dataclass(frozen=True)
class _Sum:
    """One of the sums of a whole task, which is a sum of the tensors' own, in the order of the template."""

    name: str
    new: Callable[[], Any]
    said: Callable[[Manifest], str]

    def of(self, sums: Iterable[str]) -> str:
        whole = self.new()
        whole.update(b"".join(bytes.fromhex(one) for one in sums))
        return str(whole.hexdigest())


_DIGEST = _Sum("sha256", hashlib.sha256, lambda manifest: manifest.decoded)
_CHECKSUM = _Sum("checksum", xxhash.xxh3_64, lambda manifest: manifest.checksum)


class _Whole:
    """A sum of a whole task, of pieces as they come."""

    def __init__(self, sources: Sources, kind: _Sum) -> None:
        self._kind = kind
        self._sums = {slot.name: kind.new() for slot in sources.slots}

    def update(self, slot: Slot, bits: Bits) -> None:
        self._sums[slot.name].update(as_bytes(bits))

    def compare(self, path: Path, manifest: Manifest) -> None:
        """Raise DamageError where the manifest says another sum."""
        found, said = self._kind.of(sum_.hexdigest() for sum_ in self._sums.values()), self._kind.said(manifest)
        if found != said:
            raise DamageError(
                f"'{printable(str(path))}' decodes to {self._kind.name} {found}, its manifest says {said}",
                code="decoded-digest",
            )


def whole_sums(sums: Sequence[Sums]) -> Sums:
    """Return the sums of a whole task from those of each tensor, in the order of the template."""
    return Sums(_DIGEST.of(one.sha256 for one in sums), _CHECKSUM.of(one.checksum for one in sums))
