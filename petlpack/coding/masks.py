"""`masks`: binary masks over one set of entries, a row each, by what the rows before say (formats/coders/masks.md).

Masks of layers and tasks over one prototype may keep the same entries. The share of the rows before that keep an entry
sorts the row's entries into classes, each class is a set of positions of its own, and pcodec spends on each what its
density is worth. Where the rows have nothing in common one class is smallest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.coding import pco
from petlpack.coding.array import Array, Level
from petlpack.errors import RefusedError
from petlpack.tensors.dtypes import Bits

CLASSES = (1, 8)
"""Numbers of classes to try: 16 gain nothing over 8 on 24 masks that agree on half of their entries."""

MOST_CLASSES = 64

BITMAP, ONES, ZEROS = range(3)

_BLOCK = 1 << 20
"""Entries that are looked at, or sorted, at once: each of them takes some numbers of eight bytes."""

_ENTRY = struct.Struct("<BII")

Numbers = NDArray[np.uint32]


@dataclass(frozen=True)
class Masks:
    """Positions of the rarer value of each class, pcodec, or its bits."""

    id = "masks"

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes | None:
        """Return the smallest of what CLASSES give; None where an element is not 0 or 1, or no whole rows predict."""
        if array.dtype.name != "BOOL" or not array.count or bool((bits > 1).any()):
            return None
        prediction = array.prediction
        if prediction is not None and (prediction.size % _row_of(array) or bool((prediction > 1).any())):
            return None
        return min((_encode(bits, array, classes) for classes in CLASSES), key=len)

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the rows, one behind another."""
        if array.dtype.name != "BOOL":
            raise RefusedError(f"masks must be BOOL, got {array.dtype.name}", code="coder-array")
        classes = data[0] if data else 0
        if not 1 <= classes <= MOST_CLASSES or len(data) < 1 + classes * _ENTRY.size:
            code = "section-length" if not data or 1 <= classes <= MOST_CLASSES else "section-head"
            raise RefusedError(f"{classes} classes in {len(data)} bytes, expected 1-{MOST_CLASSES} that fit", code=code)
        streams, at = [], 1 + classes * _ENTRY.size
        table = list(_ENTRY.iter_unpack(data[1:at]))
        if sum(count for _, count, _ in table) > array.count:
            raise RefusedError(f"the classes list more positions than the {array.count} entries", code="position-count")
        for mode, count, length in table:
            streams.append(_Stream(mode, count, data[at : at + length], array.count))
            if len(data) < at + length:
                raise RefusedError("the stream of a class is truncated", code="section-length")
            at += length
        if at != len(data):
            raise RefusedError(f"{len(data) - at} extra bytes after the last stream", code="section-length")
        history = _History(array)
        out = np.empty(array.count, np.uint8)
        for row in out.reshape(-1, history.row):
            for number, members, count in history.sort(classes):
                row[members] = streams[number].read(count)
            history.add(row)
        for stream in streams:
            stream.finish()
        return out


def _row_of(array: Array) -> int:
    """Return the length of a row: all elements are one where they are no rows."""
    return array.row if array.row and array.count % array.row == 0 else array.count


