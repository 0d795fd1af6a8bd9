"""The small runs of the whole packs in `formats/packs/`: numbers from digests of names, alike on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.safetensors_file import build_header
from petlpack.tensors.tensor import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """How one pack is made: what it shows, its runs (directory, arguments of `encode`), and whether it has a base."""

    about: str
    write: Callable[[Path], None]
    """Writes the runs, and the base as `base`, into a directory."""
    runs: tuple[str, ...]
    has_base: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    sealed: bool = False


def random(name: str, dtype: str, *shape: int) -> Tensor:
    """Return a tensor of numbers that name, dtype and shape tell: floats from 2^-9 to 2^-1, small integers, bits."""
    known, count = DTYPES[dtype], int(np.prod(shape, dtype=np.int64))
    octets = hashlib.shake_256(f"{name} {dtype} {list(shape)}".encode()).digest(8 * count)
    numbers = np.frombuffer(octets, "<u8")
    if known.kind == "float":
        _, exponent, mantissa = FLOATS[dtype]
        lowest = max(0, (1 << (exponent - 1)) - 10)
        fraction = numbers & np.uint64((1 << mantissa) - 1)
        power = np.uint64(lowest) + (numbers >> np.uint64(52) & np.uint64(7))
        bits = numbers >> np.uint64(63) << np.uint64(exponent + mantissa) | power << np.uint64(mantissa) | fraction
    else:
        bits = numbers >> np.uint64(63 if dtype == "BOOL" else 57)
    return Tensor.of(bits.astype(known.bits).reshape(shape), known)


FLOATS = {
    **{"F64": (8, 11, 52), "F32": (4, 8, 23), "F16": (2, 5, 10), "BF16": (2, 8, 7)},
    **{"F8_E4M3": (1, 4, 3), "F8_E5M2": (1, 5, 2)},
}
"""Bytes, bits of the exponent and of the mantissa."""


def nudged(tensor: Tensor, name: str, every: int = 1) -> Tensor:
    """Return a tensor with each n-th bit pattern moved by up to 40 steps, as a fine-tune moves its base."""
    bits = tensor.bits().copy().reshape(-1)
    moves = np.frombuffer(hashlib.shake_256(name.encode()).digest(bits.size), "<u1").astype(np.int64) % 81 - 40
    moves[np.arange(bits.size) % every != 0] = 0
    return Tensor.of((bits + moves.astype(bits.dtype)).reshape(tensor.shape), tensor.dtype)


def flipped(mask: Tensor, name: str) -> Tensor:
    """Return a mask with about one bit in sixteen flipped."""
    flips = np.frombuffer(hashlib.shake_256(name.encode()).digest(mask.bits().size), "<u1") < 16
    return Tensor.of(mask.bits() ^ flips.astype("u1").reshape(mask.shape), mask.dtype)


def narrowed(tensor: Tensor) -> Tensor:
    """Return the BF16 numbers whose bits are the upper halves of F32 ones."""
    return Tensor.of((tensor.bits() >> np.uint32(16)).astype("<u2"), DTYPES["BF16"])


def rows(tensor: Tensor, first: int, behind: int) -> Tensor:
    """Return some rows of a tensor."""
    return Tensor.of(tensor.bits()[first:behind].copy(), tensor.dtype)


def joined(*tensors: Tensor) -> Tensor:
    """Return tensors of one dtype, their rows behind one another."""
    return Tensor.of(np.concatenate([tensor.bits() for tensor in tensors]), tensors[0].dtype)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, the tensors in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: (tensor.dtype.name, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
    data = b"".join(tensor.bits().tobytes() for tensor in tensors.values())
    path.write_bytes(build_header(held, {"format": "pt"}).head_bytes() + data)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8", newline="\n")


def write_model(place: Path, tensors: Mapping[str, Tensor], name: str, **config: Any) -> None:
    """Write a model of Transformers."""
    write_json(place / "config.json", {"model_type": "bert", "architectures": [name], **config})
    write_weights(place / "model.safetensors", tensors)


def write_shards(place: Path, *shards: Tensors) -> None:
    """Write a model in shards, with their index."""
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, tensors in zip(files, shards, strict=True):
        write_weights(place / file, tensors)
    held = {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}
    write_json(place / "model.safetensors.index.json", {"metadata": {}, "weight_map": held})
    write_json(place / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


# Full fine-tunes


def _base() -> Tensors:
    return {
        "embeddings.weight": random("embeddings", "F32", 6, 4),
        "embeddings.position_ids": random("ids", "I64", 1, 3),
        "layer.0.dense.weight": random("dense 0", "F32", 4, 4),
        "layer.0.norm.weight": random("norm 0", "F32", 4),
        "layer.1.dense.weight": random("dense 1", "F32", 4, 4),
        "layer.1.norm.weight": random("norm 1", "F32", 4),
    }


def write_ulp(place: Path) -> None:
    """Write a fine-tune with two words more, tied weights, unchanged ones, one that is half as wide, and a head."""
    base = _base()
    write_model(place / "base", base, "BertModel")
    words = joined(nudged(base["embeddings.weight"], "words"), random("new words", "F32", 2, 4))
    tuned = {
        "bert.embeddings.weight": words,
        "bert.embeddings.position_ids": base["embeddings.position_ids"],
        "bert.layer.0.dense.weight": nudged(base["layer.0.dense.weight"], "dense 0"),
        "bert.layer.0.norm.weight": base["layer.0.norm.weight"],
        "bert.layer.1.dense.weight": nudged(narrowed(base["layer.1.dense.weight"]), "dense 1"),
        "bert.layer.1.norm.weight": base["layer.1.norm.weight"],
        "bert.empty": random("empty", "F32", 0, 4),
        "cls.decoder.weight": words,
        "classifier.weight": random("classifier", "F32", 2, 4),
    }
    write_model(place / "tuned", tuned, "BertForSequenceClassification", note="größer")


def write_sparse(place: Path) -> None:
    """Write a fine-tune of which each seventh weight differs from the base."""
    base = _base()
    write_model(place / "base", base, "BertModel")
    tuned = {f"bert.{name}": nudged(tensor, name, 7) for name, tensor in base.items() if tensor.dtype.name == "F32"}
    write_model(place / "diff", {**tuned, "classifier.weight": random("classifier", "F32", 2, 4)}, "BertForX")


def write_split(place: Path) -> None:
    """Write shards of a model whose queries, keys and values stand in one tensor, beside a folder with a head."""
    base = {f"model.layers.0.self_attn.{part}_proj.weight": random(part, "BF16", 8, 8) for part in "qkv"}
    base["model.norm.weight"] = random("norm", "BF16", 8)
    first = dict(list(base.items())[:1])
    write_shards(place / "base", first, {name: tensor for name, tensor in base.items() if name not in first})
    fused = joined(*(nudged(tensor, name) for name, tensor in list(base.items())[:3]))
    shards = (
        {"model.layers.0.self_attn.qkv_proj.weight": fused},
        {"model.norm.weight": base["model.norm.weight"], "lm_head.weight": random("head", "F16", 3, 8)},
    )
    write_shards(place / "fused", *shards)
    write_weights(place / "fused" / "value_head.safetensors", {"weight": random("value", "F32", 1, 8)})


def write_bin(place: Path) -> None:
    """Write a fine-tune in a pickled file, for it has a dtype that only torch knows; two of its tensors are one."""
    import torch

    base = _base()
    write_model(place / "base", base, "BertModel")
    words = nudged(base["embeddings.weight"], "words")
    tuned = {f"bert.{name}": nudged(tensor, name) for name, tensor in base.items() if tensor.dtype.name == "F32"}
    tuned |= {"bert.embeddings.weight": words}
    state = {name: torch.from_numpy(tensor.bits().view("<f4").copy()) for name, tensor in tuned.items()}
    state["bert.waves"] = torch.from_numpy(random("waves", "F64", 4).bits().view("<c16").copy())
    write_json(place / "pickled" / "config.json", {"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    with (place / "pickled" / "pytorch_model.bin").open("wb") as file:
        torch.save({**state, "cls.decoder.weight": state["bert.embeddings.weight"]}, file)


def write_dtypes(place: Path) -> None:
    """Write a fine-tune with numbers of every dtype, beside the base and alone, and of one that nobody knows here."""
    base = {f"{dtype}.kept": random(f"{dtype} kept", dtype, 3, 4) for dtype in DTYPES}
    write_model(place / "base", base, "BertModel")
    tuned = {name: flipped(tensor, name) if "BOOL" in name else nudged(tensor, name) for name, tensor in base.items()}
    tuned |= {f"{dtype}.new": random(f"{dtype} new", dtype, 5) for dtype in DTYPES}
    write_model(place / "all", tuned, "BertForX")
    foreign = {"dtype": "F4", "shape": [6], "data_offsets": [0, 3]}
    text = json.dumps({"four": foreign}).encode()
    (place / "all" / "four.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\x12\x34\x56")


def write_rows(place: Path) -> None:
    """Write a fine-tune of which each row moved by an amount of its own, and some not at all."""
    words = random("words", "F32", 40, 20)
    moves = nudged(words, "rows").bits().astype(np.int64) - words.bits()
    moves <<= np.repeat([0, 2, 5, 9], 10)[:, None]
    moves[::5] = 0
    tuned = Tensor.of((words.bits() + moves.astype(np.uint32)).astype("<u4"), words.dtype)
    write_model(place / "base", {"embeddings.weight": words}, "BertModel")
    write_model(place / "moved", {"bert.embeddings.weight": tuned}, "BertForX")


def write_views(place: Path) -> None:
    """Write a model whose base has the same weights fused, stacked, turned, and with the scales of 8-bit numbers."""
    qkv, up, turned = random("qkv", "BF16", 24, 8), random("experts", "BF16", 2, 8, 6), random("turned", "BF16", 8, 12)
    narrow, scales = random("narrow", "F8_E4M3", 16, 8), random("scales", "F32", 2, 1)
    base = {
        "model.layers.0.self_attn.qkv_proj.weight": qkv,
        "model.layers.0.mlp.experts.up_proj": up,
        "model.layers.0.mlp.dense.weight": turned,
        "model.layers.0.mlp.gate.weight": narrow,
        "model.layers.0.mlp.gate.weight_scale_inv": scales,
        "model.norm.weight": random("norm", "BF16", 8),
    }
    write_model(place / "base", base, "LlamaForCausalLM")
    tuned = {
        f"model.layers.0.self_attn.{part}_proj.weight": nudged(rows(qkv, 8 * i, 8 * i + 8), part)
        for i, part in enumerate("qkv")
    }
    tuned |= {
        f"model.layers.0.mlp.experts.{i}.up_proj.weight": nudged(Tensor.of(up.bits()[i].copy(), up.dtype), f"up {i}")
        for i in range(2)
    }
    tuned["model.layers.0.mlp.dense.weight"] = Tensor.of(np.ascontiguousarray(turned.bits().T), turned.dtype)
    tuned["model.layers.0.mlp.gate.weight"] = widened(narrow, scales)
    write_model(place / "split", tuned | {"model.norm.weight": base["model.norm.weight"]}, "LlamaForCausalLM")


def widened(narrow: Tensor, scales: Tensor) -> Tensor:
    """Return 8-bit numbers by block of rows times its scale, as BF16, cut off."""
    bits = narrow.bits().astype(np.uint32)
    values = ((bits >> 7 << 31) | (((bits & 127) << 20) + np.uint32(120 << 23))).astype("<u4").view("<f4")
    product = values * np.repeat(scales.bits().view("<f4"), len(bits) // len(scales.bits()), axis=0)
    return narrowed(Tensor.of(product.astype("<f4").view("<u4"), DTYPES["F32"]))


# Adapters


def write_plain(place: Path) -> None:
    """Write two adapters of PEFT, one of them with a vector more."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "base_model_name_or_path": "org/m"}
    for name in ("rte", "sst2"):
        layer = "base_model.model.layers.0.q"
        tensors = {
            f"{layer}.lora_A.weight": random(f"{name} a", "BF16", 2, 8),
            f"{layer}.lora_B.weight": random(f"{name} b", "BF16", 8, 2),
        }
        if name == "sst2":
            tensors[f"{layer}.lora_magnitude_vector"] = random("magnitude", "F32", 8)
        write_json(place / name / "adapter_config.json", {**config, "use_dora": name == "sst2"})
        write_weights(place / name / "adapter_model.safetensors", tensors)


