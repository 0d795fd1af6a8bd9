"""Runs of PROPETL, AdaMix, diff pruning, PHA, HyperFormer and AdapterHub as their own code leaves them, of any size.

The weights are random from a seed; names, shapes, dtypes, aliases and files are the reference code's
(`repository path:line`, at the commits that tests/support/method_formulas.py names). Two keys that are one array in
`Written.files` share one storage in the file. Nothing here comes from petlpack.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.method_formulas import diff_pruned, hard_concrete, kept_count, mask_of_scores

Array = NDArray[Any]
Tensors = dict[str, Array]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and of what is trained on it; the defaults are for tests."""

    layers: int = 2
    width: int = 16
    bottleneck: int = 4
    vocab: int = 40
    heads: int = 2
    labels: int = 2
    positions: int = 12
    rank: int = 4
    prefix: int = 6
    prefix_hidden: int = 8

    @property
    def inner(self) -> int:
        """The feed-forward width."""
        return 4 * self.width


_BASE = {"layers": 12, "width": 768, "heads": 12, "positions": 512}
_LARGE = {"layers": 24, "width": 1024, "heads": 16, "positions": 512}
ROBERTA_BASE = Shape(**_BASE | {"positions": 514}, bottleneck=64, vocab=50265, rank=32, prefix=64, prefix_hidden=512)
ROBERTA_LARGE = Shape(**_LARGE | {"positions": 514}, bottleneck=16, vocab=50265)
BERT_BASE = Shape(**_BASE, bottleneck=48, vocab=30522)
BERT_LARGE = Shape(**_LARGE, bottleneck=16, vocab=30522)
T5_BASE = Shape(**_BASE, bottleneck=64, vocab=32128)
GPT2_MEDIUM = Shape(**_LARGE | {"positions": 1024}, bottleneck=8, vocab=50257, rank=4)


@dataclass(frozen=True)
class Written:
    """A run that was written: its directory, and the arrays of every weight file by the file's name in it."""

    path: Path
    files: dict[str, Tensors] = field(default_factory=dict)

    @property
    def tensors(self) -> Tensors:
        """The arrays of all weight files together, a later file's above an earlier one's."""
        return {name: array for tensors in self.files.values() for name, array in tensors.items()}


# Random arrays: each from the seed and its own name, so that none depends on what was drawn before it


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _normal(seed: int, name: str, shape: Sequence[int], scale: float = 0.02) -> NDArray[np.float32]:
    return _rng(seed, name).standard_normal(tuple(shape), np.float32) * np.float32(scale)


def _normals(seed: int, shapes: Mapping[str, Sequence[int]], prefix: str = "") -> Tensors:
    """Draw weights by name; LayerNorm weights lie around 1."""
    drawn: Tensors = {name: _normal(seed, prefix + name, shape) for name, shape in shapes.items()}
    for name, array in drawn.items():
        if array.ndim == 1 and name.endswith(".weight"):
            array += np.float32(1)
    return {prefix + name: array for name, array in drawn.items()}


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _scores(
    seed: int, name: str, group: str, shape: tuple[int, ...], keep: float, overlap: float
) -> NDArray[np.float32]:
    """Draw kaiming_uniform(a=sqrt 5) scores; a group's masks have the share `overlap` of what they keep in common."""
    bound = np.float32(shape[-1] ** -0.5)
    scores = _rng(seed, name).uniform(-bound, bound, shape).astype(np.float32)
    common = _rng(seed, group).permutation(scores.size)[: int(overlap * kept_count(scores.size, keep))]
    flat = scores.reshape(-1)
    flat[common] += np.copysign(bound, flat[common])
    return scores


# Files


class _Tripwire:
    """What training_args.bin holds: whoever unpickles it fails."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise AssertionError('training_args.bin was unpickled')",)


def _to_torch(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Return torch tensors over the arrays: names of one array share one storage."""
    import torch

    made = {id(array): torch.from_numpy(array) for array in tensors.values()}
    return {name: made[id(array)] for name, array in tensors.items()}


def _state_dict(tensors: Mapping[str, Array]) -> OrderedDict[str, Any]:
    """Return what Module.state_dict() returns: an OrderedDict with the attribute _metadata."""
    state = OrderedDict(_to_torch(tensors))
    setattr(state, "_metadata", OrderedDict({"": {"version": 1}}))  # noqa: B010 - mypy knows no such attribute
    return state


