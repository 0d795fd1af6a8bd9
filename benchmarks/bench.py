"""Every figure of docs/benchmarks.md by one command: `make bench`, or `python benchmarks/bench.py [--only PART]`.

Trains the real runs once (cached in benchmarks/.cache), measures petlpack beside its peers on the same tensors in the
same process, prints Markdown tables and the bars, and exits 1 where a bar is missed. Speeds are best of several
repetitions over buffers in memory; only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from audit import audit
from numpy.typing import NDArray
from papers import methods
from peers import coded_bytes, peers, run_zipnn
from runs import cast_checkpoint, largest_changes, sparse_checkpoint, write_big_pair
from train import base_dir

import petlpack
from petlpack import coding
from petlpack.codecs.registry import codec
from petlpack.codecs.units import Unit, base_pieces
from petlpack.coding.array import Level
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import prepare
from petlpack.layouts.registry import read_run
from petlpack.sections.predict import Predictions
from petlpack.sections.write import read_unit

CACHE = Path(os.environ.get("PETLPACK_BENCH_CACHE", Path(__file__).parent / ".cache"))
ZIPNN = Path(sys.prefix) / "zipnn" / "bin" / "python"
TASKS = ("section", "role", "use")
DTYPES = ("BF16", "F16", "F32")
REPEAT = 5

Bits = NDArray[Any]
Item = TypeVar("Item")


@dataclass
class Report:
    """What was measured, as Markdown, and the bars with whether each was met."""

    bars: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def say(self, line: str = "") -> None:
        """Print one line."""
        print(line, flush=True)

    def table(self, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Print a Markdown table."""
        self.say("| " + " | ".join(head) + " |")
        self.say("|" + "---|" * len(list(head)))
        for row in rows:
            self.say("| " + " | ".join(row) + " |")
        self.say()

    def bar(self, what: str, measured: float, bound: float, *, at_most: bool = True, unit: str = "") -> None:
        """Note a bar: what was measured and what it must be."""
        met = measured <= bound if at_most else measured >= bound
        sign = "<=" if at_most else ">="
        self.bars.append((what, f"{measured:.4g}{unit}", f"{sign} {bound:.4g}{unit}", met))

    def end(self) -> NoReturn:
        """Print the bars, and exit with 1 where one is missed."""
        self.table(
            ("bar", "measured", "must be", "met"),
            [(what, measured, bound, "yes" if met else "**no**") for what, measured, bound, met in self.bars],
        )
        sys.exit(not all(met for *_, met in self.bars))


