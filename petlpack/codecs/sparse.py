"""`sparse`: few weights differ from the base: where they are, and what they are (formats/codecs/sparse.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from petlpack.codecs.codec import Codec, ReadSection, Way, exactly, read_own
from petlpack.codecs.units import FromBase, Role, Section, Unit, base_pieces, group, own_pieces, own_section
from petlpack.coding.array import Array
from petlpack.errors import DamageError
from petlpack.records.slot import Slot
from petlpack.rules.modules import Dense
from petlpack.tensors.dtypes import DTYPES, Bits

UNIT = 1 << 24
"""Weights that one set of positions covers: large, so that a set's own tables vanish, and it still fits in memory."""

MOST = 1 / 4
"""Share of changed weights above which nobody should try: positions then cost more than `ulp` spends on the zeros."""

POSITION = DTYPES["U32"]


@dataclass(frozen=True)
class SparseCodec(Codec):
    """Positions of the changed weights over all tensors, and their bits, predicted by the base's."""

    id = "sparse"
    takes = MappingProxyType({Dense: (Way(), Way(density=0.05), Way(density=0.005))})
    """0.005 is what diff pruning keeps, 0.05 ten times that."""
    picks = True

    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut into `sparse.N`, tensors one behind another in one range of positions, and `head.N` without a base."""
        return [
            *group(base_pieces(slots), "sparse", UNIT, role="base", predictor=FromBase()),
            *group(own_pieces(slots), "head", UNIT, role="head"),
        ]

    def sections(self, unit: Unit) -> Mapping[str, Role]:
        """Return the names of the sections that a unit takes: of what the base predicts positions and values."""
        if unit.role != "base":
            return {unit.name: unit.role}
        return {f"{unit.name}.positions": "positions", f"{unit.name}.values": unit.role}

    def declines(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> str | None:
        """Return how much of a unit differs from the base, where that is more than positions are worth."""
        changed = 0 if prediction is None else int(np.count_nonzero(tuned != prediction))
        if changed <= MOST * unit.size:
            return None
        share = f"{100 * changed / unit.size:.1f} % of {unit.size:,} weights differ from the base"
        return f"{share}, which is more than {100 * MOST:g} %"

    def encode(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> list[Section]:
        """Return the positions and the values of what changed."""
        if prediction is None:
            return [own_section(unit, tuned)]
        changed = np.flatnonzero(tuned != prediction)
        count = len(changed)
        positions = Section(
            f"{unit.name}.positions", changed.astype("<u4"), Array(POSITION, count, max(1, count)), ("gaps",)
        )
        values = Section(
            f"{unit.name}.values",
            tuned[changed],
            Array(unit.dtype, count, max(1, count), prediction[changed]),
            ("rows", "ulps", "numbers"),
        )
        return [positions, values]

    def decode(self, unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
        """Return the base's elements with the changed ones put in."""
        if prediction is None:
            return read_own(unit, read)
        positions = read(f"{unit.name}.positions", POSITION, range(unit.size + 1), 0, None)
        if len(positions) and int(positions[-1]) >= unit.size:
            raise DamageError(
                f"section '{unit.name}.positions' has position {int(positions[-1])}, its unit {unit.size} weights",
                code="position-range",
            )
        if not bool((positions[1:] > positions[:-1]).all()):
            raise DamageError(
                f"positions in section '{unit.name}.positions' are not strictly increasing", code="position-order"
            )
        count = len(positions)
        tuned = prediction.copy()
        tuned[positions] = read(f"{unit.name}.values", unit.dtype, exactly(count), max(1, count), prediction[positions])
        return tuned
