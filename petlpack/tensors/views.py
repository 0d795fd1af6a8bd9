"""Views: what predicts a tensor, put together from tensors of the base (formats/template.md).

A view is a tensor of the base, or a few of them concatenated, sliced, transposed, reshaped or scaled. It says dtype and
shape before anything is read; `view_reader.py` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from petlpack.errors import RefusedError
from petlpack.tensors.casting import can_cast
from petlpack.tensors.dtypes import DTYPES, DType
from petlpack.tensors.tensor import Sums

Shape = tuple[int, ...]

UNKNOWN = Sums("", "")
"""What stands for sums of a tensor where a look needs none."""


@dataclass(frozen=True)
class BaseRef:
    """What a tensor of the base must be: its name, dtype, shape, and the sums of its bytes."""

    name: str
    dtype: DType
    shape: Shape
    sums: Sums

    @property
    def content(self) -> object:
        """What views that give the same bits agree in."""
        return self.sums

    @property
    def refs(self) -> tuple[BaseRef, ...]:
        """The tensors of the base that the view needs."""
        return (self,)


class _OfOne:
    """What views of one other have in common: the elements are its own."""

    of: View

    @property
    def dtype(self) -> DType:
        """The dtype of the elements."""
        return self.of.dtype

    @property
    def refs(self) -> tuple[BaseRef, ...]:
        """The tensors of the base that the view needs."""
        return self.of.refs


@dataclass(frozen=True)
class Reshaped(_OfOne):
    """The elements of a view in their order, in another shape."""

    shape: Shape
    of: View

    @property
    def content(self) -> object:
        """What views that give the same bits agree in."""
        return self.of.content


@dataclass(frozen=True)
class Transposed(_OfOne):
    """A view with its last two axes exchanged."""

    of: View

    @cached_property
    def shape(self) -> Shape:
        """The sizes of the axes."""
        *leading, rows, columns = self.of.shape
        return *leading, columns, rows

    @property
    def content(self) -> object:
        """What views that give the same bits agree in."""
        return "transpose", self.of.shape[-2:], self.of.content


@dataclass(frozen=True)
class Sliced(_OfOne):
    """The entries `start` to `stop` of a view along an axis."""

    axis: int
    start: int
    stop: int
    of: View

    @cached_property
    def shape(self) -> Shape:
        """The sizes of the axes."""
        return *self.of.shape[: self.axis], self.stop - self.start, *self.of.shape[self.axis + 1 :]

    @property
    def content(self) -> object:
        """What views that give the same bits agree in."""
        return "slice", self.of.shape, self.axis, self.start, self.stop, self.of.content


@dataclass(frozen=True)
class Concatenated:
    """Views of one dtype, one behind another along an axis; the other axes are equal."""

    axis: int
    parts: tuple[View, ...]

    @property
    def dtype(self) -> DType:
        """The dtype of the elements."""
        return self.parts[0].dtype

    @cached_property
    def shape(self) -> Shape:
        """The sizes of the axes."""
        first = self.parts[0].shape
        return *first[: self.axis], sum(part.shape[self.axis] for part in self.parts), *first[self.axis + 1 :]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each part starts in a block: in the elements that are one along the axes in front."""
        starts, at = [], 0
        for part in self.parts:
            starts.append(at)
            at += math.prod(part.shape[self.axis :])
        return tuple(starts)

    @property
    def content(self) -> object:
        """What views that give the same bits agree in."""
        shapes = tuple(math.prod(part.shape[self.axis :]) for part in self.parts)
        return "concatenate", shapes, tuple(part.content for part in self.parts)

    @property
    def refs(self) -> tuple[BaseRef, ...]:
        """The tensors of the base that the view needs."""
        return tuple(ref for part in self.parts for ref in part.refs)


@dataclass(frozen=True)
class Scaled:
    """A view times the scale of the block that an element is in, as float32: what quantised weights stand for.

    `blocks` is the size of a block along each axis; the last block of an axis may be cut.
    """

    blocks: Shape
    of: View
    scales: View

    @property
    def dtype(self) -> DType:
        """The dtype of the elements."""
        return DTYPES["F32"]

    @property
    def shape(self) -> Shape:
        """The sizes of the axes."""
        return self.of.shape

    @property
    def content(self) -> object:
        """What views that give the same bits agree in."""
        return "scale", self.of.shape, self.blocks, self.of.content, self.scales.content

    @property
    def refs(self) -> tuple[BaseRef, ...]:
        """The tensors of the base that the view needs."""
        return *self.of.refs, *self.scales.refs


