"""`numbers`: ordered integers through pcodec (formats/coders/numbers.md).

Neighbouring weights say nothing of each other. What can be saved is the exponent's redundancy, and pcodec finds it.
"""

from __future__ import annotations

from dataclasses import dataclass

from petlpack.coding import pco
from petlpack.coding.array import Array, Level
from petlpack.coding.estimate import bits_of_ordered
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.ordered import from_ordered, to_ordered


@dataclass(frozen=True)
class Numbers:
    """Ordered integers, pcodec."""

    id = "numbers"

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes:
        """Return one pcodec stream."""
        return pco.compress(to_ordered(bits, array.dtype))

    def estimate(self, bits: Bits, array: Array, level: Level) -> float:
        """Return about how many bits it takes."""
        return bits_of_ordered(to_ordered(bits, array.dtype))

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the array."""
        return from_ordered(pco.decompress(data, array.count, array.dtype.bits), array.dtype)
