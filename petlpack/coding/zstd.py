"""zstd frames with the decompressed size checked first: a frame may claim any size, and a small one can blow up."""

from __future__ import annotations

import zstandard

from petlpack.errors import RefusedError


def compress(data: bytes | memoryview, level: int) -> bytes:
    """Compress to one frame that states its size; no checksum, for every section has a sha256."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False).compress(data)


def decompress(data: bytes, size: int) -> bytes:
    """Decompress one frame of exactly `size` bytes; raises ValueError before allocating where it states another."""
    try:
        stated = zstandard.frame_content_size(data)
        if stated != size:
            got = f"{stated}" if stated >= 0 else "an unstated number"
            raise RefusedError(f"expected a zstd frame of {size} bytes, got {got}", code="zstd-size")
        if not size:  # zstandard returns before it looks at the rest
            stream = zstandard.ZstdDecompressor().decompressobj()
            if stream.decompress(data) or not stream.eof or stream.unused_data:
                raise RefusedError("extra bytes after an empty zstd frame", code="zstd-frame")
            return b""
        out = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RefusedError(str(error), code="zstd-frame") from error
    if len(out) != size:
        raise RefusedError(f"expected a zstd frame of {size} bytes, got {len(out)}", code="zstd-size")
    return out
