"""Sections of a file to the tensors that they hold, decoded on demand; `write.py` is its inverse."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from petlpack import coding
from petlpack.codecs.codec import Codec
from petlpack.codecs.units import MOST_ELEMENTS, Piece, Role, Unit
from petlpack.container import Container, Sections
from petlpack.errors import DamageError, naming
from petlpack.parallel import ordered_map
from petlpack.records.slot import Slot
from petlpack.sections.predict import Predictions
from petlpack.tensors.dtypes import Bits, DType

RECENT = 4
"""Units that lazy reads keep decoded: 4 of 2^20 weights are 8-16 MB."""


@dataclass(frozen=True)
class DecodedSection:
    """One section: its name, unit and role, its elements, the prediction that its coder has, its row."""

    name: str
    unit: Unit
    role: Role
    dtype: DType
    bits: Bits
    prediction: Bits | None
    row: int


def check_capacity(what: str, elements: int, sections: int) -> None:
    """Raise DamageError where so many sections cannot hold the elements: no list of units is made of them."""
    if elements > sections * MOST_ELEMENTS:
        raise DamageError(f"{what} declares more weights than its sections can hold", code="section-capacity")


class SectionReader:
    """The elements of the tensors that a file stores. Checks at the start that its sections are those they need."""

    def __init__(
        self,
        what: str,
        opened: Container,
        sections: Sections,
        codec: Codec,
        slots: Sequence[Slot],
        predictions: Predictions,
    ) -> None:
        """Cut `slots` into units; raises DamageError that names `what` where the file's sections are not theirs."""
        self._codec, self._sections, self._predictions, self._path = codec, sections, predictions, opened.path
        check_capacity(what, sum(slot.size for slot in slots), len(opened.manifest.sections))
        self._units = codec.units(slots, predictions.shared)
        self._rows = {row.name: row for row in opened.manifest.sections}
        expected = [section for unit in self._units for section in codec.sections(unit)]
        if expected != list(self._rows):
            first = ", ".join(expected[:3])
            raise DamageError(
                f"{what}: expected {len(expected)} sections ({first}, ...), "
                f"manifest has {len(self._rows)} ({', '.join([*self._rows][:3])}, ...)",
                code="section-names",
            )
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
        """Yield every section decoded, with its prediction: what their entropy is counted from."""
        for unit in self._units:
            decoded: list[DecodedSection] = []
            roles = self._codec.sections(unit)

            def read(
                name: str, dtype: DType, counts: range, row: int, prediction: Bits | None, unit: Unit = unit
            ) -> Bits:
                bits = self._read_section(name, dtype, counts, row, prediction)
                decoded.append(DecodedSection(name, unit, roles[name], dtype, bits, prediction, row))  # noqa: B023 - used at once
                return bits

            self._codec.decode(unit, read, self._predictions.of(unit))
            yield from decoded

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
        return self._codec.decode(unit, self._read_section, self._predictions.of(unit))

    def _recently_decoded(self, unit: Unit) -> Bits:
        """Decode a unit, or return it from among the last few: neighbouring tensors stand in one unit."""
        with self._recent_lock:
            if unit.name not in self._recent:
                if len(self._recent) == RECENT:
                    del self._recent[next(iter(self._recent))]
                self._recent[unit.name] = self._decode_unit(unit)
            return self._recent[unit.name]

    def _read_section(self, name: str, dtype: DType, counts: range, row: int, prediction: Bits | None) -> Bits:
        section = self._rows[name]
        with naming(self._path):
            if section.dtype != dtype.name or section.count not in counts:
                raise DamageError(
                    f"section '{name}': expected {'at most ' * (len(counts) > 1)}{counts[-1]} {dtype.name} elements, "
                    f"manifest says {section.count} {section.dtype}",
                    code="section-elements",
                )
            array = coding.Array(dtype, section.count, row or max(1, section.count), prediction)
            return coding.decode(section.coder, self._sections.read(section), array, name)
