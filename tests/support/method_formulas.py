"""The formulas of PROPETL, AdaMix, diff pruning, PHA and HyperFormer in plain numpy, written from papers and code only.

Nothing here comes from petlpack: a test that compares the two compares two readings of the same source. A reference
file is named as `repository path:line`, at ChaosCodes/ProPETL 1c08f19, microsoft/AdaMix d361e9d, dguo98/DiffPruning
085fa7d, Bumble666/PHA bbb4169, rabeehk/hyperformer 56b0f99.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Activation = Callable[[Array], Array]


# Activations and shared pieces


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    return np.asarray(np.maximum(x, x.dtype.type(0)))


def gelu(x: Array) -> Array:
    """Return the erf form, transformers' `get_activation("gelu")`: AdaMix on GLUE."""
    erf = np.array([math.erf(value) for value in (x.astype(np.float64) / math.sqrt(2)).ravel()]).reshape(x.shape)
    return np.asarray(x * x.dtype.type(0.5) * (1 + erf.astype(x.dtype)))


def gelu_tanh(x: Array) -> Array:
    """Return the tanh form (gelu_new): PROPETL's T5 and AdaMix NLG/src/model.py gelu."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), x.dtype)


def softmax(x: Array) -> Array:
    """Return softmax over the last axis, in the dtype of x."""
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Return nn.LayerNorm over the last axis (biased variance)."""
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias)


def bottleneck(x: Array, down: Array, down_bias: Array, up: Array, up_bias: Array, activation: Activation) -> Array:
    """Return Wu act(Wd x + bd) + bu with nn.Linear weights (out, in): Houlsby et al. 2019, Figure 2."""
    return np.asarray(activation(x @ down.T + down_bias) @ up.T + up_bias)


def lora_delta(a: Array, b: Array, alpha: float) -> Array:
    """Return (alpha / r) B A, shape (out, in): LoRA section 4.1; ProPETL adapters/lora.py:256-274."""
    return np.asarray((b @ a) * b.dtype.type(alpha / a.shape[0]))


# PROPETL


def kept_count(entries: int, keep: float) -> int:
    """Return how many of a matrix's entries a keep ratio leaves: ProPETL adapters/modeling.py:815-833."""
    return entries - int((1 - keep) * entries)


def mask_of_scores(scores: Array, keep: float) -> NDArray[np.bool_]:
    """Return top-k of |score|, of equal ones the later position first: ProPETL adapters/modeling.py:815-833."""
    flat = np.abs(scores).reshape(-1)
    mask = np.zeros(flat.size, np.bool_)
    mask[np.argsort(flat, kind="stable")[flat.size - kept_count(flat.size, keep) :]] = True
    return mask.reshape(scores.shape)


def masked(prototype: Array, mask: Array, *, transposed: bool = False) -> Array:
    """Return prototype * mask; RoBERTa's adapter masks lie transposed: ProPETL adapters/modeling.py:199-231."""
    return np.asarray(prototype * (mask.T if transposed else mask).astype(prototype.dtype))


def combine_masks(how: str, masks: Sequence[Array]) -> NDArray[np.float32]:
    """Return task, (language and) layer masks as one: propetl-t5 adapters/adapter_controller.py:158-177."""
    values = [mask.astype(np.float32) for mask in masks]
    if how == "or":
        return np.asarray(1 - np.prod([1 - value for value in values], axis=0), np.float32)
    if how == "and":
        return np.asarray(np.prod(values, axis=0), np.float32)
    if how == "add":
        return np.asarray(np.sum(values, axis=0), np.float32)
    raise ValueError(how)


def prefix_prototype(wte: Array, weight0: Array, bias0: Array, weight2: Array, bias2: Array) -> Array:
    """Return P = L2 tanh(L0 wte), shape (length, 2 d): ProPETL adapters/prefix_tuning.py:93-126."""
    return np.asarray(np.tanh(wte @ weight0.T + bias0) @ weight2.T + bias2)


