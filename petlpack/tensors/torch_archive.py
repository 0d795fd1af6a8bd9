"""The archive that torch saves: where in the file each storage stands, and bounds on what reading it can cost.

Tensors are rebuilt without their elements, and these are read from the file when they are asked for: nothing is mapped,
and no more is in memory than is asked for.
"""

from __future__ import annotations

import bisect
import struct
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from petlpack.errors import RunError, printable
from petlpack.tensors.content import BAD_ZIP, opened_archive
from petlpack.tensors.pinned import Pin

if TYPE_CHECKING:
    import torch

MOST_RECORDS = 1 << 18
"""Storages of a file: more than the largest models have tensors."""

_PICKLE_BYTES = 1 << 20, 1 << 11
"""Bytes of the pickle by itself, and for each storage: one tensor's row takes about 200, and torch reads a few million
a second."""
_BYTES_A_PICKLED = 1 << 3
"""Bytes of a file for one of its pickle, where that holds more than tensors: a vocabulary beside them."""

_HEAD = b"PK\x03\x04"
"""How a file begins that torch reads as an archive: any other it reads as pickles one behind another."""

Octets = NDArray[np.uint8]


@dataclass(frozen=True)
class Archive:
    """What a zip archive says of its records."""

    rows: tuple[zipfile.ZipInfo, ...]
    in_order: bool
    """Whether its numbers are of this machine's byte order."""

    @cached_property
    def _starts(self) -> list[int]:
        return [row.header_offset for row in self.rows]

    def place_of(self, tensor: torch.Tensor) -> int | None:
        """Return where in the file the first element of a tensor stands, all of which stand in one record of it.

        None where torch does not say so, or the tensor is more than strides over a storage.
        """
        if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return None
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None or tensor.device.type != "meta":
            return None
        row = self.rows[bisect.bisect_right(self._starts, start) - 1]
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
        if tensor.numel() and (last + 1) * tensor.element_size() > row.file_size:
            return None
        return int(start + tensor.storage_offset() * tensor.element_size())


def archive_of(file: BinaryIO, pin: Pin) -> Archive | None:
    """Return the records of an opened file; None where torch does not take it for a zip archive.

    Raises RunError for one that is a bomb, or that nobody else can read as an archive.
    """
    file.seek(0)
    if file.read(len(_HEAD)) != _HEAD:
        return None
    try:
        with opened_archive(file) as archive:
            _check_end(file, pin)
            rows = sorted(archive.infolist(), key=lambda row: row.header_offset)
            _check_rows(rows, pin)
            order = next((row for row in rows if row.filename.rpartition("/")[2] == "byteorder"), None)
            in_order = order is None or archive.read(order) == sys.byteorder.encode()
    except BAD_ZIP as error:
        raise RunError(
            f"'{printable(str(pin.path))}' is no archive that can be read: {printable(str(error)[:200])}",
            hint="copy the file again, or use another checkpoint",
        ) from error
    return Archive(tuple(rows), in_order)


_END, _PLACE, _LARGE_END = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
"""How an archive ends: with its directory's bytes and place; before that, in one of many records, where the same stands
in eight bytes each; and before that these."""


def _check_end(file: BinaryIO, pin: Pin) -> None:
    """Raise RunError where the directory of an archive does not stand where it says, right before its end.

    Python looks for it before the end, torch at the place that is said: one could stand at either, with other records.
    """
    size = pin.state.nbytes
    file.seek(max(0, size - _END.size - _PLACE.size - _LARGE_END.size))
    tail = file.read().rjust(_END.size + _PLACE.size + _LARGE_END.size, b"\0")
    large, place, end = (part.unpack_from(tail, at) for part, at in ((_LARGE_END, 0), (_PLACE, 56), (_END, 76)))
    behind, (nbytes, start) = size - _END.size, end[5:7]
    if place[0] == b"PK\6\7":
        behind -= _PLACE.size + _LARGE_END.size
        nbytes, start = large[8:10] if large[0] == b"PK\6\6" and place[2] == behind else (0, -1)
    if end[0] != b"PK\5\6" or end[7] or start + nbytes != behind:
        raise _bomb(pin, f"its directory is not the {nbytes:,} bytes at {start:,}, right before its end, as that says")


def _check_rows(rows: list[zipfile.ZipInfo], pin: Pin) -> None:
    """Raise RunError where reading the records takes more than the file explains: they overlap, or are compressed."""
    whole = sum(row.file_size for row in rows)
    if whole > pin.state.nbytes:
        raise _bomb(pin, f"its records are {whole:,} bytes, more than the {pin.state.nbytes:,} of the file")
    if len(rows) > MOST_RECORDS:
        raise _bomb(pin, f"it has {len(rows):,} records, at most {MOST_RECORDS:,} are read")
    most = max(_PICKLE_BYTES[0] + _PICKLE_BYTES[1] * len(rows), pin.state.nbytes // _BYTES_A_PICKLED)
    pickled = sum(row.file_size for row in rows if row.filename.rpartition("/")[2].lower() == "data.pkl")
    if pickled > most:
        raise _bomb(pin, f"its pickle is {pickled:,} bytes, of {len(rows):,} records at most {most:,} are read")


def _bomb(pin: Pin, what: str) -> RunError:
    return RunError(
        f"'{printable(str(pin.path))}' is no archive as torch saves one: {what}",
        hint="save the state dict again, preferably as safetensors",
        code="archive-limit",
    )


@dataclass(frozen=True)
class Strided:
    """Reads flat elements of a tensor that torch saved, in the order of its own, from the file."""

    pin: Pin
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    contiguous: bool

    def octets(self, start: int, stop: int) -> Octets:
        """Return the bytes of flat elements; raises RunError where the file is no longer what was opened."""
        if self.contiguous or stop <= start:
            return self.pin.read(self.start + start * self.itemsize, max(0, stop - start) * self.itemsize)
        flat, places = np.arange(start, stop, dtype=np.int64), np.zeros(stop - start, np.int64)
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            places += flat % size * stride
            flat //= size
        first, last = int(places.min()), int(places.max())
        read = self.pin.read(self.start + first * self.itemsize, (last + 1 - first) * self.itemsize)
        taken: Octets = read.reshape(-1, self.itemsize)[places - first].reshape(-1)
        return taken