def _write_torch(run: Written, name: str, content: Any, tensors: Mapping[str, Array]) -> None:
    import torch

    path = run.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    run.files[name] = dict(tensors)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_trainer_files(directory: Path, *, spiece: bool = False) -> None:
    """Write what a Trainer leaves beside the weights: two pickles nobody may load, logs, results, a tokenizer."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    torch.save(_Tripwire(), directory / "training_args.bin")
    _write_json(directory / "trainer_state.json", {"best_metric": 0.5, "global_step": 10, "log_history": []})
    for split in ("train", "eval", "all"):
        _write_json(directory / f"{split}_results.json", {f"{split}_loss": 0.25})
    _write_json(directory / "tokenizer_config.json", {"model_max_length": 512})
    _write_json(directory / "special_tokens_map.json", {"pad_token": "<pad>"})
    if spiece:
        (directory / "spiece.model").write_bytes(b"\n\x0e\n\x05<pad>\x15\x00\x00\x00\x00\x18\x03")
    else:
        (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n", encoding="utf-8")


# Pretrained bases


def _encoder_shapes(shape: Shape, token_types: int) -> dict[str, tuple[int, ...]]:
    d, inner = shape.width, shape.inner
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocab, d),
        "embeddings.position_embeddings.weight": (shape.positions, d),
        "embeddings.token_type_embeddings.weight": (token_types, d),
        **_norm("embeddings.LayerNorm", d),
    }
    for i in range(shape.layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{part}", d, d)
        shapes |= _linear(f"{layer}.attention.output.dense", d, d) | _norm(f"{layer}.attention.output.LayerNorm", d)
        shapes |= _linear(f"{layer}.intermediate.dense", inner, d)
        shapes |= _linear(f"{layer}.output.dense", d, inner) | _norm(f"{layer}.output.LayerNorm", d)
    return shapes | _linear("pooler.dense", d, d)


def _t5_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    d, inner = shape.width, shape.inner
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (shape.vocab, d)}
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for i in range(shape.layers):
            for j, attention in enumerate(attentions):
                layer = f"{stack}.block.{i}.layer.{j}"
                shapes |= {f"{layer}.{attention}.{part}.weight": (d, d) for part in "qkvo"}
                if i == j == 0:
                    shapes[f"{layer}.{attention}.relative_attention_bias.weight"] = (32, shape.heads)
                shapes[f"{layer}.layer_norm.weight"] = (d,)
            layer = f"{stack}.block.{i}.layer.{len(attentions)}"
            shapes[f"{layer}.DenseReluDense.wi.weight"] = (inner, d)
            shapes[f"{layer}.DenseReluDense.wo.weight"] = (d, inner)
            shapes[f"{layer}.layer_norm.weight"] = (d,)
        shapes[f"{stack}.final_layer_norm.weight"] = (d,)
    return shapes


def _gpt2_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    d, inner = shape.width, shape.inner
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (shape.vocab, d), "wpe.weight": (shape.positions, d)}
    for i in range(shape.layers):
        shapes |= _norm(f"h.{i}.ln_1", d) | _norm(f"h.{i}.ln_2", d)
        conv1d = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}
        for name, (into, out) in conv1d.items():  # Conv1D keeps its weight as (in, out)
            shapes |= {f"h.{i}.{name}.weight": (into, out), f"h.{i}.{name}.bias": (out,)}
    return shapes | _norm("ln_f", d)


def base_tensors(family: str, shape: Shape, *, seed: int = 0) -> Tensors:
    """Return a base's tensors by their names in a Transformers file: "bert", "roberta", "t5" or "gpt2".

    The first entry of every matrix is -0.0: adding +0.0 to it changes its bits and not its value.
    """
    if family == "t5":
        shapes = _t5_shapes(shape)
    elif family == "gpt2":
        shapes = _gpt2_shapes(shape)
    else:
        shapes = _encoder_shapes(shape, 1 if family == "roberta" else 2)
    tensors = _normals(seed, shapes)
    for array in tensors.values():
        if array.ndim > 1:
            array.reshape(-1)[0] = -0.0
    return tensors


_CLASSES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "t5": "T5ForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel",
}


def base_config(family: str, shape: Shape) -> dict[str, Any]:
    """Return a base's config.json."""
    common = {"model_type": family, "architectures": [_CLASSES[family]], "vocab_size": shape.vocab}
    if family == "t5":
        return common | {
            "d_model": shape.width,
            "d_ff": shape.inner,
            "d_kv": shape.width // shape.heads,
            "num_layers": shape.layers,
            "num_decoder_layers": shape.layers,
            "num_heads": shape.heads,
            "relative_attention_num_buckets": 32,
            "feed_forward_proj": "relu",
            "layer_norm_epsilon": 1e-6,
        }
    if family == "gpt2":
        sizes = {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads, "n_positions": shape.positions}
        end = shape.vocab - 1
        return common | sizes | {"layer_norm_epsilon": 1e-5, "bos_token_id": end, "eos_token_id": end}
    return common | {
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": 1 if family == "roberta" else 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5 if family == "roberta" else 1e-12,
    }


