"""How fast weights are coded on one core, as a share of the speed of XOR and zstd-3 on the same weights.

    python benchmarks/speed.py [--made-up] [--task section] [--rounds 5]

Codes the units of a full fine-tune, in BF16 and F32 and at both levels, from and to memory, each in turn with the peer
in one process; and an adapter, whose weights no base predicts, at both levels. Seconds are those of the processor, the
fewest of all rounds. The fine-tune is one of train.py, or with --made-up normal weights of the same shapes, each moved
by a normal step, where the package of the real base is not installed.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench import CACHE, Report, train_runs
from integrity import LEVELS, made_up
from peers import peers
from runs import cast_checkpoint
from train import base_dir

import petlpack
from petlpack import coding
from petlpack.codecs.registry import codec
from petlpack.codecs.units import OWN_CODERS, Unit
from petlpack.coding.array import Array, Level
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import prepare
from petlpack.layouts.registry import read_run
from petlpack.sections.predict import Predictions
from petlpack.sections.write import read_unit
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits

PEER = "XOR + zstd-3"
BARS = {
    "encode": {"fast": {"BF16": 0.8, "F32": 0.5}, "small": {"BF16": 0.45, "F32": 0.35}},
    "decode": {"fast": {"BF16": 1.4, "F32": 1.4}, "small": {"BF16": 0.6, "F32": 0.7}},
}
"""Least speeds, as shares of the peer's."""
ADAPTER_BAR = 1.3
"""Most that `small` may take on an adapter, as a share of the time of `fast`."""
ADAPTER_UNITS, ADAPTER_UNIT = 4, 1 << 20


@dataclass(frozen=True)
class Way:
    """A coder: `encode(item)` to anything, `decode(item, coded)` to the item's bits, and the bytes of what it coded."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any, Any], Bits]
    size: Callable[[Any], int]
    bits: Callable[[Any], Bits]


def fine_tune(dtype: str, task: str | None) -> list[tuple[Unit, Bits, Bits]]:
    """Return units of a trained task, or without one made up: each with its weights and what predicts them."""
    with tempfile.TemporaryDirectory() as name:
        if task is None:
            run = made_up(dtype, Path(name))[0]
            path, base = run.path, petlpack.Base(str(run.base))
        else:
            if not (CACHE / "runs" / task).exists():
                train_runs()
            base = petlpack.Base(cast_checkpoint(base_dir(), CACHE / f"base-{dtype}", dtype))
            path = cast_checkpoint(CACHE / "runs" / task, CACHE / f"{task}-{dtype}", dtype)
        prepared = prepare(read_run(path)[0], base, Digests(2))
        predictions, found = Predictions(base), []
        for unit in codec("ulp").units(prepared.described.sources.stored):
            prediction = predictions.of(unit)
            if prediction is not None:
                found.append((unit, read_unit(unit, prepared.matched.tensors), prediction))
        return found


def by_level(level: Level) -> Way:
    """Return how units of a fine-tune are coded."""
    ulp = codec("ulp")

    def encode(item: tuple[Unit, Bits, Bits]) -> tuple[str, bytes]:
        (section,) = ulp.encode(*item)
        return coding.encode(section.bits, section.array, section.coders, level)

    def decode(item: tuple[Unit, Bits, Bits], coded: tuple[str, bytes]) -> Bits:
        (unit, _, prediction), (coder, data) = item, coded
        return coding.decode(coder, data, Array(unit.dtype, unit.size, unit.row, prediction), unit.name)

    return Way(encode, decode, lambda coded: len(coded[1]), lambda item: item[1])


def by_peer(dtype: str) -> Way:
    """Return XOR and zstd-3."""
    (peer,) = [peer for peer in peers(dtype) if peer.name == PEER]
    return Way(
        lambda item: peer.encode(item[1], item[2]),
        lambda item, coded: peer.decode(coded, item[2]),
        len,
        lambda item: item[1],
    )


def adapter(dtype: str) -> list[Bits]:
    """Return units of normal weights of deviation 0.02, seed 0."""
    rng = np.random.default_rng(0)
    wide = [rng.normal(0, 0.02, ADAPTER_UNIT).astype("<f4").view("<u4") for _ in range(ADAPTER_UNITS)]
    return [cast_bits(bits, DTYPES["F32"], DTYPES[dtype]) for bits in wide]


def alone(dtype: str, level: Level) -> Way:
    """Return how units that nothing predicts are coded."""

    def array(bits: Bits) -> Array:
        return Array(DTYPES[dtype], bits.size, 1 << 10)

    return Way(
        lambda bits: coding.encode(bits, array(bits), OWN_CODERS, level),
        lambda bits, coded: coding.decode(coded[0], coded[1], array(bits), "adapter"),
        lambda coded: len(coded[1]),
        lambda bits: bits,
    )


def measure(items: list[Any], ways: dict[str, Way], rounds: int) -> dict[str, tuple[int, float, float]]:
    """Return bytes, seconds to encode and seconds to decode, of each way."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    sizes: dict[str, int] = {}
    for number in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            coded = [way.encode(item) for item in items]
            middle = time.process_time()
            decoded = [way.decode(item, one) for item, one in zip(items, coded, strict=True)]
            stop = time.process_time()
            times[name][0].append(middle - start)
            times[name][1].append(stop - middle)
            if not number:
                sizes[name] = sum(map(way.size, coded))
                assert all(np.array_equal(bits, way.bits(item)) for bits, item in zip(decoded, items, strict=True)), (
                    name
                )
    return {name: (sizes[name], min(encode), min(decode)) for name, (encode, decode) in times.items()}


def main() -> None:
    """Measure, print, and exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--made-up", action="store_true", help="normal weights in the place of trained ones")
    parser.add_argument("--task", default="section", help="the trained task")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    report, rows = Report(), []
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pcodec", "zstandard"))
    report.say(f"petlpack {petlpack.__version__}, Python {platform.python_version()}, {libraries}; seed 0\n")
    for dtype in ("BF16", "F32"):
        items = fine_tune(dtype, None if arguments.made_up else arguments.task)
        raw = sum(bits.nbytes for _, bits, _ in items)
        found = measure(items, {PEER: by_peer(dtype)} | {level: by_level(level) for level in LEVELS}, arguments.rounds)
        peer = found[PEER]
        for name, (size, *times) in found.items():
            shares = [theirs / ours for theirs, ours in zip(peer[1:], times, strict=True)]
            rows.append((f"fine-tune, {dtype}", name, f"{size / raw:.5f}", *(f"{share:.3f}" for share in shares)))
            for what, share in zip(BARS, shares, strict=True):
                if name != PEER:
                    bound = BARS[what][name][dtype]
                    report.bar(f"{dtype}, {name}, {what} / {PEER}", share, bound, at_most=False)
        found = measure(adapter(dtype), {level: alone(dtype, level) for level in LEVELS}, arguments.rounds)
        report.bar(f"adapter, {dtype}, time of small / fast", found["small"][1] / found["fast"][1], ADAPTER_BAR)
        report.bar(f"adapter, {dtype}, bytes of small / fast", found["small"][0] / found["fast"][0], 1.001)
    report.table(("weights", "coder", "of raw", f"encode / {PEER}", f"decode / {PEER}"), rows)
    report.end()


if __name__ == "__main__":
    main()
