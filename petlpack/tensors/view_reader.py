"""Views read piece by piece: no more of the base than a piece needs, and of what is transposed a matrix at a time."""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Iterator

import numpy as np

from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.views import BaseRef, Concatenated, Reshaped, Scaled, Shape, Sliced, Transposed, View

MOST_KEPT = 1 << 28
"""Bytes of transposed matrices that are kept for the next piece; the last one is kept however large it is."""

MOST_AT_ONCE = 1 << 22
"""Elements that are read to cut slices from, unless a single block has more."""


class ViewReader:
    """Reads views of one base. Safe to use from several threads."""

    def __init__(self, tensor_of: Callable[[BaseRef], Tensor]) -> None:
        """Read the base's tensors by `tensor_of`, which raises where one is another than its reference says."""
        self._tensor_of = tensor_of
        self._matrices: dict[tuple[Transposed, int], Bits] = {}
        self._lock = threading.RLock()  # what is transposed may be made of what is transposed

    def read(self, view: View, start: int, stop: int) -> Bits:
        """Return the flat elements `start` to `stop` of a view."""
        if isinstance(view, BaseRef):
            return self._tensor_of(view).read_flat(start, stop)
        if isinstance(view, Reshaped):
            return self.read(view.of, start, stop)
        if isinstance(view, Scaled):
            return self._scaled(view, start, stop)
        if isinstance(view, Transposed):
            block, read = math.prod(view.shape[-2:]), self._transposed
        elif isinstance(view, Sliced):
            block, read = math.prod(view.shape[view.axis :]), self._sliced
        else:
            block, read = math.prod(view.shape[view.axis :]), self._concatenated
        pieces = [read(view, *span) for span in _spans(start, stop, block)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _concatenated(self, view: View, first: int, count: int, low: int, high: int) -> Bits:
        assert isinstance(view, Concatenated)
        if count > 1:
            blocks = [math.prod(part.shape[view.axis :]) for part in view.parts]
            parts = [
                self.read(part, first * block, (first + count) * block).reshape(count, block)
                for part, block in zip(view.parts, blocks, strict=True)
            ]
            return np.concatenate(parts, axis=1).reshape(-1)
        pieces = []
        for i in range(bisect.bisect_right(view.starts, low) - 1, bisect.bisect_left(view.starts, high)):
            part, begin = view.parts[i], view.starts[i]
            block = math.prod(part.shape[view.axis :])
            inside = max(low - begin, 0), min(high - begin, block)
            pieces.append(self.read(part, first * block + inside[0], first * block + inside[1]))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _sliced(self, view: View, first: int, count: int, low: int, high: int) -> Bits:
        assert isinstance(view, Sliced)
        inner = math.prod(view.shape[view.axis + 1 :])
        whole, begin = view.of.shape[view.axis] * inner, view.start * inner
        if count == 1:
            return self.read(view.of, first * whole + begin + low, first * whole + begin + high)
        step = max(1, MOST_AT_ONCE // whole)  # of what is read, a slice may take little
        pieces = []
        for at in range(first, first + count, step):
            many = min(step, first + count - at)
            blocks = self.read(view.of, at * whole, (at + many) * whole).reshape(many, whole)
            pieces.append(blocks[:, begin : view.stop * inner].reshape(-1))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _transposed(self, view: View, first: int, count: int, low: int, high: int) -> Bits:
        assert isinstance(view, Transposed)
        rows, columns = view.of.shape[-2:]
        size = rows * columns
        if high - low == 1 and count == 1:  # a sample of one element needs no matrix
            at = first * size + (low % rows) * columns + low // rows
            return self.read(view.of, at, at + 1)
        if count > 1 or high - low == size:
            return self._turned(view, first, count)
        with self._lock:
            matrix = self._matrices.pop((view, first), None)
            if matrix is None:
                matrix = self._turned(view, first, 1)
            self._matrices[view, first] = matrix
            while len(self._matrices) > 1 and sum(kept.nbytes for kept in self._matrices.values()) > MOST_KEPT:
                del self._matrices[next(iter(self._matrices))]
        return matrix[low:high]

    def _turned(self, view: Transposed, first: int, count: int) -> Bits:
        """Return whole matrices, transposed."""
        rows, columns = view.of.shape[-2:]
        matrices = self.read(view.of, first * rows * columns, (first + count) * rows * columns)
        return np.swapaxes(matrices.reshape(count, rows, columns), 1, 2).reshape(-1)

    def _scaled(self, view: Scaled, start: int, stop: int) -> Bits:
        single = DTYPES["F32"]
        weights = cast_bits(self.read(view.of, start, stop), view.of.dtype, single).view("<f4")
        blocks = _blocks_of(start, stop, view.shape, view.blocks)
        first, last = (int(blocks.min()), int(blocks.max())) if len(blocks) else (0, -1)
        chosen = self.read(view.scales, first, last + 1)[blocks - first]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            product = weights * cast_bits(chosen, view.scales.dtype, single).view("<f4")
        return np.where(np.isnan(product), single.bits.type(0x7FC00000), product.view(single.bits))


def _spans(start: int, stop: int, block: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield a range as parts of one block each and whole blocks between: (first block, blocks, low, high in it)."""
    while start < stop:
        first, low = divmod(start, block)
        whole = (stop - start) // block
        if low == 0 and whole > 1:
            yield first, whole, 0, block
            start += whole * block
        else:
            high = min(block, low + stop - start)
            yield first, 1, low, high
            start += high - low


def _blocks_of(start: int, stop: int, shape: Shape, blocks: Shape) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return, for the flat elements `start` to `stop`, the flat number of the block that each is in."""
    flat = np.arange(start, stop, dtype=np.int64)
    number, stride = np.zeros(stop - start, np.int64), 1
    for size, block in zip(reversed(shape), reversed(blocks), strict=True):
        number += flat % size // block * stride
        flat //= size
        stride *= -(-size // block)
    return number