def write_base(
    directory: Path, shape: Shape = Shape(), *, seed: int = 0, family: str = "bert", dtype: str = "float32"
) -> Written:
    """Write a pretrained base as Transformers does: config.json and model.safetensors (tied names once, no prefix)."""
    import safetensors.torch

    run = Written(directory)
    tensors = {name: array.astype(dtype, copy=False) for name, array in base_tensors(family, shape, seed=seed).items()}
    _write_json(directory / "config.json", base_config(family, shape) | {"dtype": dtype})
    safetensors.torch.save_file(_to_torch(tensors), directory / "model.safetensors", {"format": "pt"})
    run.files["model.safetensors"] = tensors
    return run


def _full_t5(base: Mapping[str, Array] | None, shape: Shape) -> Tensors:
    """Return a whole T5's state dict: `shared` has three more names. Without a base: write_base's of seed 0."""
    state = dict(base_tensors("t5", shape) if base is None else base)
    return state | dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), state["shared.weight"]
    )


# AdapterHub and the fork of it that PROPETL trains RoBERTa with

_PFEIFFER = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "output_adapter": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "use_gating": False,
}


def _lora_config(rank: int, alpha: float, **changes: Any) -> dict[str, Any]:
    return {
        "architecture": "lora",
        "selfattn_lora": True,
        "intermediate_lora": False,
        "output_lora": False,
        "leave_out": [],
        "r": rank,
        "alpha": alpha,
        "dropout": 0.0,
        "attn_matrices": ["q", "v"],
        "composition_mode": "add",
        "init_weights": "lora",
        "use_gating": False,
    } | changes


def _prefix_config(shape: Shape) -> dict[str, Any]:
    return {
        "architecture": "prefix_tuning",
        "encoder_prefix": True,
        "cross_prefix": True,
        "leave_out": [],
        "flat": False,
        "prefix_length": shape.prefix,
        "bottleneck_size": shape.prefix_hidden,
        "non_linearity": "tanh",
        "dropout": 0.0,
        "use_gating": False,
        "shared_gating": True,
    }


def _bottleneck_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    return _linear("adapter_down.0", shape.bottleneck, shape.width) | _linear(
        "adapter_up", shape.width, shape.bottleneck
    )


def _prefix_shapes(shape: Shape, outputs: int) -> dict[str, tuple[int, ...]]:
    return {
        "wte.weight": (shape.prefix, shape.width),
        **_linear("control_trans.0", shape.prefix_hidden, shape.width),
        **_linear("control_trans.2", outputs * shape.width, shape.prefix_hidden),
    }


def _prefix_names(model: str, name: str, layers: int) -> list[str]:
    """Return every name of the one prefix module: the model's pool and each layer's reference to it."""
    pools = [f"{model}.encoder.layer.{i}.attention.self.prefix_tuning.pool" for i in range(layers)]
    return [f"{pool}.prefix_tunings.{name}.self_prefix" for pool in [*pools, f"{model}.prefix_tuning"]]


def _write_hub_files(
    run: Written,
    folder: str,
    name: str,
    shape: Shape,
    config: Mapping[str, Any],
    weights: Tensors,
    *,
    version: str,
    family: str,
    head_seed: int | None,
    safe: bool = False,
) -> None:
    """Write adapter_config.json, the adapter, head_config.json and the head (592,130 floats at RoBERTa-base's size)."""
    import safetensors.torch

    about = {
        "hidden_size": shape.width,
        "model_class": f"{_CLASSES[family].removesuffix('Model')}AdapterModel",
        "model_name": f"{family}-base",
        "model_type": family,
        "name": name,
        "version": version,
    }
    files = [("adapter_config.json", ("pytorch_adapter.bin", "adapter.safetensors"), dict(config), weights)]
    if head_seed is not None:
        head = _normals(
            head_seed,
            _linear("1", shape.width, shape.width) | _linear("4", shape.labels, shape.width),
            f"heads.{name}.",
        )
        head_config = {
            "head_type": "classification",
            "num_labels": shape.labels,
            "layers": 2,
            "activation_function": "tanh",
            "label2id": {f"LABEL_{label}": label for label in range(shape.labels)},
            "use_pooler": False,
            "bias": True,
        }
        files.append(("head_config.json", ("pytorch_model_head.bin", "model_head.safetensors"), head_config, head))
    for config_file, (binary, safe_binary), content, tensors in files:
        _write_json(run.path / folder / config_file, {"config": content} | about)
        if safe:  # the library refuses shared storages, so each name has its own bytes
            own = {key: array.copy() for key, array in tensors.items()}
            safetensors.torch.save_file(_to_torch(own), run.path / folder / safe_binary)
            run.files[f"{folder}/{safe_binary}".removeprefix("/")] = own
        else:
            _write_torch(run, f"{folder}/{binary}".removeprefix("/"), _to_torch(tensors), tensors)