class _History:
    """How many of the rows so far keep each entry; the predicted rows come first."""

    def __init__(self, array: Array) -> None:
        self.row = _row_of(array)
        prediction = np.empty(0, np.uint8) if array.prediction is None else array.prediction
        if self.row and prediction.size % self.row:
            message = f"the prediction has {prediction.size} entries, expected a multiple of {self.row}"
            raise RefusedError(message, code="prediction-form")
        prediction = prediction.reshape(-1, self.row)
        self._rows = len(prediction)
        most = 255 * len(prediction) + (array.count // self.row if self.row else 0)
        self._kept = prediction.sum(axis=0, dtype=np.min_scalar_type(most))

    def sort(self, classes: int) -> Iterator[tuple[int, slice | NDArray[Any], int]]:
        """Yield each class that has entries: its number, which they are, and how many.

        Class c of C holds shares of the rows, (2 kept + 1) / (2 rows + 2), in [c / C, (c + 1) / C).
        """
        if classes == 1:
            yield 0, slice(None), self.row
            return
        if int(self._kept.max(initial=0)) > self._rows:
            raise RefusedError("the prediction has entries other than 0 and 1", code="prediction-form")
        label, counts = np.empty(self.row, np.uint8), np.zeros(classes, np.intp)
        for at in range(0, self.row, _BLOCK):
            block = slice(at, at + _BLOCK)
            label[block] = (classes * (2 * self._kept[block].astype(np.int64) + 1)) // (2 * self._rows + 2)
            counts += np.bincount(label[block], minlength=classes)
        order = np.argsort(label, kind="stable") if self.row <= _BLOCK else None
        ends = np.cumsum(counts)
        for number in map(int, np.flatnonzero(counts)):
            count = int(counts[number])
            yield number, label == number if order is None else order[ends[number] - count : ends[number]], count

    def add(self, row: Bits) -> None:
        self._rows += 1
        self._kept += row


def _encode(bits: Bits, array: Array, classes: int) -> bytes:
    history = _History(array)
    members: list[list[Bits]] = [[] for _ in range(classes)]
    for row in bits.reshape(-1, history.row):
        for number, entries, _ in history.sort(classes):
            members[number].append(row[entries])
        history.add(row)
    streams = [_encode_class(np.concatenate([bits[:0], *part])) for part in members]
    table = b"".join(_ENTRY.pack(mode, count, len(data)) for mode, count, data in streams)
    return bytes([classes]) + table + b"".join(data for _, _, data in streams)


def _encode_class(bits: Bits) -> tuple[int, int, bytes]:
    """Return (mode, numbers, bytes) of one class: the positions of the rarer value, or the bits where they are less."""
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    ones = int(np.count_nonzero(bits))
    mode = ONES if 2 * ones <= len(bits) else ZEROS
    positions = np.flatnonzero(bits if mode == ONES else bits == 0).astype("<u4")
    gaps = positions.copy()
    gaps[1:] -= positions[:-1] + np.uint32(1)
    data = pco.compress(gaps)
    return (mode, len(gaps), data) if len(data) < len(bitmap) else (BITMAP, 0, bitmap)


class _Stream:
    """The values of one class, read in order."""

    def __init__(self, mode: int, count: int, data: bytes, most: int) -> None:
        if mode not in (BITMAP, ONES, ZEROS) or count > most or (mode == BITMAP and (count or len(data) > most)):
            code = "section-length" if mode == BITMAP and not count else "section-head"
            raise RefusedError(f"bad class: mode {mode}, {count} positions, {len(data)} bytes", code=code)
        self._mode, self._at = mode, 0
        if mode == BITMAP:
            self._bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            return
        gaps = pco.decompress(data, count, np.dtype("<u4")).astype(np.uint64)
        gaps[1:] += np.uint64(1)
        self._positions = np.cumsum(gaps, dtype=np.uint64, out=gaps)

    def read(self, count: int) -> Bits:
        start, self._at = self._at, self._at + count
        if self._mode == BITMAP:
            if len(self._bits) < self._at:
                raise RefusedError(
                    f"the bitmap of a class has {len(self._bits)} bits, expected at least {self._at}",
                    code="section-length",
                )
            return self._bits[start : self._at]
        first, last = np.searchsorted(self._positions, (start, self._at))
        values = np.full(count, self._mode == ZEROS, np.uint8)
        values[self._positions[first:last] - np.uint64(start)] = self._mode == ONES
        return values

    def finish(self) -> None:
        """Check that the stream held as many values as its class has entries."""
        if self._mode == BITMAP:
            rest = self._bits[self._at :]
            if len(rest) > 7 or rest.any():
                raise RefusedError(
                    "bits are set, or whole bytes left, after the last entry of a class", code="bits-behind"
                )
        elif len(self._positions) and int(self._positions[-1]) >= self._at:
            raise RefusedError("a position is beyond the last entry of its class", code="position-range")
