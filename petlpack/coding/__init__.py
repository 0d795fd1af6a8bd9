"""Arrays to bytes and back: each coder in a file of its own, the smallest chosen by measured bytes."""

from __future__ import annotations

from collections.abc import Sequence

from petlpack.coding.base import Array, Level
from petlpack.coding.registry import coder
from petlpack.errors import DamageError, printable
from petlpack.tensors.dtypes import Bits

__all__ = ["Array", "Level", "decode", "encode"]


def encode(bits: Bits, array: Array, coders: Sequence[str], level: Level) -> tuple[str, bytes]:
    """Return (coder id, bytes) of the smallest encoding among `coders`; `raw` always applies and stands last."""
    best, shortest = "raw", None
    for coder_id in (*coders, "raw"):
        data = coder(coder_id).encode(bits, array, level)
        if data is not None and (shortest is None or len(data) < len(shortest)):
            best, shortest = coder_id, data
    assert shortest is not None
    return best, shortest


def decode(coder_id: str, data: bytes, array: Array, where: str) -> Bits:
    """Decode the bytes of section `where`; raises DamageError where they are not such an array."""
    try:
        bits = coder(coder_id).decode(data, array)
    except (ValueError, IndexError, OverflowError, MemoryError, RuntimeError) as error:
        raise DamageError(f"section '{printable(where)}' does not decode as '{coder_id}': {error}") from error
    if len(bits) != array.count or bits.dtype != array.dtype.bits:
        raise DamageError(f"section '{printable(where)}' decodes to {len(bits)} elements, its shape is {array.count}")
    return bits
