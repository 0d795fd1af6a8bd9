"""`bitmap`: one bit an element, for masks and for index sets near density one half (formats/coders/bitmap.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petlpack.coding.array import Array, Level
from petlpack.errors import RefusedError
from petlpack.tensors.dtypes import Bits


@dataclass(frozen=True)
class Bitmap:
    """Packed bits, the first element in the lowest bit of the first byte."""

    id = "bitmap"

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes | None:
        """Return ceil(count / 8) bytes, or None where an element is neither 0 nor 1."""
        if array.dtype.name != "BOOL" or bool((bits > 1).any()):
            return None
        return np.packbits(bits, bitorder="little").tobytes()

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the array of 0 and 1; the bits behind the last element must be 0."""
        if array.dtype.name != "BOOL":
            raise RefusedError(f"bitmap decodes to BOOL, got {array.dtype.name}", code="coder-array")
        if len(data) != (array.count + 7) // 8:
            raise RefusedError(
                f"{array.count} bits need {(array.count + 7) // 8} bytes, got {len(data)}", code="section-length"
            )
        octets = np.frombuffer(data, np.uint8)
        if array.count % 8 and octets[-1] >> (array.count % 8):
            raise RefusedError("bits are set after the last element", code="bits-behind")
        return np.unpackbits(octets, count=array.count, bitorder="little")
