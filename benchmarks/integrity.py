"""What integrity costs: decoding with every check, and with none, in turn.

    python benchmarks/integrity.py [--made-up] [--jobs 1] [--rounds 9]

Decodes a full fine-tune and an adapter, F32 and BF16, at both levels, to arrays, from files that are in the memory of
the system: into a directory all would take longer, with the checks and without. "Without" puts nothing in the place of
digests of sections, manifests and parts, of checksums of base and result, and of the states of files, here alone and in
this process. Of each pair of runs, one behind the other and each of both first in turn, the ratios of CPU and of wall
time are taken, and of these the median. Runs are those of train.py, or with --made-up normal weights of the same
shapes, where the package of the real base is not installed. A base that is kept is opened and its checksums are
computed once, as where many tasks are decoded. "Sums alone" computes the same sums of as many bytes in memory, "SHA-256
alone" digests in the place of checksums: what `petlpack verify` compares.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import xxhash
from bench import CACHE, Report, train_runs
from runs import cast_checkpoint, write_model
from train import base_dir

import petlpack
from petlpack.coding.array import Level
from petlpack.container import file as container_file
from petlpack.decoding import tensors as decoded
from petlpack.tensors.base import Base
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.pinned import Pin

LEVELS: tuple[Level, ...] = ("fast", "small")
DTYPES_MEASURED = ("BF16", "F32")
BAR = 1.15
"""Times of decoding with all checks, to that with none."""

SHAPES = [("embeddings.word_embeddings.weight", (30_522, 384)), ("embeddings.position_embeddings.weight", (512, 384))]
SHAPES += [
    (f"encoder.layer.{layer}.{name}.weight", shape)
    for layer in range(6)
    for name, shape in (
        *((f"attention.self.{kind}", (384, 384)) for kind in ("query", "key", "value")),
        ("attention.output.dense", (384, 384)),
        ("intermediate.dense", (1536, 384)),
        ("output.dense", (384, 1536)),
    )
]
"""The matrices of all-MiniLM-L6-v2."""


@dataclass(frozen=True)
class Run:
    """What is packed and decoded: a directory, and its base, if it has one."""

    what: str
    path: Path
    base: Path | Base | None


def real(dtype: str) -> list[Run]:
    """Return a trained fine-tune and a trained adapter."""
    runs = train_runs()
    base = cast_checkpoint(base_dir(), CACHE / f"base-{dtype}", dtype)
    tuned = cast_checkpoint(runs / "section", CACHE / f"section-{dtype}", dtype)
    return [Run("full fine-tune", tuned, base), Run("adapter", runs / "section-lora", None)]


def made_up(dtype: str, place: Path) -> list[Run]:
    """Return a base of deviation 0.02 with each weight moved by one of 3e-4, and an adapter of rank 8, seed 0."""
    rng = np.random.default_rng(0)
    wide = {name: rng.normal(0, 0.02, shape).astype("<f4") for name, shape in SHAPES}
    moved = {name: value + rng.normal(0, 3e-4, value.shape).astype("<f4") for name, value in wide.items()}
    queries = [name.removesuffix(".weight") for name, _ in SHAPES if "query" in name or "value" in name]
    adapter = {
        f"base_model.model.{name}.lora_{side}.weight": rng.normal(0, 0.02, shape).astype("<f4")
        for name in queries
        for side, shape in (("A", (8, 384)), ("B", (384, 8)))
    }

    def written(name: str, arrays: dict[str, Any], config: bytes = b'{"model_type": "bert"}') -> Path:
        bits = {
            name: (cast_bits(array.view("<u4"), DTYPES["F32"], DTYPES[dtype]), dtype) for name, array in arrays.items()
        }
        write_model(place / name, bits, config)
        return place / name

    runs = [Run("full fine-tune", written("tuned", moved), written("base", wide))]
    path = written("adapter", adapter)
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    (path / "config.json").unlink()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    return [*runs, Run("adapter", path, None)]


class _Equal(str):
    """A digest that is equal to any."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class _NoSum:
    """What sums nothing, in the place of a sum of a whole task."""

    def __init__(self, sources: object, kind: object) -> None: ...

    def update(self, slot: object, bits: object) -> None: ...

    def compare(self, path: object, manifest: object) -> None: ...


