"""`rows`: ulps from a prediction, by how much each row moved and how fine each weight is (formats/coders/rows.md).

Three facts about fine-tuning make the differences cheap.

* Rows move by very different amounts, so every row has a label that says by how much.
* Many rows hardly move: the embeddings of tokens that never came up. Of these *quiet* rows only the changed weights are
  stored. Weight decay does move them, but by a fixed fraction: each by a number of ulps that its mantissa alone tells
  (*drift*), and a small table of it leaves them without a change again.
* An optimiser's step is many ulps of a small weight and none of a large one. In the rows that move, a weight's
  difference is coded among those of its *class*: the row's label against the exponent of the prediction, which the
  decoder has, so classes cost no bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.coding import pco
from petlpack.coding.array import Array, Level
from petlpack.coding.estimate import LARGE
from petlpack.coding.row_plan import (
    DRIFT_SIZE,
    MIN_CLASS,
    RowPlan,
    bits_of_plan,
    can_drift,
    classes_of,
    drift_index,
    plan_rows,
)
from petlpack.errors import RefusedError
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.ordered import signed_view

_HEADER = struct.Struct("<BBBBI")  # groups, classes, floor, whether quiet rows drift, changed weights of quiet rows

_BLOCK = 1 << 19
"""Weights sorted at once: 1.9 ns a weight at 2^16, 2.4 at 2^18, 2.6-5.8 at 2^20, where the indices leave the cache; but
two threads gain 1.4x at 2^17 and 1.7-1.8x at 2^19, for each call must outlast the hand-over of the interpreter."""

_SHORT = 16
"""Weights of a row that a sample tells nothing of: as many labels as a sample has rows fit it by chance."""

_ADD_BLOCK = 1 << 16
"""Weights gathered, added to and put back at once: what stays in the cache faults in no fresh pages."""


@dataclass(frozen=True)
class Rows:
    """Differences from a prediction, by row and class, pcodec."""

    id = "rows"
    decode_ns = 2.1  # groups of rows

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes | None:
        """Return the smallest of the plans that the level allows, or None without a prediction or for few weights."""
        if not _applies(array):
            return None
        differences, prediction = _matrices(bits, array)
        plans = plan_rows(differences, prediction, array.dtype, level, measure=array.count <= LARGE)
        return min((_write(differences, prediction, array.dtype, plan) for plan in plans), key=len)

    def estimate(self, bits: Bits, array: Array, level: Level) -> float | None:
        """Return about how many bits the smallest of the plans takes, or None where a sample does not tell."""
        if not _applies(array) or array.row < _SHORT:
            return None
        differences, prediction = _matrices(bits, array)
        plans = plan_rows(differences, prediction, array.dtype, level, measure=True)
        return min(bits_of_plan(differences, prediction, array.dtype, plan) for plan in plans)

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the array; raises ValueError where the bytes cannot be this coder's work on this prediction."""
        if array.prediction is None or array.dtype.kind != "float" or not array.count:
            code = "prediction-missing" if array.prediction is None else "coder-array"
            got = f"{array.count} {array.dtype.name} elements" + (
                "" if array.prediction is not None else ", no prediction"
            )
            raise RefusedError(f"expected one or more floats with a prediction, got {got}", code=code)
        return _read(data, array.prediction.reshape(-1, array.whole_row), array.dtype).reshape(-1)


def _applies(array: Array) -> bool:
    return array.prediction is not None and array.dtype.kind == "float" and array.count > MIN_CLASS


def _matrices(bits: Bits, array: Array) -> tuple[NDArray[Any], Bits]:
    """Return differences and prediction by rows."""
    assert array.prediction is not None
    shape = (-1, array.whole_row)
    return signed_view(bits - array.prediction).reshape(shape), array.prediction.reshape(shape)


def _write(differences: NDArray[Any], prediction: Bits, dtype: DType, plan: RowPlan) -> bytes:
    order = np.argsort(plan.labels, kind="stable")
    ends = np.searchsorted(plan.labels, np.arange(plan.groups + 1), side="right", sorter=order)
    quiet, *groups, rest = np.split(order, ends)
    changes = differences[quiet]
    if plan.drift is not None:
        changes -= plan.drift[drift_index(prediction[quiet], dtype)]
    row, at = np.divmod(np.flatnonzero(changes != 0), differences.shape[1])
    changed = quiet[row] * differences.shape[1] + at
    compress = partial(pco.compress, quick=differences.size > LARGE)
    streams = [
        pco.compress(plan.labels.astype("<u2")),
        b"" if plan.drift is None else pco.compress(plan.drift, smooth=True),
        pco.compress((np.diff(changed, prepend=-1) - 1).astype("<u4")),
        compress(changes[row, at]),
        *(compress(differences[rows].reshape(-1)) for rows in groups),
    ]
    if plan.classes:
        label = classes_of(prediction[rest], plan.labels[rest] - plan.groups - 1 + plan.floor, plan.classes, dtype)
        streams += map(compress, _split_classes(label, plan.classes, differences[rest].reshape(-1)))
    header = _HEADER.pack(plan.groups, plan.classes, plan.floor, plan.drift is not None, changed.size)
    return header + struct.pack(f"<{len(streams)}I", *map(len, streams)) + b"".join(streams)


def _sorted_blocks(label: NDArray[np.uint8], classes: int) -> tuple[list[NDArray[np.intp]], NDArray[np.intp]]:
    """Return, for each block of weights, the order that sorts it by class, and where each class ends in that."""
    blocks = [label[at : at + _BLOCK] for at in range(0, label.size, _BLOCK)]
    # Sorting bytes is a counting sort; a pass of flatnonzero takes 0.6-1.2 ns a weight for every class.
    orders = [np.argsort(block, kind="stable") for block in blocks]
    every = np.arange(classes)
    ends = [np.searchsorted(block, every, "right", order) for block, order in zip(blocks, orders, strict=True)]
    return orders, np.array(ends)


