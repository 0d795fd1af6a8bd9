"""Tilings: how items lie one behind another along an axis of a larger tensor, or alternate along it in groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from petlpack.encoding.views.items import Item
from petlpack.encoding.views.nearness import FAR, places
from petlpack.tensors.views import Shape

Nearness = Callable[[Item, NDArray[np.int64]], float]
"""Returns how far an item is from the whole, compared at pairs of places (in the whole, in the item)."""


@dataclass(frozen=True)
class Tiling:
    """Items that make up a whole of this shape along an axis, each with the entry that it starts at.

    In `groups` above 1 the axis is that many equal groups, and each item lies in all of them: heads that have their
    queries, keys and values together, rows of two matrices in turn.
    """

    shape: Shape
    axis: int
    groups: int
    parts: tuple[tuple[int, Item], ...]

    @property
    def grouped(self) -> Shape:
        """The shape in which the groups are an axis, and each entry of the next axis is a part's row of a group."""
        return self._grouped(self.shape)

    def grouped_part(self, item: Item) -> Shape:
        """Return the shape of an item beside others in `grouped`."""
        return self._grouped(item.shape)

    def row(self, entry: int) -> int:
        """Return where an entry along the axis starts in the last axis of `grouped`."""
        return entry // self.groups * math.prod(self.shape[self.axis + 1 :])

    def _grouped(self, shape: Shape) -> Shape:
        return *shape[: self.axis], self.groups, math.prod(shape[self.axis :]) // self.groups


def tile(shape: Shape, axis: int, pool: Sequence[Item], nearness: Nearness) -> Tiling | None:
    """Return how items of a pool make up a whole, nearest items first; None where they do not."""
    for groups in _groups(shape[axis], pool, axis):
        parts = _parts(shape, axis, groups, pool, nearness)
        if parts is not None:
            return Tiling(shape, axis, groups, parts)
    return None


def _groups(size: int, pool: Sequence[Item], axis: int) -> Iterator[int]:
    """Yield 1, and what divides the axis of the whole and of a pair of items that could share it."""
    yield 1
    sizes = [item.shape[axis] for item in pool if item.shape[axis] < size]
    if len(sizes) > 1:
        common = math.gcd(size, *sizes)
        yield from (groups for groups in range(2, common + 1) if common % groups == 0)


def _parts(
    shape: Shape, axis: int, groups: int, pool: Sequence[Item], nearness: Nearness
) -> tuple[tuple[int, Item], ...] | None:
    parts: list[tuple[int, Item]] = []
    start = 0
    while start < shape[axis]:
        best, least = None, FAR
        for item in pool:
            if start + item.shape[axis] > shape[axis] or any(item is used for _, used in parts):
                continue
            if item.shape[axis] % groups or (groups > 1 and item.shape[axis] == shape[axis]):
                continue
            far = nearness(item, _pairs(shape, axis, groups, start, item))
            if far < least:
                best, least = item, far
        if best is None:
            return None
        parts.append((start, best))
        start += best.shape[axis]
    return tuple(parts)


def _pairs(shape: Shape, axis: int, groups: int, start: int, item: Item) -> NDArray[np.int64]:
    """Return the places of a sample of an item, in the whole and in the item."""
    inside = places(math.prod(item.shape))
    inner = math.prod(shape[axis + 1 :])
    block, own = shape[axis] // groups * inner, item.shape[axis] // groups * inner
    whole = inside // own * block + start // groups * inner + inside % own
    return np.stack([whole, inside], axis=1)