def write_adapterhub(
    directory: Path,
    name: str,
    shape: Shape = Shape(),
    *,
    kind: str = "seq_bn",
    use_safetensors: bool = False,
    head: bool = True,
    seed: int = 0,
) -> Written:
    """Write an adapter directory of AdapterHub's `adapters` 1.3.0 on BERT: "seq_bn", "lora", "prefix" or "ia3"."""
    run, weights = Written(directory), Tensors()
    layers = [f"bert.encoder.layer.{i}" for i in range(shape.layers)]
    config: dict[str, Any]
    if kind == "seq_bn":
        config = _PFEIFFER | {
            "reduction_factor": shape.width / shape.bottleneck,
            "dropout": 0.0,
            "stochastic_depth": 0.0,
        }
        for layer in layers:
            weights |= _normals(seed, _bottleneck_shapes(shape), f"{layer}.output.adapters.{name}.")
    elif kind == "lora":
        config = _lora_config(shape.rank, 8, vera_d=None, vera_b=None, dtype=None)
        sides = {"lora_A": (shape.rank, shape.width), "lora_B": (shape.width, shape.rank)}
        for layer in layers:
            for part in ("query", "value"):
                weights |= _normals(seed, sides, f"{layer}.attention.self.{part}.loras.{name}.")
    elif kind == "prefix":
        config = _prefix_config(shape)
        module = _normals(seed, _prefix_shapes(shape, 2 * shape.layers))
        weights = {
            f"{at}.{key}": array for at in _prefix_names("bert", name, shape.layers) for key, array in module.items()
        }
    elif kind == "ia3":
        scaled = {"composition_mode": "scale", "init_weights": "ia3", "attn_matrices": ["k", "v"]}
        config = _lora_config(1, 1, **scaled, intermediate_lora=True)
        for layer in layers:
            for part, out in (
                ("attention.self.key", shape.width),
                ("attention.self.value", shape.width),
                ("intermediate.dense", shape.inner),
            ):
                key = f"{layer}.{part}.loras.{name}.lora_B"
                weights[key] = 1 + _normal(seed, key, (out, 1))
    else:
        raise ValueError(kind)
    _write_hub_files(
        run,
        "",
        name,
        shape,
        config,
        weights,
        version="adapters.1.3.0",
        family="bert",
        head_seed=seed if head else None,
        safe=use_safetensors,
    )
    return run


# PROPETL


def write_propetl_roberta(
    directory: Path,
    task: str,
    shape: Shape = Shape(),
    *,
    kind: str = "adapter",
    keep: float = 0.5,
    seed: int = 0,
    prototype_seed: int | None = None,
    overlap: float = 0.0,
    raw_scores: bool = False,
) -> Written:
    """Write the run of one task on RoBERTa, `kind` "adapter", "lora" or "prefix"; the adapter lies in <run>/<task>.

    Tasks of one `prototype_seed` have one prototype. `overlap` is the share of each mask's kept entries that the masks
    of all layers have in common. `raw_scores`: adapter_mask.bin holds scores, as when sparsity is 1.0 (loading.py:71).
    A prefix's scores are raw always, in pytorch_adapter.bin, beside an adapter_mask.bin without a key.
    """
    run = Written(directory)
    at = seed if prototype_seed is None else prototype_seed
    config: dict[str, Any]
    scores, weights = Tensors(), Tensors()
    if kind == "adapter":
        config = _PFEIFFER | {"reduction_factor": shape.width / shape.bottleneck}
        sides = {"down_mask": (shape.width, shape.bottleneck), "up_mask": (shape.bottleneck, shape.width)}
        prototype = _normals(at, _bottleneck_shapes(shape), "prototype.")
        places, word = ["output"], "adapters"
    elif kind == "lora":
        config = _lora_config(shape.rank, 1.5 * shape.rank, share_adapter=True)
        lora = {"lora_A": (shape.rank, shape.width), "lora_B": (shape.width, shape.rank)}
        sides = {f"{side}_mask": size for side, size in lora.items()}
        places, word = ["attention.self.query", "attention.self.value"], "loras"
    elif kind == "prefix":
        config = _prefix_config(shape) | {"share_adapter": True, "sparsity": keep}
        module = _normals(at, _prefix_shapes(shape, 2), "prototype.")
        size = (shape.prefix, 2 * shape.width)
        masks = [_scores(seed, f"prefix.{i}", "prefix", size, keep, overlap) for i in range(shape.layers)]
        module["prototype.adapters_mask.adapters_mask"] = np.stack(masks)
        for name in _prefix_names("roberta", task, shape.layers):
            weights |= {f"{name}.{key.removeprefix('prototype.')}": array for key, array in module.items()}
        sides, places, word = {}, [], ""
    else:
        raise ValueError(kind)
    for place in places:
        if kind == "lora":  # query and value have a prototype each
            prototype = _normals(at, lora, f"prototype.{place}.")
        for i in range(shape.layers):
            module_name = f"roberta.encoder.layer.{i}.{place}"
            for key, array in prototype.items():
                plain = key.removeprefix("prototype.").removeprefix(f"{place}.")
                weights[f"{module_name}.{word}.{task}.{plain}"] = array
            for side, size in sides.items():
                name = f"{module_name}.adapters_mask.{task}.{side}"
                scores[name] = _scores(seed, name, f"{place}.{side}", size, keep, overlap)
    masked = scores if raw_scores else {name: mask_of_scores(array, keep) for name, array in scores.items()}
    _write_hub_files(run, task, task, shape, config, weights, version="3.1.0", family="roberta", head_seed=seed)
    _write_torch(run, f"{task}/adapter_mask.bin", _to_torch(masked), masked)
    _write_trainer_files(directory)
    return run


