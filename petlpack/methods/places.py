"""Where adapters, LoRAs and prefixes stand in a transformer: in each block's feed-forward and self-attention."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petlpack.errors import UsageError
from petlpack.errors.arguments import shown

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
"""An adapter's non-linearity, as Transformers calls it."""


@dataclass(frozen=True)
class Projection:
    """A matrix of an attention that LoRA changes: the query's or the value's, or the one that both are parts of."""

    module: nn.Module
    """A linear layer, or GPT-2's Conv1D, whose weight is (inputs, outputs)."""
    enable: tuple[bool, ...] = (True,)
    """Which of so many equal parts of its output have a LoRA, as loralib's MergedLinear says it."""

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers a position has before it and behind it."""
        if hasattr(self.module, "in_features"):
            return int(self.module.in_features), int(self.module.out_features)
        inputs, outputs = self.module.weight.shape
        return int(inputs), int(outputs)

    def shapes(self, rank: int) -> dict[str, tuple[int, int]]:
        """Return the shapes of a LoRA's A and B, those of the parts below each other, as loralib has them."""
        parts, (inputs, outputs) = sum(self.enable), self.sizes
        return {"A": (parts * rank, inputs), "B": (parts * (outputs // len(self.enable)), rank)}

    def low_rank(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return B A x, shaped (..., outputs) and typed as A; zeros in the parts that have no LoRA."""
        hidden = F.linear(x.to(a.dtype), a)
        if len(self.enable) == 1:
            return F.linear(hidden, b)
        parts = sum(self.enable)
        outputs = [F.linear(low, part) for low, part in zip(hidden.chunk(parts, -1), b.chunk(parts), strict=True)]
        nothing = torch.zeros_like(outputs[0])
        return torch.cat([outputs.pop(0) if enabled else nothing for enabled in self.enable], -1)


@dataclass(frozen=True)
class Block:
    """One block of a model: modules, and their names in the model's state dict."""

    name: str
    """`bert.encoder.layer.0`, `model.layers.0`"""
    layer: nn.Module
    """The whole of it: self-attention, feed-forward and what stands between them."""
    output_name: str
    """Where an adapter's name stands: `bert.encoder.layer.0.output`, `model.layers.0.mlp`."""
    output: nn.Module
    """The feed-forward's end: of BERT residual and norm (BertOutput), of T5 the whole of it (T5LayerFF)."""
    feed_forward: nn.Module
    """What comes out of it is the feed-forward's output, before residual and norm (of BERT and T5 before dropout)."""
    norm: nn.Module | None
    """The norm behind the sum of feed-forward and residual; None where norms stand in front."""
    reads: nn.Module | None
    """Where norms stand in front, the first module that is given the residual."""
    attention_name: str
    """`bert.encoder.layer.0.attention.self`, `model.layers.0.self_attn`"""
    attention: nn.Module
    query_and_value: Mapping[str, Projection]
    """The projections that LoRA changes (Hu et al. 2022, section 4.2), by their names in `attention`; none where they
    are parts of one matrix of another kind than GPT-2's and ModernBERT's."""

    @property
    def stack(self) -> str:
        """The name of what the block is a layer of: `bert.encoder`, `decoder`, `model`."""
        return self.name.rpartition(".")[0].rpartition(".")[0]

    @property
    def is_t5(self) -> bool:
        """Tell whether the block is T5's, whose feed-forward and its norm are one module."""
        return hasattr(self.output, "DenseReluDense")

    @property
    def is_bert(self) -> bool:
        """Tell whether the block is one of the BERT and RoBERTa families."""
        return self.norm is not None and "query" in self.query_and_value

    @property
    def width(self) -> int:
        """How many numbers a position has between blocks."""
        if self.query_and_value:
            return next(iter(self.query_and_value.values())).sizes[0]
        norm = self.norm if self.norm is not None else self.reads
        return int(norm.weight.numel())  # type: ignore[union-attr] # a norm's


FAMILIES = "BERT, RoBERTa, DistilBERT, DeBERTa-v2, ModernBERT, ViT, T5, GPT-2, Llama, Qwen, Mistral and Gemma"
"""Of which models the blocks are known; others that are built like them are taken, too."""


def blocks(model: nn.Module) -> list[Block]:
    """Return a model's blocks, an encoder's before a decoder's.

    Raises UsageError for a model whose blocks are not built as those of a known family, or that is wrapped.
    """
    refuse_wrapped(model)
    known = [block for name, module in model.named_modules() if (block := _block(name, module))]
    if not known:
        raise UsageError(
            f"{type(model).__name__} ({library_of(model)}) has no transformer blocks of a known kind",
            hint=f"use a model built like {FAMILIES}",
        )
    _refuse_some(model, known)
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise UsageError(
            f"{type(model).__name__} replaces its attention for short inputs, and the method with it",
            hint='load it with attention_type="original_full"',
        )
    return known


def _refuse_some(model: nn.Module, known: list[Block]) -> None:
    """Raise UsageError where blocks of a known kind stand among others, on which the method would not be."""
    layers = {block.layer for block in known}
    for stack in {block.name.rpartition(".")[0] for block in known}:
        members = list(model.get_submodule(stack).children())
        others = [module for module in members if module not in layers]
        if isinstance(model.get_submodule(stack), nn.ModuleList) and others:
            raise UsageError(
                f"{type(model).__name__} has {len(members)} layers in '{stack}', of which {len(others)} differ",
                hint="choose a model whose layers are all alike",
            )


def _block(name: str, module: nn.Module) -> Block | None:
    """Return a module as a block, by what it is made of: no library's classes are imported."""
    for kind in (_like_bert, _like_t5, _like_distilbert, _like_llama, _like_gpt2, _like_modernbert):
        if block := kind(name, module):
            return block
    return None


def _linears(attention: nn.Module, *names: str) -> dict[str, Projection]:
    return {name: Projection(getattr(attention, name)) for name in names if hasattr(attention, name)}


def _merged(name: str, module: nn.Module) -> dict[str, Projection]:
    """Return the projection to query, key and value, one behind the other; none where they differ in width."""
    projection = Projection(module, (True, False, True))
    inputs, outputs = projection.sizes
    return {name: projection} if outputs == 3 * inputs else {}


def _like_bert(name: str, module: nn.Module) -> Block | None:
    attention, output = getattr(getattr(module, "attention", None), "self", None), getattr(module, "output", None)
    if attention is None or output is None or not hasattr(output, "dense"):
        return None
    pairs = _linears(attention, "query", "value") or _linears(attention, "query_proj", "value_proj")
    if not pairs:
        return None
    norm = getattr(output, "LayerNorm", None)
    place = f"{name}.attention.self"
    return Block(name, module, f"{name}.output", output, output.dense, norm, None, place, attention, pairs)


def _like_t5(name: str, module: nn.Module) -> Block | None:
    layers = getattr(module, "layer", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(layers[0], "SelfAttention"):
        return None
    last, attention = len(layers) - 1, layers[0].SelfAttention
    end, place = layers[last], f"{name}.layer.0.SelfAttention"
    pairs = _linears(attention, "q", "v")
    return Block(name, module, f"{name}.layer.{last}", end, end.DenseReluDense, None, end, place, attention, pairs)


def _like_distilbert(name: str, module: nn.Module) -> Block | None:
    attention, ffn = getattr(module, "attention", None), getattr(module, "ffn", None)
    if ffn is None or not hasattr(attention, "q_lin") or not hasattr(module, "output_layer_norm"):
        return None
    pairs = _linears(attention, "q_lin", "v_lin")
    norm = module.output_layer_norm
    return Block(name, module, f"{name}.ffn", ffn, ffn, norm, None, f"{name}.attention", attention, pairs)


def _like_llama(name: str, module: nn.Module) -> Block | None:
    """Llama, Qwen, Mistral, Gemma; ViT is built like them, with `attention` for `self_attn`."""
    key = "self_attn" if hasattr(module, "self_attn") else "attention"
    attention, mlp = getattr(module, key, None), getattr(module, "mlp", None)
    names = ("pre_feedforward_layernorm", "post_attention_layernorm", "layernorm_after")
    norm = next((getattr(module, each) for each in names if hasattr(module, each)), None)
    behind = hasattr(module, "post_feedforward_layernorm") and not hasattr(module, "pre_feedforward_layernorm")
    if mlp is None or norm is None or behind or attention is None:
        return None  # norms behind, as OLMo 2 has them, see no residual
    pairs = _linears(attention, "q_proj", "v_proj")
    return Block(name, module, f"{name}.mlp", mlp, mlp, None, norm, f"{name}.{key}", attention, pairs)


def _like_gpt2(name: str, module: nn.Module) -> Block | None:
    attention, mlp = getattr(module, "attn", None), getattr(module, "mlp", None)
    merged = getattr(attention, "c_attn", None)
    if merged is None or mlp is None or not hasattr(module, "ln_2"):
        return None
    # GPT-BigCode's is a linear layer, whose outputs are ordered by heads
    pairs = {} if isinstance(merged, nn.Linear) else _merged("c_attn", merged)
    return Block(name, module, f"{name}.mlp", mlp, mlp, None, module.ln_2, f"{name}.attn", attention, pairs)


def _like_modernbert(name: str, module: nn.Module) -> Block | None:
    attention, mlp = getattr(module, "attn", None), getattr(module, "mlp", None)
    merged = getattr(attention, "Wqkv", None)
    if merged is None or mlp is None or not hasattr(module, "mlp_norm"):
        return None
    pairs = _merged("Wqkv", merged)
    return Block(name, module, f"{name}.mlp", mlp, mlp, None, module.mlp_norm, f"{name}.attn", attention, pairs)


def refuse_merged(model: nn.Module, block: Block) -> None:
    """Raise UsageError for a LoRA where query and value are parts of one matrix, and no known ones."""
    if not block.query_and_value:
        raise UsageError(
            f"{type(model).__name__} has query and value in one matrix of unknown layout",
            hint="use kind='adapter'",
        )


class Argument:
    """An argument of another library's forward, found by the signature that the installed version has.

    A hook that puts a value under a name of its own choosing is ignored in silence by the first version that calls it
    otherwise (Transformers 5.24: `cache`, which was `past_key_values`).
    """

    def __init__(self, module: nn.Module, *names: str) -> None:
        """Find the first of `names` that the module's forward takes; raises UsageError where it takes none of them."""
        known = list(inspect.signature(module.forward).parameters)
        name = next((name for name in names if name in known), None)
        if name is None:
            raise UsageError(
                f"{type(module).__name__}.forward of {library_of(module)} takes no {names[0]}, only {', '.join(known)}",
                hint="petlpack does not support this version yet: install an earlier one, and please report it",
            )
        self.name, self._position = name, known.index(name)

    def get(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the argument's value in a call, None where it is left out."""
        return args[self._position] if self._position < len(args) else kwargs.get(self.name)

    def put(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a call with this value for the argument, by position where it was given so."""
        if self._position < len(args):
            return (*args[: self._position], value, *args[self._position + 1 :]), kwargs
        return args, {**kwargs, self.name: value}


def library_of(module: nn.Module) -> str:
    """Return the library that a module's code comes from, with its version: `transformers 5.24.0`."""
    name = type(module).__module__.partition(".")[0]
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:  # a model of the user's own
        return name


_FROM_PRETRAINED = "load one, for example with AutoModelForSequenceClassification.from_pretrained(...)"


def refuse_wrapped(model: nn.Module) -> None:
    """Raise UsageError for a model inside another one, or under PEFT: its head would neither train nor be saved."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a Transformers model, got {shown(model)}", hint=_FROM_PRETRAINED)
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(
            f"{name} has a PEFT adapter, which attach() would freeze",
            hint="merge it first (model.merge_and_unload()), or reload the model",
        )
    inner = next((getattr(model, key) for key in ("module", "_orig_mod") if hasattr(model, key)), None)
    if isinstance(inner, nn.Module):
        raise UsageError(
            f"{name} wraps {type(inner).__name__}, but a method attaches to the model itself",
            hint="attach first, then compile, distribute or wrap the model",
        )
    if not hasattr(getattr(model, "config", None), "to_json_string"):
        raise UsageError(f"model must be a Transformers model, got a {name} without a config", hint=_FROM_PRETRAINED)
