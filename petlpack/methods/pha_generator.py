"""PHA's adapters: those that a network generates from a task's prototype, and those that all tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from petlpack.methods.pha import Config


class Adapter(tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]):
    """The weights of one adapter, as nn.Linear has them: down (r, d), its bias (r), up (d, r), its bias (d)."""

    __slots__ = ()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(x Wdown + bdown) Wup + bup of x (..., d), in the dtype of x: Houlsby et al. 2019, Figure 2."""
        down, down_bias, up, up_bias = (part.to(x.dtype) for part in self)
        return F.linear(F.relu(F.linear(x, down, down_bias)), up, up_bias)


class SharedAdapter(nn.Module):  # type: ignore[misc]
    """An adapter of the encoder, which all tasks share; starts at 0."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.adapter_down_manual = nn.Linear(width, bottleneck)
        self.adapter_up_manual = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.adapter_up_manual.weight)
        nn.init.zeros_(self.adapter_up_manual.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the adapter of x (..., d), in the dtype of x."""
        down, up = self.adapter_down_manual, self.adapter_up_manual
        return Adapter((down.weight, down.bias, up.weight, up.bias))(x)


class _Net(nn.Module):  # type: ignore[misc]
    """From codes (n, 2 code) to the numbers of n adapters."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(2 * config.code, config.trunk)
        self.linear2 = nn.Linear(config.trunk, config.code)
        self.LayerNorm = nn.LayerNorm(config.code, eps=1e-6)
        self.weight_up = nn.Linear(config.code, width * config.bottleneck)
        self.weight_down = nn.Linear(config.code, width * config.bottleneck)
        self.bias_up = nn.Linear(config.code, width)
        self.bias_down = nn.Linear(config.code, config.bottleneck)
        for linear in (self.weight_up, self.bias_up, self.bias_down):
            nn.init.zeros_(linear.weight)
        # Hyperfan-in (Chang, Flokas and Lipson 2020): behind the norm, a generated entry has variance 1 / width
        nn.init.normal_(self.weight_down.weight, std=(config.code * width) ** -0.5)
        for linear in (self.weight_up, self.weight_down, self.bias_up, self.bias_down):
            nn.init.zeros_(linear.bias)

    def forward(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.LayerNorm(self.linear2(F.relu(self.linear1(codes))))
        return self.weight_up(hidden), self.weight_down(hidden), self.bias_up(hidden), self.bias_down(hidden)


class HyperNetwork(nn.Module):  # type: ignore[misc]
    """The hypernetwork: from a prototype to an adapter for each layer; section 3.3.

    e = [K ; L_i], h = LayerNorm(W2 relu(W1 e + b1) + b2), and each part of the adapter is linear in h. What makes the
    up-projection starts at 0, so that training starts at the base's function, as LoRA's does; what makes the
    down-projection does not. (The released code starts both near 0, at a saddle.)
    """

    def __init__(self, config: Config, layers: int, width: int) -> None:
        """Make the network for so many layers of this width."""
        super().__init__()
        self.layer_embed = nn.Embedding(layers, config.code)
        self.decoder = _Net(config, width)
        self._shape = config.bottleneck, width

    def forward(self, prototype: torch.Tensor) -> list[Adapter]:
        """Return the adapters of a prototype of shape (code,), one for each layer."""
        layers, (bottleneck, width) = self.layer_embed.weight, self._shape
        codes = torch.cat([prototype.expand(len(layers), -1), layers], 1)
        up, down, up_bias, down_bias = self.decoder(codes)
        ups = up.view(-1, bottleneck, width).transpose(1, 2)
        downs = down.view(-1, width, bottleneck).transpose(1, 2)
        return [Adapter(parts) for parts in zip(downs, down_bias, ups, up_bias, strict=True)]