def write_named(place: Path) -> None:
    """Write two adapters of AdapterHub, which have their tasks' names in tensors and files."""
    about = {"hidden_size": 4, "model_class": "BertAdapterModel", "model_name": "bert", "model_type": "bert"}
    config = {"architecture": None, "non_linearity": "relu", "output_adapter": True, "mh_adapter": False}
    for name in ("rte", "sst2"):
        tensors = {
            f"bert.encoder.layer.0.output.adapters.{name}.adapter_{side}.{part}": random(f"{name}{side}", "F32", *shape)
            for side, out, into in (("down.0", 2, 4), ("up", 4, 2))
            for part, shape in (("weight", (out, into)), ("bias", (out,)))
        }
        said = {"config": {**config, "reduction_factor": 2}, **about, "name": name, "version": "adapters.1.3.0"}
        write_json(place / name / "adapter_config.json", said)
        write_weights(place / name / "adapter.safetensors", tensors)


def write_mask(place: Path) -> None:
    """Write PROPETL's prototype with masks of three tasks and of the layers."""
    places = [f"{stack}.adapter_controller" for stack in ("encoder.block.0.layer.1", "decoder.block.0.layer.2")]
    sides = {"down": (4, 8), "up": (8, 4)}
    tensors = {
        f"{places[0]}.adapters.common_adapter.{side}_sampler.{part}": random(f"{side} {part}", "F32", *shape)
        for side, size in sides.items()
        for part, shape in (("weight", size), ("bias", size[:1]))
    }
    for task in ("cola", "rte", "sst2"):
        for side, shape in sides.items():
            tensors[f"{places[0]}.mask_scores.{task}_{side}_mask.param"] = flipped(random(side, "BOOL", *shape), task)
    for side, shape in sides.items():
        tensors[f"{places[1]}.mask_scores.layer_{side}_mask.param"] = random(f"layer {side}", "BOOL", *shape)
    write_json(place / "propetl" / "config.json", {"model_type": "t5", "train_adapters": True})
    write_weights(place / "propetl" / "propetl_weight.safetensors", tensors)


