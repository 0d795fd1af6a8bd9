"""How near tensors are to each other, from a sample of their elements."""

from __future__ import annotations

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
"""Elements of a sample that are read first: most weights that are compared are unrelated, and so few show it."""

FAR = 0.5
"""Differences of this share of the weights' size, or more, are those of weights that do not come from another."""

HOPELESS = 0.8
"""The share from which on the first elements of a sample say that weights are far."""

Values = NDArray[np.float64]
Places = NDArray[np.int64]


def distances(one: Values, others: Values) -> Values:
    """Return how far each row is from one: the size of the differences as a share of that of the larger weights.

    Elements that are no number on either side are left out; it is infinite where none is left.
    """
    known = np.isfinite(one) & np.isfinite(others)
    mine, theirs = np.where(known, one, 0), np.where(known, others, 0)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        size = np.maximum(np.square(mine).sum(1), np.square(theirs).sum(1))
        difference = np.square(mine - theirs).sum(1)
        share: Values = np.sqrt(difference / size)
    share[difference == 0] = 0
    share[~known.any(1) | np.isnan(share)] = np.inf
    return share


def values_at(read: Callable[[int, int], Bits], dtype: DType, places: Places) -> Values:
    """Return the elements at flat places, which `read(start, stop)` gives, as float64."""
    bits = np.concatenate([read(place, place + 1) for place in places.tolist()])
    values: Values = cast_bits(bits, dtype, DTYPES["F64"]).view("<f8")
    return values


@lru_cache(maxsize=1024)
def places_of(size: int) -> Places:
    """Return the flat places of a tensor of this size that a sample has, in random order: the same each time."""
    random = Random(size)
    if size <= SAMPLED:
        return np.array(random.sample(range(size), size), np.int64)
    return np.array([random.randrange(size) for _ in range(SAMPLED)], np.int64)


class Samples:
    """The sampled elements of what is looked at more than once."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[object, Values] = {}

    def of(self, key: object, count: int, read: Callable[[Places], Values], places: Places) -> Values:
        """Return the first `count` of the elements at `places`, which are those of `key`."""
        known = self._known.get(key, np.zeros(0))
        if len(known) < min(count, len(places)):
            known = self._known[key] = np.concatenate([known, read(places[len(known) : count])])
        return known[:count]
