"""Streams of integers, as chunks and pages of pcodec: the entropy coder below `numbers`, `gaps`, `ulps` and `rows`.

formats/pcodec.md is the page. Whatever a stream states is checked before a page is decoded.
"""

from __future__ import annotations

import struct
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, wrapped

from petlpack.errors import RefusedError, UnknownFormatError

PAGE = 1 << 16
"""Most numbers of a page, which is decoded by itself."""

CHUNK = 1 << 18
"""Most numbers of a chunk, whose pages have one table: for a unit's 2^20, a table of their own takes 0.1 % less."""

_TYPES = {"u4": 1, "u8": 2, "i4": 3, "i8": 4, "u2": 7, "i2": 8, "u1": 10, "i1": 11}
"""The bytes by which pcodec tells types of integers, by their names in numpy."""

_HEAD = struct.Struct("<BI")  # type, numbers

_VERSION = b"\x04\x01"
"""What pcodec puts in front of chunks, which streams leave out: they are of this version alone."""

_MAX_TABLE_LOG = 14

_LEAST_METADATA = 4
"""Bytes of metadata without bins, which say how many bins there are."""

_LEVEL = 10
"""Level 12 takes 0.1 % less, for up to eight times the encoding."""
_QUICK_LEVEL = 8
"""Of differences of 32 bits it takes 0.1 % more in classes and 0.3 % in groups, for half the encoding; of 16 bits, 0.2
and 0.7 % for hardly less of it."""
_QUICK_BITS = 32
# Searches for a mode and a delta order are off: weights never have either.
_SETTINGS = {"mode_spec": ModeSpec.classic(), "enable_8_bit": True}
_WORK = 48
"""Bytes for a number of a chunk, many more than pcodec takes while it works: it takes up to 13."""
_UNORDERED = DeltaSpec.no_op()
_SMOOTH = DeltaSpec.try_consecutive(1)


def compress(numbers: NDArray[Any], *, smooth: bool = False, quick: bool = False) -> bytes:
    """Compress flat integers to one stream; none to no bytes. `smooth` where neighbours are alike.

    `quick` where there are so many that time counts more than a thousandth of the bytes.
    """
    if not numbers.size:
        return b""
    level = _QUICK_LEVEL if quick and 8 * numbers.itemsize >= _QUICK_BITS else _LEVEL
    flat = np.ascontiguousarray(numbers)
    ends = accumulate(_even(flat.size, CHUNK), initial=0)
    pages = [page for start, stop in pairwise(ends) for page in _chunk(flat[start:stop], smooth, level)]
    lengths = struct.pack(f"<{len(pages) - 1}I", *map(len, pages[:-1]))
    return b"".join([_HEAD.pack(_TYPES[flat.dtype.str[1:]], flat.size), lengths, *pages])


