"""How the tensors of a method are stored: what `mask`, `merge` and `hyper` have in common (formats/methods.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from petlpack.codecs.codec import Codec, ReadSection, read_unit
from petlpack.codecs.units import (
    UNIT,
    FromParts,
    Piece,
    Section,
    Unit,
    changed_section,
    changed_units,
    group,
    own_pieces,
    own_section,
)
from petlpack.coding.array import Array
from petlpack.records.slot import Slot
from petlpack.tensors.dtypes import Bits

MASKS = 1 << 24
"""Entries of a unit of masks: all layers of a model, so that each is coded by what the others say."""

LEAST_LAYER = 1 << 10

Rule = Mapping[str, Any]


class MethodCodec(Codec):
    """Units of a method: masks with what shared parts say of them, tensors, what differs from the base, the head."""

    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut into `changed.N` against the base, `masks.N`, `tensors.N` and `head.N`."""
        unpredicted = [piece for piece in own_pieces(slots) if not piece.slot.head]
        masks = [piece for piece in unpredicted if is_mask(piece.slot)]
        return [
            *changed_units(slots),
            *(replace(unit, predictor=_same_entries(unit, shared)) for unit in _mask_units(masks)),
            *group(
                (piece for piece in unpredicted if not is_mask(piece.slot)),
                "tensors",
                UNIT,
                role="own",
                row=lambda slot: slot.row,
            ),
            *group((p for p in own_pieces(slots) if p.slot.head), "head", UNIT, role="head"),
        ]

    def encode(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> list[Section]:
        """Return one section."""
        if unit.role == "base":
            return [changed_section(unit, tuned, prediction)]
        if unit.role == "mask":
            return [Section(unit.name, tuned, Array(unit.dtype, unit.size, unit.row, prediction), ("masks", "bitmap"))]
        return [own_section(unit, tuned)]

    def decode(self, unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
        """Return the flat elements."""
        return read_unit(unit, read, prediction)


def is_mask(slot: Slot) -> bool:
    """Tell whether a tensor is a binary mask."""
    return slot.dtype.name == "BOOL"


def entries(slot: Slot) -> int:
    """Return the entries of one mask: one layer of a tensor of three or more dimensions, else all of it.

    Layers of fewer than LEAST_LAYER entries are no masks of their own: a decoder works mask by mask.
    """
    layer = slot.size // slot.shape[0] if len(slot.shape) > 2 and slot.shape[0] else 0
    return layer if layer >= LEAST_LAYER else max(1, slot.size)


def _mask_units(masks: list[Piece]) -> list[Unit]:
    """Return units of one kind of masks each: only masks over the same entries say anything of each other."""
    kinds: dict[str, list[Piece]] = {}
    for piece in masks:
        kinds.setdefault(piece.slot.kind, []).append(piece)
    units: list[Unit] = []
    for _, members in sorted(kinds.items()):
        for unit in group(members, "masks", MASKS, role="mask", row=entries):
            units.append(replace(unit, name=f"masks.{len(units)}"))
    return units


def _same_entries(unit: Unit, shared: Iterable[Slot]) -> FromParts | None:
    """Return the masks of shared parts over the entries of a unit's as its predictor: nameless ones alone, if any.

    A nameless mask is what the masks of several tasks have in common, and is there for nothing else.
    """
    kind = unit.pieces[0].slot.kind
    if unit.size % unit.row:
        return None
    masks = [slot for slot in shared if is_mask(slot) and slot.kind == kind and entries(slot) == unit.row]
    slots = [slot for slot in masks if not slot.name] or masks
    return FromParts(tuple(slots)) if slots else None
