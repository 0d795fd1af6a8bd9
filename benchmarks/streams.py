"""What pages cost: the integers of a real fine-tune as files of pcodec, and as the streams of formats/pcodec.md.

    python benchmarks/streams.py [--task section] [--jobs 1]

Prints bytes and seconds of the processor as ratios to files of pcodec whose chunks have at most 2^18 numbers, which
version 1 had first. All are measured in turn in one process, the best of several times. The figures in docs/decisions/
are these.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bench import CACHE, train_runs
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone
from runs import cast_checkpoint
from train import base_dir

import petlpack
from petlpack.coding import pco

REPEAT = 4
Numbers = np.ndarray[Any, Any]


def integers(task: str, dtype: str) -> list[Numbers]:
    """Return what the coders hand to the entropy coder for one fine-tune."""
    seen: list[Numbers] = []
    compress = pco.compress

    def watch(numbers: Numbers, *, smooth: bool = False, quick: bool = False) -> bytes:
        if not smooth and numbers.size:
            seen.append(np.array(numbers))
        return compress(numbers, smooth=smooth, quick=quick)

    pco.compress = watch
    try:
        base = cast_checkpoint(base_dir(), CACHE / f"base-{dtype}", dtype)
        run = cast_checkpoint(CACHE / "runs" / task, CACHE / f"{task}-{dtype}", dtype)
        with tempfile.TemporaryDirectory() as place:
            petlpack.encode(run, pack=Path(place) / "pack", base=base, jobs=1)
    finally:
        pco.compress = compress
    return seen


def of_files(most: int) -> tuple[Callable[[Numbers], bytes], Callable[[bytes, Numbers], object]]:
    """Return encoder and decoder of pcodec's own files, with chunks of at most so many numbers."""
    pages = PagingSpec.equal_pages_up_to(most)
    config = ChunkConfig(10, ModeSpec.classic(), DeltaSpec.no_op(), pages, enable_8_bit=True)
    return lambda numbers: standalone.simple_compress(numbers, config), standalone.simple_decompress_into


def of_streams(page: int, chunk: int) -> tuple[Callable[[Numbers], bytes], Callable[[bytes, Numbers], object]]:
    """Return encoder and decoder of streams with pages and chunks of at most so many numbers."""

    def encode(numbers: Numbers) -> bytes:
        pco.PAGE, pco.CHUNK = page, chunk
        return pco.compress(numbers)

    def decode(data: bytes, out: Numbers) -> object:
        pco.PAGE, pco.CHUNK = page, chunk
        return pco.decompress_into(data, out)

    return encode, decode


WAYS = {
    "files, 2^18": of_files(1 << 18),
    "files, 2^16": of_files(1 << 16),
    "pages of 2^18": of_streams(1 << 18, 1 << 18),
    "pages of 2^16": of_streams(1 << 16, 1 << 18),
    "pages of 2^15": of_streams(1 << 15, 1 << 18),
    "one chunk": of_streams(1 << 16, 1 << 24),
}


def measure(arrays: list[Numbers], jobs: int) -> dict[str, tuple[int, float, float]]:
    """Return bytes, seconds to encode and seconds to decode, of each way."""
    coded: dict[str, list[bytes]] = {}
    encoding = dict.fromkeys(WAYS, float("inf"))
    decoding = dict.fromkeys(WAYS, float("inf"))
    outs = [np.empty_like(numbers) for numbers in arrays]
    with ThreadPoolExecutor(jobs) as pool:
        for turn in range(REPEAT):
            for name, (encode, decode) in WAYS.items():
                if turn < 2:
                    start = time.process_time()
                    coded[name] = list(pool.map(encode, arrays))
                    encoding[name] = min(encoding[name], time.process_time() - start)
                start = time.process_time()
                list(pool.map(decode, coded[name], outs))
                decoding[name] = min(decoding[name], time.process_time() - start)
                assert all(map(np.array_equal, outs, arrays)), name
    return {name: (sum(map(len, coded[name])), encoding[name], decoding[name]) for name in WAYS}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="section")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if not (CACHE / "runs" / options.task).exists():
        train_runs()
    for dtype in ("F32", "BF16"):
        arrays = integers(options.task, dtype)
        total = sum(map(np.size, arrays))
        print(f"{options.task}, {dtype}, {options.jobs} threads: {len(arrays)} arrays, {total:,} numbers")
        found = measure(arrays, options.jobs)
        first = found[next(iter(WAYS))]
        for name, (size, encode, decode) in found.items():
            ratios = f"{size / first[0]:.5f}  encode {encode / first[1]:.3f}  decode {decode / first[2]:.3f}"
            print(f"  {name:14} {size:>12,} bytes {ratios}")


if __name__ == "__main__":
    main()
