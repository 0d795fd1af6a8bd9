"""Where adapters, LoRAs and prefixes stand in a transformer: in each block's feed-forward and self-attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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

    Raises UsageError for a model that is not built as BERT, RoBERTa or T5 is.
    """
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
        return Block(f"{name}.output", module.output, module.output.dense, f"{name}.attention.self", attention)
    layers = getattr(module, "layer", None)
    if isinstance(layers, nn.ModuleList) and hasattr(layers[0], "SelfAttention"):
        last = len(layers) - 1
        end = layers[last]
        return Block(
            f"{name}.layer.{last}", end, end.DenseReluDense, f"{name}.layer.0.SelfAttention", layers[0].SelfAttention
        )
    return None


def head_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the name and module of a model's own head, which trains with the method; None where it has none.

    The output embeddings of a T5 that generates are the base's, not a head.
    """
    for name, module in model.named_children():
        if name in HEADS:
            return name, module
    return None
