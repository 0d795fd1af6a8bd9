"""`ulps`: how far each number lies from a prediction, one pcodec stream (formats/coders/ulps.md).

What is coded is `bits - prediction` modulo 2^width, as signed integers: for two floats of one sign, the number of
representable values that the magnitude moved by. Adding it back is exact for every bit pattern and needs no floating
point anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petlpack.coding import pco
from petlpack.coding.array import Array, Level
from petlpack.coding.estimate import LARGE, bits_of_differences
from petlpack.errors import RefusedError
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.ordered import signed_view


@dataclass(frozen=True)
class Ulps:
    """Differences from a prediction, pcodec."""

    id = "ulps"
    decode_ns = 1.7  # one stream

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes | None:
        """Return one pcodec stream, or None without a prediction."""
        if array.prediction is None:
            return None
        return pco.compress(signed_view(bits - array.prediction), quick=array.count > LARGE)

    def estimate(self, bits: Bits, array: Array, level: Level) -> float | None:
        """Return about how many bits it takes, or None without a prediction."""
        return None if array.prediction is None else bits_of_differences(signed_view(bits - array.prediction))

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the array."""
        if array.prediction is None:
            raise RefusedError("ulps needs a prediction, got none", code="prediction-missing")
        bits = np.empty(array.count, array.dtype.bits)
        pco.decompress_into(data, signed_view(bits))
        return np.add(bits, array.prediction, out=bits)
