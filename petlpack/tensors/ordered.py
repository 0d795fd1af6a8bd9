"""Ordered integers: numbers as unsigned integers in the same order, so that a difference counts ulps.

A float's bits are sign and magnitude. Setting the top bit of the positive ones and flipping every bit of the negative
ones puts -inf, ..., -0.0, +0.0, ..., +inf (and the NaNs at both ends) on consecutive integers. The map is a bijection
of all bit patterns, so differences modulo 2^width invert exactly, whatever the values are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.tensors.dtypes import Bits, DType


def signed_view(bits: Bits) -> NDArray[np.signedinteger[Any]]:
    """View unsigned integers as signed ones of the same width."""
    return bits.view(np.dtype(f"<i{bits.dtype.itemsize}"))


def to_ordered(bits: Bits, dtype: DType) -> Bits:
    """Map the bits of numbers to ordered integers (same shape and width)."""
    if dtype.kind == "unsigned":
        return bits
    top = bits.dtype.type(1 << (dtype.width - 1))
    if dtype.kind == "signed":
        return bits ^ top
    flip = signed_view(bits) >> (dtype.width - 1)  # all ones where the sign is set
    return bits ^ (flip.view(bits.dtype) | top)


def from_ordered(ordered: Bits, dtype: DType) -> Bits:
    """Map ordered integers back to the bits of numbers: the inverse of `to_ordered`."""
    if dtype.kind == "unsigned":
        return ordered
    top = ordered.dtype.type(1 << (dtype.width - 1))
    if dtype.kind == "signed":
        return ordered ^ top
    flip = ~(signed_view(ordered) >> (dtype.width - 1))  # all ones where the sign was set
    return ordered ^ (flip.view(ordered.dtype) | top)


def ulps_between(tuned: Bits, base: Bits, dtype: DType) -> Bits:
    """Return how many ulps `tuned` lies above `base`, modulo 2^width."""
    return to_ordered(tuned, dtype) - to_ordered(base, dtype)


def add_ulps(base: Bits, ulps: Bits, dtype: DType) -> Bits:
    """Return the bits that lie `ulps` (modulo 2^width) above `base`: the inverse of `ulps_between`."""
    return from_ordered(to_ordered(base, dtype) + ulps, dtype)