def _split_classes(label: NDArray[np.uint8], classes: int, differences: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the differences of every class."""
    orders, ends = _sorted_blocks(label, classes)
    blocks = [
        np.split(differences[number * _BLOCK :][: order.size][order], stop[:-1])
        for number, (order, stop) in enumerate(zip(orders, ends, strict=True))
    ]
    return [np.concatenate(pieces) for pieces in zip(*blocks, strict=True)]


def _read(data: bytes, prediction: Bits, dtype: DType) -> Bits:
    groups, classes, floor, drifts, changed, streams = _read_streams(data)
    labels = pco.decompress(next(streams), len(prediction), np.dtype("<u2"))
    if labels.max() > groups + max(0, 257 - classes - floor) * (classes > 0):
        raise RefusedError(f"row label {labels.max()} is out of range", code="rows-label")
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels, np.arange(groups + 1), side="right", sorter=order)
    quiet, moved = order[: ends[0]], order[ends[0] :]
    step = max(1, _ADD_BLOCK // prediction.shape[1])
    if drifts and not can_drift(dtype):
        raise RefusedError(f"{dtype.name} rows cannot have a drift", code="section-head")
    drift = pco.decompress(next(streams), drifts * DRIFT_SIZE, signed_view(prediction).dtype)
    tuned = np.empty_like(prediction) if drifts or not quiet.size else prediction.copy()
    for at in range(0, quiet.size if drifts else 0, step):
        start = prediction[quiet[at : at + step]]
        start += np.take(drift, drift_index(start, dtype)).view(prediction.dtype)
        tuned[quiet[at : at + step]] = start
    _add_changes(next(streams), next(streams), changed, tuned.reshape(-1))
    if not moved.size:
        if any(streams):
            raise RefusedError("streams follow that no row uses", code="pcodec-count")
        return tuned
    part = np.empty((moved.size, prediction.shape[1]), drift.dtype)
    starts = (ends - ends[0]).tolist()
    for begin, end in pairwise(starts):
        pco.decompress_into(next(streams), part[begin:end].reshape(-1))
    if classes:
        rows = order[ends[-1] :]
        if not rows.size:
            raise RefusedError(f"{classes} classes, but no row uses them", code="rows-label")
        label = classes_of(prediction[rows], labels[rows] - groups - 1 + floor, classes, dtype)
        _read_classes(list(streams), label, part[starts[-1] :].reshape(-1))
    for at in range(0, moved.size, step):
        rows = moved[at : at + step]
        start = prediction[rows]
        start += part[at : at + step].view(prediction.dtype)
        tuned[rows] = start
    return tuned


def _read_streams(data: bytes) -> tuple[int, int, int, int, int, Iterator[memoryview]]:
    """Return the header and the streams behind it, whose lengths must fill the bytes exactly."""
    if len(data) < _HEADER.size:
        raise RefusedError(f"truncated in the header, after {len(data)} bytes", code="section-length")
    groups, classes, floor, drifts, changed = _HEADER.unpack_from(data)
    table = struct.Struct(f"<{4 + groups + classes}I")
    if len(data) < _HEADER.size + table.size:
        raise RefusedError(f"truncated in the table of streams, after {len(data)} bytes", code="section-length")
    ends = [_HEADER.size + table.size]
    for length in table.unpack_from(data, _HEADER.size):
        ends.append(ends[-1] + length)
    if ends[-1] != len(data) or drifts > 1:
        code = "section-length" if ends[-1] != len(data) else "section-head"
        message = f"the drift flag is {drifts}, expected 0 or 1"
        if ends[-1] != len(data):
            message = f"the streams end at byte {ends[-1]:,}, the section has {len(data):,}"
        raise RefusedError(message, code=code)
    view = memoryview(data)
    streams = (view[begin:end] for begin, end in pairwise(ends))
    return groups, classes, floor, drifts, changed, streams


def _add_changes(gaps: memoryview, changes: memoryview, changed: int, tuned: Bits) -> None:
    """Add the differences of the changed weights of quiet rows, whose positions are gaps over the whole array."""
    if changed > tuned.size:
        raise RefusedError(f"{changed:,} changed weights in an array of {tuned.size:,}", code="position-count")
    at = np.cumsum(pco.decompress(gaps, changed, np.dtype("<u4")), dtype=np.int64)
    at += np.arange(changed)
    if changed and at[-1] >= tuned.size:
        raise RefusedError(
            f"changed weight at position {at[-1]:,}, the array has {tuned.size:,}", code="position-range"
        )
    tuned[at] += pco.decompress(changes, changed, signed_view(tuned).dtype).view(tuned.dtype)


def _read_classes(streams: list[memoryview], label: NDArray[np.uint8], differences: NDArray[Any]) -> None:
    """Put the differences of every class where the labels have them, block by block."""
    orders, ends = _sorted_blocks(label, len(streams))
    counts = np.diff(ends, axis=1, prepend=0)
    stops = counts.cumsum(axis=0)
    values = [
        pco.decompress(stream, count, differences.dtype) for stream, count in zip(streams, stops[-1], strict=True)
    ]
    for number, (order, stop, count) in enumerate(zip(orders, stops, counts, strict=True)):
        pieces = [value[end - n : end] for value, end, n in zip(values, stop, count, strict=True)]
        differences[number * _BLOCK :][: order.size][order] = np.concatenate(pieces)