def prefix_of_layer(prototype: Array, mask: Array, heads: int) -> Array:
    """Return P * m_i as (2, heads, length, d / heads), keys then values: ProPETL adapters/prefix_tuning.py:93-126."""
    length, width = prototype.shape
    states = masked(prototype, mask).reshape(length, 2, heads, width // 2 // heads)
    return np.asarray(states.transpose(1, 2, 0, 3))


def propetl_t5_adapter(y: Array, before_ff: Array, down: Array, down_bias: Array, up: Array, up_bias: Array) -> Array:
    """Return y + W'u gelu_new(W'd (y + h) + bd) + bu of masked weights: propetl-t5 adapter_controller.py:185-188."""
    return np.asarray(y + bottleneck(y + before_ff, down, down_bias, up, up_bias, gelu_tanh))


# AdaMix


def merge_experts(experts: Sequence[Array], score_weight: Array) -> NDArray[np.float32]:
    """Return sum_e softmax(s)_e W_e in float32, summed from 0 in order of e: AdaMix expert_soup.py:34-45."""
    shares = softmax(score_weight.astype(np.float32))
    total = np.zeros(experts[0].shape, np.float32)
    for share, expert in zip(shares, experts, strict=True):
        total = total + share * expert
    return total


def adamix_layer(
    x: Array,
    down: Sequence[tuple[Array, Array]],
    up: Sequence[tuple[Array, Array]],
    down_scores: Array,
    up_scores: Array,
    activation: Activation = gelu,
) -> Array:
    """Return Wu gelu(Wd x + bd) + bu + x of the merged (weight, bias) experts: AdaMix modeling_bert.py:440-455."""
    wd, bd = (merge_experts(part, down_scores) for part in zip(*down, strict=True))
    wu, bu = (merge_experts(part, up_scores) for part in zip(*up, strict=True))
    return np.asarray(bottleneck(x, wd, bd, wu, bu, activation) + x)


def adamix_lora_delta(
    experts_a: Sequence[Array], experts_b: Sequence[Array], score_weight: Array, alpha: float
) -> NDArray[np.float32]:
    """Return what c_attn.weight (d, 3 d) gains, q and v columns only: AdaMix NLG/loralib/layers.py:263-373.

    A side with a single expert is taken as it is, never weighted.
    """
    a, b = (
        experts[0] if len(experts) == 1 else merge_experts(experts, score_weight) for experts in (experts_a, experts_b)
    )
    rank, width = a.shape[0] // 2, a.shape[1]
    delta = np.zeros((width, 3 * width), np.float32)
    for group, column in ((0, 0), (1, 2 * width)):
        product = lora_delta(a[group * rank : (group + 1) * rank], b[group * width : (group + 1) * width], alpha)
        delta[:, column : column + width] = product.T
    return delta


# Diff pruning


def hard_concrete(alpha: Array, u: Array, low: float = -1.5, high: float = 1.5) -> NDArray[np.float32]:
    """Return z = clamp(s (r - l) + l, 0, 1), s = sigmoid(logit u + alpha), in float64.

    DiffPruning run_glue_diffpruning.py:121-132, which computes in float32: the boundary of z = 0 is its own.
    """
    u = np.clip(u.astype(np.float64), 1e-4, 1 - 1e-4)
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + alpha)))
    return np.asarray(np.clip(s * (high - low) + low, 0, 1), np.float32)


def diff_pruned(base: Array, diff: Array, gate: Array) -> Array:
    """Return theta = fl(p0 + fl(z w)): DiffPruning run_glue_fixmask_finetune.py:433-446."""
    return np.asarray(base + gate.astype(base.dtype) * diff)


def changed_positions(base: Array, tuned: Array) -> NDArray[np.intp]:
    """Return flat positions of other values; -0.0 and 0.0 are one value: DiffPruning run_glue_mag.py."""
    return np.flatnonzero(base.reshape(-1) != tuned.reshape(-1))


