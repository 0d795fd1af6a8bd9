"""`ulp`: a full fine-tune as ulps from its base (formats/codecs/ulp.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from petlpack.codecs.codec import Codec, ReadSection, Way, read_unit
from petlpack.codecs.units import (
    UNIT,
    FromBase,
    Section,
    Unit,
    base_pieces,
    changed_section,
    group,
    own_pieces,
    own_section,
)
from petlpack.records.slot import Slot
from petlpack.rules.modules import Dense
from petlpack.tensors.dtypes import Bits


@dataclass(frozen=True)
class UlpCodec(Codec):
    """Every weight near its base: ordered-integer differences, exactly invertible."""

    id = "ulp"
    takes = MappingProxyType({Dense: (Way(), Way(level="fast"))})

    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut into units of one row length: `ulps.N` against the base, `head.N` without."""
        return [
            *group(base_pieces(slots), "ulps", UNIT, role="base", predictor=FromBase(), row=lambda slot: slot.row),
            *group(own_pieces(slots), "head", UNIT, role="head"),
        ]

    def encode(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> list[Section]:
        """Return one section."""
        return [own_section(unit, tuned) if prediction is None else changed_section(unit, tuned, prediction)]

    def decode(self, unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
        """Return the flat elements."""
        return read_unit(unit, read, prediction)
