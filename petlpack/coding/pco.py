"""pcodec streams whose length is known before a byte is read: the entropy coder below `numbers`, `gaps` and `ulps`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from petlpack.errors import RefusedError

# Level 10 takes 0.4 % less than level 8 for 8 % more encoding and the same decoding; 12 another 0.1 % for up to eight
# times the encoding. Searches for a mode and a delta order are off: weights never have either.
_SETTINGS = {"compression_level": 10, "mode_spec": ModeSpec.classic(), "enable_8_bit": True}
_UNORDERED = ChunkConfig(delta_spec=DeltaSpec.no_op(), **_SETTINGS)
_SMOOTH = ChunkConfig(delta_spec=DeltaSpec.try_consecutive(1), **_SETTINGS)


def compress(numbers: NDArray[Any], *, smooth: bool = False) -> bytes:
    """Compress integers or floats to one stream; none to no bytes. `smooth` where neighbours are alike."""
    if not numbers.size:
        return b""
    data: bytes = standalone.simple_compress(np.ascontiguousarray(numbers), _SMOOTH if smooth else _UNORDERED)
    return data


def decompress_into(data: bytes | memoryview, out: NDArray[Any]) -> NDArray[Any]:
    """Fill a flat array from a stream, which must hold exactly so many numbers of its dtype; raises ValueError."""
    if not out.size:
        if data:
            raise RefusedError(f"expected an empty stream, got {len(data)} bytes", code="pcodec-count")
        return out
    try:
        progress = standalone.simple_decompress_into(bytes(data), out)
    except (RuntimeError, TypeError) as error:
        raise RefusedError(str(error), code="pcodec-stream") from error
    if progress.n_processed != out.size or not progress.finished:
        raise RefusedError(f"the stream does not have exactly {out.size} numbers", code="pcodec-count")
    return out


def decompress(data: bytes | memoryview, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Decompress exactly `count` numbers; raises ValueError where the stream holds another number or dtype."""
    return decompress_into(data, np.empty(count, dtype))