def overwritten(base: Array, positions: Array, values: Array) -> Array:
    """Return base with values at flat positions: diff pruning with theta stored."""
    result = base.copy()
    result.reshape(-1)[positions] = values
    return result


def added(base: Array, positions: Array, differences: Array) -> Array:
    """Return base with differences added at flat positions: diff pruning with theta - p0 stored."""
    return overwritten(base, positions, base.reshape(-1)[positions] + differences)


def magnitude_threshold(differences: Sequence[Array], density: float, tolerance: float = 1e-6) -> float:
    """Return a bisected threshold of |d| on [0, 1], near the wanted share only: DiffPruning run_glue_mag.py."""
    low, high = 0.0, 1.0
    total = sum(difference.size for difference in differences)
    while high - low > tolerance:
        middle = (low + high) / 2
        kept = sum(int((np.abs(difference) > middle).sum()) for difference in differences)
        low, high = (middle, high) if kept > density * total else (low, middle)
    return (low + high) / 2


# PHA and HyperFormer


class Generated(NamedTuple):
    """One generated adapter in float64: weights as nn.Linear has them (out, in)."""

    down: Array
    down_bias: Array
    up: Array
    up_bias: Array


def _linear(x: Array, tensors: Mapping[str, Array], name: str) -> Array:
    return np.asarray(tensors[f"{name}.weight"].astype(np.float64) @ x + tensors[f"{name}.bias"].astype(np.float64))


