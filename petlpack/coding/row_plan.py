"""How the rows of an array are to be coded: the encoder's half of `rows`. Any plan decodes; this one finds small ones.

Everything here is integer arithmetic, so that every machine and thread count finds the same plan; but for estimates of
entropies, whose logarithms may differ in the last bit: that matters between plans that take as many bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.coding.array import Level
from petlpack.coding.estimate import LARGE, ROWS, bits_of_differences, bits_of_positions, sampled
from petlpack.tensors.dtypes import Bits, DType

Ints = NDArray[np.int64]
Differences = NDArray[np.signedinteger[Any]]

MIN_CLASS = 512
"""Weights that a class must hold for its own pcodec table (20-200 bytes) to pay."""
_TAIL = 128
"""Classes at either end that hold less than 1/128 of the weights join their neighbour."""
_MAX_CLASSES = 32
"""Real fine-tunes have 7-12; this bounds the work on noise."""
_QUIET = 4
"""A row with fewer than a quarter of its weights changed is quiet; positions then decode as fast as weights."""
_DRIFT_BITS = 12
_DRIFT_MANTISSA = 23
"""The narrowest mantissa in which weight decay moves every weight; in a narrower one rounding swallows it."""
_DRIFT_SAMPLE = 1 << 17
"""Weights that the drift table is learnt from, 32 an entry: with 2^18 a real fp32 fine-tune takes 0.006 % less."""
_KEY_BITS = 63 - _DRIFT_BITS
_KEY_ZERO = 1 << _KEY_BITS - 1
_F64_WINDOW = 895
"""Puts the exponents that F32 has where F32 has them, so that those of F64 fit a byte as well."""

DRIFT_SIZE = 1 << _DRIFT_BITS


@dataclass(frozen=True)
class RowPlan:
    """A label for each row: 0 quiet, 1..groups coded row after row, above that weight by weight in classes."""

    labels: Ints
    groups: int = 0
    classes: int = 0
    floor: int = 0
    drift: Differences | None = None


@dataclass(frozen=True)
class _Quiet:
    """Which rows are to be quiet, and what they drift by."""

    rows: NDArray[np.bool_]
    drift: Differences | None = None


def plan_rows(
    differences: Differences, prediction: Bits, dtype: DType, level: Level, *, measure: bool
) -> list[RowPlan]:
    """Return the plan that a level allows, or to `measure` all of them.

    Where few weights change everywhere, the exponent tells which, and classes beat positions: then no row is quiet.
    """
    quiet = _find_quiet(differences, prediction, dtype)
    if level == "fast":
        return [_plan_groups(differences, dtype, quiet)]
    choices = [quiet]
    if quiet.drift is None and quiet.rows.any():
        choices.append(_Quiet(np.zeros_like(quiet.rows)))
    if not measure and len(choices) > 1:
        chosen = sampled(differences.shape)
        sample = (differences[chosen], prediction[chosen], dtype)
        plans = [_plan_classes(*sample, _Quiet(choice.rows[chosen[0]])) for choice in choices]
        choices = [choices[np.argmin([bits_of_plan(*sample, plan) for plan in plans])]]
    return [_plan_classes(differences, prediction, dtype, choice) for choice in choices]


def _plan_groups(differences: Differences, dtype: DType, quiet: _Quiet) -> RowPlan:
    """Plan for speed: quiet rows, and groups of rows by their mean difference; moving whole rows costs little."""
    labels = np.zeros(quiet.rows.size, np.int64)
    if quiet.rows.all():
        return RowPlan(labels, drift=quiet.drift)
    size = np.add.reduce(_bounded(differences[~quiet.rows], 1 << dtype.mantissa), axis=1, dtype=np.int64)
    octave = _bit_length(size * 16 // differences.shape[1])
    enough = max(octave.size // _TAIL, -(-MIN_CLASS // differences.shape[1]))
    groups, label = np.unique(np.clip(octave, *_trim(octave, enough)), return_inverse=True)
    labels[~quiet.rows] = label + 1
    return RowPlan(labels, groups=groups.size, drift=quiet.drift)


def _plan_classes(differences: Differences, prediction: Bits, dtype: DType, quiet: _Quiet) -> RowPlan:
    """Plan for size: classes by the octave of each row's step less the weight's exponent."""
    labels = np.zeros(quiet.rows.size, np.int64)
    if quiet.rows.all():
        return RowPlan(labels, drift=quiet.drift)
    exponent = _exponent(prediction[~quiet.rows], dtype)
    step = _step(differences[~quiet.rows], exponent, dtype)
    rows = slice(None, None, max(1, min(exponent.size // LARGE, len(exponent) // ROWS)))
    ratio = np.maximum(step[rows, None] - exponent[rows] + 256, 0).reshape(-1)
    low, high = _trim(ratio, max(MIN_CLASS, ratio.size // _TAIL))
    classes = min(high - low + 1, _MAX_CLASSES)
    window = np.clip(step + 256 - high, 1, 256 - classes)
    floor = int(window.min())
    labels[~quiet.rows] = window - floor + 1
    return RowPlan(labels, classes=classes, floor=floor, drift=quiet.drift)


def bits_of_plan(differences: Differences, prediction: Bits, dtype: DType, plan: RowPlan) -> float:
    """Return about how many bits differences take by a plan."""
    rows = plan.labels == 0
    changes, given = differences[rows], prediction[rows]
    if plan.drift is not None:
        changes -= plan.drift[drift_index(given, dtype)]
    changes = changes[changes != 0]
    bits = bits_of_positions(changes.size, given.size) + bits_of_differences(changes) + bits_of_differences(plan.labels)
    if rows.all():
        return bits
    label = np.repeat(plan.labels[~rows] - 1, differences.shape[1])
    if plan.classes:
        label = classes_of(prediction[~rows], plan.labels[~rows] - 1 + plan.floor, plan.classes, dtype)
    return bits + bits_of_differences(differences[~rows].reshape(-1), label)


def classes_of(prediction: Bits, window: NDArray[Any], classes: int, dtype: DType) -> NDArray[np.uint8]:
    """Return the class of every weight, flat: where the prediction's exponent lies in its row's window."""
    low = window.astype(np.uint8)[:, None]
    label = _exponent(prediction, dtype)
    np.maximum(label, low, out=label)
    np.minimum(label, low + np.uint8(classes - 1), out=label)
    label -= low
    return label.reshape(-1)


def drift_index(prediction: Bits, dtype: DType) -> NDArray[np.intp]:
    """Return the entry of the drift table for every weight: the top 12 bits of the prediction's mantissa."""
    index = prediction >> prediction.dtype.type(dtype.mantissa - _DRIFT_BITS)
    return (index & prediction.dtype.type(DRIFT_SIZE - 1)).astype(np.intp)


