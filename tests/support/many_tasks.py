"""A pack of many made-up tasks: what people with thousands of fine-tunes of one model have, small enough to generate.

Four in ten are LoRAs of three ranks, three in ten are sparse fine-tunes of 0.2 to 2 % of the weights whose heads have 2
to 20 labels, two in ten are AdapterHub adapters under a name of their own, one in ten is a full fine-tune. So sizes
vary, most templates are common, and some are rare: a hundred tasks have not seen them all; and half of the AdapterHub
configs name their own training, so nobody shares them. Ranks, densities and labels
are spread evenly, so that the first hundred tasks are like all of them, which a random hundred need not be.

    python -m tests.support.many_tasks PACK COUNT [--first N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import petlpack
from petlpack.tensors.tensor import Tensor
from tests.support.small_runs import make_base, nudged, weights, write_run, write_safetensors

LAYERS, WIDTH, WORDS = 2, 32, 100

GOLDEN = (math.sqrt(5) - 1) / 2
"""The step of the most even sequence of its kind."""

KINDS = ("lora", "sparse", "lora", "hub", "sparse", "lora", "full", "hub", "lora", "sparse")
"""What each task of ten is."""


def write_many(pack: Path, count: int) -> None:
    """Encode so many tasks into a pack, by as many processes as there are processors."""
    jobs = os.cpu_count() or 1
    bounds = [count * i // jobs for i in range(jobs + 1)]
    command = [sys.executable, "-m", "tests.support.many_tasks", str(pack)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "cli")])}
    running = [
        subprocess.Popen([*command, str(stop - start), "--first", str(start)], cwd=root, env=environment)
        for start, stop in itertools.pairwise(bounds)
    ]
    assert [process.wait() for process in running] == [0] * jobs


def encode_tasks(pack: Path, numbers: Iterable[int]) -> None:
    """Encode the tasks of these numbers; a task is the same whatever others there are."""
    os.fsync = lambda _: None  # type: ignore[assignment]  # nothing here has to outlive a power cut
    with tempfile.TemporaryDirectory() as directory:
        tensors = make_base(0, "F32", LAYERS, WIDTH, WORDS)
        base = petlpack.Base(write_run(Path(directory) / "base", tensors))
        for number in numbers:
            run = Path(directory) / f"run-{number:05d}"
            kind = KINDS[number % len(KINDS)]
            _write_task(run, kind, number, tensors)
            petlpack.encode(run, pack, None if kind in ("lora", "hub") else base, task=f"task-{number:05d}", jobs=1)
            for path in run.iterdir():
                path.unlink()
            run.rmdir()


def _spread(number: int) -> float:
    """Return a number between 0 and 1; those of the tasks of one kind are evenly spread (Weyl's sequence)."""
    return (number // len(KINDS) * GOLDEN + number % len(KINDS) / len(KINDS)) % 1.0


def _write_task(run: Path, kind: str, number: int, base: dict[str, Tensor]) -> None:
    if kind == "lora":
        _write_lora(run, (2, 4, 8)[number % 3], number)
    elif kind == "hub":
        _write_hub(run, f"task{number:05d}", number)
    else:
        labels = 2 + int(19 * _spread(number) ** 3)  # few labels are common, many are rare
        share = 1.0 if kind == "full" else 0.002 + 0.018 * (1 - _spread(number))
        tuned = {
            f"bert.{name}": nudged(tensor, 100 * number + i, share) for i, (name, tensor) in enumerate(base.items())
        }
        tuned["classifier.weight"] = weights("F32", (labels, WIDTH), number)
        tuned["classifier.bias"] = weights("F32", (labels,), number + 1)
        write_run(run, tuned)


def _write_lora(run: Path, rank: int, number: int) -> None:
    names = [
        f"base_model.model.encoder.layer.{layer}.attention.self.{place}.lora_{side}.weight"
        for layer in range(LAYERS)
        for place in ("query", "value")
        for side in "AB"
    ]
    shapes = {"A": (rank, WIDTH), "B": (WIDTH, rank)}
    tensors = {name: weights("F32", shapes[name[-8]], 100 * number + i) for i, name in enumerate(names)}
    write_safetensors(run / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["query", "value"]}
    (run / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "bert-tiny"}))


def _write_hub(run: Path, name: str, number: int) -> None:
    tensors: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        place = f"encoder.layer.{layer}.output.adapters.{name}"
        for part, shape in (("adapter_down.0", (4, WIDTH)), ("adapter_up", (WIDTH, 4))):
            tensors[f"{place}.{part}.weight"] = weights("F32", shape, 100 * number + len(tensors))
            tensors[f"{place}.{part}.bias"] = weights("F32", shape[:1], 100 * number + len(tensors))
    write_safetensors(run / "adapter.safetensors", tensors)
    config = {"architecture": None, "reduction_factor": 8, "non_linearity": "relu", "original_ln_after": True}
    table = {"config": config, "hidden_size": WIDTH, "model_name": "bert-tiny", "model_type": "bert", "name": name}
    if number % 10 == 7:
        table["trained_in"] = f"experiment {number * 7919 % 99991}"
    (run / "adapter_config.json").write_text(json.dumps({**table, "version": "adapters.1.3.0"}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("pack", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    encode_tasks(given.pack, range(given.first, given.first + given.count))