def write_propetl_t5(
    directory: Path,
    tasks: Sequence[str],
    shape: Shape = Shape(),
    *,
    keep: float = 0.3,
    seed: int = 0,
    weight_file: bool = True,
    full_model: bool = False,
    base: Mapping[str, Array] | None = None,
    extreme: bool = True,
    layer_overlap: float = 0.0,
    task_overlap: float = 0.0,
    languages: Sequence[str] = (),
) -> Written:
    """Write a T5 run: propetl_weight.bin with bool masks, and pytorch_model.bin of `base` with all raw scores.

    `extreme`: task masks that all layers share, and layer masks; the first encoder block's layer mask is the last
    task's (or language's) and so is absent from propetl_weight.bin (adapter_controller.py:77-90). Otherwise every
    layer has task masks of its own and there are no layer masks.
    """
    run = Written(directory)
    controllers = [f"encoder.block.{i}.layer.1.adapter_controller" for i in range(shape.layers)]
    controllers += [f"decoder.block.{i}.layer.2.adapter_controller" for i in range(shape.layers)]
    d, b = shape.width, shape.bottleneck
    adapter = _normals(seed, _linear("down_sampler", b, d) | _linear("up_sampler", d, b), "adapters.common_adapter.")
    sides = {"down": (b, d), "up": (d, b)}
    scores = Tensors()
    for at, controller in enumerate(controllers):
        for name in [*tasks, *languages]:
            for side, size in sides.items():
                first = f"{controllers[0]}.mask_scores.{name}_{side}_mask.param"
                key = f"{controller}.mask_scores.{name}_{side}_mask.param"
                tied = extreme and at > 0
                group = f"task.{side}" if extreme else f"{name}.{side}"
                overlap = task_overlap if extreme else layer_overlap
                scores[key] = scores[first] if tied else _scores(seed, key, group, size, keep, overlap)
        for side, size in sides.items() if extreme else ():
            key = f"{controller}.mask_scores.layer_{side}_mask.param"
            last = f"{controller}.mask_scores.{[*tasks, *languages][-1]}_{side}_mask.param"
            scores[key] = scores[last] if at == 0 else _scores(seed, key, f"layer.{side}", size, keep, layer_overlap)
    if weight_file:
        unique = {f"{controllers[0]}.{key}": array for key, array in adapter.items()}
        seen: set[int] = set()
        for key, array in scores.items():  # named_parameters() names a shared parameter once, by its first name
            if id(array) not in seen:
                unique[key] = mask_of_scores(array, keep)
            seen.add(id(array))
        _write_torch(run, "propetl_weight.bin", _to_torch(unique), unique)
    if full_model:
        state = (
            _full_t5(base, shape)
            | {f"{at}.{key}": array for at in controllers for key, array in adapter.items()}
            | scores
        )
        _write_torch(run, "pytorch_model.bin", _state_dict(state), state)
    _write_json(directory / "config.json", base_config("t5", shape) | {"train_adapters": True})
    _write_json(directory / "test_results.json", {f"{task}_test_loss": 0.25 for task in tasks})
    (directory / "terminal_logs.txt").write_text("start", encoding="utf-8")
    _write_trainer_files(directory, spiece=True)
    return run


# AdaMix


def _expert_soup(seed: int, name: str, width: int, narrow: int, counts: tuple[int, int], score_scale: float) -> Tensors:
    """Draw one ExpertSoup: MoA_A projects down, MoA_B up, each with its experts and their scores."""
    tensors = Tensors()
    for side, (out, into), count in (("A", (narrow, width), counts[0]), ("B", (width, narrow), counts[1])):
        moa = f"{name}.ExpertSoup.MoA_{side}"
        tensors[f"{moa}.expert_score_weight"] = _normal(seed, f"{moa}.scores", (count,), score_scale)
        for e in range(count):
            tensors |= _normals(seed, _linear(f"{moa}.deepspeed_experts.{e}", out, into))
    return tensors