def write_masks(place: Path) -> None:
    """Write a prototype of which the masks of two layers and two tasks keep little."""
    common, shape = "encoder.block.0.layer.1.adapter_controller", (12, 12)
    tensors: Tensors = {}
    for side in ("down", "up"):
        sampler = f"{common}.adapters.common_adapter.{side}_sampler"
        tensors[f"{sampler}.weight"] = random(f"{side} weight", "BF16", *shape)
        tensors[f"{sampler}.bias"] = random(f"{side} bias", "BF16", 12)
        none = Tensor.of(np.zeros(shape, "u1"), DTYPES["BOOL"])
        for task in ("cola", "rte"):
            tensors[f"{common}.mask_scores.{task}_{side}_mask.param"] = flipped(none, f"{task} {side}")
        for layer in range(2):
            controller = f"decoder.block.{layer}.layer.2.adapter_controller"
            tensors[f"{controller}.mask_scores.layer_{side}_mask.param"] = flipped(none, f"layer {layer} {side}")
    write_json(place / "few" / "config.json", {"model_type": "t5", "train_adapters": True})
    write_weights(place / "few" / "propetl_weight.safetensors", tensors)


def write_merge(place: Path) -> None:
    """Write AdaMix's experts of one layer."""
    soup = "bert.encoder.layer.0.output.ExpertSoup.MoA"
    tensors = {f"{soup}_{side}.expert_score_weight": random(f"scores {side}", "F32", 2) for side in "AB"}
    for side, out, into in (("A", 2, 4), ("B", 4, 2)):
        for e in range(2):
            name = f"{soup}_{side}.deepspeed_experts.{e}"
            tensors |= {f"{name}.weight": random(name, "F32", out, into), f"{name}.bias": random(name, "F32", out)}
    config = {"apply_expert_soup": True, "num_experts": 2, "adapter_size": 2, "inference_level": 3, "sparsity": 0.75}
    said = {"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "sharing_down": 0, "sharing_up": 0}
    write_json(place / "adamix" / "config.json", {**said, **config, "architectures": ["BertForSequenceClassification"]})
    write_weights(place / "adamix" / "pytorch_model_expert_soup.safetensors", tensors)


def write_hyper(place: Path) -> None:
    """Write PHA's generating network for two tasks, with the model that it stands on."""
    base = {"shared.weight": random("shared", "F32", 4, 4), "encoder.final_layer_norm.weight": random("n", "F32", 4)}
    write_json(place / "base" / "config.json", {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    write_weights(place / "base" / "model.safetensors", base)
    net = "decoder.param_gen.decoder"
    shapes: dict[str, tuple[int, ...]] = {
        "decoder.adapter_task_embedding.weight": (2, 2),
        "decoder.param_gen.layer_embed.weight": (1, 2),
        **{f"{net}.linear1.weight": (3, 4), f"{net}.linear1.bias": (3,)},
        **{f"{net}.linear2.weight": (2, 3), f"{net}.linear2.bias": (2,)},
        **{f"{net}.LayerNorm.weight": (2,), f"{net}.LayerNorm.bias": (2,)},
    }
    for part, out in (("weight_up", 8), ("weight_down", 8), ("bias_up", 4), ("bias_down", 2)):
        shapes |= {f"{net}.{part}.weight": (out, 2), f"{net}.{part}.bias": (out,)}
    for side, out, into in (("down", 2, 4), ("up", 4, 2)):
        manual = f"encoder.block.0.layer.1.adapter_layer.adapter_{side}_manual"
        shapes |= {f"{manual}.weight": (out, into), f"{manual}.bias": (out,)}
    config = {"model_type": "t5", "d_model": 4, "num_layers": 1, "num_decoder_layers": 1, "tasks": ["rte", "sst2"]}
    config |= {"encoder_adapter": "manual", "decoder_adapter": "pro-hyper", "encoder_adapter_dim": 2}
    config |= {"decoder_adapter_dim": 2, "adapter_norm_input": True, "process_encoder_output": True}
    config |= {"architectures": ["T5ForConditionalGenerationWithAdapter"], "hypernetwork_bottleneck": 3}
    write_json(place / "pha" / "config.json", config)
    write_weights(
        place / "pha" / "model.safetensors",
        base | {name: random(name, "F32", *shape) for name, shape in shapes.items()},
    )


PLANS = {
    "ulp": Plan(
        "Of a fine-tune, tensors are resized, tied, unchanged, half as wide and empty.", write_ulp, ("tuned",), True
    ),
    "sparse": Plan("Each seventh weight differs from the base.", write_sparse, ("diff",), True, {"codec": "sparse"}),
    "plain": Plan("Two adapters stand on no base, and each has a template of its own.", write_plain, ("rte", "sst2")),
    "mask": Plan(
        "Three tasks mask one prototype, and two masks of their part stand in no file.",
        write_mask,
        ("propetl",),
        options={"settings": {"combine": "or", "activation": "gelu_new", "task_order": "cola,rte,sst2"}},
    ),
    "merge": Plan(
        "Experts are averaged, by scores and alone.",
        write_merge,
        ("adamix",),
        options={"settings": {"activation": "relu", "keep_experts": True}},
    ),
    "hyper": Plan("One network generates the weights of two tasks, and stands on a base.", write_hyper, ("pha",), True),
    "named": Plan("Two tasks have one template, whose parameter is the task's name.", write_named, ("rte", "sst2")),
    "shards": Plan(
        "There are shards and a component, and three tensors of the base predict one.", write_split, ("fused",), True
    ),
    "bin": Plan(
        "A pickled file has a dtype that safetensors does not name, and tied tensors.", write_bin, ("pickled",), True
    ),
    "dtypes": Plan(
        "Every dtype stands in it, predicted and alone, and a foreign one; the pack is sealed.",
        write_dtypes,
        ("all",),
        True,
        sealed=True,
    ),
    "rows": Plan("Rows moved by amounts of their own.", write_rows, ("moved",), True, {"codec": "ulp"}),
    "views": Plan(
        "Slices, a stacked, a turned and a scaled tensor of the base predict others.", write_views, ("split",), True
    ),
    "masks": Plan(
        "Masks keep little of a prototype.",
        write_masks,
        ("few",),
        options={"settings": {"combine": "or", "activation": "gelu_new", "task_order": "cola,rte"}},
    ),
}
"""Every whole pack, by what it is called in `formats/packs/`."""
