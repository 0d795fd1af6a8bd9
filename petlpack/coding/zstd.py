"""zstd frames with the decompressed size checked first: a frame may claim any size, and a small one can blow up."""

from __future__ import annotations

from typing import Any

import zstandard

from petlpack.errors import RefusedError


def compress(data: bytes | memoryview, level: int) -> bytes:
    """Compress to one frame that states its size; no checksum, for every section has a sha256."""
    try:
        return zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False).compress(data)
    except zstandard.ZstdError as error:
        _raise_memory(error)
        raise


def _raise_memory(error: zstandard.ZstdError) -> None:
    """Raise MemoryError where zstd says that it got no memory: that tells nothing of the bytes."""
    if "not enough memory" in str(error):
        raise MemoryError(str(error)) from error


MOST_WINDOW = 1 << 23
"""Bytes of content that a decoder must keep at hand: what the highest level of compression without `--ultra` needs."""


def decompress(data: bytes, size: int) -> bytes:
    """Decompress one frame of exactly `size` bytes; raises ValueError before allocating where it states another."""
    try:
        _check_head(data, size)
        if not size:  # zstandard returns before it looks at the rest
            stream = zstandard.ZstdDecompressor().decompressobj()
            if stream.decompress(data) or not stream.eof or stream.unused_data:
                raise RefusedError("extra bytes after an empty zstd frame", code="zstd-frame")
            return b""
        out = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        _raise_memory(error)
        raise RefusedError(str(error), code="zstd-frame") from error
    if len(out) != size:
        raise RefusedError(f"expected a zstd frame of {size} bytes, got {len(out)}", code="zstd-size")
    return out


def _check_head(data: bytes, size: int) -> None:
    """Check what a frame states in its head, before anything is decompressed."""
    if data[:4] != zstandard.FRAME_HEADER:
        raise RefusedError(f"a zstd frame begins with 28b52ffd, got {data[:4].hex() or 'nothing'}", code="zstd-frame")
    one_segment = len(data) > 4 and data[4] >> 5 & 1  # whose window is the content, which is allocated in any case
    if not one_segment and _window(data[5:6]) > MOST_WINDOW:
        message = f"a zstd frame needs a window of {_window(data[5:6])} bytes, at most {MOST_WINDOW} are read"
        raise RefusedError(message, code="zstd-window")
    head: Any = zstandard.get_frame_parameters(data)
    if head.content_size != size:
        got = "an unstated number" if head.content_size == zstandard.CONTENTSIZE_UNKNOWN else f"{head.content_size}"
        raise RefusedError(f"expected a zstd frame of {size} bytes, got {got}", code="zstd-size")
    if head.dict_id:
        raise RefusedError(f"a zstd frame needs dictionary {head.dict_id}", code="zstd-frame")


def _window(descriptor: bytes) -> int:
    """Return the bytes that a window descriptor states, 0 where there is none."""
    exponent, eighths = divmod(descriptor[0], 8) if descriptor else (0, -8)
    return (1 << 10 + exponent) // 8 * (8 + eighths)
