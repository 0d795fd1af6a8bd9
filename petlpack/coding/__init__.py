"""Arrays to bytes and back: each coder in a file of its own, the smallest chosen by measured bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petlpack.coding.array import Array, Level
from petlpack.coding.estimate import LARGE, sample
from petlpack.coding.registry import coder
from petlpack.errors import DamageError, UnknownFormatError, printable, reason
from petlpack.tensors.dtypes import Bits

__all__ = ["Array", "Level", "decode", "encode"]


def encode(bits: Bits, array: Array, coders: Sequence[str], level: Level) -> tuple[str, bytes]:
    """Return (coder id, bytes) of the smallest encoding among `coders`; `raw` always applies.

    At level `fast` the coder that says it decodes fastest is preferred where it costs less than 1/64 more. Of a large
    array with a prediction, a sample tells which coder that is, and the others are not tried. On a large array without
    one, a coder that is slow at level `small` is tried there only where it is the smallest at level `fast`.
    """
    if array.count > LARGE and array.prediction is not None:
        coders = _likely(bits, array, coders, level)
    encoded: dict[str, bytes | None] = {}
    for coder_id in (*coders, "raw"):
        loses = level == "small" and array.count > LARGE and _loses(coder_id, bits, array, encoded)
        encoded[coder_id] = None if loses else coder(coder_id).encode(bits, array, level)
    best = _best({coder_id: len(data) for coder_id, data in encoded.items() if data is not None}, level)
    data = encoded[best]
    assert data is not None
    return best, data


def _best(sizes: Mapping[str, float], level: Level) -> str:
    best = min(sizes, key=lambda coder_id: sizes[coder_id])
    if level == "fast":
        speeds = {coder_id: speed for coder_id in sizes if (speed := _speed(coder_id)) is not None}
        near = {coder_id: speed for coder_id, speed in speeds.items() if sizes[coder_id] <= sizes[best] * 65 / 64}
        best = min(near, key=near.__getitem__, default=best)
    return best


def _loses(coder_id: str, bits: Bits, array: Array, encoded: Mapping[str, bytes | None]) -> bool:
    """Tell whether a coder that is slow at level `small` takes more than another one even before it tries hard."""
    others = [len(data) for data in encoded.values() if data is not None]
    if not others or not getattr(coder(coder_id), "slow", False):
        return False
    quick = coder(coder_id).encode(bits, array, "fast")
    return quick is None or min(others) <= len(quick)


def _likely(bits: Bits, array: Array, coders: Sequence[str], level: Level) -> Sequence[str]:
    """Return the coder that a sample tells to be best, or all where one of them cannot tell by a sample."""
    chosen, of_sample = sample(bits, array)
    sizes = {"raw": 8.0 * chosen.nbytes}
    for coder_id in coders:
        estimate = getattr(coder(coder_id), "estimate", None)
        size = None if estimate is None else estimate(chosen, of_sample, level)
        if size is None:
            return coders
        sizes[coder_id] = size
    return [_best(sizes, level)]


def _speed(coder_id: str) -> float | None:
    """Return the nanoseconds that a coder takes to decode an element; None where it does not say."""
    speed: float | None = getattr(coder(coder_id), "decode_ns", None)
    return speed


def decode(coder_id: str, data: bytes, array: Array, where: str) -> Bits:
    """Decode the bytes of section `where`.

    Raises DamageError where they are not such an array, and UnknownFormatError where they may be one that another
    version writes.
    """
    try:
        bits = coder(coder_id).decode(data, array)
    except UnknownFormatError as error:
        message = f"section '{printable(where)}': {error.message}"
        raise UnknownFormatError(message, hint=error.hint, code=error.code) from error
    except (ValueError, IndexError, OverflowError, RuntimeError) as error:
        code = reason(error, "section-decode")
        raise DamageError(f"section '{printable(where)}' is not valid '{coder_id}' data: {error}", code=code) from error
    if len(bits) != array.count or bits.dtype != array.dtype.bits:
        raise DamageError(
            f"section '{printable(where)}' decodes to {len(bits)} elements, expected {array.count}",
            code="section-decode",
        )
    return bits