def write_adamix(
    directory: Path,
    shape: Shape = Shape(),
    *,
    family: str = "bert",
    experts: int = 4,
    share_up: bool = True,
    share_down: bool = False,
    inference_level: int = 3,
    soup: bool = True,
    full: bool = False,
    base: Mapping[str, Array] | None = None,
    score_scale: float = 0.0,
    seed: int = 0,
) -> Written:
    """Write a GLUE run: pytorch_model_expert_soup.bin and, if `full`, pytorch_model.bin over `base` (run_glue.py:689).

    Without a base the full model stands on write_base's of seed 0. The scores are zeros unless `score_scale` is given.
    """
    run, d = Written(directory), shape.width
    counts = (1 if share_down else experts, 1 if share_up else experts)
    trained = Tensors()
    for i in range(shape.layers):
        trained |= _expert_soup(seed, f"{family}.encoder.layer.{i}.output", d, shape.bottleneck, counts, score_scale)
    if family == "roberta":
        trained |= _normals(seed, _linear("classifier.dense", d, d) | _linear("classifier.out_proj", shape.labels, d))
    else:
        trained |= _normals(seed, _linear("classifier", shape.labels, d))
    if full:
        state: Tensors = {f"{family}.embeddings.position_ids": np.arange(shape.positions)[None]}
        for name, array in (base_tensors(family, shape) if base is None else base).items():
            if family != "roberta" or not name.startswith("pooler."):  # RoBERTa's classifier stands on no pooler
                state[f"{family}.{name}"] = array
        _write_torch(run, "pytorch_model.bin", _state_dict(state | trained), state | trained)
    if soup:
        _write_torch(run, "pytorch_model_expert_soup.bin", _to_torch(trained), trained)
    _write_json(
        directory / "config.json",
        base_config(family, shape)
        | {
            "architectures": [f"{_CLASSES[family].removesuffix('Model')}ForSequenceClassification"],
            "apply_expert_soup": True,
            "num_experts": experts,
            "adapter_size": shape.bottleneck,
            "inference_level": inference_level,
            "sharing_down": int(share_down),
            "sharing_up": int(share_up),
            "sparsity": 0.75,
        },
    )
    _write_trainer_files(directory)
    return run


def write_adamix_nlg(
    directory: Path,
    shape: Shape = Shape(),
    *,
    experts: int = 8,
    kind: str = "lora",
    share_a: bool = False,
    share_b: bool = True,
    ddp_prefix: bool = True,
    full: bool = False,
    base: Mapping[str, Array] | None = None,
    step: int = 1000,
    score_scale: float = 0.0,
    seed: int = 0,
) -> Written:
    """Write a GPT-2 run: model.{step}.pt, filtered, or with `full` model.final.pt, over `base` (gpt2_ft.py:234-268).

    `kind` is "lora" (c_attn, q and v) or "adapter" (adamix_only). `shape.rank` is the LoRA rank, `shape.bottleneck`
    the adapter's.
    """
    run, d = Written(directory), shape.width
    counts = (1 if share_a else experts, 1 if share_b else experts)
    trained = Tensors()
    for i in range(shape.layers):
        if kind == "adapter":
            trained |= _expert_soup(seed, f"transformer.h.{i}.mlp", d, shape.bottleneck, counts, score_scale)
            continue
        name = f"transformer.h.{i}.attn.c_attn"
        trained[f"{name}.lora_expert_score_weight"] = _normal(seed, f"{name}.scores", (experts,), score_scale)
        for side, size, count in (("A", (2 * shape.rank, d), counts[0]), ("B", (2 * d, shape.rank), counts[1])):
            trained |= _normals(seed, {f"{name}.experts_lora_{side}.{e}": size for e in range(count)})
    state = Tensors()
    if full:
        stored = base_tensors("gpt2", shape) if base is None else base
        state = {f"transformer.{name}": array for name, array in stored.items()}
        for i in range(shape.layers):
            state[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((shape.positions,) * 2, np.float32))[None, None]
        state["lm_head.decoder.weight"] = state["transformer.wte.weight"]
    state = {("module." if ddp_prefix else "") + name: array for name, array in (state | trained).items()}
    state_dict = _state_dict(state) if full else _to_torch(state)
    _write_torch(run, "model.final.pt" if full else f"model.{step}.pt", {"model_state_dict": state_dict}, state)
    return run


# Diff pruning


def _gates(seed: int, name: str, shape: tuple[int, ...], density: float, *, final: bool) -> tuple[Array, Array]:
    """Return alpha and z: sampled hard-concrete gates of thrice the density, or for the last stage a mask of it."""
    chance = _rng(seed, f"{name}.chosen").random(shape, np.float32)
    alpha = np.where(chance < 3 * density, np.float32(5), np.float32(-10))
    if not final:
        return alpha, hard_concrete(alpha, _rng(seed, f"{name}.u").random(shape, np.float32))
    mask = chance < density
    mask.reshape(-1)[:1], mask.reshape(-1)[1:2] = False, True
    return alpha, mask.astype(np.float32)