def best(function: Callable[[], object], repeat: int = REPEAT) -> float:
    """Return the shortest of several times, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def all_of(function: Callable[[Item], object], items: list[Item], threads: int) -> Callable[[], object]:
    """Return a call that applies a function to every item, on so many threads."""
    if threads == 1:
        return lambda: [function(item) for item in items]

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, items))

    return run


def train_runs() -> Path:
    """Train what is missing; return the directory of the runs."""
    subprocess.run(
        [sys.executable, Path(__file__).parent / "train.py", CACHE / "runs", "--tasks", ",".join(TASKS)], check=True
    )
    return CACHE / "runs"


def full_fine_tunes(report: Report, runs: Path) -> None:
    """One table per dtype and task: bytes and speeds of petlpack and of every peer, on the tensors that both have."""
    for dtype in DTYPES:
        for task in TASKS:
            _full_fine_tune(report, runs, task, dtype)


def _full_fine_tune(report: Report, runs: Path, task: str, dtype: str) -> None:
    base = petlpack.Base(cast_checkpoint(base_dir(), CACHE / f"base-{dtype}", dtype))
    tuned = cast_checkpoint(runs / task, CACHE / f"{task}-{dtype}", dtype)
    prepared = prepare(read_run(tuned)[0], base, Digests(2))
    tensors, stored = prepared.matched.tensors, prepared.described.sources.stored
    pairs = [
        (
            tensors[piece.slot.name].bits().reshape(-1),
            base.predict(piece.slot.base, piece.slot.dtype, 0, piece.size),
        )
        for piece in base_pieces(stored)
        if piece.slot.base is not None
    ]
    raw = sum(pair[0].nbytes for pair in pairs)
    rows = {}
    for peer in peers(dtype):
        coded = [peer.encode(*pair) for pair in pairs]
        encode = [best(all_of(lambda pair: peer.encode(*pair), pairs, n), 2) for n in (1, 2)]  # noqa: B023
        both = [(data, pair[1]) for data, pair in zip(coded, pairs, strict=True)]
        decode = [best(all_of(lambda item: peer.decode(*item), both, n)) for n in (1, 2)]  # noqa: B023
        for (data, prediction), pair in zip(both, pairs, strict=True):
            assert np.array_equal(peer.decode(data, prediction), pair[0]), peer.name
        rows[peer.name] = (sum(map(coded_bytes, coded)), encode, decode)
    for row in run_zipnn(ZIPNN, pairs, dtype, 3) if ZIPNN.exists() else []:
        seen = rows.setdefault(row["name"], (row["bytes"], [], []))
        seen[1].append(row["encode"])
        seen[2].append(row["decode"])
    units = [unit for unit in codec("ulp").units(stored) if unit.role == "base"]
    for level in ("fast", "small"):
        rows[f"**petlpack {level}**"] = _petlpack(units, tensors, base, level)
    report.say(f"#### {task}, {dtype}: {raw:,} bytes of {len(pairs)} tensors")
    report.say()
    report.table(
        ("coder", "bytes", "of raw", "encode MB/s, 1 / 2 cores", "decode MB/s, 1 / 2 cores"),
        [
            (
                name,
                f"{size:,}",
                f"{size / raw:.4f}",
                " / ".join(f"{raw / seconds / 1e6:.0f}" for seconds in encode),
                " / ".join(f"{raw / seconds / 1e6:.0f}" for seconds in decode),
            )
            for name, (size, encode, decode) in sorted(rows.items(), key=lambda item: -item[1][0])
        ],
    )
    _bars_of_fine_tune(report, f"{task} {dtype}", dtype, raw, rows)


def _petlpack(
    units: list[Unit], tensors: Any, base: petlpack.Base, level: Level
) -> tuple[int, list[float], list[float]]:
    """Code a run's units as `encode` does, from and to memory; return bytes and seconds on one and two cores."""
    ulp = codec("ulp")
    predictions = Predictions(base)
    arrays = [(unit, read_unit(unit, tensors), predictions.of(unit)) for unit in units]

    def encode(item: tuple[Unit, Bits, Bits | None]) -> tuple[Unit, Bits | None, str, bytes]:
        unit, tuned, prediction = item
        (section,) = ulp.encode(unit, tuned, prediction) or []
        return unit, prediction, *coding.encode(section.bits, section.array, section.coders, level)

    def decode(item: tuple[Unit, Bits | None, str, bytes]) -> Bits:
        unit, prediction, coder, data = item
        return coding.decode(coder, data, coding.Array(unit.dtype, unit.size, unit.row, prediction), unit.name)

    coded = [encode(item) for item in arrays]
    for item, (_, tuned, _) in zip(coded, arrays, strict=True):
        assert np.array_equal(decode(item), tuned)
    return (
        sum(len(item[3]) for item in coded),
        [best(all_of(encode, arrays, threads), 1) for threads in (1, 2)],
        [best(all_of(decode, coded, threads)) for threads in (1, 2)],
    )


def _bars_of_fine_tune(report: Report, what: str, dtype: str, raw: int, rows: dict[str, Any]) -> None:
    small, fast = rows["**petlpack small**"], rows["**petlpack fast**"]
    planes = rows["XOR + byte planes + zstd-3"][0]
    if dtype == "BF16":
        report.bar(f"{what}, small / BitX", small[0] / rows["BitX (ZipLLM)"][0], 0.70)
        report.bar(f"{what}, small / pcodec on ulps", small[0] / rows["pcodec on ulps"][0], 0.86)
        report.bar(f"{what}, small, decode on one core", raw / small[2][0] / 1e6, 200, at_most=False, unit=" MB/s")
        report.bar(f"{what}, small, decode on two cores / on one", small[2][0] / small[2][1], 1.7, at_most=False)
    else:
        report.bar(f"{what}, small / XOR + byte planes + zstd-3", small[0] / planes, 0.78 if dtype == "F32" else 0.77)
    fewest = min(size for name, (size, *_) in rows.items() if "petlpack" not in name)
    report.bar(f"{what}, fast / smallest peer", fast[0] / fewest, 1 - 1e-9)
    report.bar(
        f"{what}, fast, decode speed / XOR + zstd-3", rows["XOR + zstd-3"][2][0] / fast[2][0], 1.0, at_most=False
    )


def sparse_changes(report: Report, runs: Path) -> None:
    """0.5 % of the weights changed: index bits against the entropy bound, bits in all, decode speed of positions."""
    rows = []
    for dtype in ("BF16", "F32"):
        base = cast_checkpoint(base_dir(), CACHE / f"base-{dtype}", dtype)
        tuned = cast_checkpoint(runs / "section", CACHE / f"section-{dtype}", dtype)
        for what, (run, changed) in (
            ("random", sparse_checkpoint(base, CACHE / f"sparse-{dtype}", dtype, 0.005)),
            ("largest of a real fine-tune", largest_changes(base, tuned, CACHE / f"largest-{dtype}", dtype, 0.005)),
        ):
            with tempfile.TemporaryDirectory() as directory:
                petlpack.encode(run, Path(directory) / "pack", base=base, task="sparse", codec="sparse")
                task = petlpack.open(Path(directory) / "pack")["sparse"]
                index = sum(size for name, size in task.payload.items() if name.endswith("positions"))
                payload = sum(task.payload.values())
                weights = sum(slot.size for slot in task.template.slots if slot.dtype.name == dtype)
                bound = entropy_bound(weights, changed)
                rows.append(
                    (
                        f"{what}, {dtype}",
                        f"{changed:,}",
                        f"{8 * index / changed:.3f}",
                        f"{bound / changed:.3f}",
                        f"{8 * index / bound:.4f}",
                        f"{8 * payload / changed:.2f}",
                        f"{8 * task.nbytes / changed:.2f}",
                    )
                )
                if what == "random":
                    report.bar(f"0.5 % sparse {dtype}, index bits / entropy bound", 8 * index / bound, 1.01)
                    if dtype == "BF16":
                        report.bar("0.5 % sparse BF16, bits per changed weight", 8 * task.nbytes / changed, 17.7)
    positions = np.flatnonzero(np.random.default_rng(0).random(1 << 25) < 0.005).astype("<u4")
    array = coding.Array(petlpack.tensors.dtypes.DTYPES["U32"], len(positions), len(positions))
    coder, data = coding.encode(positions, array, ("gaps",), "small")
    speed = len(positions) / best(lambda: coding.decode(coder, data, array, "positions")) / 1e6
    report.bar("0.5 % sparse, positions decoded on one core", speed, 100, at_most=False, unit=" M/s")
    report.table(
        (
            "changed weights",
            "number",
            "index bits each",
            "entropy bound",
            "ratio",
            "payload bits each",
            "file bits each",
        ),
        rows,
    )


def entropy_bound(total: int, chosen: int) -> float:
    """Return log2 of the number of sets: the bits that a random set of positions needs."""
    return (math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)) / math.log(2)


def adapters(report: Report, runs: Path) -> None:
    """Really trained LoRA adapters: sections against the safetensors payload, and what a task file has beyond them."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for task in TASKS:
            run = runs / f"{task}-lora"
            (done,) = petlpack.encode(run, Path(directory) / "pack")
            packed = petlpack.open(Path(directory) / "pack")[done.name]
            raw = sum(slot.nbytes for slot in packed.template.slots)
            sections = sum(packed.payload.values())
            rows.append(
                (run.name, f"{raw:,}", f"{sections:,}", f"{sections / raw:.4f}", f"{packed.nbytes - sections:,}")
            )
            report.bar(f"{run.name}, sections / payload", sections / raw, 0.84)
            report.bar(f"{run.name}, task file beyond its sections", packed.nbytes - sections, 1024, unit=" B")
    report.table(("LoRA r=8 adapter", "safetensors payload", "sections", "ratio", "file beyond them, B"), rows)


def unchanged(report: Report, runs: Path) -> None:
    """A fine-tune whose encoder is frozen: unchanged tensors take no payload."""
    del runs
    base = base_dir()
    with tempfile.TemporaryDirectory() as directory:
        petlpack.encode(base, Path(directory) / "pack", base=base, task="frozen")
        payload = sum(petlpack.open(Path(directory) / "pack")["frozen"].payload.values())
    report.bar("unchanged tensors, payload", payload, 0, unit=" B")


def memory(report: Report, runs: Path) -> None:
    """An 8 GB sharded bf16 pair, made on the fly: peak memory of encode and decode, each a process of its own."""
    del runs
    free = shutil.disk_usage(CACHE).free
    if free < 40e9:
        report.say(f"memory: skipped, needs 40 GB of disk, {free / 1e9:.0f} GB are free")
        return
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        directory = Path(name)
        write_big_pair(directory / "base", directory / "tuned")
        source = sum(path.stat().st_size for path in (directory / "tuned").glob("*.safetensors"))
        options = ["--base", directory / "base", "--jobs", "2"]
        encode_peak = _peak_of("encode", directory / "tuned", "--pack", directory / "pack", "--task", "big", *options)
        packed = sum(path.stat().st_size for path in (directory / "pack").rglob("*") if path.is_file())
        shutil.rmtree(directory / "tuned")
        decode_peak = _peak_of("decode", directory / "pack", "big", directory / "out", *options)
        report.table(
            ("8 GB pair", "run, bytes", "pack, bytes", "peak of encode", "peak of decode"),
            [
                (
                    "bf16, 4 shards",
                    f"{source:,}",
                    f"{packed:,}",
                    f"{encode_peak / 1e9:.2f} GB",
                    f"{decode_peak / 1e9:.2f} GB",
                )
            ],
        )
        report.bar("8 GB pair, peak memory of encode", encode_peak / 1e9, 1.5, unit=" GB")
        report.bar("8 GB pair, peak memory of decode", decode_peak / 1e9, 1.5, unit=" GB")


def _peak_of(*arguments: object) -> int:
    """Run the command line as a child and return its peak resident memory in bytes."""
    code = "import resource,subprocess,sys; r=subprocess.run(sys.argv[1:]).returncode; "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(r)"
    command = [sys.executable, "-c", code, sys.executable, "-m", "petlpack_cli", *map(str, arguments)]
    done = subprocess.run(command, check=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    return int(done.stderr.split()[-1]) * 1024


def startup(report: Report, runs: Path) -> None:
    """`petlpack --help` and `import petlpack` beside `python -c pass`, best of 20."""
    del runs

    def seconds(*arguments: str) -> float:
        return best(lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL), 20)

    bare = seconds("-c", "pass")
    extra = {what: 1000 * (seconds(*command) - bare) for what, command in _STARTUP.items()}
    report.table(("start-up beyond the interpreter", "ms"), [(what, f"{ms:.0f}") for what, ms in extra.items()])
    for what, ms in extra.items():
        report.bar(f"{what}, more than python -c pass", ms, 150, unit=" ms")


_STARTUP = {"petlpack --help": ("-m", "petlpack_cli", "--help"), "import petlpack": ("-c", "import petlpack")}

PARTS = {
    "full": full_fine_tunes,
    "sparse": sparse_changes,
    "adapters": adapters,
    "unchanged": unchanged,
    "methods": methods,
    "audit": audit,
    "startup": startup,
    "memory": memory,
}


MADE_UP = {"methods", "audit", "startup", "memory"}
"""Parts that need no trained run."""


def main() -> None:
    """Measure, print, and exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part only (may be repeated)")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report = Report()
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("numpy", "pcodec", "zstandard", "torch", "transformers", "peft")
    )
    report.say(f"petlpack {petlpack.__version__}, Python {platform.python_version()}, {libraries}; seed 0")
    report.say()
    runs = train_runs() if set(args.only or PARTS) - MADE_UP else CACHE / "runs"
    for name in args.only or PARTS:
        PARTS[name](report, runs)
    report.say("### Bars")
    report.say()
    report.end()


if __name__ == "__main__":
    main()
