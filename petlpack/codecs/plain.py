"""`plain`: tensors as numbers, without a base: LoRA, IA3, any adapter (formats/codecs/plain.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from petlpack.codecs.base import (
    Piece,
    ReadSection,
    Section,
    Unit,
    group,
    own_section,
    read_own,
)
from petlpack.template import Slot
from petlpack.tensors.dtypes import Bits

UNIT = 1 << 20
"""Elements of a unit, as in `ulp`."""


@dataclass(frozen=True)
class Plain:
    """Every tensor as it is."""

    id = "plain"
    exact = True

    def units(self, slots: Sequence[Slot]) -> list[Unit]:
        """Cut into `tensors.N` and `head.N`."""
        tensors, head = ([Piece(slot, 0, slot.size) for slot in slots if slot.head == part] for part in (False, True))
        return [
            *group(tensors, "tensors", UNIT, from_base=False, row=lambda slot: slot.row),
            *group(head, "head", UNIT, from_base=False),
        ]

    def section_names(self, unit: Unit) -> tuple[str, ...]:
        """Return the names of the sections that a unit takes."""
        return (unit.name,)

    def encode(self, unit: Unit, tuned: Bits, predicted: Bits | None) -> list[Section]:
        """Return one section."""
        return [own_section(unit, tuned)]

    def decode(self, unit: Unit, read: ReadSection, predicted: Bits | None) -> Bits:
        """Return the flat elements."""
        return read_own(unit, read)