def write_diff_pruning(
    directory: Path,
    base_dir: Path,
    *,
    stage: int = 3,
    density: float = 0.005,
    seed: int = 0,
    structured: bool = True,
    labels: int = 2,
    module_prefix: bool = False,
    info: bool = True,
) -> Written:
    """Write what a stage leaves on the BERT in `base_dir`, with a dense classifier whose random p0 is no base's.

    1: checkpoint-{last,best}-info.pt, whose model was made with w before the last step and whose bert_params hold w
    after it, and pytorch_model.bin. 2: mag{percent}p.pt alone. 3: pytorch_model.bin, theta = fl(p0 + m w), and the
    info files too unless `info` is False (four times the memory).

    In the last stage a tensor's first entry is unmasked with w > 0, which makes a base's -0.0 into 0.0, and its second
    one is masked with a w so small that theta is p0. `structured` changes nothing in an eighth of the tensors.
    `module_prefix` is DataParallel's: on the names in the .pt files only. In `Written.files` those names are
    "model.<name>" and "bert_params.<name>.<0, 1 or 2>".
    """
    import safetensors.numpy
    import torch

    run, config = Written(directory), json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    stored = safetensors.numpy.load_file(base_dir / "model.safetensors")
    start: Tensors = {f"bert.{name}": array.astype("f4") for name, array in stored.items() if array.dtype.kind == "f"}
    start |= _normals(seed, _linear("classifier", labels, config["hidden_size"]))
    keep_parts = stage < 3 or info
    model, parts, last = Tensors(), dict[str, list[Array]](), np.zeros(())
    for name, p0 in start.items():
        w = _normal(seed, f"{name}.w", p0.shape, 1e-3)
        flat = w.reshape(-1)
        flat[:1], flat[1:2] = np.abs(flat[:1]), 1e-30
        alpha, z = _gates(seed, name, p0.shape, density, final=stage == 3)
        if name.startswith("classifier."):
            z = np.ones_like(z)
        elif structured and zlib.crc32(name.encode()) % 8 == seed % 8:
            z = np.zeros_like(z)
        last = last if name.startswith("classifier.") else z
        model[name] = diff_pruned(p0, w, z)
        if keep_parts:
            step = 0 if stage == 3 else _normal(seed, f"{name}.step", p0.shape, 1e-5)
            parts[name] = [p0, w + step, alpha]
    if stage == 2:
        diffs = {name: model[name] - start[name] for name in start}
        sizes = np.sort(np.abs(np.concatenate([diff.reshape(-1) for diff in diffs.values()])))
        threshold = sizes[-max(1, int(density * sizes.size))]
        model = {
            name: start[name] + np.where(np.abs(diff) < threshold, np.float32(0), diff) for name, diff in diffs.items()
        }

    def write_info(name: str) -> None:
        prefix = "module." if module_prefix else ""
        bert_params = {
            prefix + key: [torch.from_numpy(array).requires_grad_(i > 0) for i, array in enumerate(arrays)]
            for key, arrays in parts.items()
        }
        state = _state_dict({prefix + key: array for key, array in model.items()})
        content: dict[str, Any] = {"model": state, "bert_params": bert_params}
        if stage == 3:
            changed = sum(int((model[key] != start[key]).sum()) for key in model)
            content["z"] = torch.from_numpy(last)
            content["nonzero_params"] = [sum(array.size for array in model.values()), changed]
        flat_parts = {
            f"bert_params.{prefix}{key}.{i}": array for key, part in parts.items() for i, array in enumerate(part)
        }
        _write_torch(run, name, content, {f"model.{prefix}{key}": array for key, array in model.items()} | flat_parts)

    if stage == 2:
        write_info(f"mag{100 * density:g}p.pt")
        return run
    if info:
        write_info("checkpoint-last-info.pt")
        write_info("checkpoint-best-info.pt")
    _write_torch(run, "pytorch_model.bin", _state_dict(model), model)
    _write_json(
        directory / "config.json", config | {"architectures": ["BertForSequenceClassification"], "num_labels": labels}
    )
    _write_trainer_files(directory)
    if stage == 3:
        torch.save({"state": {}, "param_groups": [{"lr": 5e-5, "params": [0]}]}, directory / "optimizer.pt")
        torch.save({"last_epoch": 10, "_step_count": 11}, directory / "scheduler.pt")
    return run


# PHA and HyperFormer


