"""Tilings: how items lie one behind another along an axis of a larger tensor, or alternate along it in groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from petlpack.encoding.views.items import Item
from petlpack.encoding.views.nearness import FAR, FIRST, HOPELESS, SAMPLED, Places, Values, distances, places_of
from petlpack.tensors.views import Shape

ReadWhole = Callable[[Places], Values]
"""Returns the elements of the whole at flat places."""

ReadItem = Callable[[Item, int], Values]
"""Returns the first so many elements of an item's sample."""


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
        """The shape in which the groups are an axis, and the next one runs through all that is in a group."""
        return self.grouped_as(self.shape)

    def grouped_as(self, shape: Shape) -> Shape:
        """Return the shape of a part beside others in `grouped`."""
        return *shape[: self.axis], self.groups, math.prod(shape[self.axis :]) // self.groups

    def row(self, entry: int) -> int:
        """Return where an entry along the axis starts in the last axis of `grouped`."""
        return entry // self.groups * math.prod(self.shape[self.axis + 1 :])


def tile(shape: Shape, axis: int, pool: Sequence[Item], whole: ReadWhole, read: ReadItem) -> Tiling | None:
    """Return how items of a pool, each used once, make up a whole of a shape; None where they do not.

    Of the items that may come next the nearest does, and it must be near.
    """
    if not _can_fill(shape[axis], [item.shape[axis] for item in pool]):
        return None
    for groups in _groups(shape[axis], [item.shape[axis] for item in pool]):
        parts = _parts(Tiling(shape, axis, groups, ()), pool, whole, read)
        if parts is not None:
            return Tiling(shape, axis, groups, parts)
    return None


def _can_fill(size: int, sizes: Sequence[int]) -> bool:
    """Tell whether some of the sizes have this sum: as bits of a number, the sums that are reached."""
    unit = math.gcd(*sizes)
    if not sizes or size % unit:
        return False
    sums, mask = 1, (1 << (size // unit + 1)) - 1
    for one in sizes:
        sums |= (sums << one // unit) & mask
    return bool(sums >> size // unit)


def _groups(size: int, sizes: Sequence[int]) -> Iterator[int]:
    """Yield 1, and what divides the whole and all items that are smaller."""
    yield 1
    smaller = [one for one in sizes if one < size]
    if len(smaller) > 1:
        common = math.gcd(size, *smaller)
        yield from (groups for groups in range(2, common + 1) if common % groups == 0)


def _parts(
    tiling: Tiling, pool: Sequence[Item], whole: ReadWhole, read: ReadItem
) -> tuple[tuple[int, Item], ...] | None:
    size, axis = tiling.shape[tiling.axis], tiling.axis
    left = [item for item in pool if tiling.groups == 1 or item.shape[axis] < size]
    parts: list[tuple[int, Item]] = []
    start = 0
    while start < size:
        fitting = [item for item in left if start + item.shape[axis] <= size]
        nearest = _nearest(tiling, start, fitting, whole, read)
        if nearest is None:
            return None
        parts.append((start, nearest))
        left.remove(nearest)
        start += nearest.shape[axis]
    return tuple(parts)


def _nearest(tiling: Tiling, start: int, items: Sequence[Item], whole: ReadWhole, read: ReadItem) -> Item | None:
    """Return the item that is nearest to the whole from an entry on, the first of equals; None where none is near."""
    near: list[tuple[float, int]] = []
    for shape in {item.shape for item in items}:
        numbers = [i for i, item in enumerate(items) if item.shape == shape]
        places = _places(tiling, start, shape)
        for count, limit in ((FIRST, HOPELESS), (SAMPLED, FAR)):
            if numbers:
                sampled = np.stack([read(items[i], count) for i in numbers])
                far = distances(whole(places[:count]), sampled).tolist()
                near += [(share, i) for share, i in zip(far, numbers, strict=True) if count == SAMPLED and share < FAR]
                numbers = [i for share, i in zip(far, numbers, strict=True) if share < limit]
    return items[min(near)[1]] if near else None


def _places(tiling: Tiling, start: int, shape: Shape) -> Places:
    """Return where the sample of an item of a shape is in the whole, where it starts at an entry."""
    inside = places_of(math.prod(shape))
    block, own = (math.prod(whole[tiling.axis :]) // tiling.groups for whole in (tiling.shape, shape))
    return inside // own * block + tiling.row(start) + inside % own