def can_drift(dtype: DType) -> bool:
    """Tell whether a dtype is fine enough for weight decay to show in every weight."""
    return dtype.mantissa >= _DRIFT_MANTISSA


def _find_quiet(differences: Differences, prediction: Bits, dtype: DType) -> _Quiet:
    """Return the rows that hardly change, with the drift by mantissa if it explains a sixteenth of the rows."""
    drift = _find_drift(differences, prediction, dtype)
    if drift is not None:
        quiet = _hardly(differences != drift[drift_index(prediction, dtype)])
        if np.count_nonzero(quiet) * 16 > quiet.size:
            return _Quiet(quiet, drift)
    return _Quiet(_hardly(differences != 0))


def _find_drift(differences: Differences, prediction: Bits, dtype: DType) -> Differences | None:
    """Return the drift by mantissa that a part of the rows has, or None where it explains no row of a sample."""
    if not can_drift(dtype) or prediction.size < DRIFT_SIZE:
        return None
    rows = slice(None, None, max(1, prediction.size // _DRIFT_SAMPLE))
    drift = _modes(drift_index(prediction[rows], dtype).reshape(-1), differences[rows].reshape(-1))
    few = sampled(differences.shape)
    explained = _hardly(differences[few] != drift[drift_index(prediction[few], dtype)])
    return drift if drift.any() and explained.any() else None


def _hardly(changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the rows with few changes; numpy's own count along an axis takes three times as long."""
    few: NDArray[np.bool_] = np.add.reduce(changed, axis=1, dtype=np.int32) * _QUIET < changed.shape[1]
    return few


def _modes(index: NDArray[np.intp], values: Differences) -> Differences:
    """Return the commonest of the values at every index; where there is none, that of the index before."""
    # One integer for both sorts six times as fast as the pair. A value that is too wide for it is no drift.
    keys = (index << _KEY_BITS) + np.clip(values.astype(np.int64), -_KEY_ZERO, _KEY_ZERO - 1) + _KEY_ZERO
    keys.sort()
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    runs = np.diff(first, append=keys.size)
    first = first[np.argsort(runs, kind="stable")]  # the longest run of an index is written last, and stays
    at = np.full(DRIFT_SIZE, -1)
    at[keys[first] >> _KEY_BITS] = first
    modes = keys[np.maximum.accumulate(np.maximum(at, 0))] & (1 << _KEY_BITS) - 1
    return (modes - _KEY_ZERO).astype(values.dtype)


def _step(differences: Differences, exponent: NDArray[np.uint8], dtype: DType) -> Ints:
    """Return log2 of each row's mean change in absolute terms, up to a constant."""
    # A change of sign is half the range in ulps, but only some 2^mantissa of them in truth: hence the bound.
    size = _bounded(differences, 1 << dtype.mantissa + 2)
    mantissa = min(dtype.mantissa, _DRIFT_MANTISSA)
    size = (size >> size.dtype.type(dtype.mantissa - mantissa)).astype(np.uint32)
    size <<= np.uint32(min(15, 29 - mantissa))
    top = exponent.max(axis=1, keepdims=True)
    size >>= np.minimum(top - exponent, np.uint8(31))
    total = np.add.reduce(size, axis=1, dtype=np.int64)
    step: Ints = _bit_length(total // differences.shape[1]) + top[:, 0]
    return step


def _trim(values: Ints, enough: int) -> tuple[int, int]:
    """Return the range of values left once the ends that hold fewer than `enough` have joined their neighbours."""
    below = np.bincount(values).cumsum()
    enough = min(enough, (values.size - 1) // 2)
    return int(np.argmax(below > enough)), int(np.argmax(below >= values.size - enough))


def _exponent(prediction: Bits, dtype: DType) -> NDArray[np.uint8]:
    """Return the exponent field of floats as a byte."""
    field = prediction >> prediction.dtype.type(dtype.mantissa)
    if dtype.exponent > 8:
        field = np.clip(field & prediction.dtype.type(0x7FF), _F64_WINDOW, _F64_WINDOW + 255) - _F64_WINDOW
    exponent = field.astype(np.uint8)
    return exponent if dtype.exponent >= 8 else exponent & np.uint8((1 << dtype.exponent) - 1)


def _bounded(differences: Differences, most: int) -> Bits:
    """Return absolute values, of which none is above `most`."""
    size: Bits = np.abs(differences).view(f"<u{differences.itemsize}")  # the least integer has no other absolute value
    return np.minimum(size, size.dtype.type(min(most, np.iinfo(size.dtype).max)), out=size)


def _bit_length(values: Ints) -> Ints:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)
