"""`ulp`: a full fine-tune as ulps from its base (formats/codecs/ulp.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from petlpack import coding
from petlpack.codecs.codec import Codec, ReadSection, Way, read_unit
from petlpack.codecs.units import UNIT, FromBase, Section, Unit, base_pieces, group, own_pieces, own_section
from petlpack.coding.array import Array
from petlpack.records.slot import Slot
from petlpack.rules.modules import Dense
from petlpack.tensors.dtypes import Bits

SAMPLE = 1 << 16
"""Weights of a unit that are looked at before it is decided what to measure in full."""


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
        if prediction is None:
            return [own_section(unit, tuned)]
        coders = ("rows", "ulps", "numbers") if _may_be_strangers(unit, tuned, prediction) else ("rows", "ulps")
        return [Section(unit.name, tuned, Array(unit.dtype, unit.size, unit.row, prediction), coders)]

    def decode(self, unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
        """Return the flat elements."""
        return read_unit(unit, read, prediction)


def _may_be_strangers(unit: Unit, tuned: Bits, prediction: Bits) -> bool:
    """Tell from a sample whether the weights alone may take fewer bytes than their distance from the base.

    Only then is measuring it in full worth the time. 5/4 leaves room for what a sample errs by.
    """
    sample = slice(None, None, max(1, unit.size // SAMPLE))
    weights, near = tuned[sample].copy(), prediction[sample].copy()
    array = Array(unit.dtype, weights.size, weights.size, near)
    _, apart = coding.encode(weights, array, ("ulps",), "small")
    _, alone = coding.encode(weights, array, ("numbers",), "small")
    return len(alone) <= len(apart) * 5 // 4
