"""The probe: one tiny forward that shows that what a method put on a model changes what its layers compute.

Methods stand on other libraries' modules as hooks (docs/decisions/0009). A release that calls these modules in another
way leaves the hooks without an effect, and a method without an effect trains nothing, in silence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from petlpack.errors import PetlpackError, UsageError
from petlpack.methods.places import library_of

_HINT = "petlpack may not support this version or this kind of model: try an earlier version, and please report it"


@dataclass(frozen=True)
class Insert:
    """Something that a method put on a model."""

    what: str
    """As a message calls it: `the prefix`, `the LoRA on query`."""
    layer: str
    """The name of the module whose output it changes."""
    module: nn.Module
    tensors: Callable[[], Sequence[torch.Tensor]]
    """What it computes with, as the forward under way does."""


def parameters_of(*modules: nn.Module) -> list[torch.Tensor]:
    """Return what an insert made of modules computes with."""
    return [parameter for module in modules for parameter in module.parameters()]


def check_inserts(model: nn.Module, inserts: Sequence[Insert], run: Callable[[], Any]) -> None:
    """Run a model once, by `run` and in eval mode; raise UsageError for an insert that its layer does not depend on.

    A layer depends on it where its output has a slope in each of the insert's tensors, and one that is not 0 in one of
    them: a LoRA whose B is 0 at the start counts. Weights, gradients, modes and random generators are afterwards what
    they were.
    """
    watched: dict[nn.Module, list[Insert]] = {}
    for insert in inserts:
        watched.setdefault(insert.module, []).append(insert)
    ran: set[nn.Module] = set()
    acting: set[Insert] = set()

    def compare(module: nn.Module, _args: object, output: Any) -> None:
        ran.add(module)
        acting.update(insert for insert in watched[module] if _depends(output, insert.tensors()))

    handles = [module.register_forward_pre_hook(_cut_off, with_kwargs=True) for module in watched]
    handles += [module.register_forward_hook(compare) for module in watched]
    try:
        with _all_with_slopes(model), running(model, training=False):
            run()
    finally:
        for handle in handles:
            handle.remove()
    if idle := [insert for insert in inserts if insert not in acting]:
        first, others = idle[0], len(idle) - 1
        why = "does not change the layer's output" if first.module in ran else "is in a layer that did not run"
        more = f"; the same holds for {others} more" if others else ""
        raise no_effect(f"'{first.layer}': {first.what} {why}", model, more)


def no_effect(what: str, model: nn.Module, more: str = "") -> UsageError:
    """Return the error of something on a model that does not act, with the version of the model's library."""
    return UsageError(f"{what} ({library_of(model)}){more}", hint=_HINT)


@contextmanager
def running(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Let a forward of the probe run: in this mode, with slopes, and with random numbers of its own.

    What the forward raises, unless it is ours, becomes a UsageError that names the model and its library.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UsageError(
            f"{type(model).__name__} has weights created in inference mode, but the probe needs gradients",
            hint="create the model, and attach or load, outside torch.inference_mode(); it may run inside",
        )
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]  # of norms that count in training
    generators = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(0)
            model.train(training)
            yield
    except PetlpackError:
        raise
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} ({library_of(model)}) does not run on the method's probe: "
            f"{type(error).__name__}: {error}",
            hint="if it needs inputs other than `input_ids`, pass them: attach(..., probe=batch)",
        ) from error
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _all_with_slopes(model: nn.Module) -> Iterator[None]:
    """Give all parameters slopes for a while: one that is frozen takes part in what its layer computes, too."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def without_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lay gradients aside for a while."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def _cut_off(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cut a layer off from those before it, so that its slopes are its own, in tensors that layers share as well."""
    return tuple(map(_detached, args)), {name: _detached(value) for name, value in kwargs.items()}


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if type(value) in (tuple, list) else value


def _depends(output: Any, tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether an output has a slope in all of the tensors, and one that is not 0 in one of them."""
    total = weighed(output)
    if total is None:
        return False
    slopes = torch.autograd.grad(total, list(tensors), allow_unused=True, retain_graph=True)
    return all(slope is not None for slope in slopes) and any(bool(slope.any()) for slope in slopes)


def weighed(output: Any) -> torch.Tensor | None:
    """Return a sum of all numbers that an output has slopes in, none weighed like its neighbour; None without one.

    A plain sum has no slope behind a norm.
    """
    sums = [(tensor * _weights(tensor)).sum() for tensor in _tensors(output)]
    return sum(sums[1:], sums[0]) if sums else None


def _weights(tensor: torch.Tensor) -> torch.Tensor:
    return torch.arange(1, tensor.numel() + 1, device=tensor.device).sin().view_as(tensor).to(tensor.dtype)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))


def few_tokens(model: Any) -> dict[str, torch.Tensor]:
    """Return inputs that a Transformers model of text runs on: one example of four tokens, for each of its stacks.

    The last is the end-of-sequence token, of which T5's classifier reads. Raises UsageError for other models.
    """
    stacks = [model, *([model.get_decoder()] if getattr(model.config, "is_encoder_decoder", False) else [])]
    try:
        tables = [stack.get_input_embeddings() for stack in stacks]
    except NotImplementedError:
        tables = []
    if not tables or not all(isinstance(table, nn.Embedding) for table in tables):
        raise UsageError(
            f"{type(model).__name__} ({library_of(model)}) takes no tokens to probe the method with",
            hint="pass a batch that it runs on: attach(..., probe=batch)",
        )
    words = min(table.num_embeddings for table in tables)
    ids = [min(token, words - 1) for token in (3, 5, 4)]
    end = getattr(model.config, "eos_token_id", None)
    ids.append(end if isinstance(end, int) and 0 <= end < words else ids[0])
    batch = torch.tensor([ids])
    if type(model).__name__.endswith("ForMultipleChoice"):
        batch = batch[:, None]
    names = ["input_ids", *(["decoder_input_ids"] if getattr(model.config, "is_encoder_decoder", False) else [])]
    return dict.fromkeys(names, batch)
