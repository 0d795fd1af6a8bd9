"""Shared parts of tensors (prototypes, generators), each named by the digests of what it decodes to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from petlpack import container
from petlpack.codecs.registry import codec
from petlpack.codecs.units import Role, Unit
from petlpack.errors import DamageError, UnknownFormatError, printable
from petlpack.records.slot import Slot
from petlpack.sections.allowance import FREE_FILE, UNBOUNDED, Allowance
from petlpack.sections.predict import Predictions
from petlpack.sections.read import DecodedSection, SectionReader
from petlpack.sections.shared import find_shared, read_shared, size_of_shared
from petlpack.store import Store
from petlpack.tensors.dtypes import DType, dtype_named, width_of
from petlpack.tensors.safetensors_file import is_shape
from petlpack.tensors.tensor import Tensor


class Part:
    """A shared part of tensors: they have no names of their own, for tasks call them differently."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Open a part's file; raises DamageError where it is not one, or another than `sha256`."""
        self.path, self.sha256 = path, sha256
        opened = container.read(path)
        manifest = opened.manifest
        if (manifest.kind, manifest.shared, manifest.decoded, set(manifest.params), dict(manifest.facts)) != (
            *("shared", (), sha256, {"tensors"}, {}),
        ):
            raise DamageError(f"'{printable(str(path))}' is not the shared part {sha256}", code="file-kind")
        self.slots = _parse_slots(manifest.params["tensors"], path)
        self._reader = SectionReader(
            f"shared part {sha256}", opened, opened.open_sections(), codec(manifest.codec), self.slots, Predictions()
        )

    def tensor(self, index: int) -> Tensor:
        """Return one tensor; nothing is decoded before its bits are read."""
        slot = self.slots[index]
        return Tensor(slot.dtype, slot.shape, lambda start, stop: self._reader.read(slot, start, stop))

    @property
    def units(self) -> dict[str, Unit]:
        """The unit that each section is of, by the section's name."""
        return self._reader.units

    @property
    def roles(self) -> dict[str, Role]:
        """The role of each section, by its name."""
        return self._reader.roles

    def sections(self) -> Iterator[DecodedSection]:
        """Yield every section decoded, with its prediction."""
        return self._reader.sections()

    def check(self) -> None:
        """Decode everything; raises DamageError where that is not what the part's name says."""
        decoded = part_name([(s.dtype, s.shape, self.tensor(i).sha256()) for i, s in enumerate(self.slots)])
        if decoded != self.sha256:
            raise DamageError(
                f"'{printable(str(self.path))}' decodes to {decoded}, its name says {self.sha256}",
                code="decoded-digest",
            )


def part_slots(slots: Sequence[Slot]) -> list[Slot]:
    """Return slots as a part holds them: numbered, without names, kinds numbered as they come."""
    kinds: dict[str, int] = {}
    numbers = [kinds.setdefault(slot.kind, len(kinds)) for slot in slots]
    return [
        _slot(i, slot.dtype, slot.shape, number) for i, (slot, number) in enumerate(zip(slots, numbers, strict=True))
    ]


def part_params(slots: Sequence[Slot]) -> dict[str, Any]:
    """Return the parameters of the manifest of a part with these slots."""
    return {"tensors": [[slot.dtype.name, list(slot.shape), int(slot.kind)] for slot in slots]}


def part_name(tensors: Sequence[tuple[DType, tuple[int, ...], str]]) -> str:
    """Return the name of a part from dtype, shape and sha256 of each of its tensors."""
    table = [[dtype.name, list(shape), digest] for dtype, shape, digest in tensors]
    return hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest()


def _slot(index: int, dtype: DType, shape: tuple[int, ...], kind: int) -> Slot:
    return Slot(str(index), dtype, shape, math.prod(shape), None, head=False, kind=f"{kind:04d}")


MOST_TENSORS = 1 << 14
"""Tensors of one shared part: a prototype has a few, a network that generates all layers of a model some hundreds."""


def _parse_slots(rows: object, path: Path) -> list[Slot]:
    if isinstance(rows, list) and len(rows) > MOST_TENSORS:
        message = f"'{printable(str(path))}' has {len(rows):,} tensors, expected at most {MOST_TENSORS:,}"
        raise DamageError(message, code="part-limit")
    slots: list[Slot] = []
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, list) or len(row) != 3 or not is_shape(row[1], width_of(row[0])):
            raise DamageError(
                f"'{printable(str(path))}': each of its tensors must be [dtype, shape, kind]", code="part-row"
            )
        dtype, shape, kind = row
        if type(kind) is not int or not 0 <= kind < len(rows):  # type: ignore[arg-type]
            message = f"'{printable(str(path))}' has a tensor of invalid kind {printable(repr(kind))}"
            raise DamageError(message, code="part-row")
        slots.append(_slot(len(slots), dtype_named(str(dtype)), tuple(shape), kind))
    return slots


def check_shared(store: Store, sha256: str, max_bytes: int | None = UNBOUNDED) -> None:
    """Check that a shared part, of bytes or of tensors, decodes to what its name says.

    Raises DamageError, and LimitError where that takes more than `max_bytes`: None is what the part's file explains.
    """
    opened = container.read(find_shared(store, sha256))
    if opened.manifest.codec != container.BYTES:
        open_part(store, sha256, max_bytes).check()
        return
    Allowance(f"shared part {sha256}", max_bytes, opened.nbytes).check(size_of_shared(store, sha256), free=FREE_FILE)
    read_shared(store, sha256)


def open_part(store: Store, sha256: str, max_bytes: int | None = None) -> Part:
    """Open a shared part of tensors to decode all of it; raises DamageError, and LimitError as `check_shared`."""
    path = find_shared(store, sha256)
    part = Part(path, sha256)
    size = sum(slot.nbytes for slot in part.slots)
    Allowance(f"shared part {sha256}", max_bytes, path.stat().st_size).check(size, size)
    return part


def unreadable(store: Store, shared: Iterable[str]) -> set[str]:
    """Return those of the shared parts that are in the store, but damaged, and so have to be written again.

    A part that a `gc` takes while it is checked counts as damaged: either way the caller has to write it.
    """
    damaged = set()
    for sha256 in shared:
        try:
            if store.shared_path(sha256).exists():
                check_shared(store, sha256)
        except (DamageError, UnknownFormatError, FileNotFoundError):
            damaged.add(sha256)
    return damaged
