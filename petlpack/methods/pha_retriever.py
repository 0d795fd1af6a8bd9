"""PHA's retriever: the vectors of instances, by which a task's prototype is told from the others' (section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from petlpack.methods.pha import Config


class Retriever(nn.Sequential):  # type: ignore[misc]
    """From hidden states to vectors, which training brings near to their task's prototype; section 3.2."""

    def __init__(self, config: Config, width: int) -> None:
        """Make the network for hidden states of this width."""
        super().__init__(nn.Linear(width, config.trunk), nn.ReLU(), nn.Linear(config.trunk, config.code))

    def vectors(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the vectors (batch, code) of hidden states (batch, length, d), meaned over the mask."""
        if mask is None or mask.dim() != 2:
            pooled = states.mean(1)
        else:
            kept = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
        vectors: torch.Tensor = self(pooled.to(self[0].weight.dtype))
        return vectors


class Memory(nn.Module):  # type: ignore[misc]
    """The retriever's last vectors of each task, by the task's row: the other tasks' negatives.

    A checkpoint of the model keeps them, or training would go on from it with others. Their number grows, so they are
    an extra state: (vectors, 1 + code), the row first.
    """

    def __init__(self, config: Config) -> None:
        """Remember nothing."""
        super().__init__()
        self.vectors: dict[int, torch.Tensor] = {}
        self._most = config.memory
        self._none = torch.empty(0, 1 + config.code)

    def others(self, row: int, like: torch.Tensor) -> torch.Tensor:
        """Return the vectors of all tasks but this; of the dtype and on the device of `like` where there are none."""
        return torch.cat([like[:0], *(self.vectors[other] for other in sorted(self.vectors) if other != row)])

    def add(self, row: int, vectors: torch.Tensor) -> None:
        """Remember a task's vectors, and forget its oldest."""
        past = self.vectors.get(row, vectors[:0])
        self.vectors[row] = torch.cat([past, vectors]).detach()[-self._most :]

    def get_extra_state(self) -> torch.Tensor:
        """Return what is remembered, as one tensor: a checkpoint holds nothing else."""
        rows = [F.pad(vectors, (1, 0), value=row) for row, vectors in sorted(self.vectors.items())]
        return torch.cat(rows) if rows else self._none

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Remember what a checkpoint did."""
        self.vectors = {int(row): state[state[:, 0] == row, 1:] for row in state[:, 0].unique()}


def instance_loss(vectors: torch.Tensor, others: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return InfoNCE between instances (n, code) of one task and `others` (m, code) of other tasks; section 3.2.

    -log softmax of the cosine over the temperature, over the other n - 1 and the m, in the mean over the n - 1
    positives and the n instances: `_ins_ins_loss` of the released code. Without a positive or a negative nothing is to
    be told apart, and it is 0.
    """
    n = len(vectors)
    if n < 2 or not len(others):
        return vectors.sum() * 0
    vectors, others = F.normalize(vectors, dim=1), F.normalize(others, dim=1)
    scores = vectors @ torch.cat([vectors, others]).T / temperature
    itself = torch.eye(n, n + len(others), dtype=torch.bool, device=vectors.device)
    logs = F.log_softmax(scores.masked_fill(itself, -torch.inf), 1)[:, :n]
    return -logs.masked_fill(itself[:, :n], 0).sum() / (n * (n - 1))


def prototype_loss(vectors: torch.Tensor, prototypes: torch.Tensor, row: int, temperature: float) -> torch.Tensor:
    """Return InfoNCE between instances (n, code) and prototypes (tasks, code), of which `row` is theirs; section 3.2.

    The mean of -log softmax of the cosine over the temperature; with one task it is 0. (`_pro_ins_loss` of the released
    code leaves the positive out of the sum, which has no lower bound.)
    """
    scores = F.normalize(vectors, dim=1) @ F.normalize(prototypes, dim=1).T / temperature
    return -F.log_softmax(scores, 1)[:, row].mean()
