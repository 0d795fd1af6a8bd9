"""PROPETL's masks: of a matrix's scores the largest are kept, and a task's mask and a layer's become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

COMBINE: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "or": lambda task, layer: 1 - (1 - task) * (1 - layer),
    "and": lambda task, layer: task * layer,
    "add": lambda task, layer: task + layer,
}
"""How a task's and a layer's mask become one, section 3.3; written so that the gradient reaches both."""

_DROPPED = 0.01
"""The score of an entry that a loaded mask drops, as a share of a kept one's; |score| has no slope at 0."""


def kept_count(entries: int, keep: float) -> int:
    """Return how many of a matrix's entries a mask keeps: n - int((1 - keep) n)."""
    return entries - int((1 - keep) * entries)


def top_mask(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """Return 1 at the largest |scores| and 0 elsewhere, in their shape and dtype; of equal ones the later stay.

    Section 3.2; ProPETL adapters/modeling.py:815-833, whose sort has no rule for ties.
    """
    sizes = scores.detach().abs().flatten()
    kept = kept_count(len(sizes), keep)
    dropped = len(sizes) - kept
    mask = sizes > sizes.kthvalue(dropped).values if dropped else torch.ones_like(sizes, dtype=torch.bool)
    if int(mask.sum()) != kept:  # ties at the threshold; a sort takes six times as long, and they are rare
        mask = torch.ones_like(mask)
        mask[sizes.argsort(stable=True)[:dropped]] = False
    return mask.view_as(scores).to(scores.dtype)


def learned_mask(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """Return the top mask of scores, whose gradient is that of the mask times the score's sign.

    So a score whose entry should be kept moves away from 0, on either side of it: the reference hands |scores| to its
    straight-through function (ProPETL adapters/modeling.py:815-833).
    """
    mask: torch.Tensor = _StraightThrough.apply(scores.abs(), keep)
    return mask


class _StraightThrough(torch.autograd.Function):  # type: ignore[misc] # torch is Any here
    """The mask of the sizes of scores, whose gradient the sizes take as theirs."""

    @staticmethod
    def forward(ctx: Any, sizes: torch.Tensor, keep: float) -> torch.Tensor:
        return top_mask(sizes, keep)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _bound(shape: Sequence[int]) -> float:
    """Return the bound of kaiming_uniform(a=sqrt 5): 1 / sqrt(fan in)."""
    return float(shape[-1] ** -0.5)


def new_scores(shapes: Mapping[str, tuple[int, int]]) -> nn.ParameterDict:
    """Return scores by side, kaiming_uniform(a=sqrt 5): section 3.2."""
    return nn.ParameterDict(
        {side: torch.empty(shape).uniform_(-1, 1) * _bound(shape) for side, shape in shapes.items()}
    )


def scores_of(mask: torch.Tensor) -> torch.Tensor:
    """Return scores that have this mask: as large as new ones can be where it keeps an entry, small elsewhere."""
    return (mask + _DROPPED * ~mask) * _bound(mask.shape)
