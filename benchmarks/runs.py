"""The payloads: real fine-tunes cast to a dtype, sparse changes, and a large made-up pair, as run directories."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.tensors.casting import cast_bits
from petlpack.tensors.checkpoint import open_checkpoint
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.safetensors_file import build_header

Bits = NDArray[Any]


def cast_checkpoint(source: Path, target: Path, dtype: str) -> Path:
    """Write a copy of a model directory with every F32 tensor rounded to `dtype`; kept if it is there already."""
    if (target / "model.safetensors").exists():
        return target
    tensors = open_checkpoint(source / "model.safetensors").tensors
    arrays = {
        name: (cast_bits(tensor.bits(), tensor.dtype, DTYPES[dtype]), dtype)
        if tensor.dtype.name == "F32"
        else (tensor.bits(), tensor.dtype.name)
        for name, tensor in tensors.items()
    }
    write_model(target, arrays, (source / "config.json").read_bytes())
    return target


def write_model(target: Path, arrays: dict[str, tuple[Bits, str]], config: bytes) -> None:
    """Write config.json and model.safetensors of arrays (bits, dtype name) by name."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "config.json").write_bytes(config)
    rows = {name: (dtype, bits.shape, bits.nbytes) for name, (bits, dtype) in arrays.items()}
    with (target / "model.safetensors.tmp").open("wb") as file:
        file.write(build_header(rows, {"format": "pt"}).head_bytes())
        for bits, _ in arrays.values():
            file.write(np.ascontiguousarray(bits).tobytes())
    (target / "model.safetensors.tmp").rename(target / "model.safetensors")


def sparse_checkpoint(base: Path, target: Path, dtype: str, density: float, seed: int = 0) -> tuple[Path, int]:
    """Write a copy of `base` with a random share of its weights changed by N(0, 3e-3); return it and how many."""
    rng = np.random.default_rng(seed)
    tensors = open_checkpoint(base / "model.safetensors").tensors
    changed, arrays = 0, {}
    for name, tensor in tensors.items():
        bits = tensor.bits()
        if tensor.dtype.name == dtype:
            wide = cast_bits(bits, DTYPES[dtype], DTYPES["F32"]).view("<f4")
            moved = (wide + rng.normal(0, 3e-3, wide.shape).astype("<f4")).view("<u4")
            moved = cast_bits(moved, DTYPES["F32"], DTYPES[dtype])
            chosen = (rng.random(wide.shape) < density) & (moved != bits)
            bits = np.where(chosen, moved, bits)
            changed += int(chosen.sum())
        arrays[name] = (bits, tensor.dtype.name)
    write_model(target, arrays, (base / "config.json").read_bytes())
    return target, changed


def largest_changes(base: Path, tuned: Path, target: Path, dtype: str, density: float) -> tuple[Path, int]:
    """Write a copy of `base` with the largest changes of a real fine-tune put in: magnitude pruning."""
    before = open_checkpoint(base / "model.safetensors").tensors
    after = {
        name.removeprefix("bert."): tensor
        for name, tensor in open_checkpoint(tuned / "model.safetensors").tensors.items()
    }
    shared = [name for name, tensor in before.items() if tensor.dtype.name == dtype and name in after]

    def size_of_change(name: str) -> Bits:
        new, old = (cast_bits(t[name].bits(), DTYPES[dtype], DTYPES["F32"]).view("<f4") for t in (after, before))
        change: Bits = np.abs(new - old)
        return change

    sizes = np.concatenate([size_of_change(name).reshape(-1) for name in shared])
    bound = np.partition(sizes, -int(density * sizes.size))[-int(density * sizes.size)]
    changed, arrays = 0, {}
    for name, tensor in before.items():
        bits = tensor.bits()
        if name in shared:
            chosen = (size_of_change(name) >= bound) & (after[name].bits() != bits)
            bits = np.where(chosen, after[name].bits(), bits)
            changed += int(chosen.sum())
        arrays[name] = (bits, tensor.dtype.name)
    write_model(target, arrays, (base / "config.json").read_bytes())
    return target, changed


BIG_SHAPES = [("embed_tokens.weight", (151_936, 2560)), ("norm.weight", (2560,))] + [
    (f"layers.{layer}.{name}", shape)
    for layer in range(36)
    for name, shape in (
        ("input_layernorm.weight", (2560,)),
        ("self_attn.q_proj.weight", (4096, 2560)),
        ("self_attn.k_proj.weight", (1024, 2560)),
        ("self_attn.v_proj.weight", (1024, 2560)),
        ("self_attn.o_proj.weight", (2560, 4096)),
        ("mlp.gate_proj.weight", (9728, 2560)),
        ("mlp.up_proj.weight", (9728, 2560)),
        ("mlp.down_proj.weight", (2560, 9728)),
        ("post_attention_layernorm.weight", (2560,)),
    )
]
"""The shapes of a real 4-billion-parameter model (Qwen3-4B): 8.04 GB in bf16, one embedding of 778 MB."""


BLOCK = 1 << 22


def write_big_pair(base: Path, tuned: Path, shards: int = 4) -> None:
    """Write two sharded bf16 checkpoints: base ~ N(0, 0.02), tuned = base + N(0, 3e-4), a few megabytes at a time."""
    rng = np.random.default_rng(0)
    normal = rng.normal(0, 0.02, BLOCK).astype("<f4")
    step = rng.normal(0, 3e-4, BLOCK).astype("<f4")
    for directory, delta in ((base, None), (tuned, step)):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            tensors = list(enumerate(BIG_SHAPES))[shard::shards]
            weight_map |= {name: file for _, (name, _) in tensors}
            rows = {name: ("BF16", shape, 2 * math.prod(shape)) for _, (name, shape) in tensors}
            with (directory / file).open("wb") as out:
                out.write(build_header(rows, {"format": "pt"}).head_bytes())
                for number, (_, shape) in tensors:
                    for start in range(0, math.prod(shape), BLOCK):
                        size = min(BLOCK, math.prod(shape) - start)
                        out.write(_made_up(normal, delta, number * 1000 + start // BLOCK)[:size].tobytes())
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _made_up(normal: Bits, step: Bits | None, number: int) -> Bits:
    """Return block `number` as bf16: the normals turned by its number, the step, if any, turned by another."""
    values = np.roll(normal, number * 7919)
    if step is not None:
        values = values + np.roll(step, number * 104_729)
    bits: Bits = (values.view("<u4") >> np.uint32(16)).astype("<u2")
    return bits
