"""The tensors that one file's sections hold: which units they make, and their elements, decoded on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from petlpack import coding
from petlpack.codecs.base import MOST_ELEMENTS, Codec, Piece, Role, Unit
from petlpack.container import Container, Sections
from petlpack.errors import BaseError, DamageError
from petlpack.parallel import ordered_map
from petlpack.template import Slot
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.tensor import Tensor

RECENT = 4
"""Units that lazy reads keep decoded: 4 of 2^20 weights are 8-16 MB."""


@dataclass(frozen=True)
class DecodedSection:
    """One section: its name, unit and role, its elements, the prediction or masks that its coder is given, its row."""

    name: str
    unit: Unit
    role: Role
    dtype: DType
    bits: Bits
    given: Bits | None
    row: int


class Decoder:
    """The elements of the tensors that a file stores. Checks at the start that its sections are those they need."""

    def __init__(
        self,
        what: str,
        opened: Container,
        sections: Sections,
        codec: Codec,
        slots: Sequence[Slot],
        base: Base | None = None,
        shared: Sequence[tuple[Slot, Tensor]] = (),
    ) -> None:
        """Cut `slots` into units; `shared` are tensors of shared parts, which a unit may be coded by."""
        self._codec, self._sections, self._base = codec, sections, base
        self._shared = {slot: tensor for slot, tensor in shared}
        if sum(slot.size for slot in slots) > len(opened.manifest.sections) * MOST_ELEMENTS:
            raise DamageError(f"{what} claims more weights than its sections can hold")
        self._units = codec.units(slots, list(self._shared))
        self._rows = {row.name: row for row in opened.manifest.sections}
        expected = [section for unit in self._units for section in codec.sections(unit)]
        if expected != list(self._rows):
            first = ", ".join(expected[:3])
            raise DamageError(f"{what} has {len(self._rows)} sections, its tensors need {len(expected)}: {first} ...")
        self._parts: dict[str, list[tuple[Unit, Piece, int]]] = {}
        for unit in self._units:
            offset = 0
            for piece in unit.pieces:
                self._parts.setdefault(piece.slot.name, []).append((unit, piece, offset))
                offset += piece.size
        self._recent: dict[str, Bits] = {}
        self._recent_lock = threading.Lock()

    def pieces(self, jobs: int) -> Iterator[tuple[Slot, int, Bits]]:
        """Yield every stored element once, as (tensor, first flat element, bits)."""
        for unit, bits in ordered_map(lambda unit: (unit, self._decode_unit(unit)), self._units, jobs):
            offset = 0
            for piece in unit.pieces:
                yield piece.slot, piece.start, bits[offset : offset + piece.size]
                offset += piece.size

    @property
    def units(self) -> dict[str, Unit]:
        """The unit that each section is of, by the section's name."""
        return {name: unit for unit in self._units for name in self._codec.sections(unit)}

    @property
    def roles(self) -> dict[str, Role]:
        """The role of each section, by its name."""
        return {name: role for unit in self._units for name, role in self._codec.sections(unit).items()}

    def sections(self) -> Iterator[DecodedSection]:
        """Yield every section decoded, with what its coder is given: what their entropy is counted from."""
        for unit in self._units:
            found: list[DecodedSection] = []
            roles = self._codec.sections(unit)

            def read(name: str, dtype: DType, counts: range, row: int, given: Bits | None, unit: Unit = unit) -> Bits:
                bits = self._read_section(name, dtype, counts, row, given)
                found.append(DecodedSection(name, unit, roles[name], dtype, bits, given, row))  # noqa: B023 - used at once
                return bits

            self._codec.decode(unit, read, given_of(unit, self._base, self._shared.__getitem__))
            yield from found

    def read(self, slot: Slot, start: int, stop: int) -> Bits:
        """Return flat elements of one tensor."""
        out = np.empty(stop - start, slot.dtype.bits)
        for unit, piece, offset in self._parts.get(slot.name, ()):
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                shift = offset - piece.start
                out[first - start : last - start] = self._recently_decoded(unit)[first + shift : last + shift]
        return out

    def _decode_unit(self, unit: Unit) -> Bits:
        given = given_of(unit, self._base, self._shared.__getitem__)
        return self._codec.decode(unit, self._read_section, given)

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


def with_kinds(slots: Sequence[Slot], kinds: Mapping[str, str]) -> list[Slot]:
    """Return slots with the kinds that a rule tells in the place of those that names tell."""
    return [replace(slot, kind=kinds[slot.name]) if slot.name in kinds else slot for slot in slots]


def needed(base: Base | None) -> Base:
    """Return the base; raises BaseError where there is none."""
    if base is None:
        raise BaseError("the task needs its base to be decoded", hint="give the base's directory with --base")
    return base


def given_of(unit: Unit, base: Base | None, shared: Callable[[Slot], Tensor]) -> Bits | None:
    """Return what a unit's coder is given: the base's elements, or tensors of shared parts; or nothing."""
    if unit.role == "base":
        return predict(base, unit)
    return joined([shared(slot).read_flat(0, slot.size) for slot in unit.given]) if unit.given else None


def predict(base: Base | None, unit: Unit) -> Bits:
    """Return what the base says of a unit's elements, rounded to the unit's dtype."""
    pieces = []
    for piece in unit.pieces:
        assert piece.slot.base is not None
        pieces.append(needed(base).predict(piece.slot.base, unit.dtype, piece.start, piece.stop))
    return joined(pieces)


def joined(pieces: list[Bits]) -> Bits:
    """Return arrays one behind another, without a copy where there is one."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def whole_digest(digests: list[str]) -> str:
    """Return the digest of a whole task from the sha256 of each tensor, in the order of the template."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()