def _normed(x: Array, tensors: Mapping[str, Array], name: str) -> Array:
    weight, bias = (tensors[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
    return layer_norm(x, weight, bias, 1e-6)


def pha_adapter(tensors: Mapping[str, Array], task_row: int, layer: int) -> Generated:
    """Return decoder layer i's adapter of a task, from the file's tensors: PHA modeling/adapter_generators.py:19-78."""
    generator = "decoder.param_gen.decoder"
    code = [
        tensors["decoder.adapter_task_embedding.weight"][task_row],
        tensors["decoder.param_gen.layer_embed.weight"][layer],
    ]
    hidden = relu(_linear(np.concatenate(code).astype(np.float64), tensors, f"{generator}.linear1"))
    hidden = _normed(_linear(hidden, tensors, f"{generator}.linear2"), tensors, f"{generator}.LayerNorm")
    up, down, up_bias, down_bias = (
        _linear(hidden, tensors, f"{generator}.{part}") for part in ("weight_up", "weight_down", "bias_up", "bias_down")
    )
    width, narrow = up_bias.size, down_bias.size
    return Generated(down.reshape(width, narrow).T, down_bias, up.reshape(narrow, width).T, up_bias)


def pha_feed_forward(x: Array, normed: Array, ff: Array, adapter: Generated, *, norm_input: bool = True) -> Array:
    """Return x + FF(n) + adapter(n or x), the parallel form: PHA modeling/adapter_t5.py:99-110."""
    return np.asarray(x + ff + bottleneck(normed if norm_input else x, *adapter, relu))


def hyperformer_adapter(
    tensors: Mapping[str, Array], stack: str, task: str, layer: int, block_type: int
) -> tuple[Generated, Array, Array]:
    """Return an adapter and its LayerNorm's weight and bias: hyperformer/adapters/adapter_modeling.py.

    This is HyperFormer++, whose one hypernetwork (AdapterLayersOneHyperNetController) makes both adapters of a layer:
    `stack` is "encoder" or "decoder", `block_type` 0 for feed-forward and 1 for self-attention.
    """
    net = f"{stack}.adapter_layers_hyper_net"
    code = [
        tensors[f"task_embedding_controller.task_to_embeddings.{task}"],
        tensors[f"{net}.layer_id_embeddings.weight"][layer],
        tensors[f"{net}.adapters_block_type.weight"][block_type],
    ]
    hidden = _linear(np.concatenate(code).astype(np.float64), tensors, f"{net}.task_hypernet.task_embeding_generator.0")
    hidden = _linear(relu(hidden), tensors, f"{net}.task_hypernet.task_embeding_generator.2")
    hidden = _normed(hidden, tensors, f"{net}.LayerNorm")
    made: dict[str, Array] = {}
    for side in ("down", "up"):
        bias = _linear(hidden, tensors, f"{net}.{side}_sampler_hyper_net.bias_generator.0")
        weight = _linear(hidden, tensors, f"{net}.{side}_sampler_hyper_net.weight_generator.0")
        made |= {side: weight.reshape(bias.size, -1), f"{side}_bias": bias}
    post = [_linear(hidden, tensors, f"{net}.post_layernorm_hypernet.{part}_generator") for part in ("weight", "bias")]
    return Generated(**made), post[0], post[1]


def hyperformer_layer(
    x: Array, adapter: Generated, norm_weight: Array, norm_bias: Array, activation: Activation = gelu_tanh
) -> Array:
    """Return x + LayerNorm(adapter(x)), eps 1e-5: hyperformer/adapters/adapter_controller.py (MetaLayers...)."""
    return np.asarray(x + layer_norm(bottleneck(x, *adapter, activation), norm_weight, norm_bias, 1e-5))


# Accounting, as the papers count (heads are never counted)


def adapter_floats(width: int, narrow: int) -> int:
    """Return the parameters of one bottleneck adapter, 2 d r + r + d: Houlsby et al. 2019, section 2.1."""
    return 2 * width * narrow + narrow + width


def propetl_bits(prototype_floats: int, mask_entries: int) -> int:
    """Return 32 bits a prototype float and 1 bit a mask entry: the count behind PROPETL Tables 1 and 2."""
    return 32 * prototype_floats + mask_entries


def propetl_t5_mask_entries(tasks: int, layers: int, width: int, narrow: int) -> int:
    """Return the entries of all layer masks and task masks, down and up: propetl-t5 modeling_t5.py:424-432."""
    return (tasks + layers) * 2 * width * narrow


def percent_of_model(bits: int, model_floats: int) -> float:
    """Return bits as float32 equivalents, in percent of the pretrained model: PROPETL Tables 1 and 2."""
    return 100 * bits / 32 / model_floats


def adamix_floats(layers: int, width: int, rank: int) -> int:
    """Return "#Param", the parameters at inference after merging: AdaMix Tables 1 and 2."""
    return layers * adapter_floats(width, rank)


def adamix_nlg_lora_floats(layers: int, width: int, rank: int) -> int:
    """Return the merged LoRA parameters of q and v: AdaMix NLG/loralib/layers.py:263-373."""
    return layers * 4 * rank * width


def diff_pruning_total(tasks: int, density: float) -> float:
    """Return the size of a base with T tasks, in models; positions not counted (footnote 12): diff pruning Table 1."""
    return 1 + tasks * density


def entropy(share: float) -> float:
    """Return H(p) in bits an entry of a binary mask (Shannon)."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


def position_bits(density: float) -> float:
    """Return H(p) / p, the entropy in bits of one changed position."""
    return entropy(density) / density


def pha_floats(
    layers: int, width: int, narrow: int, tasks: int, *, embed: int = 64, trunk: int = 128, code: int = 64
) -> dict[str, int]:
    """Return PHA's trained parameters by part: modeling/adapter_t5.py and modeling/adapter_generators.py:19-78."""
    manual = layers * adapter_floats(width, narrow)
    outputs = 2 * width * narrow + width + narrow
    return {
        "encoder": manual,
        "dead": manual,
        "layers": layers * embed,
        "trunk": (2 * embed + 1) * trunk + (trunk + 1) * code + 2 * code,
        "outputs": (code + 1) * outputs,
        "retriever": (width + 1) * trunk + (trunk + 1) * embed,
        "prototypes": tasks * embed,
    }