def write_pha(
    directory: Path,
    tasks: Sequence[str],
    shape: Shape = Shape(),
    *,
    base: Mapping[str, Array] | None = None,
    seed: int = 0,
    decoder_adapter: str = "pro-hyper",
    embed: int = 64,
    trunk: int = 128,
    code: int = 64,
) -> Written:
    """Write a PHA run: a full pytorch_model.bin over `base`, and config.json with `tasks` in the order of the rows.

    That order is not the caller's (finetune_trainer.py:134-136). `decoder_adapter` "generated" is HyperDecoder, which
    has the same keys. The decoder's manual adapters are dead weight; `decoder.mlp` is the retriever. The released code
    fixes the trunk's sizes at 64, 128 and 64 (modeling/adapter_generators.py:19-78).
    """
    run, d, b = Written(directory), shape.width, shape.bottleneck
    generator = "decoder.param_gen.decoder"
    shapes: dict[str, tuple[int, ...]] = {}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        for i in range(shape.layers):
            layer = f"{stack}.block.{i}.layer.{last}.adapter_layer.adapter"
            shapes |= _linear(f"{layer}_down_manual", b, d) | _linear(f"{layer}_up_manual", d, b)
    shapes |= {"decoder.param_gen.layer_embed.weight": (shape.layers, embed)}
    shapes |= _linear(f"{generator}.linear1", trunk, 2 * embed) | _linear(f"{generator}.linear2", code, trunk)
    shapes |= _norm(f"{generator}.LayerNorm", code)
    for part, out in (("weight_up", d * b), ("weight_down", d * b), ("bias_up", d), ("bias_down", b)):
        shapes |= _linear(f"{generator}.{part}", out, code)
    shapes |= _linear("decoder.mlp.0", trunk, d) | _linear("decoder.mlp.2", embed, trunk)
    shapes |= {"decoder.adapter_task_embedding.weight": (len(tasks), embed)}
    state = _full_t5(base, shape) | _normals(seed, shapes)
    _write_torch(run, "pytorch_model.bin", _state_dict(state), state)
    order = [tasks[i] for i in _rng(seed, "tasks").permutation(len(tasks))]
    if order == list(tasks):
        order.reverse()
    _write_json(
        directory / "config.json",
        base_config("t5", shape)
        | {
            "architectures": ["T5ForConditionalGenerationWithAdapter"],
            "encoder_adapter": "manual",
            "decoder_adapter": decoder_adapter,
            "encoder_adapter_dim": b,
            "decoder_adapter_dim": b,
            "adapter_norm_input": True,
            "process_encoder_output": True,
            "hypernetwork_bottleneck": 128,
            "tasks": order,
        },
    )
    (directory / "log.txt").write_text("start\n", encoding="utf-8")
    for split in ("", "_test"):
        _write_json(directory / f"predicted_answers{split}.json", {task: ["yes"] for task in tasks})
    _write_trainer_files(directory, spiece=True)
    return run


def write_hyperformer(
    directory: Path,
    tasks: Sequence[str],
    shape: Shape = Shape(),
    *,
    base: Mapping[str, Array] | None = None,
    seed: int = 0,
    embed: int = 64,
    trunk: int = 128,
    code: int = 64,
    train_layer_norms: bool = True,
) -> Written:
    """Write a HyperFormer++ run: a full pytorch_model.bin over `base`, with T5's own layer norms trained.

    The keys are AdapterLayersOneHyperNetController's (hyperformer/adapters/adapter_modeling.py); that the layer norms
    are trained is configs/hyperformer++.json's.
    """
    run, d, b = Written(directory), shape.width, shape.bottleneck
    shapes: dict[str, tuple[int, ...]] = {
        f"task_embedding_controller.task_to_embeddings.{task}": (embed,) for task in tasks
    }
    for stack in ("encoder", "decoder"):
        net = f"{stack}.adapter_layers_hyper_net"
        shapes |= {
            f"{net}.layer_id_embeddings.weight": (shape.layers, embed),
            f"{net}.adapters_block_type.weight": (2, embed),
        }
        generator = f"{net}.task_hypernet.task_embeding_generator"
        shapes |= _linear(f"{generator}.0", trunk, 3 * embed) | _linear(f"{generator}.2", code, trunk)
        shapes |= _norm(f"{net}.LayerNorm", code)
        for side, out in (("up", d), ("down", b)):
            sampler = f"{net}.{side}_sampler_hyper_net"
            shapes |= _linear(f"{sampler}.weight_generator.0", d * b, code)
            shapes |= _linear(f"{sampler}.bias_generator.0", out, code)
        for part in ("weight", "bias"):
            shapes |= _linear(f"{net}.post_layernorm_hypernet.{part}_generator", d, code)
    state = _full_t5(base, shape)
    if train_layer_norms:
        for name in [name for name in state if name.endswith("layer_norm.weight")]:
            state[name] = state[name] + _normal(seed, f"{name}.trained", state[name].shape, 0.01)
    state |= _normals(seed, shapes)
    _write_torch(run, "pytorch_model.bin", _state_dict(state), state)
    _write_json(directory / "config.json", base_config("t5", shape) | {"train_adapters": True})
    _write_trainer_files(directory, spiece=True)
    return run
