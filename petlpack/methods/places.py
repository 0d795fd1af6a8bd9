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

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
"""An adapter's non-linearity, as Transformers calls it."""

HEADS = ("classifier", "score", "classification_head", "qa_outputs")
"""What a model's head is called, where it has one of its own."""


@dataclass(frozen=True)
class Block:
    """One block of a model: modules, and their names in the model's state dict."""

    name: str
    """`bert.encoder.layer.0`, `encoder.block.0`"""
    layer: nn.Module
    """The whole of it: self-attention, feed-forward and what stands between them."""
    output_name: str
    """`bert.encoder.layer.0.output`, `encoder.block.0.layer.1`"""
    output: nn.Module
    """The feed-forward's end: of BERT residual and norm (BertOutput), of T5 the whole of it (T5LayerFF)."""
    feed_forward: nn.Module
    """What comes out of it is the feed-forward's output, before dropout, residual and norm."""
    attention_name: str
    """`bert.encoder.layer.0.attention.self`, `encoder.block.0.layer.0.SelfAttention`"""
    attention: nn.Module

    @property
    def is_t5(self) -> bool:
        """Tell whether the block is T5's, whose norms stand in front."""
        return hasattr(self.attention, "q")

    @property
    def query_and_value(self) -> dict[str, nn.Linear]:
        """The projections that LoRA changes (Hu et al. 2022, section 4.2), by their names in `attention`."""
        names = ("q", "v") if self.is_t5 else ("query", "value")
        return {name: getattr(self.attention, name) for name in names}


def blocks(model: nn.Module) -> list[Block]:
    """Return a model's blocks, an encoder's before a decoder's.

    Raises UsageError for a model that is not built as BERT, RoBERTa or T5 is, or that is wrapped.
    """
    refuse_wrapped(model)
    found = [block for name, module in model.named_modules() if (block := _block(name, module))]
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no blocks as BERT, RoBERTa and T5 have them",
            hint="methods stand on Hugging Face's BERT and RoBERTa families and on T5",
        )
    return found


def _block(name: str, module: nn.Module) -> Block | None:
    attention = getattr(getattr(module, "attention", None), "self", None)
    if hasattr(attention, "query") and hasattr(getattr(module, "output", None), "dense"):
        return Block(
            name, module, f"{name}.output", module.output, module.output.dense, f"{name}.attention.self", attention
        )
    layers = getattr(module, "layer", None)
    if isinstance(layers, nn.ModuleList) and hasattr(layers[0], "SelfAttention"):
        last = len(layers) - 1
        end, attention = layers[last], layers[0].SelfAttention
        return Block(
            name, module, f"{name}.layer.{last}", end, end.DenseReluDense, f"{name}.layer.0.SelfAttention", attention
        )
    return None


class Argument:
    """An argument of another library's forward, found by the signature that the installed version has.

    A hook that puts a value under a name of its own choosing is ignored in silence by the first version that calls it
    otherwise (Transformers 5.24: `cache`, which was `past_key_values`).
    """

    def __init__(self, module: nn.Module, *names: str) -> None:
        """Find the first of `names` that the module's forward takes; raises UsageError where it takes none of them."""
        taken = list(inspect.signature(module.forward).parameters)
        found = next((name for name in names if name in taken), None)
        if found is None:
            raise UsageError(
                f"{type(module).__name__}.forward of {library_of(module)} takes {', '.join(taken)}, and no {names[0]}",
                hint="this version is not known to petlpack: install an earlier one, and report it",
            )
        self.name, self._position = found, taken.index(found)

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


def refuse_wrapped(model: nn.Module) -> None:
    """Raise UsageError for a model inside another one, or under PEFT: its head would neither train nor be saved."""
    name = type(model).__name__
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(
            f"{name} has an adapter of PEFT on it, which attach would freeze",
            hint="take the model below: model.merge_and_unload(), or load it anew",
        )
    inner = next((getattr(model, key) for key in ("module", "_orig_mod") if hasattr(model, key)), None)
    if isinstance(inner, nn.Module):
        raise UsageError(
            f"{name} is wrapped around {type(inner).__name__}, and a method stands on the model itself",
            hint="attach to the model first, then compile, distribute or wrap it",
        )


def head_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the name and module of a model's own head, which trains with the method; None where it has none.

    The output embeddings of a T5 that generates are the base's, not a head.
    """
    for name, module in model.named_children():
        if name in HEADS:
            return name, module
    return None
