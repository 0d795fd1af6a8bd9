"""Run ZipNN in its own environment: `python zipnn_peer.py TUNED BASE DTYPE REPEAT` prints one JSON list of rows.

ZipNN writes into the buffers that it is given, so every call gets its own copy, made before the clock starts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zipnn

NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def measure(name: str, data: bytes, xor_with: bytes | None, dtype: str, threads: int, repeat: int) -> dict[str, Any]:
    """Compress and decompress `data` (XORed with the base first, if given), best of `repeat`."""
    encode, decode, size = [], [], 0
    base = None if xor_with is None else np.frombuffer(xor_with, np.uint32)
    for _ in range(repeat):
        coder = zipnn.ZipNN(bytearray_dtype=NAMES[dtype], threads=threads)
        copy = bytearray(data)
        start = time.perf_counter()
        if base is not None:
            copy = bytearray((np.frombuffer(copy, np.uint32) ^ base).tobytes())
        coded = bytes(coder.compress(copy))
        encode.append(time.perf_counter() - start)
        size = len(coded)
        coder = zipnn.ZipNN(bytearray_dtype=NAMES[dtype], threads=threads)
        start = time.perf_counter()
        back = coder.decompress(coded)
        if base is not None:
            back = (np.frombuffer(back, np.uint32) ^ base).data
        decode.append(time.perf_counter() - start)
        if bytes(back) != data:
            raise SystemExit(f"{name}: not what was put in")
    return {"name": name, "bytes": size, "threads": threads, "encode": min(encode), "decode": min(decode)}


def main() -> None:
    """Print the rows."""
    tuned, base, dtype, repeat = (
        Path(sys.argv[1]).read_bytes(),
        Path(sys.argv[2]).read_bytes(),
        sys.argv[3],
        sys.argv[4],
    )
    even = len(tuned) // 4 * 4
    rows = [
        measure(name, tuned[:even], xor_with, dtype, threads, int(repeat))
        for name, xor_with in (("ZipNN 0.5.4, no base", None), ("XOR + ZipNN 0.5.4", base[:even]))
        for threads in (1, 2)
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
