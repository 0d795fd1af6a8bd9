"""Finds views: of each tensor of a run that has no counterpart, or a wrong one, what of the base predicts it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from petlpack.encoding.views.items import Item, Pool, items_of, place_of
from petlpack.encoding.views.nearness import FAR, distance, places
from petlpack.encoding.views.scales import scaled_views
from petlpack.encoding.views.tiling import Tiling, tile
from petlpack.tensors.base import Base
from petlpack.tensors.casting import can_cast
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import BaseRef, Concatenated, Reshaped, Scaled, Shape, Sliced, Transposed, View, with_refs


def find_views(tensors: Mapping[str, Tensor], base: Base) -> dict[str, View]:
    """Return what of the base predicts tensors of a run, for those that have something there: {name: view}.

    Float tensors only. Few elements of either side are read, and no digest is taken but of what the views need.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.size and tensor.dtype.kind == "float"}
    if not floats:
        return {}
    return {name: with_refs(view, base.ref) for name, view in _Finder(floats, _weights_of(base)).find().items()}


def doubtful(tensors: Mapping[str, Tensor], matches: Mapping[str, str], base: Base) -> dict[str, Tensor]:
    """Return the tensors that are far from the base tensor of their name, which may be transposed or has scales."""
    views = _weights_of(base).views
    found = {}
    for name, other in matches.items():
        tensor, near = tensors[name], base.tensors[other]
        square = len(tensor.shape) > 1 and tensor.shape == near.shape and tensor.shape[-1] == tensor.shape[-2]
        if not (square or isinstance(views.get(other), Scaled)) or tensor.dtype.kind != "float":
            continue
        inside = places(min(tensor.size, near.size))
        pairs = np.stack([inside, inside], axis=1)
        if distance(tensor.read_flat, tensor.dtype, near.read_flat, near.dtype, pairs) >= FAR:
            found[name] = tensor
    return found


class _Weights:
    """The float tensors of a base as views, those with scales scaled, and as the items that they are part of."""

    def __init__(self, base: Base) -> None:
        plain = {
            name: BaseRef(name, tensor.dtype, tensor.shape, "")  # a look needs no digest
            for name, tensor in base.tensors.items()
            if tensor.size and tensor.dtype.kind == "float"
        }
        self.views: dict[str, View] = {**plain, **scaled_views(plain)}
        self.pool = Pool(_turned(items_of(self.views)))
        self._reader = ViewReader(lambda ref: base.tensors[ref.name])
        self._known: dict[Item, View] = {}

    def read(self, view: View, start: int, stop: int) -> Bits:
        """Return flat elements of a view."""
        return self._reader.read(view, start, stop)

    def view(self, item: Item) -> View:
        """Return what an item gives."""
        if item not in self._known:
            self._known[item] = self._view(item)
        return self._known[item]

    def _view(self, item: Item) -> View:
        members = [self.views[name] for name in item.names]
        if len(members) > 1 and not members[0].shape:  # what has no axis is not concatenated
            members = [Reshaped((1,), member) for member in members]
        whole = members[0] if len(members) == 1 else Concatenated(0, tuple(members))
        shape = _turned_shape(item.shape) if item.transposed else item.shape
        view = whole if whole.shape == shape else Reshaped(shape, whole)
        return Transposed(view) if item.transposed else view


@lru_cache(maxsize=1)
def _weights_of(base: Base) -> _Weights:
    """Return the weights of a base, which is most often the same from one run to the next."""
    return _Weights(base)


