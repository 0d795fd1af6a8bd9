"""Units: how the tensors of a task share sections.

A unit is a run of pieces of tensors of one dtype that are coded together: tensors of one kind share a unit (thousands
of small tensors stay small), and a unit has at most so many elements (large tensors stream, threads have work, one
tensor can be read without the others).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from petlpack.coding.array import Array
from petlpack.records.slot import Slot
from petlpack.tensors.dtypes import Bits, DType

MOST_ELEMENTS = 1 << 24
"""No unit of any codec has more elements, so a file's number of sections bounds what it can decode to."""

Role = Literal["base", "own", "head", "mask", "positions"]
"""What a unit is to its task: predicted by the base, of the method, of the head, masks. A section has its unit's role,
or says which of the unit's elements another section is of: their positions."""


@dataclass(frozen=True)
class Piece:
    """Flat elements `start` to `stop` of one tensor."""

    slot: Slot
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


@dataclass(frozen=True)
class FromBase:
    """Each element is predicted by the base's at its place, rounded to the unit's dtype."""


@dataclass(frozen=True)
class FromParts:
    """What predicts a unit are tensors of shared parts, whole, one behind another."""

    slots: tuple[Slot, ...]


Predictor = FromBase | FromParts | None
"""Where a unit's prediction comes from: what writer and reader both have before the unit is decoded. None: nothing."""


@dataclass(frozen=True)
class Unit:
    """Pieces that are coded together, and what predicts them."""

    name: str
    dtype: DType
    row: int
    pieces: tuple[Piece, ...]
    role: Role
    predictor: Predictor = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Section:
    """One named array of a payload, and the coders to try on it."""

    name: str
    bits: Bits
    array: Array
    coders: tuple[str, ...]


OWN_CODERS = ("numbers", "planes")
"""Coders to try on tensors that the base does not predict."""


def own_section(unit: Unit, tuned: Bits) -> Section:
    """Return the section of a unit that the base does not predict."""
    return Section(unit.name, tuned, Array(unit.dtype, unit.size, unit.row), OWN_CODERS)


UNIT = 1 << 20
"""Elements of a unit: 2^22 take 0.1 % fewer bytes, but 2^20 keep a thread's arrays near 30 MB and two cores busy."""


def changed_units(slots: Iterable[Slot]) -> list[Unit]:
    """Return units `changed.N` of the tensors of the base that a task has, too."""
    return group(base_pieces(slots), "changed", UNIT, role="base", predictor=FromBase(), row=lambda slot: slot.row)


def changed_section(unit: Unit, tuned: Bits, prediction: Bits | None) -> Section:
    """Return the section of a unit that the base predicts, which may have moved far from it."""
    array = Array(unit.dtype, unit.size, unit.row, prediction)
    return Section(unit.name, tuned, array, ("rows", "ulps", "numbers"))


def base_pieces(slots: Iterable[Slot]) -> Iterator[Piece]:
    """Yield what the base predicts: whole tensors, or the rows that a resized one shares with it."""
    for slot in slots:
        if slot.base is not None and slot.size:
            shared = min(slot.shape[0], slot.base.shape[0]) * slot.row if slot.shape else 1
            yield Piece(slot, 0, min(shared, slot.size))


def own_pieces(slots: Iterable[Slot]) -> Iterator[Piece]:
    """Yield what the base does not predict: tensors that it lacks, rows beyond its own."""
    for slot in slots:
        predicted = sum(piece.size for piece in base_pieces([slot]))
        if slot.size > predicted:
            yield Piece(slot, predicted, slot.size)


def group(
    pieces: Iterable[Piece],
    label: str,
    most: int,
    *,
    role: Role,
    predictor: Predictor = None,
    row: Callable[[Slot], int] = lambda slot: 1,
) -> list[Unit]:
    """Cut pieces into units `label.N`: one dtype and row length each, kinds together, at most `most` elements.

    The order is by dtype, row length, kind, then that of the pieces. A unit ends at whole rows, unless one is longer.
    """
    families: dict[tuple[str, int], list[Piece]] = {}
    for piece in pieces:
        families.setdefault((piece.slot.dtype.name, min(row(piece.slot), most)), []).append(piece)
    units: list[Unit] = []
    for (_, length), family in sorted(families.items()):
        family.sort(key=lambda piece: piece.slot.kind)
        for run in _cut(family, most // length * length):
            units.append(Unit(f"{label}.{len(units)}", run[0].slot.dtype, length, tuple(run), role, predictor))
    return units


def _cut(pieces: list[Piece], most: int) -> Iterator[list[Piece]]:
    run: list[Piece] = []
    room = most
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            run.append(Piece(piece.slot, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield run
                run, room = [], most
    if run:
        yield run
