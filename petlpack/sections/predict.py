"""What is known of a unit before it is decoded: the base's elements, or tensors of shared parts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from petlpack.codecs.units import FromBase, FromParts, Piece, Unit
from petlpack.records.slot import Slot
from petlpack.tensors.base import Base, needed
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.tensor import Tensor


class Predictions:
    """The predictions of one file's units, from the base and the shared parts that it has."""

    def __init__(self, base: Base | None = None, shared: Mapping[Slot, Tensor] | None = None) -> None:
        """Predict by a base, which may be missing where no unit needs it, and by tensors of shared parts."""
        self._base, self._shared = base, shared or {}

    @property
    def shared(self) -> list[Slot]:
        """The tensors of shared parts that can predict a unit."""
        return list(self._shared)

    def of(self, unit: Unit) -> Bits | None:
        """Return what predicts a unit, one element for each or as its coder needs them; None where nothing does.

        Raises BaseError where that is the base, and there is none.
        """
        predictor = unit.predictor
        if isinstance(predictor, FromBase):
            return joined([self._of_base(piece, unit.dtype) for piece in unit.pieces])
        if isinstance(predictor, FromParts):
            return joined([self._shared[slot].read_flat(0, slot.size) for slot in predictor.slots])
        return None

    def _of_base(self, piece: Piece, dtype: DType) -> Bits:
        assert piece.slot.base is not None
        return needed(self._base).predict(piece.slot.base, dtype, piece.start, piece.stop)


def joined(pieces: list[Bits]) -> Bits:
    """Return arrays one behind another, without a copy where there is one."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
