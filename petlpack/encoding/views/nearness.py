"""How near two tensors are, from a sample of their elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits, DType

SAMPLED = 32
"""Elements compared: unrelated weights differ by 1.4 times their size, and so few show it within 0.2."""

FIRST = 8
"""Elements of a sample that are compared first: most weights that are compared are unrelated, and very far."""

FAR = 0.5
"""Differences of this share of the weights' size, or more, are those of weights that do not come from another."""

Read = Callable[[int, int], Bits]
"""Returns the flat elements from `start` to `stop`."""


def distance(tuned: Read, tuned_dtype: DType, near: Read, near_dtype: DType, pairs: NDArray[np.int64]) -> float:
    """Return the size of the differences, as a share of that of the weights; infinite where nothing can be compared.

    `pairs` are the flat places to compare, a row of two each. Places without a number on either side are left out.
    """
    for few in (pairs[:: SAMPLED // FIRST], pairs):
        found = _distance(_values(tuned, tuned_dtype, few[:, 0]), _values(near, near_dtype, few[:, 1]))
        if found > 1:
            break
    return found


def _distance(weights: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    known = np.isfinite(weights) & np.isfinite(others)
    if not known.any():
        return math.inf
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # random bits of F64 are weights, too
        size = float(np.square(weights[known]).sum())
        difference = float(np.square(weights[known] - others[known]).sum())
    if difference == 0:
        return 0.0
    return math.sqrt(difference / size) if 0 < size < math.inf and difference < math.inf else math.inf


def _values(read: Read, dtype: DType, places: NDArray[np.int64]) -> NDArray[np.float64]:
    bits = np.concatenate([read(place, place + 1) for place in places.tolist()])
    values: NDArray[np.float64] = cast_bits(bits, dtype, DTYPES["F64"]).view("<f8")
    return values


@lru_cache(maxsize=1024)
def places(size: int) -> NDArray[np.int64]:
    """Return the flat places of a tensor of this size that a sample has: the same each time."""
    random = Random(size)
    chosen = range(size) if size <= SAMPLED else sorted(random.randrange(size) for _ in range(SAMPLED))
    return np.array(list(chosen), np.int64)
