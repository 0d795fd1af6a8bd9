"""What several test files build: tensors from a seed, checkpoints written by the safetensors library, pairs of runs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray

from petlpack.codecs.registry import CODECS, codec
from petlpack.rules.modules import Dense
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.tensor import Tensor
from tests.support.method_runs import Shape, write_adamix, write_base, write_pha, write_propetl_t5


def patch_system(patch: pytest.MonkeyPatch, module: Any, name: str, value: Any) -> None:
    """Put a function in place of one of the system's, for `Path`, too, which in Python 3.10 calls those it noted."""
    real = getattr(module, name)
    patch.setattr(module, name, value)
    accessor = vars(pathlib).get("_normal_accessor")
    if getattr(accessor, name, None) is real:
        patch.setattr(accessor, name, value)


CONFIG: Mapping[str, Any] = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}

WRITTEN_AS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Every dtype of ours as the safetensors library's writer calls it."""


def random_bits(dtype: str, count: int, seed: int = 0) -> Bits:
    """Return `count` random bit patterns of a dtype: every NaN, infinity and subnormal may be among them."""
    known = DTYPES[dtype]
    octets = np.random.default_rng(seed).bytes(count * known.itemsize)
    bits = np.frombuffer(octets, known.bits).copy()
    return bits & known.bits.type(1) if dtype == "BOOL" else bits


