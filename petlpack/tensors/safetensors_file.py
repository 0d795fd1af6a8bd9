"""A strict reader of safetensors headers, and files read by offset.

The rules are those of the safetensors format, with what its own reader lets through refused as well: duplicate keys,
holes, overlaps, trailing bytes. Files are read, never mapped: a mapped file that shrinks kills the process.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

from petlpack.errors import PetlpackError, RefusedError, printable, reason
from petlpack.tensors.dtypes import DTYPES, Bits, DType, width_of
from petlpack.tensors.foreign_json import check_values
from petlpack.tensors.pinned import Pin, open_regular, pin_of
from petlpack.tensors.strict_json import decode_once
from petlpack.tensors.tensor import Tensor, as_bytes

MAX_HEADER = 100_000_000
"""The safetensors format's own limit on the JSON header, in bytes."""

MOST_VALUES = 3_000_000
"""Values in the header of a file that others wrote: those of 250,000 matrices, more than the largest models have."""

MOST_EMPTY = 10_000
"""Tensors without an element in such a file: they take no bytes of it, but time."""

MAX_RANK = 64
"""Dimensions of a tensor: as many as numpy and torch can hold."""


class MalformedError(PetlpackError):
    """A file is not valid safetensors. Callers turn it into the error of what they were reading."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: dtype name as written, shape, and its bytes' range behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def held_as(self) -> DType:
        """The dtype to read the bytes as: the entry's own, or U8 where it is none that we know."""
        return DTYPES.get(self.dtype, DTYPES["U8"])

    @property
    def held_shape(self) -> tuple[int, ...]:
        """The shape to read the bytes in."""
        return self.shape if self.dtype in DTYPES else (self.stop - self.start,)


@dataclass(frozen=True)
class Header:
    """A parsed header: the JSON text verbatim (padding included), the tensors by name in file order, the metadata.

    `prefix` is what stands in front of these names outside the file, so that those of several files differ.
    """

    text: str
    entries: dict[str, Entry]
    metadata: dict[str, str]
    prefix: str = ""

    @property
    def tensors(self) -> dict[str, Entry]:
        """The entries by the names that the tensors have outside the file."""
        return {self.prefix + name: entry for name, entry in self.entries.items()}

    @property
    def ties(self) -> dict[str, str]:
        """Tensors of a pickled file that are another one of it, by their own names: the metadata say which."""
        pairs = {name: other for name, other in self.metadata.items() if {name, other} <= self.entries.keys()}
        return {name: other for name, other in pairs.items() if other not in pairs and self._are_alike(name, other)}

    def _are_alike(self, name: str, other: str) -> bool:
        one, two = self.entries[name], self.entries[other]
        return (one.dtype, one.shape) == (two.dtype, two.shape)

    @functools.cached_property
    def data_start(self) -> int:
        """Offset of the first tensor byte in the file; every tensor asks, and the text is as long as they are many."""
        return 8 + len(self.text.encode())

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.data_start + max((entry.stop for entry in self.entries.values()), default=0)

    def head_bytes(self) -> bytes:
        """Return what stands in front of the tensors: the length and the JSON text."""
        text = self.text.encode()
        return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; raises MalformedError, or OSError where it cannot be read."""
    return read_pinned(path)[0]


def read_pinned(path: Path) -> tuple[Header, Pin]:
    """Read and check the header as `read_header`; the file is pinned in the state in which it was read."""
    with open_regular(path) as file:
        pin = pin_of(path, file)
        try:
            header = read_header_of(file, path, MOST_VALUES)
        except RefusedError as error:
            raise _malformed(path, f"has a header that is too much: {error}", code=error.code) from None
    pin.check()
    return header, pin


def read_header_of(file: BinaryIO, path: Path, most_values: int | None = None) -> Header:
    """Read and check the header of an opened safetensors file, which `path` names in messages.

    Raises MalformedError, and RefusedError (`json-limit`) for a header of more values, which is not parsed.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _malformed(path, f"is {size} bytes, a safetensors file needs at least 8", code="file-size")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER, size - 8):
        raise _malformed(
            path,
            f"declares a header of {length:,} bytes, expected at most {min(MAX_HEADER, size - 8):,}",
            code="header-size",
        )
    text = file.read(length)
    if most_values is not None:
        check_values(text, most_values)
        _check_empty(text, size - 8 - length)
    try:
        header = parse_header(text)
    except MalformedError as error:
        raise _malformed(path, error.message, code=error.code) from None
    if header.file_size != size:
        raise _malformed(path, f"is {size:,} bytes, its header needs {header.file_size:,}", code="file-size")
    return header


