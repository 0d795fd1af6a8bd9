"""`planes`: the bytes of equal significance together, each plane a zstd frame (formats/coders/planes.md).

Good for text and for integers; floats have better coders, but every dtype round-trips.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from petlpack.coding.array import Array, Level
from petlpack.coding.zstd import compress, decompress
from petlpack.errors import RefusedError
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import as_bytes

ZSTD_LEVEL: dict[Level, int] = {"fast": 3, "small": 19}
"""zstd's default, and the highest level that needs no larger window."""
_LARGE_PLANE, _LARGE_LEVEL = 1 << 20, 12
"""The highest level for a larger plane: at 19, a tokenizer of several MB takes many seconds."""


@dataclass(frozen=True)
class Planes:
    """Byte planes, zstd."""

    id = "planes"
    slow = True

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes:
        """Return the planes from the least significant byte on, each as u32 length and zstd frame."""
        octets = np.frombuffer(as_bytes(bits), np.uint8).reshape(-1, array.dtype.itemsize)
        most = ZSTD_LEVEL[level] if array.count <= _LARGE_PLANE else min(ZSTD_LEVEL[level], _LARGE_LEVEL)
        frames = [compress(as_bytes(octets[:, plane]), most) for plane in range(array.dtype.itemsize)]
        return b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the array; every plane must have exactly one byte an element."""
        octets = np.empty((array.count, array.dtype.itemsize), np.uint8)
        offset = 0
        for plane in range(array.dtype.itemsize):
            if len(data) < offset + 4:
                raise RefusedError(f"truncated in plane {plane}, after {len(data)} bytes", code="section-length")
            (length,) = struct.unpack_from("<I", data, offset)
            frame = data[offset + 4 : offset + 4 + length]
            octets[:, plane] = np.frombuffer(decompress(frame, array.count), np.uint8)
            offset += 4 + length
        if offset != len(data):
            raise RefusedError(f"the planes need {offset} bytes, got {len(data)}", code="section-length")
        return octets.reshape(-1).view(array.dtype.bits)
