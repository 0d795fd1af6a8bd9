"""What numbers would take, from a sample of them, so that of many ways to code a large array one is coded in full."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.coding.array import Array
from petlpack.tensors.dtypes import Bits

LARGE = 1 << 17
"""Arrays of more elements are sampled; of smaller ones every way is coded, for their tables count."""
ROWS = 64
"""Least rows of a sample, where there are as many: they differ more than the weights of one."""
_SAMPLE = 1 << 14
"""Elements of a sample, of as many rows as it has: four times as many chose the same for a real fine-tune."""
_FINE = 3
"""Bits of a number that are counted as a symbol, from its highest on; pcodec's bins are about as narrow."""
_SYMBOL = 1.5
"""Bits for each symbol that occurs: 0.72 by which a sample's entropy is too low, and the sample's share of its bin."""


def sampled(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return which rows and columns of a matrix are looked at: whole rows, where it has so many."""
    rows, columns = shape
    step = max(1, min(rows * columns // _SAMPLE, rows // ROWS))
    return slice(None, None, step), slice(None, None, -(-rows * columns // (step * _SAMPLE)))


def sample(bits: Bits, array: Array) -> tuple[Bits, Array]:
    """Return a sample of an array, and what a coder knows of it."""
    matrix = bits.reshape(-1, array.whole_row)
    chosen = sampled(matrix.shape)
    found, prediction = matrix[chosen], array.prediction
    if prediction is not None:
        prediction = prediction.reshape(matrix.shape)[chosen].reshape(-1)
    return found.reshape(-1), Array(array.dtype, found.size, found.shape[1], prediction)


def bits_of_differences(values: NDArray[Any], label: NDArray[Any] | int = 0) -> float:
    """Return about how many bits signed integers take, those of each label coded by themselves."""
    mantissa, length = np.frexp(np.abs(values.astype(np.float64)))
    fine = (length << _FINE) + (mantissa * (1 << _FINE)).astype(np.int64)
    return _bits(2 * fine + (values < 0), label) + float(np.maximum(length - _FINE, 0).sum())


def bits_of_ordered(values: Bits) -> float:
    """Return about how many bits ordered integers take."""
    rest = max(0, 8 * values.itemsize - 12)
    return _bits(values >> values.dtype.type(rest), 0) + values.size * rest


def bits_of_positions(chosen: int, total: int) -> float:
    """Return about how many bits it takes to say which of so many are chosen."""
    return _log_sum(np.array([total])) - _log_sum(np.array([chosen, total - chosen]))


def _bits(symbols: NDArray[Any], label: NDArray[Any] | int) -> float:
    """Return the entropy of symbols below 4096, given their labels."""
    counts = np.bincount((np.asarray(label, np.int64) << 12) + symbols.astype(np.int64))
    each = np.pad(counts, (0, -counts.size % 4096)).reshape(-1, 4096)
    return _log_sum(each.sum(axis=1)) - _log_sum(counts) + _SYMBOL * np.count_nonzero(counts)


def _log_sum(counts: NDArray[np.intp]) -> float:
    found = counts[counts > 0].astype(np.float64)
    return float((found * np.log2(found)).sum())
