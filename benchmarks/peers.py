"""What one would use instead: each peer codes the same tensors, one by one, from its own copy of the buffers.

XOR + zstd, BitX (ZipLLM) and byte planes are re-implemented in numpy and zstandard, as their papers and sources
describe them; ZipNN is the real package, in an environment of its own (`zipnn_peer.py`).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from pcodec import ChunkConfig, standalone

Bits = NDArray[Any]


@dataclass(frozen=True)
class Peer:
    """A coder of a tensor given its base: `encode(tuned, base)` and `decode(coded, base)`."""

    name: str
    encode: Callable[[Bits, Bits], Any]
    decode: Callable[[Any, Bits], Bits]


def _zstd(data: Bits) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(np.ascontiguousarray(data).data)


def _unzstd(frame: bytes, dtype: Any) -> Bits:
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), dtype)


def _planes(xor: Bits) -> list[bytes]:
    octets = xor.view(np.uint8).reshape(-1, xor.itemsize)
    return [_zstd(octets[:, plane]) for plane in range(xor.itemsize)]


def _unplanes(frames: list[bytes], base: Bits) -> Bits:
    octets = np.empty((base.size, base.itemsize), np.uint8)
    for plane, frame in enumerate(frames):
        octets[:, plane] = _unzstd(frame, np.uint8)
    return octets.reshape(-1).view(base.dtype) ^ base


def _bitx(tuned: Bits, base: Bits) -> list[bytes]:
    xor = tuned ^ base
    exponent = (xor >> np.uint16(7)).astype(np.uint8)
    return [_zstd(exponent), _zstd(((xor >> np.uint16(8)) & np.uint16(0x80) | xor & np.uint16(0x7F)).astype(np.uint8))]


def _unbitx(frames: list[bytes], base: Bits) -> Bits:
    exponent, rest = (_unzstd(frame, np.uint8).astype(np.uint16) for frame in frames)
    xor: Bits = (rest & np.uint16(0x80)) << np.uint16(8) | exponent << np.uint16(7) | rest & np.uint16(0x7F)
    return xor ^ base


def _ordered(bits: Bits) -> Bits:
    flip = (bits.view(f"<i{bits.itemsize}") >> (8 * bits.itemsize - 1)).view(bits.dtype)
    ordered: Bits = bits ^ (flip | bits.dtype.type(1 << (8 * bits.itemsize - 1)))
    return ordered


def _unordered(ordered: Bits) -> Bits:
    flip = ~(ordered.view(f"<i{ordered.itemsize}") >> (8 * ordered.itemsize - 1)).view(ordered.dtype)
    bits: Bits = ordered ^ (flip | ordered.dtype.type(1 << (8 * ordered.itemsize - 1)))
    return bits


def _pcodec(tuned: Bits, base: Bits) -> bytes:
    ulps = (_ordered(tuned) - _ordered(base)).view(f"<i{base.itemsize}")
    zigzag = ((ulps << 1) ^ (ulps >> (8 * base.itemsize - 1))).view(base.dtype)
    coded: bytes = standalone.simple_compress(zigzag, ChunkConfig(compression_level=8))
    return coded


def _unpcodec(coded: bytes, base: Bits) -> Bits:
    zigzag = np.empty(base.size, base.dtype)
    standalone.simple_decompress_into(coded, zigzag)
    one = base.dtype.type(1)
    return _unordered(_ordered(base) + ((zigzag >> one) ^ (~(zigzag & one) + one)))


def peers(dtype: str) -> list[Peer]:
    """Return the peers that apply to a dtype."""
    planes = Peer("XOR + byte planes + zstd-3", lambda tuned, base: _planes(tuned ^ base), _unplanes)
    return [
        Peer(
            "XOR + zstd-3",
            lambda tuned, base: _zstd(tuned ^ base),
            lambda frame, base: _unzstd(frame, base.dtype) ^ base,
        ),
        *([Peer("BitX (ZipLLM)", _bitx, _unbitx)] if dtype == "BF16" else []),
        planes,
        Peer("pcodec on ulps", _pcodec, _unpcodec),
    ]


def coded_bytes(coded: Any) -> int:
    """Return the bytes of what a peer's encode gave: one frame or several."""
    return len(coded) if isinstance(coded, bytes) else sum(len(frame) for frame in coded)


def run_zipnn(python: Path, pairs: list[tuple[Bits, Bits]], dtype: str, repeat: int) -> list[dict[str, Any]]:
    """Run ZipNN 0.5.4 on all tensors as one buffer; return a row (name, bytes, seconds) for each of its modes."""
    with tempfile.TemporaryDirectory() as directory:
        tuned, base = Path(directory) / "tuned", Path(directory) / "base"
        tuned.write_bytes(b"".join(pair[0].tobytes() for pair in pairs))
        base.write_bytes(b"".join(pair[1].tobytes() for pair in pairs))
        script = Path(__file__).parent / "zipnn_peer.py"
        done = subprocess.run(
            [python, script, tuned, base, dtype, str(repeat)], check=True, capture_output=True, text=True
        )
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows
