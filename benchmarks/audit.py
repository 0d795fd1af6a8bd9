"""The accounting at scale: a pack of 10,000 generated tasks, a tree of 200 checkpoints, a forecast against the truth.

Called by bench.py; needs no trained run. The tasks are those of tests/support/many_tasks.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import petlpack
from petlpack.analyze.forecast import forecast
from tests.support.many_tasks import encode_tasks, write_many

TASKS = 10_000

CHECKPOINTS, CHECKPOINT_BYTES = 200, 20_000_000

REPEAT = 3


def audit(report: Any, runs: Path) -> None:
    """Time and memory of `stats` and `list`, each a process of its own, and the forecast from 100 tasks."""
    del runs
    with tempfile.TemporaryDirectory() as name:
        pack = Path(name) / "pack"
        write_many(pack, TASKS)
        rows = []
        for what, bound, command in (
            ("stats of 10,000 tasks", 3.0, ["stats", str(pack)]),
            ("list of 10,000 tasks", 1.0, ["list", str(pack)]),
            ("stats of one task of 10,000", 0.2, ["stats", str(pack), "--task", "task-00001"]),
        ):
            seconds, peak = min(_measured(*command) for _ in range(REPEAT))
            rows.append((what, f"{seconds:.2f} s", f"{peak / 1e6:.0f} MB"))
            report.bar(what, seconds, bound, unit=" s")
            if command[0] == "stats" and len(command) == 2:
                report.bar(f"{what}, peak memory", peak / 1e6, 300, unit=" MB")
        report.table(("process", "time, start-up included", "peak memory"), rows)
        _forecast(report, Path(name), pack)
    with tempfile.TemporaryDirectory() as name:
        _tree(report, Path(name))


def _forecast(report: Any, directory: Path, pack: Path) -> None:
    measured = petlpack.stats(pack)
    rows = []
    for count in (30, 100, 300, 1000):
        encode_tasks(directory / f"first-{count}", range(count))
        found = petlpack.stats(directory / f"first-{count}")
        assert found.growth is not None
        (row,) = forecast(found, [TASKS]).rows
        off = row.pack.bytes / measured.disk_bytes - 1
        shared = sum(role.at(TASKS, count) for role in found.growth.roles) / sum(measured.inventory.parts.values()) - 1
        rows.append(
            (
                f"{count:,}",
                f"{row.pack.bytes:,}",
                f"{100 * off:+.2f} %",
                f"{100 * found.growth.error:.1f} %",
                f"{100 * shared:+.0f} %",
            )
        )
        if count == 100:
            report.bar("forecast of 10,000 tasks from 100, off by", 100 * abs(off), 2, unit=" %")
    report.say(f"10,000 tasks take {measured.disk_bytes:,} bytes on the disk.")
    report.say()
    report.table(("forecast from tasks", "bytes", "off by", "stated error (95 %)", "shared parts off by"), rows)


def _tree(report: Any, directory: Path) -> None:
    """A tree of checkpoints that were never packed: half of the layers frozen, an optimizer beside each."""
    rng = np.random.default_rng(0)
    size = CHECKPOINT_BYTES // 40
    frozen = [rng.bytes(size) for _ in range(20)]
    for i in range(CHECKPOINTS):
        run = directory / "runs" / f"run{i // 4}" / f"checkpoint-{100 * (i % 4 + 1)}"
        _write_checkpoint(run, [*frozen, *(rng.bytes(size) for _ in range(20))])
    _write_checkpoint(directory / "base", [*frozen, *(rng.bytes(size) for _ in range(20))])
    seconds, peak = min(
        _measured("stats", str(directory / "runs"), "--base", str(directory / "base")) for _ in range(REPEAT)
    )
    nbytes = sum(path.stat().st_size for path in (directory / "runs").rglob("*") if path.is_file())
    report.table(
        ("tree never packed", "files", "time", "peak memory"),
        [
            (
                f"{CHECKPOINTS} checkpoints, {nbytes / 1e9:.1f} GB, half of each equal to the base",
                f"{3 * CHECKPOINTS}",
                f"{seconds:.1f} s",
                f"{peak / 1e6:.0f} MB",
            )
        ],
    )
    report.bar(f"stats of {CHECKPOINTS} checkpoints never packed", seconds, 10, unit=" s")


def _write_checkpoint(run: Path, tensors: list[bytes]) -> None:
    run.mkdir(parents=True)
    header: dict[str, Any] = {}
    offset = 0
    for i, content in enumerate(tensors):
        header[f"encoder.layer.{i}.weight"] = {
            "dtype": "F32",
            "shape": [len(content) // 4],
            "data_offsets": [offset, offset + len(content)],
        }
        offset += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (run / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors))
    (run / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (run / "optimizer.pt").write_bytes(b"x" * 1000)


def _measured(*arguments: str) -> tuple[float, int]:
    """Run the command line; return seconds, start-up included, and peak resident bytes."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "petlpack_cli", *arguments]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "80"})
    seconds = time.perf_counter() - start
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    return seconds, int(done.stdout) * 1024
