"""pcodec streams whose length is known before a byte is read: the entropy coder below `numbers`, `gaps` and `ulps`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

_CONFIG = ChunkConfig(
    compression_level=8, delta_spec=DeltaSpec.no_op(), mode_spec=ModeSpec.classic(), enable_8_bit=True
)


def compress(numbers: NDArray[Any]) -> bytes:
    """Compress integers or floats; order matters not, for no neighbour predicts another."""
    data: bytes = standalone.simple_compress(numbers, _CONFIG)
    return data


def decompress(data: bytes, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Decompress exactly `count` numbers; raises ValueError where the stream holds another number or dtype."""
    out: NDArray[Any] = np.empty(count, dtype)
    try:
        progress = standalone.simple_decompress_into(data, out)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(str(error)) from error
    if progress.n_processed != count or not progress.finished:
        raise ValueError(f"a stream that does not hold exactly {count} numbers")
    return out
