"""What a codec is, and how tensors share sections.

A codec turns the weights of one unit into sections and back. A unit is a run of pieces of tensors of one dtype that are
coded together: tensors of one kind share a unit (thousands of small tensors stay small), and a unit has at most so many
elements (large tensors stream, threads have work, one tensor can be read without the others).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from petlpack.coding.base import Array, Level
from petlpack.errors import DamageError
from petlpack.template import Slot
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.tensor import Tensor

if TYPE_CHECKING:
    from petlpack.modules import Module, Rebuilt

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
class Unit:
    """Pieces that are coded together; of role `base` every element of them has its prediction there.

    `given` are tensors of shared parts that the coder is given whole.
    """

    name: str
    dtype: DType
    row: int
    pieces: tuple[Piece, ...]
    role: Role
    given: tuple[Slot, ...] = ()

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


ReadSection = Callable[[str, DType, range, int, "Bits | None"], Bits]
"""(name, dtype, the counts that make sense, row, given) -> the decoded section; raises DamageError for another."""


def exactly(count: int) -> range:
    """Return the range of this one count."""
    return range(count, count + 1)


NOTHING = "nothing"


@dataclass(frozen=True)
class Way:
    """One way in which a codec encodes a kind of module, as `plan` offers it: options of `encode`, and what is lost.

    `setting` is one of the run's layout that is switched on; without it nothing is lost where the run has no such
    setting.
    """

    level: Level = "small"
    density: float | None = None
    setting: str | None = None
    lost: str = NOTHING


class Codec(ABC):
    """One method's way from weights to sections and back. Pure: it sees neither bytes nor paths.

    `given` is what the base says of a unit's elements, or the bits of the unit's `given` tensors; None without either.
    The first line of its docstring says to people what it stores. Tensors come back as they are, unless it has a rule.
    """

    id: ClassVar[str]
    exact: ClassVar[bool] = True
    takes: ClassVar[Mapping[type[Module], tuple[Way, ...]]]
    """The kinds of modules that it encodes, each with the ways that `plan` offers."""
    on_request: ClassVar[tuple[type[Module], ...]] = ()
    """Those of them that it encodes where it is asked for by its id, and not as one of several that are tried."""
    uses_base: ClassVar[bool] = True
    """Whether it codes a tensor of the base as a difference, and so needs the base where a run has such tensors."""
    picks: ClassVar[bool] = False
    """Whether it stores only those elements that differ from the base, and where they are."""

    @property
    def prunes(self) -> frozenset[type[Module]]:
        """The kinds of modules of which it keeps the largest changes only, where a density is asked for."""
        return frozenset(kind for kind, ways in self.takes.items() for way in ways if way.density is not None)

    @abstractmethod
    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut the tensors that have to be stored into units, by a rule that encoder and decoder share.

        `shared` are the tensors of shared parts, which may be given to a unit.
        """

    def sections(self, unit: Unit) -> Mapping[str, Role]:
        """Return the names of the sections that a unit takes, in their order, each with its role: one of its own."""
        return {unit.name: unit.role}

    def declines(self, unit: Unit, tuned: Bits, given: Bits | None) -> bool:
        """Tell whether a unit does not suit the codec, which is then not tried any further."""
        return False

    @abstractmethod
    def encode(self, unit: Unit, tuned: Bits, given: Bits | None) -> list[Section]:
        """Return the sections of one unit."""

    @abstractmethod
    def decode(self, unit: Unit, read: ReadSection, given: Bits | None) -> Bits:
        """Return the flat elements of one unit."""

    def rule_of(self, module: Module) -> dict[str, Any] | None:
        """Return the rule by which dense modules are rebuilt, as a template holds it; None for tensors as they are."""
        return None

    def kinds(self, rule: Mapping[str, Any] | None) -> dict[str, str]:
        """Return the kinds of those tensors whose names do not tell it; raises DamageError for a rule of another."""
        if rule is not None:
            raise DamageError("a template has a rule, and its codec knows none")
        return {}

    def rebuild(self, rule: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Rebuilt | None:
        """Return the dense modules, computed when they are read, without the head; None where there is no rule."""
        return None

    def formula(self, rule: Mapping[str, Any] | None) -> list[str]:
        """Return the rule as formulas for people, one a line."""
        return []


OWN_CODERS = ("numbers", "planes")
"""Coders to try on tensors that the base does not predict."""


def own_section(unit: Unit, tuned: Bits) -> Section:
    """Return the section of a unit that the base does not predict."""
    return Section(unit.name, tuned, Array(unit.dtype, unit.size, unit.row), OWN_CODERS)


def read_own(unit: Unit, read: ReadSection) -> Bits:
    """Read back the section of a unit that the base does not predict."""
    return read(unit.name, unit.dtype, exactly(unit.size), unit.row, None)


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
    pieces: Iterable[Piece], label: str, most: int, *, role: Role, row: Callable[[Slot], int] = lambda slot: 1
) -> list[Unit]:
    """Cut pieces into units `label.N`: one dtype and row length each, kinds together, at most `most` elements.

    The order is by dtype, row length, kind, then as given. A unit ends at whole rows, unless one row is longer.
    """
    families: dict[tuple[str, int], list[Piece]] = {}
    for piece in pieces:
        families.setdefault((piece.slot.dtype.name, min(row(piece.slot), most)), []).append(piece)
    units: list[Unit] = []
    for (_, length), family in sorted(families.items()):
        family.sort(key=lambda piece: piece.slot.kind)
        for run in _cut(family, most // length * length):
            units.append(Unit(f"{label}.{len(units)}", run[0].slot.dtype, length, tuple(run), role))
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