View = BaseRef | Reshaped | Transposed | Sliced | Concatenated | Scaled
"""What predicts a tensor: a tensor of the base, or what is put together from some."""


def check_view(view: View) -> View:
    """Return a view whose own step fits what it is made of; raises RefusedError where it does not.

    A view that is more than a tensor of the base has elements, so that no axis is of size 0.
    """
    for wrong, why in _misfits(view):
        if wrong:
            raise RefusedError(f"a view of base tensors does not fit: {why}", code="view-shape")
    if math.prod(view.shape) >= 2**63:
        raise RefusedError(f"a view of base tensors of shape {list(view.shape)}", code="view-shape")
    return view


def _misfits(view: View) -> list[tuple[bool, str]]:
    """Return what could be wrong with a view, and whether it is."""
    if isinstance(view, Reshaped):
        shapes = f"{list(view.of.shape)} does not become {list(view.shape)}"
        return [(not math.prod(view.of.shape) or math.prod(view.shape) != math.prod(view.of.shape), shapes)]
    if isinstance(view, Transposed):
        shape = view.of.shape
        return [(len(shape) < 2 or not math.prod(shape), f"{list(shape)} has no two axes to exchange")]
    if isinstance(view, Sliced):
        shape = view.of.shape
        if view.axis >= len(shape) or not math.prod(shape):
            return [(True, f"{list(shape)} has no axis {view.axis} to slice")]
        inside = 0 <= view.start < view.stop <= shape[view.axis]
        return [(not inside, f"{view.start} to {view.stop} is no part of axis {view.axis} of {list(shape)}")]
    if isinstance(view, Concatenated):
        return _misfit_parts(view)
    if isinstance(view, Scaled):
        return _misfit_scales(view)
    return []


def _misfit_parts(view: Concatenated) -> list[tuple[bool, str]]:
    first, axis = view.parts[0], view.axis
    if axis >= len(first.shape):
        return [(True, f"{list(first.shape)} has no axis {axis} to concatenate along")]
    return [
        (
            part.dtype != first.dtype
            or len(part.shape) != len(first.shape)
            or (part.shape[:axis], part.shape[axis + 1 :]) != (first.shape[:axis], first.shape[axis + 1 :])
            or not math.prod(part.shape),
            f"{part.dtype.name} {list(part.shape)} cannot stand beside {first.dtype.name} {list(first.shape)}",
        )
        for part in view.parts
    ]


def _misfit_scales(view: Scaled) -> list[tuple[bool, str]]:
    shape, scales, blocks = view.of.shape, view.scales.shape, view.blocks
    fits = len(blocks) == len(shape) and 0 not in (*blocks, *shape)
    wanted = [-(-size // block) for size, block in zip(shape, blocks, strict=True)] if fits else []
    single = DTYPES["F32"]
    dtypes = [view.of.dtype, view.scales.dtype]
    named = " and ".join(dtype.name for dtype in dtypes)
    return [
        (not fits or list(scales) != wanted, f"{list(shape)} in blocks of {list(blocks)} has no scales {list(scales)}"),
        (
            any(not can_cast(dtype, single) or dtype.itemsize > single.itemsize for dtype in dtypes),
            f"scales of {named}",
        ),
    ]


def with_refs(view: View, ref_of: Callable[[str], BaseRef]) -> View:
    """Return a view with other references for its base tensors, by their names."""
    if isinstance(view, BaseRef):
        return ref_of(view.name)
    if isinstance(view, Concatenated):
        return Concatenated(view.axis, tuple(with_refs(part, ref_of) for part in view.parts))
    if isinstance(view, Scaled):
        return Scaled(view.blocks, with_refs(view.of, ref_of), with_refs(view.scales, ref_of))
    return replace(view, of=with_refs(view.of, ref_of))
