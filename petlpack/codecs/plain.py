"""`plain`: tensors as numbers: LoRA, IA3, any adapter, and whole tensors of the base (formats/codecs/plain.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from petlpack.codecs.codec import Codec, ReadSection, Way, read_unit
from petlpack.codecs.method import Rule
from petlpack.codecs.units import UNIT, Section, Unit, changed_section, changed_units, group, own_pieces, own_section
from petlpack.records.slot import Slot
from petlpack.rules.modules import Copy, Dense, Module, Plain, Rebuilt
from petlpack.rules.rows import any_layer, check_rule, find, pair, parse_rows, rebuilt, to_rule
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class PlainCodec(Codec):
    """Every tensor as it is."""

    id = "plain"
    takes = MappingProxyType({Plain: (Way(),), Dense: (Way(),)})
    on_request = (Dense,)
    uses_base = False

    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut into `changed.N` against the base, `tensors.N` and `head.N`."""
        own = list(own_pieces(slots))
        tensors, head = ([piece for piece in own if piece.slot.head == part] for part in (False, True))
        return [
            *changed_units(slots),
            *group(tensors, "tensors", UNIT, role="own", row=lambda slot: slot.row),
            *group(head, "head", UNIT, role="head"),
        ]

    def encode(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> list[Section]:
        """Return one section."""
        return [own_section(unit, tuned) if prediction is None else changed_section(unit, tuned, prediction)]

    def decode(self, unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
        """Return the flat elements."""
        return read_unit(unit, read, prediction)

    def rule_of(self, module: Module) -> dict[str, Any] | None:
        """Return what the tensors are called rebuilt, where the module says how they act."""
        if not isinstance(module, Plain) or module.use is None:
            return None
        return to_rule(module.use, module.rows)

    def kinds(self, rule: Rule | None) -> dict[str, str]:
        """Return no kinds: the names tell them."""
        _parse(rule)
        return {}

    def rebuild(self, rule: Rule | None, tensors: Mapping[str, Tensor]) -> Rebuilt | None:
        """Return the tensors under their rebuilt names."""
        if rule is None:
            return None
        return rebuilt(rule, {row.output: find(tensors, row.tensor) for row in _parse(rule)})

    def formula(self, rule: Rule | None) -> list[str]:
        """Return the rule as formulas."""
        return sorted({f"{any_layer(row.output)} = {any_layer(row.tensor)}" for row in _parse(rule)})


def _parse(rule: Rule | None) -> list[Copy]:
    return [] if rule is None else parse_rows(check_rule(rule)["rows"], lambda row: Copy(*pair(row)))