def _even(count: int, most: int) -> list[int]:
    """Return the sizes of as few parts as possible, of at most so many, none more than one larger than another."""
    parts = -(-count // most)
    return [count // parts + (number < count % parts) for number in range(parts)]


def _chunk(numbers: NDArray[Any], smooth: bool, level: int) -> list[bytes]:
    """Return the pages of one chunk, the first behind the metadata."""
    sizes = _even(numbers.size, PAGE)
    delta = _SMOOTH if smooth else _UNORDERED
    pages = PagingSpec.exact_page_sizes(sizes)
    config = ChunkConfig(compression_level=level, delta_spec=delta, paging_spec=pages, **_SETTINGS)
    _need(_WORK * numbers.size)
    chunk = wrapped.FileCompressor().chunk_compressor(numbers, config)
    first, *others = (chunk.write_page(i) for i in range(len(sizes)))
    return [chunk.write_meta() + first, *others]


def _need(nbytes: int) -> None:
    """Raise MemoryError where there is no such memory: pcodec ends the whole process where it gets none."""
    np.empty(nbytes, np.uint8)


def decompress_into(data: bytes | memoryview, out: NDArray[Any]) -> NDArray[Any]:
    """Fill a flat array from a stream, which must hold exactly so many numbers of its dtype.

    Raises ValueError where it does not, and UnknownFormatError where pcodec might read it, but the page has no such
    stream.
    """
    if not out.size:
        if data:
            raise RefusedError(f"expected an empty stream, got {len(data)} bytes", code="pcodec-count")
        return out
    sizes = [_even(chunk, PAGE) for chunk in _even(out.size, CHUNK)]
    pages = iter(_split(memoryview(data), out.size, out.dtype, sum(map(len, sizes))))
    chunks = [list(islice(pages, len(of_pages))) for of_pages in sizes]
    metadata = [_metadata_size(first, 8 * out.itemsize) for first, *_ in chunks]  # all, before a page is decoded
    try:
        start = 0
        for of_pages, chunk, size in zip(sizes, chunks, metadata, strict=True):
            ends = list(accumulate(of_pages, initial=start))
            _decode_chunk(chunk, size, [out[at:stop] for at, stop in pairwise(ends)])
            start = ends[-1]
    except (RuntimeError, TypeError) as error:
        raise RefusedError(str(error), code="pcodec-stream") from error
    return out


def _decode_chunk(pages: list[memoryview], metadata: int, outs: list[NDArray[Any]]) -> None:
    """Fill the numbers of each page; the first page begins with so many bytes of metadata."""
    _need(_WORK * sum(map(len, outs)))
    reader, _ = wrapped.FileDecompressor.new(_VERSION)
    dtype = outs[0].dtype
    chunk, _ = reader.chunk_decompressor(bytes(pages[0][:metadata]), f"{dtype.kind}{8 * dtype.itemsize}")
    for page, out in zip([pages[0][metadata:], *pages[1:]], outs, strict=True):
        _, read = chunk.read_page_into(bytes(page), out.size, out)
        if read != len(page):
            raise RefusedError(f"a page of {len(page)} bytes ends after {read}", code="pcodec-stream")


def decompress(data: bytes | memoryview, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Decompress exactly `count` numbers; raises as `decompress_into` does, before it allocates what is not there."""
    if count:
        _check_head(memoryview(data), count, dtype)
    return decompress_into(data, np.empty(count, dtype))


def _check_head(stream: memoryview, count: int, dtype: np.dtype[Any]) -> None:
    """Check that a stream says it has `count` numbers of this dtype."""
    if len(stream) < _HEAD.size:
        raise RefusedError(f"a stream of {len(stream)} bytes ends in its head", code="pcodec-stream")
    number_type, stated = _HEAD.unpack_from(stream)
    expected = _TYPES[dtype.str[1:]]
    if number_type != expected:
        raise RefusedError(f"a stream of numbers of type {number_type}, expected {expected}", code="pcodec-stream")
    if stated != count:
        raise RefusedError(f"a stream of {stated} numbers, expected {count}", code="pcodec-count")


def _split(stream: memoryview, count: int, dtype: np.dtype[Any], pages: int) -> list[memoryview]:
    """Return the pages of a stream of `count` numbers of this dtype, those that begin a chunk with its metadata."""
    _check_head(stream, count, dtype)
    table = struct.Struct(f"<{pages - 1}I")
    begin = _HEAD.size + table.size
    if len(stream) < begin:
        raise RefusedError(f"a stream of {len(stream)} bytes ends in its table of pages", code="pcodec-stream")
    ends = list(accumulate((begin, *table.unpack_from(stream, _HEAD.size))))
    if ends[-1] > len(stream):
        raise RefusedError(f"pages end at byte {ends[-1]}, the stream has {len(stream)}", code="pcodec-stream")
    return [stream[start:stop] for start, stop in pairwise([*ends, len(stream)])]


def _metadata_size(metadata: memoryview, width: int) -> int:
    """Return how many bytes the chunk's metadata take; raises where they are none that the page has."""
    if len(metadata) < _LEAST_METADATA:
        raise RefusedError(f"a stream ends in its metadata, after {len(metadata)} bytes of them", code="pcodec-stream")
    word = int.from_bytes(metadata[:_LEAST_METADATA], "little")
    mode, delta, order = word & 15, word >> 4 & 15, word >> 8 & 15
    if mode or delta > 1 or (delta and order != 1):
        message = f"a pcodec stream of mode {mode}, delta {delta}" + (f", order {order}" if delta else "")
        raise UnknownFormatError(f"{message}, expected mode 0 and delta 0 or 1, of order 1", code="pcodec-unknown")
    at = 12 if delta else 8
    table_log, bins = word >> at & 15, word >> at + 4 & 0x7FFF
    size = (at + 19 + bins * (table_log + width + width.bit_length()) + 7) // 8
    if len(metadata) < size or table_log > _MAX_TABLE_LOG:
        message = f"{bins} bins of a table of 2^{table_log} states in {len(metadata)} bytes"
        raise RefusedError(message, code="pcodec-stream")
    return size
