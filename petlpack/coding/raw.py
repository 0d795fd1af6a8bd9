"""`raw`: the elements' little-endian bytes as they are (formats/coders/raw.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petlpack.coding.array import Array, Level
from petlpack.errors import RefusedError
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import as_bytes


@dataclass(frozen=True)
class Raw:
    """Bytes as they are."""

    id = "raw"
    decode_ns = 0.0

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes:
        """Return the little-endian bytes."""
        return bytes(as_bytes(bits))

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the array; its length must be exact."""
        if len(data) != array.count * array.dtype.itemsize:
            raise RefusedError(
                f"{array.count} {array.dtype.name} elements need {array.count * array.dtype.itemsize} bytes, "
                f"got {len(data)}",
                code="section-length",
            )
        return np.frombuffer(data, array.dtype.bits)
