"""What of PROPETL trains: the prototypes, once for all layers and tasks, and the scores of their masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from petlpack.methods.places import Block
from petlpack.methods.propetl_masks import new_scores

if TYPE_CHECKING:
    from petlpack.methods.propetl import Config


class PrefixNetwork(nn.Module):  # type: ignore[misc] # torch is Any here
    """Prefix tuning's reparametrisation, P = W2 tanh(W1 wte + b1) + b2: ProPETL adapters/prefix_tuning.py:93-126."""

    def __init__(self, length: int, hidden: int, width: int, outputs: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(length, width)
        self.control_trans = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, outputs))

    def forward(self) -> torch.Tensor:
        """Return P, (length, keys and values of all heads)."""
        prefix: torch.Tensor = self.control_trans(self.wte.weight)
        return prefix


class Network(nn.Module):  # type: ignore[misc] # torch is Any here
    """The prototypes, once, and the scores of every mask, all in the orientation of the weights (out, in)."""

    def __init__(self, config: Config, block: Block, layers: int, tasks: Mapping[str, int]) -> None:
        super().__init__()
        shapes = _shapes(config, block)
        self.prototype = nn.ParameterDict()
        self.prefix: PrefixNetwork | None = None
        if config.kind == "prefix" and config.hidden:
            self.prefix = PrefixNetwork(config.length, config.hidden, block.width, shapes["prefix"][1])
        else:
            for side, shape in shapes.items():
                # N(0, 0.02), also for LoRA's B: of a zero matrix no mask learns (dL/dM = W dL/dW')
                self.prototype[side] = torch.empty(shape).normal_(std=0.02)
                if side.endswith("lora_A"):
                    nn.init.kaiming_uniform_(self.prototype[side], a=math.sqrt(5))
            if config.kind == "adapter":
                for side, shape in shapes.items():
                    self.prototype[f"{side}_bias"] = torch.zeros(shape[0])
        self.layers = nn.ModuleList(new_scores(shapes) for _ in range(layers))
        self.tasks = nn.ModuleDict({task: new_scores(shapes) for task in tasks})

    def weight(self, side: str) -> torch.Tensor:
        """Return a prototype, or one of its biases."""
        weight: torch.Tensor = self.prototype[side] if self.prefix is None else self.prefix()
        return weight


def _shapes(config: Config, block: Block) -> dict[str, tuple[int, int]]:
    """Return the shape of each masked matrix by its side: down, up; query_lora_A, ...; prefix."""
    width = block.width
    if config.kind == "adapter":
        assert config.bottleneck is not None
        return {"down": (config.bottleneck, width), "up": (width, config.bottleneck)}
    if config.kind == "lora":
        return {
            f"{name}_lora_{part}": shape
            for name, projection in block.query_and_value.items()
            for part, shape in projection.shapes(config.rank).items()
        }
    return {"prefix": (config.length, 2 * block.attention.query.out_features)}
