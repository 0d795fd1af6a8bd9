"""Finds views: of each tensor of a run that has no counterpart, or a wrong one, what of the base predicts it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache, partial

import numpy as np

from petlpack.encoding.views.items import Item, Pool, items_of, place_of
from petlpack.encoding.views.nearness import (
    FAR,
    FIRST,
    HOPELESS,
    SAMPLED,
    Places,
    Samples,
    Values,
    distances,
    places_of,
    values_at,
)
from petlpack.encoding.views.rotary import reordered
from petlpack.encoding.views.scales import likeliest, scaled_views
from petlpack.encoding.views.tiling import Tiling, tile
from petlpack.records.views import MOST_NAMES
from petlpack.tensors.base import Tensors
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import UNKNOWN, BaseRef, Concatenated, Reshaped, Shape, Sliced, Transposed, View, with_refs


def find_views(tensors: Mapping[str, Tensor], base: Tensors) -> dict[str, View]:
    """Return what of the base predicts tensors of a run, for those that have something there: {name: view}.

    Float tensors only. Few elements of either side are read, and no digest is taken but of what the views need.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.size and tensor.dtype.kind == "float"}
    if not floats:
        return {}
    found = _Finder(floats, _weights_of(base)).find()
    return {name: with_refs(view, base.ref) for name, view in found.items() if len(view.refs) <= MOST_NAMES}


def corrected(tensors: Mapping[str, Tensor], matches: Mapping[str, str], base: Tensors) -> dict[str, View]:
    """Return better views of tensors that were matched by name: where they are transposed, or the base's have scales.

    `matches` has the base tensor of each. A view is better where it is near, and the base tensor itself is not.
    """
    weights, found = None, {}
    for name, other in matches.items():
        tensor, near = tensors[name], base.tensors[other]
        square = len(tensor.shape) > 1 and tensor.shape == near.shape and tensor.shape[-1] == tensor.shape[-2]
        if tensor.dtype.kind != "float" or not near.size or not (square or near.dtype.itemsize == 1):
            continue
        weights = weights or _weights_of(base)
        views: list[View] = [BaseRef(other, near.dtype, near.shape, UNKNOWN), *weights.scaled.get(other, ())]
        views += [Transposed(view) for view in views] if square else []
        places = places_of(min(tensor.size, near.size))
        sampled = np.stack([weights.values(view, places) for view in views])
        shares = distances(values_at(tensor.read_flat, tensor.dtype, places), sampled).tolist()
        nearest = min(range(len(views)), key=shares.__getitem__)
        if shares[0] >= FAR > shares[nearest]:
            found[name] = with_refs(views[nearest], base.ref)
    return found


class _Weights:
    """The float tensors of a base as views, those with scales scaled, and the items that they are part of."""

    def __init__(self, base: Tensors) -> None:
        plain = {
            name: BaseRef(name, tensor.dtype, tensor.shape, UNKNOWN)  # a look needs no digest
            for name, tensor in base.tensors.items()
            if tensor.size and tensor.dtype.kind == "float"
        }
        self.scaled = scaled_views(plain)
        """Quantised tensors with all that may be their scales."""
        told = {name: likeliest(name, views) for name, views in self.scaled.items()}
        self.views: dict[str, View] = {**plain, **{name: view for name, view in told.items() if view is not None}}
        self._reader = ViewReader(lambda ref: base.tensors[ref.name])
        self._known: dict[Item, View] = {}
        self._samples = Samples()

    @cached_property
    def pool(self) -> Pool:
        """The items of the base, as they stand and transposed."""
        return Pool(_turned(items_of(self.views)))

    def values(self, view: View, places: Places) -> Values:
        """Return the elements of a view at flat places."""
        return values_at(partial(self._reader.read, view), view.dtype, places)

    def sample(self, item: Item, count: int) -> Values:
        """Return the first elements of the sample of an item."""
        view = self.view(item)
        return self._samples.of(item, count, partial(self.values, view), places_of(math.prod(item.shape)))

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


