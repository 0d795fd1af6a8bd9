"""Diff pruning in a model's state dict: beside the weights stands what trains, and both have to be of one stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from petlpack.errors import UsageError
from petlpack.methods.diff_pruning_stages import Weight

_PREFIX = "diff_pruning."
"""What the names of differences, gates and kept positions begin with."""
_KEPT = {"w", "start", "chosen", "density"}
"""What stands there in stage 3."""


def untied(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights in a model's state dict, each tensor once, under its first name."""
    first: dict[tuple[int, torch.Size], tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(_PREFIX):
            continue
        first.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    return dict(first.values())


def kept_in(state: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Return what was kept, on a device, in a state dict of stage 3; nothing in one of stage 1."""
    kept = _part_of(state)
    return {name: tensor.to(device) for name, tensor in kept.items()} if set(kept) == _KEPT else {}


def check_stage(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise UsageError for a model's state dict whose part of the method has not the expected names and shapes."""
    part = _part_of(state)
    if not part:
        raise UsageError(
            "the state dict has only weights, but differences and gates were expected",
            hint="use the state dict of a model with diff pruning attached; read what method.save() wrote with load()",
        )
    there, here = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (part, expected))
    if there != here:
        raise UsageError(
            "the state dict does not match the method: stage, density or model differ",
            hint="call method.resume(CHECKPOINT) first, then create the optimizer",
        )


def check_base(weights: Sequence[Weight], loaded: Sequence[torch.Tensor], named: Collection[str]) -> None:
    """Raise UsageError where weights are not those that a state dict, which named these, came with."""
    for weight, theta in zip(weights, loaded, strict=True):
        if weight.name in named and not torch.allclose(weight.theta, theta, rtol=1e-2, atol=1e-5):
            raise UsageError(
                f"'{weight.name}' in the state dict is not the base plus its difference",
                hint="attach to the base model that the checkpoint was trained on",
            )


def _part_of(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the method's own part of a state dict."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