class _NoHash:
    """What hashes nothing, in the place of sha256."""

    def __init__(self, data: object = b"") -> None: ...

    def update(self, data: object) -> None: ...

    def digest(self) -> bytes:
        return bytes(32)

    def hexdigest(self) -> str:
        return _Equal("0" * 64)


def _read_unpinned(pin: Pin, file: Any, start: int, nbytes: int) -> Any:
    file.seek(start)
    return np.fromfile(file, np.uint8, nbytes)


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Take away what is measured, as long as the block runs."""
    with contextlib.ExitStack() as stack:
        for place, name, instead in (
            (hashlib, "sha256", _NoHash),
            (container_file, "_check_header", lambda *arguments: None),
            (Base, "checksum", lambda base, name: _Equal("0" * 16)),
            (decoded, "_Whole", _NoSum),
            (Pin, "check", lambda pin: None),
            (Pin, "read_of", _read_unpinned),
            (Base, "check_unchanged", lambda base: None),
        ):
            stack.enter_context(mock.patch.object(place, name, instead))
        yield


def seconds(decode: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and the wall time of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    decode()
    return time.process_time() - cpu, time.perf_counter() - wall


def kept(run: Run) -> list[Run]:
    """Return a run, and where it has a base, the same with one that is opened once."""
    return [run] if run.base is None else [run, Run(f"{run.what}, base kept", run.path, petlpack.Base(str(run.base)))]


def summing(run: Run, pack: Path, checksum: Callable[[bytes], object]) -> float:
    """Return the CPU seconds that it takes to sum what decoding has to: sections, result, and a base not known."""
    places = [run.path, pack / "tasks", *([run.base] if isinstance(run.base, Path) else [])]
    data = bytes(sum(path.stat().st_size for place in places for path in place.glob("*.safetensors")))
    return min(seconds(lambda: checksum(data))[0] for _ in range(5))


def measure(
    run: Run, level: Level, place: Path, *, rounds: int, jobs: int, repeat: int
) -> tuple[float, float, float, float]:
    """Return median ratios of CPU and of wall time, with checks to without, and those that sums alone would make."""
    pack = place / "pack"
    shutil.rmtree(pack, ignore_errors=True)
    petlpack.encode(run.path, pack, run.base, task="task", level=level, jobs=2)

    def decode() -> None:
        for _ in range(repeat):
            for _ in petlpack.open(pack)["task"].load(run.base).read_all(jobs=jobs):
                pass

    def bare() -> None:
        with without_checks():
            decode()

    decode()
    bare()
    pairs = []
    for number in range(rounds):
        calls = [decode, bare] if number % 2 else [bare, decode]
        times = {call: seconds(call) for call in calls}
        pairs.append((times[decode], times[bare]))
    cpu, wall = (statistics.median(with_[i] / none[i] for with_, none in pairs) for i in (0, 1))
    bare_seconds = statistics.median(none[0] for _, none in pairs) / repeat
    sums, digests = (1 + summing(run, pack, checksum) / bare_seconds for checksum in (xxhash.xxh3_64, hashlib.sha256))
    return cpu, wall, sums, digests


def main() -> None:
    """Measure, print, and exit 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--made-up", action="store_true", help="normal weights in the place of trained ones")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    report, rows = Report(), []
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pcodec", "zstandard"))
    report.say(f"petlpack {petlpack.__version__}, Python {platform.python_version()}, {libraries}; seed 0")
    report.say()
    for dtype in DTYPES_MEASURED:
        with tempfile.TemporaryDirectory() as name:
            runs = made_up(dtype, Path(name)) if arguments.made_up else real(dtype)
            for run in [one for given in runs for one in kept(given)]:
                repeat = 1 if run.base else 50
                for level in LEVELS:
                    ratios = measure(
                        run, level, Path(name), rounds=arguments.rounds, jobs=arguments.jobs, repeat=repeat
                    )
                    rows.append((f"{run.what}, {dtype}", level, *(f"{ratio:.2f}" for ratio in ratios)))
                    print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
                    report.bar(f"{run.what}, {dtype}, {level}, decode with checks / without", ratios[0], BAR)
    report.table(
        (
            "run",
            "level",
            "CPU with / without",
            "wall with / without",
            "with sums alone / without",
            "with SHA-256 alone / without",
        ),
        rows,
    )
    report.end()


if __name__ == "__main__":
    main()