def random_tensor(dtype: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Return a tensor of random bit patterns."""
    return Tensor.of(random_bits(dtype, int(np.prod(shape, dtype=np.int64)), seed).reshape(shape), DTYPES[dtype])


def weights(dtype: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Return a tensor like a trained one: normal values of deviation 0.02 for floats, small numbers for the rest."""
    known = DTYPES[dtype]
    rng = np.random.default_rng(seed)
    if dtype == "BF16":
        bits: Bits = (rng.normal(0, 0.02, shape).astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2")
    elif dtype in ("F64", "F32", "F16"):
        bits = rng.normal(0, 0.02, shape).astype(f"<f{known.itemsize}").view(known.bits)
    else:
        bits = rng.integers(0, 2 if dtype == "BOOL" else 100, shape).astype(known.bits)
    return Tensor.of(np.asarray(bits), known)


def nudged(tensor: Tensor, seed: int = 0, share: float = 1.0, steps: int = 40) -> Tensor:
    """Return a tensor with a share of its bit patterns moved by up to `steps`, as a fine-tune moves its base."""
    rng = np.random.default_rng(seed)
    bits = tensor.bits().copy()
    if tensor.dtype.name == "BOOL":
        steps, share = 1, 0.0 if share == 0 else share
        flips = (rng.random(bits.shape) < share).astype(bits.dtype)
        return Tensor.of(np.asarray(bits ^ flips), tensor.dtype)
    moves = rng.integers(-steps, steps + 1, bits.shape) * (rng.random(bits.shape) < share)
    return Tensor.of(np.asarray(bits + np.asarray(moves).astype(bits.dtype)), tensor.dtype)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write tensors to a file with the safetensors library itself (which chooses their order), and return the path."""
    keep: list[NDArray[Any]] = [np.ascontiguousarray(tensor.bits()) for tensor in tensors.values()]
    specs = {
        name: safetensors.TensorSpec(
            dtype=WRITTEN_AS[tensor.dtype.name],
            shape=list(tensor.shape),
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for (name, tensor), array in zip(tensors.items(), keep, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.serialize_file(specs, path, dict(metadata) if metadata is not None else None)
    return path


def write_run(
    directory: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = CONFIG,
    files: Mapping[str, bytes] | None = None,
    weights_file: str = "model.safetensors",
) -> Path:
    """Write a run directory (or a base): the weights, config.json unless None, further files; return the directory."""
    write_safetensors(directory / weights_file, tensors, {"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name, content in (files or {}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def make_base(
    seed: int = 0, dtype: str = "F32", layers: int = 2, width: int = 16, words: int = 50
) -> dict[str, Tensor]:
    """Return the tensors of a small encoder, named as in BERT without its prefix."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(layers):
        for part, shape in (("attention.self.query", (width, width)), ("intermediate.dense", (2 * width, width))):
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    return {name: weights(dtype, shape, seed * 1000 + i) for i, (name, shape) in enumerate(shapes.items())}


def make_pair(
    seed: int = 0,
    dtype: str = "F32",
    *,
    share: float = 1.0,
    prefix: str = "bert.",
    labels: int = 2,
    layers: int = 2,
    width: int = 16,
    words: int = 50,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (fine-tune, base): a `share` of every weight nudged, names prefixed, and a head unless `labels` is 0."""
    base = make_base(0, dtype, layers, width, words)
    tuned = {prefix + name: nudged(tensor, seed * 1000 + i, share) for i, (name, tensor) in enumerate(base.items())}
    if labels:
        tuned["classifier.weight"] = weights(dtype, (labels, width), seed * 1000 + 998)
        tuned["classifier.bias"] = weights(dtype, (labels,), seed * 1000 + 999)
    return tuned, base


DENSE_CODECS = tuple(codec_id for codec_id in CODECS if Dense in codec(codec_id).takes)
METHOD_CODECS = tuple(codec_id for codec_id in CODECS if codec_id not in DENSE_CODECS)
"""Codecs that take full fine-tunes, and those that do not: `write_methods` has a run for each of these."""

METHOD_SETTINGS = {"combine": "or", "activation": "gelu_new"}
"""What a run of PROPETL for T5 does not say of itself."""

TINY = Shape(layers=1, width=4, bottleneck=2, vocab=8, heads=1, positions=4)


def write_methods(directory: Path, shape: Shape = TINY) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Write a run for each codec of a method and a T5 base: (run, arguments of `encode`) by the codec's name.

    `mask` has tasks a and b and a shared part of tensors, `hyper` the same and stands on the base, `merge` is one task.
    """
    base = write_base(directory / "t5", shape, family="t5")
    write_propetl_t5(directory / "mask", ["a", "b"], shape)
    write_adamix(directory / "merge", shape, experts=2)
    write_pha(directory / "hyper", ["a", "b"], shape, base=base.tensors, embed=4, trunk=6, code=4)
    for name in ("mask", "merge", "hyper"):  # one kept file is as good as four
        for file in ("spiece.model", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
            (directory / name / file).unlink(missing_ok=True)
    return {
        "mask": (directory / "mask", {"settings": METHOD_SETTINGS}),
        "merge": (directory / "merge", {}),
        "hyper": (directory / "hyper", {"base": directory / "t5"}),
    }


def write_pair(directory: Path, seed: int = 0, dtype: str = "F32", **changes: Any) -> tuple[Path, Path]:
    """Write a pair of `make_pair` to `directory`, and return (run directory, base directory)."""
    tuned, base = make_pair(seed, dtype, **changes)
    return write_run(directory / "run", tuned), write_run(directory / "base", base)


def write_pipeline(
    directory: Path, seed: int = 0, parts: Sequence[str] = ("unet", "text_encoder")
) -> tuple[Path, Path]:
    """Write a pipeline of Diffusers and its base to `directory`, and return (run directory, base directory).

    A folder is a UNet with the name of its file, or a model of Transformers; the weights are those of `make_pair`.
    """
    for i, part in enumerate(parts):
        file = "diffusion_pytorch_model.safetensors" if part.startswith("unet") else "model.safetensors"
        tuned, base = make_pair(seed + i, labels=0, prefix="", layers=1)
        for name, tensors in (("run", tuned), ("base", base)):
            write_run(directory / name / part, tensors, {"_class_name": part}, weights_file=file)
            index = json.dumps({"_class_name": "Pipeline", **{part: ["library", part] for part in parts}})
            (directory / name / "model_index.json").write_text(index, encoding="utf-8")
    return directory / "run", directory / "base"
