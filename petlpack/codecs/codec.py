"""What a codec is: the weights of one unit to sections and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from petlpack.codecs.units import Role, Section, Unit
from petlpack.coding.array import Level
from petlpack.errors import DamageError
from petlpack.records.slot import Slot
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.tensor import Tensor

if TYPE_CHECKING:
    from petlpack.rules.modules import Module, Rebuilt

ReadSection = Callable[[str, DType, range, int, "Bits | None"], Bits]
"""(name, dtype, the counts that make sense, row, prediction) -> the decoded section; raises DamageError for another."""


def exactly(count: int) -> range:
    """Return the range of this one count."""
    return range(count, count + 1)


@dataclass(frozen=True)
class Way:
    """One way in which a codec encodes a kind of module, as `plan` offers it: options of `encode`."""

    level: Level = "small"
    density: float | None = None


class Codec(ABC):
    """One method's way from weights to sections and back. Pure: it sees neither bytes nor paths.

    `prediction` is what the unit's predictor makes, bit for bit the same at both ends; None where it has none.
    The first line of its docstring says to people what it stores. Tensors come back as they are, unless it has a rule.
    """

    id: ClassVar[str]
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

        `shared` are the tensors of shared parts, which may predict a unit.
        """

    def sections(self, unit: Unit) -> Mapping[str, Role]:
        """Return the names of the sections that a unit takes, in their order, each with its role: one of its own."""
        return {unit.name: unit.role}

    def declines(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> str | None:
        """Return why a unit does not suit the codec, which is then not tried any further; None where it does."""
        return None

    @abstractmethod
    def encode(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> list[Section]:
        """Return the sections of one unit."""

    @abstractmethod
    def decode(self, unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
        """Return the flat elements of one unit."""

    def rule_of(self, module: Module) -> dict[str, Any] | None:
        """Return the rule by which dense modules are rebuilt, as a template holds it; None for tensors as they are."""
        return None

    def kinds(self, rule: Mapping[str, Any] | None) -> dict[str, str]:
        """Return the kinds of those tensors whose names do not tell it; raises DamageError for a rule of another."""
        if rule is not None:
            raise DamageError(f"the template has a rule, but codec '{self.id}' takes none", code="rule-fields")
        return {}

    def rebuild(self, rule: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Rebuilt | None:
        """Return the dense modules, computed when they are read, without the head; None where there is no rule."""
        return None

    def formula(self, rule: Mapping[str, Any] | None) -> list[str]:
        """Return the rule as formulas for people, one a line."""
        return []


def read_own(unit: Unit, read: ReadSection) -> Bits:
    """Read back the section of a unit that the base does not predict."""
    return read(unit.name, unit.dtype, exactly(unit.size), unit.row, None)


def read_unit(unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
    """Read back the one section of a unit, predicted or not."""
    return read(unit.name, unit.dtype, exactly(unit.size), unit.row, prediction)
