"""Diff pruning's probe: a training step, because what is put on the model are its weights themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from petlpack.errors import UsageError
from petlpack.methods.diff_pruning_stages import Gates, Kept, Weight
from petlpack.methods.probe import no_effect, running, weighed, without_gradients


def check_step(
    model: nn.Module,
    weights: Sequence[Weight],
    stage: Gates | Kept,
    parameters: Sequence[nn.Parameter],
    run: Callable[[], Any],
) -> None:
    """Raise UsageError where a training step's gradients of weights do not become those of differences and gates.

    `run` runs the model; `parameters` are what trains, whose gradients are laid aside.
    """
    gates = stage if isinstance(stage, Gates) else None
    halfway = gates.halfway() if gates is not None and gates.is_new() else nullcontext()
    with running(model, training=True), halfway, without_gradients(parameters):
        _backward(model, weighed(run()))
        stuck = [weight.name for weight in weights if weight.theta.grad is not None]
        if stuck:
            raise no_effect(f"the gradient of '{stuck[0]}' does not reach its difference", model)
        if gates is not None and not gates.reached():
            raise no_effect("no gradient reaches the differences and their gates", model)


def _backward(model: nn.Module, total: torch.Tensor | None) -> None:
    try:
        if total is not None:
            total.backward()
    except UsageError as error:  # from a hook
        raise no_effect(error.message, model) from error
