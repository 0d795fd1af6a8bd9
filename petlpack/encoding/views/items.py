"""Items: tensors, and numbered tensors of one shape that may be one tensor elsewhere, found by name and shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from petlpack.tensors.tensor import Tensor
from petlpack.tensors.views import Shape, View

_NUMBER = re.compile(r"(?<![A-Za-z0-9])[0-9]{1,18}(?![A-Za-z0-9])")

MOST_POOL = 64
"""Items of one shape and place that are compared with a tensor: those whose names are most like its own."""


Typed = Tensor | View
"""What has a dtype and a shape."""


@dataclass(frozen=True)
class Item:
    """One tensor, or the numbered tensors `0, 1, ...` of one name, one behind another, in a shape.

    `numbers` are those in the name, of layers for example, less the one that counts.
    """

    names: tuple[str, ...]
    shape: Shape
    numbers: tuple[int, ...]
    transposed: bool = False


def items_of(tensors: Mapping[str, Typed]) -> Iterator[Item]:
    """Yield the items of named tensors: each alone, and each series of one shape and dtype stacked and concatenated."""
    series: dict[tuple[str, str, Shape, str], dict[int, str]] = {}
    for name, tensor in tensors.items():
        yield Item((name,), tensor.shape, numbers_of(name))
        for number in _NUMBER.finditer(name):
            key = name[: number.start()], name[number.end() :], tensor.shape, tensor.dtype.name
            series.setdefault(key, {})[int(number[0])] = name
    for (before, behind, shape, _), members in series.items():
        if len(members) < 2 or set(members) != set(range(len(members))):
            continue
        names = tuple(members[i] for i in range(len(members)))
        numbers = numbers_of(before) + numbers_of(behind)
        yield Item(names, (len(names), *shape), numbers)
        if shape:
            yield Item(names, (len(names) * shape[0], *shape[1:]), numbers)


def numbers_of(name: str) -> tuple[int, ...]:
    """Return the numbers that stand by themselves in a name."""
    return tuple(int(number) for number in _NUMBER.findall(name))


Place = tuple[int, ...]
"""Where in a model a tensor stands: the numbers in its name, or the first of them, which is most often the layer's."""


def place_of(name: str, by_layer: bool) -> Place:
    """Return where a tensor stands, by the numbers in its name, or the first alone."""
    return numbers_of(name)[:1] if by_layer else numbers_of(name)


class Pool:
    """Items by place and shape, so that few are compared with one tensor."""

    def __init__(self, items: Iterable[Item]) -> None:
        """Index items; each is also found by its first number alone."""
        self._items: dict[tuple[Place, int, Shape], list[Item]] = {}
        self._sizes: dict[tuple[Place, int], list[Item]] = {}
        for item in items:
            if len(item.shape) > 1 and len(item.names) == 1 and not item.transposed:
                self._sizes.setdefault((item.numbers, math.prod(item.shape)), []).append(item)
            for axis in range(len(item.shape)):
                for place in {item.numbers, item.numbers[:1]}:
                    self._items.setdefault((place, axis, _without(item.shape, axis)), []).append(item)

    def beside(self, place: Place, axis: int, shape: Shape, name: str) -> list[Item]:
        """Return the items in a place whose shape differs from this at most in being smaller along one axis.

        Those whose names have most in common with `name` come first.
        """
        found = self._items.get((place, axis, _without(shape, axis)), [])
        words = _words(name)
        fitting = [item for item in found if item.shape[axis] <= shape[axis]]
        fitting.sort(key=lambda item: -len(words & _words(item.names[0])))
        return fitting[:MOST_POOL]

    def reshaped(self, place: Place, shape: Shape) -> list[Item]:
        """Return the tensors in a place that have as many elements as this shape, in another one; as of this shape."""
        found = self._sizes.get((place, math.prod(shape)), []) if len(shape) > 1 else []
        return [replace(item, shape=shape) for item in found if item.shape != shape][:MOST_POOL]


def _without(shape: Shape, axis: int) -> Shape:
    return *shape[:axis], *shape[axis + 1 :]


@lru_cache(maxsize=1 << 16)
def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z]+|[0-9]+", name))
