"""The loss in a model's output, and the labels that it is the mean of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

IGNORED = -100
"""The label of what has no loss, as Transformers and torch say it."""

_NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")


def loss_of(output: Any) -> torch.Tensor | None:
    """Return the loss in a model's output, which may be a tuple; None where it has none: no labels were given."""
    loss = output[0] if isinstance(output, tuple) else getattr(output, "loss", None)
    return loss if isinstance(loss, torch.Tensor) and loss.dim() == 0 else None


def with_loss(output: Any, more: torch.Tensor) -> Any:
    """Return a model's output with more added to its loss."""
    return set_loss(output, (output[0] if isinstance(output, tuple) else output["loss"]) + more)


def set_loss(output: Any, loss: torch.Tensor) -> Any:
    """Return a model's output with this loss, which stands first in one that is a tuple."""
    if isinstance(output, tuple):  # return_dict=False
        return (loss, *output[1:])
    output["loss"] = loss
    return output


def count_labels(model: nn.Module, labels: torch.Tensor, shifted: torch.Tensor | None) -> torch.Tensor:
    """Return how many labels a batch's loss is the mean of; of a model of next tokens the first has none."""
    if shifted is None:
        shifted = labels[..., 1:] if predicts_next(model) else labels
    return (shifted != IGNORED).sum()


def predicts_next(model: nn.Module) -> bool:
    """Tell whether a model's labels are its own tokens: each position's logits are for the next one.

    A subclass is what its parent is; of an image and a text the model that generates is a decoder alone, too.
    """
    names = [parent.__name__ for parent in type(model).__mro__]
    generates = any(name.endswith("ForConditionalGeneration") for name in names)
    decoder = generates and not getattr(model.config, "is_encoder_decoder", False)
    return decoder or any(name.endswith(_NEXT_TOKEN) for name in names)