def _check_empty(text: bytes, nbytes: int) -> None:
    """Raise RefusedError (`json-limit`) for more tensors than bytes can hold an element of, before they are parsed."""
    empty = text.count(b'"data_offsets"') - nbytes
    if empty > MOST_EMPTY:
        raise RefusedError(
            f"it has at least {empty:,} tensors without an element, at most {MOST_EMPTY:,} are read", code="json-limit"
        )


def parse_header(text: bytes) -> Header:
    """Parse and check the JSON text of a header; raises MalformedError."""
    if not text.startswith(b"{"):
        raise MalformedError("has a header that is not a JSON object: it does not start with '{'", code="header-json")
    try:
        table, decoded = decode_once(text), text.decode("utf-8")
        if "\\u" in decoded:
            json.dumps(table, ensure_ascii=False).encode()  # a lone surrogate has no bytes: UnicodeEncodeError
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"has a header that is not JSON: {error}", code=reason(error, "header-json")) from None
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # null says nothing, as in the safetensors library
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError("has a '__metadata__' that is not an object of strings", code="header-fields")
    entries = {name: _parse_entry(name, row) for name, row in table.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise MalformedError(
                f"has tensor '{printable(name)}' at byte {entry.start}, expected {end}, where the previous one ends",
                code="header-offsets",
            )
        end = entry.stop
    return Header(decoded, entries, metadata)


def build_header(tensors: dict[str, tuple[str, tuple[int, ...], int]], metadata: dict[str, str]) -> Header:
    """Build a header for tensors (name -> dtype name, shape, bytes) laid out in the given order, canonically."""
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape, nbytes) in tensors.items():
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
    padding = -len(text.encode()) % 8
    return parse_header((text + " " * padding).encode())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to one safetensors file, in the order given, a piece in memory at a time."""
    rows = {name: (tensor.dtype.name, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
    with path.open("wb") as file:
        file.write(build_header(rows, dict(metadata)).head_bytes())
        for tensor in tensors.values():
            for piece in tensor.pieces():
                file.write(as_bytes(piece))


def file_tensor(pin: Pin, header: Header, name: str) -> Tensor:
    """Return one tensor of a safetensors file, read on demand. A dtype we do not know is its bytes, as U8."""
    entry = header.entries[name]
    return Tensor(entry.held_as, entry.held_shape, Flat(pin, header.data_start + entry.start, entry.held_as))


@dataclass(frozen=True)
class Flat:
    """Reads flat elements that follow each other in a file; raises RunError where it is no longer what was opened."""

    pin: Pin
    offset: int
    dtype: DType

    def __call__(self, start: int, stop: int) -> Bits:
        """Read the elements from `start` to `stop`."""
        size = self.dtype.itemsize
        return self.pin.read(self.offset + start * size, (stop - start) * size).view(self.dtype.bits)


def _malformed(path: Path, what: str, *, code: str) -> MalformedError:
    return MalformedError(f"'{printable(str(path))}' {what}", code=code)


def _parse_entry(name: str, row: object) -> Entry:
    """Check one header row: exactly dtype, shape and data_offsets, whose sizes agree."""
    try:
        return _entry(row)
    except MalformedError as error:
        raise MalformedError(
            f"has a bad entry for tensor '{printable(name)}': {error.message}", code=error.code
        ) from None


_FIELDS = {"dtype", "shape", "data_offsets"}


def _entry(row: object) -> Entry:
    if not isinstance(row, dict) or row.keys() != _FIELDS:
        raise MalformedError("fields must be dtype, shape and data_offsets", code="header-fields")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str):
        raise MalformedError("dtype must be a string", code="header-fields")
    if not _is_sizes(shape):
        raise MalformedError("shape must be a list of non-negative integers", code="header-fields")
    if len(shape) > MAX_RANK:
        raise MalformedError(
            f"shape has {len(shape):,} dimensions, at most {MAX_RANK} are supported", code="header-fields"
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedError("data_offsets must be [start, end] with start <= end", code="header-offsets")
    start, stop = offsets
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
        raise MalformedError(
            f"shape {shape} of {dtype} does not take {stop - start:,} bytes, as its data_offsets say",
            code="header-fields",
        )
    if not is_shape(shape, width_of(dtype)):
        raise MalformedError(f"shape {shape} is too large for an array", code="header-fields")
    return Entry(dtype, tuple(shape), start, stop)


def is_shape(value: object, width: int = 1) -> TypeGuard[list[int]]:
    """Tell whether a value read from JSON is a shape that an array of elements of so many bytes can have.

    Sizes of 0 are left out of the product, as in numpy, which takes no larger one.
    """
    return _is_sizes(value) and len(value) <= MAX_RANK and math.prod(size for size in value if size) * width < 2**63


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