@lru_cache(maxsize=4)
def _weights_of(base: Tensors) -> _Weights:
    """Return the weights of a base or a component, most often the same from one run to the next."""
    return _Weights(base)


class _Finder:
    """The search for the views of one run's tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], weights: _Weights) -> None:
        self._tensors, self._weights = tensors, weights
        self._samples = Samples()
        self._found: dict[str, View] = {}

    def find(self) -> dict[str, View]:
        """Return the view of each tensor that has one."""
        for by_layer in (False, True):
            self._find_fused(by_layer)
            self._find_split(by_layer)
        self._find_reordered()
        return self._found

    def _left(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._tensors.items() if name not in self._found}

    def _find_fused(self, by_layer: bool) -> None:
        """Find tensors of the run that are several of the base, or one transposed."""
        weights = self._weights
        for name, tensor in self._left().items():
            place = place_of(name, by_layer)
            whole = partial(values_at, tensor.read_flat, tensor.dtype)
            for axis in range(len(tensor.shape)):
                items = weights.pool.beside(place, axis, tensor.shape, name)
                items = [item for item in items if _tells(item, tensor.shape, place)]
                items += weights.pool.reshaped(place, tensor.shape) if axis == 0 else []
                tiling = tile(tensor.shape, axis, items, whole, weights.sample)
                views = [] if tiling is None else [weights.view(item) for _, item in tiling.parts]
                if tiling is not None and len({view.dtype for view in views}) == 1:
                    self._found[name] = _fused(tiling, views)
                    break

    def _find_split(self, by_layer: bool) -> None:
        """Find tensors of the run that are parts of one of the base, which together make up all of it."""
        left = self._left()
        pool = Pool(items_of(left))
        for name, leaf in self._weights.views.items() if left else ():
            wholes = [leaf, Transposed(leaf)] if len(leaf.shape) > 1 else [leaf]
            for whole, axis in itertools.product(wholes, range(len(leaf.shape))):
                items = pool.beside(place_of(name, by_layer), axis, whole.shape, name)
                items = [item for item in items if not self._found.keys() & set(item.names)]
                items = [item for item in items if len(item.names) > 1 or item.shape != whole.shape]
                tiling = tile(whole.shape, axis, items, partial(self._weights.values, whole), self._sample)
                for item, part in () if tiling is None else _parts(tiling, whole):
                    self._found.update(self._members(item, part))

    def _find_reordered(self) -> None:
        """Find tensors of the run that are one of the base with the rows of its heads in another order."""
        for name, tensor in self._left().items():
            place, shape = place_of(name, False), tensor.shape
            items = self._weights.pool.beside(place, 0, shape, name) if place and shape and shape[0] > 1 else []
            same = [item for item in items if item.shape == shape and len(item.names) == 1 and not item.transposed]
            views = [view for item in same for view in reordered(self._weights.view(item))]
            nearest = self._nearest(tensor, views)
            if nearest is not None:
                self._found[name] = nearest

    def _nearest(self, tensor: Tensor, views: list[View]) -> View | None:
        """Return the view that is nearest to a tensor, the first of equals; None where none is near."""
        places, whole = places_of(tensor.size), partial(values_at, tensor.read_flat, tensor.dtype)
        shares: list[float] = []
        for count, limit in ((FIRST, HOPELESS), (SAMPLED, FAR)):
            if views:
                sampled = np.stack([self._weights.values(view, places[:count]) for view in views])
                shares = distances(whole(places[:count]), sampled).tolist()
                views = [view for view, share in zip(views, shares, strict=True) if share < limit]
                shares = [share for share in shares if share < limit]
        return views[shares.index(min(shares))] if views else None

    def _sample(self, item: Item, count: int) -> Values:
        """Return the first elements of the sample of an item of the run."""
        members = [self._tensors[name] for name in item.names]
        size = members[0].size

        def read(start: int, stop: int) -> Bits:
            return members[start // size].read_flat(start % size, start % size + stop - start)

        return self._samples.of(
            item, count, partial(values_at, read, members[0].dtype), places_of(math.prod(item.shape))
        )

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
    shapes = [tiling.grouped_as(item.shape) for _, item in tiling.parts]
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