class _Finder:
    """The search for the views of one run's tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], weights: _Weights) -> None:
        self._tensors, self._weights = tensors, weights
        self._found: dict[str, View] = {}

    def find(self) -> dict[str, View]:
        """Return the view of each tensor that has one."""
        for by_layer in (False, True):
            self._find_fused(by_layer)
            self._find_split(by_layer)
        return self._found

    def _left(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._tensors.items() if name not in self._found}

    def _find_fused(self, by_layer: bool) -> None:
        """Find tensors of the run that are several of the base, or one transposed."""
        for name, tensor in self._left().items():
            place = place_of(name, by_layer)

            def nearness(item: Item, pairs: NDArray[np.int64], tensor: Tensor = tensor) -> float:
                return self._distance(tensor, self._weights.view(item), pairs)

            for axis in range(len(tensor.shape)):
                items = self._weights.pool.beside(place, axis, tensor.shape, name)
                items = [item for item in items if _tells(item, tensor.shape, place)]
                tiling = tile(tensor.shape, axis, items, nearness)
                if tiling is not None and len({self._weights.view(item).dtype for _, item in tiling.parts}) == 1:
                    self._found[name] = _fused(tiling, [self._weights.view(item) for _, item in tiling.parts])
                    break

    def _find_split(self, by_layer: bool) -> None:
        """Find tensors of the run that are parts of one of the base, which together make up all of it."""
        left = self._left()
        pool = Pool(items_of(left))
        for name, leaf in self._weights.views.items() if left else ():
            wholes = [leaf, Transposed(leaf)] if len(leaf.shape) > 1 else [leaf]
            for whole, axis in itertools.product(wholes, range(len(leaf.shape))):

                def nearness(item: Item, pairs: NDArray[np.int64], whole: View = whole) -> float:
                    return self._distance(self._together(item), whole, pairs[:, ::-1])

                items = pool.beside(place_of(name, by_layer), axis, whole.shape, name)
                items = [item for item in items if not self._found.keys() & set(item.names)]
                items = [item for item in items if len(item.names) > 1 or item.shape != whole.shape]
                tiling = tile(whole.shape, axis, items, nearness)
                if tiling is not None:
                    for item, part in _parts(tiling, whole):
                        self._found.update(self._members(item, part))

    def _distance(self, tensor: Tensor, view: View, pairs: NDArray[np.int64]) -> float:
        if not can_cast(view.dtype, tensor.dtype):
            return math.inf
        near = partial(self._weights.read, view)
        return distance(tensor.read_flat, tensor.dtype, near, view.dtype, pairs)

    def _together(self, item: Item) -> Tensor:
        """Return an item of the run as one tensor, for reads of single elements."""
        members = [self._tensors[name] for name in item.names]
        size = members[0].size

        def read_flat(start: int, stop: int) -> Bits:
            return members[start // size].read_flat(start % size, start % size + stop - start)

        return Tensor(members[0].dtype, item.shape, read_flat)

    def _members(self, item: Item, part: View) -> dict[str, View]:
        """Return the views of the tensors of an item, of that of the whole item."""
        if len(item.names) == 1:
            return {item.names[0]: part}
        each = item.shape[0] // len(item.names)
        slices = {name: Sliced(0, i * each, (i + 1) * each, part) for i, name in enumerate(item.names)}
        shape = self._tensors[item.names[0]].shape
        return {name: view if view.shape == shape else Reshaped(shape, view) for name, view in slices.items()}


def _turned(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, and those of two axes or more with the last two exchanged."""
    for item in items:
        yield item
        if len(item.shape) > 1:
            yield replace(item, shape=_turned_shape(item.shape), transposed=True)


def _turned_shape(shape: Shape) -> Shape:
    return *shape[:-2], shape[-1], shape[-2]


def _tells(item: Item, shape: Shape, place: tuple[int, ...]) -> bool:
    """Tell whether it says something that an item is near: of one tensor as it stands only for a matrix in a layer.

    All vectors of ones are near each other, and heads and embeddings are told apart by their names.
    """
    as_it_stands = len(item.names) == 1 and item.shape == shape and not item.transposed
    return not as_it_stands or (bool(place) and len(shape) > 1)


def _fused(tiling: Tiling, views: list[View]) -> View:
    """Return the view of a tensor that its tiling makes up."""
    if len(views) == 1:
        return views[0]
    if tiling.groups == 1:
        return Concatenated(tiling.axis, tuple(views))
    shapes = [tiling.grouped_part(item) for _, item in tiling.parts]
    parts = tuple(Reshaped(shape, view) for shape, view in zip(shapes, views, strict=True))
    return Reshaped(tiling.shape, Concatenated(tiling.axis + 1, parts))


def _parts(tiling: Tiling, whole: View) -> Iterator[tuple[Item, View]]:
    """Yield the items that make up a tensor of the base, each with the view of its part."""
    for start, item in tiling.parts:
        stop = start + item.shape[tiling.axis]
        if item.shape == tiling.shape:
            yield item, whole
        elif tiling.groups == 1:
            yield item, Sliced(tiling.axis, start, stop, whole)
        else:
            rows = tiling.row(start), tiling.row(stop)
            grouped = Reshaped(tiling.grouped, whole)
            yield item, Reshaped(item.shape, Sliced(tiling.axis + 1, *rows, grouped))
