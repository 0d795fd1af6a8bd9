"""How many bits a section needs at least: what its bytes are measured against, so that waste is seen.

Sets of positions and masks are counted: of C(n, k) sets that keep k of n, one has to be named, which takes log2 C(n, k)
bits. Numbers are measured: the order-0 entropy of what a coder codes (differences from the prediction, else the numbers
themselves), given the class that a decoder knows before it reads them. A coder that knows more than these counts
(what other masks keep, say) may take less. docs/accounting.md has the formulas with worked examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.analyze.reading import Opened
from petlpack.sections.read import DecodedSection
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.ordered import signed_view, to_ordered

LEADING = 3
"""Bits behind a number's leading one that are counted; those behind them are as good as random, and cost one each."""

FEW = 8
"""Numbers of which an eighth or fewer are distinct are counted as they are; of more, counts say nothing."""


def choose_bits(whole: int, kept: int) -> float:
    """Return log2 C(whole, kept): the bits that name one set of `kept` among `whole`."""
    if not 0 < kept < whole:
        return 0.0
    natural = math.lgamma(whole + 1) - math.lgamma(kept + 1) - math.lgamma(whole - kept + 1)
    return natural / math.log(2)


def counted_bounds(task: Opened) -> dict[str, float]:
    """Return the bounds of a task's sections that its manifest tells, in bits: those of positions."""
    return {
        row.name: choose_bits(task.kind.units[row.name].size, row.count)
        for row in task.sections
        if row.role == "positions"
    }


def measured_bounds(sections: Iterable[DecodedSection]) -> dict[str, float]:
    """Return the bound of each section in bits."""
    return {section.name: bound_bits(section) for section in sections}


def bound_bits(section: DecodedSection) -> float:
    """Return the bound of one section in bits."""
    if section.role == "positions":
        return choose_bits(section.unit.size, len(section.bits))
    if section.dtype.name == "BOOL":
        by_mask = section.role == "mask" and section.row  # of what is no mask, a row says nothing
        masks = section.bits.reshape(-1, section.row) if by_mask else section.bits.reshape(1, -1)
        return sum(choose_bits(mask.size, int(np.count_nonzero(mask))) for mask in masks)
    if section.prediction is None or section.dtype.kind != "float":
        return _entropy_bits(_numbers(section.bits, section.dtype))
    differences = signed_view(section.bits - section.prediction)
    return _entropy_bits(_parts(differences), _classes(differences, section.prediction, section.dtype, section.row))


def _numbers(bits: Bits, dtype: DType) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the symbol of each number, and how many of its bits are left behind it."""
    if dtype.kind == "float":
        cut = max(0, dtype.mantissa - LEADING - 1)
        ordered = to_ordered(bits, dtype)
        return _few(ordered) or (ordered >> ordered.dtype.type(cut), np.full(bits.size, cut))
    return _parts(signed_view(bits))


def _parts(numbers: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return sign, length and leading bits of each number as its symbol, and the length of what is behind them."""
    size = np.abs(
        numbers.astype(np.float64)
    )  # the length of a 64-bit number may be one too long, which is a symbol too
    _, length = np.frexp(size)
    behind = np.maximum(length.astype(np.int64) - 1 - LEADING, 0)
    leading = np.floor(np.ldexp(size, -behind)).astype(np.int64)
    return _few(numbers) or (np.sign(numbers).astype(np.int64) * ((behind << (LEADING + 2)) + leading), behind)


def _few(numbers: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
    """Return numbers of which few are distinct as symbols, with nothing left behind them."""
    distinct, symbols = np.unique(numbers, return_inverse=True)
    return (symbols, np.zeros(numbers.size, np.int64)) if distinct.size * FEW <= numbers.size else None


def _classes(differences: NDArray[Any], prediction: Bits, dtype: DType, row: int) -> NDArray[np.int64]:
    """Return the class of each difference: how far its row moved, against the exponent of the prediction."""
    exponents = (prediction >> prediction.dtype.type(dtype.mantissa)) & prediction.dtype.type((1 << dtype.exponent) - 1)
    size = np.abs(differences.astype(np.float64))
    if row and size.size % row == 0:
        means = np.repeat(size.reshape(-1, row).mean(axis=1), row)
    else:
        means = np.full(size.size, size.mean() if size.size else 0.0)
    _, scale = np.frexp(means)
    classes: NDArray[np.int64] = exponents.astype(np.int64) * 128 - scale
    return classes


def _entropy_bits(coded: tuple[NDArray[Any], NDArray[np.int64]], classes: NDArray[np.int64] | None = None) -> float:
    """Return the bits that symbols take given their classes, and what is left behind the symbols."""
    symbols, behind = coded
    total = float(behind.sum())
    if classes is None:
        return total + _total_entropy(symbols)
    _, symbols = np.unique(symbols, return_inverse=True)
    _, classes = np.unique(classes, return_inverse=True)
    joint = classes.astype(np.int64) * (int(symbols.max(initial=0)) + 1) + symbols
    return total + _total_entropy(joint) - _total_entropy(classes)


def _total_entropy(symbols: NDArray[Any]) -> float:
    """Return n H: the bits that all symbols take by their own counts."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / symbols.size)).sum()) if symbols.size else 0.0
