"""`sparse`: few weights differ from the base: where they are, and what they are (formats/codecs/sparse.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petlpack.codecs.base import (
    NoRule,
    ReadSection,
    Section,
    Unit,
    base_pieces,
    exactly,
    group,
    own_pieces,
    own_section,
    read_own,
)
from petlpack.coding.base import Array
from petlpack.errors import DamageError
from petlpack.template import Slot
from petlpack.tensors.dtypes import DTYPES, Bits

UNIT = 1 << 24
"""Weights that one set of positions covers: large, so that a set's own tables vanish, and it still fits in memory."""

MOST = 1 / 4
"""Share of changed weights above which nobody should try: positions then cost more than `ulp` spends on the zeros."""

POSITION = DTYPES["U32"]


@dataclass(frozen=True)
class Sparse(NoRule):
    """Positions of the changed weights over all tensors, and their bits given the base's."""

    id = "sparse"
    exact = True
    most: float = MOST

    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut into `sparse.N`, tensors one behind another in one range of positions, and `head.N` without a base."""
        return [
            *group(base_pieces(slots), "sparse", UNIT, from_base=True),
            *group(own_pieces(slots), "head", UNIT, from_base=False),
        ]

    def section_names(self, unit: Unit) -> tuple[str, ...]:
        """Return the names of the sections that a unit takes."""
        return (f"{unit.name}.positions", f"{unit.name}.values") if unit.from_base else (unit.name,)

    def encode(self, unit: Unit, tuned: Bits, given: Bits | None) -> list[Section] | None:
        """Return the positions and the values of what changed, or None where too much did."""
        if given is None:
            return [own_section(unit, tuned)]
        differs = tuned != given
        count = int(np.count_nonzero(differs))
        if count > self.most * unit.size:
            return None
        changed = np.flatnonzero(differs)
        positions = Section(
            f"{unit.name}.positions", changed.astype("<u4"), Array(POSITION, count, max(1, count)), ("gaps",)
        )
        values = Section(
            f"{unit.name}.values",
            tuned[changed],
            Array(unit.dtype, count, max(1, count), given[changed]),
            ("rows", "ulps", "numbers"),
        )
        return [positions, values]

    def decode(self, unit: Unit, read: ReadSection, given: Bits | None) -> Bits:
        """Return the base's elements with the changed ones put in."""
        if given is None:
            return read_own(unit, read)
        positions = read(f"{unit.name}.positions", POSITION, range(unit.size + 1), 0, None)
        if len(positions) and int(positions[-1]) >= unit.size:
            raise DamageError(f"section '{unit.name}.positions' points beyond its {unit.size} weights")
        if not bool((positions[1:] > positions[:-1]).all()):
            raise DamageError(f"section '{unit.name}.positions' has positions that do not rise")
        count = len(positions)
        tuned = given.copy()
        tuned[positions] = read(f"{unit.name}.values", unit.dtype, exactly(count), max(1, count), given[positions])
        return tuned
