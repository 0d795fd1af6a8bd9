"""A model's head: which modules it is, and copies of it for tasks of their own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from petlpack.errors.arguments import Check, check, whole
from petlpack.layouts.heads import FIRST, HEADS
from petlpack.methods.settings import check_name

OF_METHOD = "petl_method_s_own"
"""An attribute of modules that a method put on a model."""

_NO_LABELS = Check("0", lambda value: type(value) is int and value == 0)


def head_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the name and module of a model's own head, which trains with the method; None where it has none."""
    return next(iter(head_modules(model).items()), None)


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return, by name, all that is new with a model's head: the head first, then what stands in front of it.

    That is all beside the base model; the last of it is the head where none has a head's usual name. The output
    embeddings of a model of language, and what stands in front of them, are the base's.
    """
    base = getattr(model, getattr(model, "base_model_prefix", ""), None)
    weighty = {
        name: module
        for name, module in model.named_children()
        if any(True for _ in module.parameters()) and not hasattr(module, OF_METHOD)
    }
    named = next((name for name in weighty if name in HEADS), None)
    if isinstance(base, nn.Module) and not _has_output_embeddings(model):
        beside = [name for name, module in weighty.items() if module is not base]
        head = named or (beside[-1] if beside else None)
    else:
        head, beside = named, [name for name in weighty if name in FIRST]
    if head is None:
        return {}
    return {head: weighty[head], **{name: weighty[name] for name in beside if name != head}}


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model's own head."""
    return [parameter for module in head_modules(model).values() for parameter in module.parameters()]


def _has_output_embeddings(model: nn.Module) -> bool:
    find = getattr(model, "get_output_embeddings", None)
    return find is not None and find() is not None


def check_task(model: nn.Module, task: str, labels: int) -> None:
    """Raise UsageError for a name that cannot stand in names of tensors, or labels that the model has no use for."""
    hint = "choose a name that can name tensors and modules: no attribute of torch modules, such as 'type'"
    check_name(task, functools.partial(hasattr, nn.ModuleDict()), hint)
    has_head = head_of(model) is not None
    rule, has = (whole(1), "has a head") if has_head else (_NO_LABELS, "has no head of its own")
    check(f"number of labels of task '{task}'", labels, rule, f"{type(model).__name__} {has}")


def new_head(modules: Mapping[str, nn.Module], labels: int) -> nn.ModuleDict:
    """Return a copy of a head, named first, and of what stands in front of it, the head with so many outputs."""
    head, *others = modules
    copies = {name: copy.deepcopy(modules[name]) for name in others}
    return nn.ModuleDict({head: _with_outputs(modules[head], labels), **copies})


def _with_outputs(head: nn.Module, labels: int) -> nn.Module:
    """Return a copy of a head with so many outputs, the last linear layer new: weights N(0, 0.02), any bias 0."""
    head = copy.deepcopy(head)
    holder = nn.Sequential(head)
    name, last = [(name, module) for name, module in holder.named_modules() if isinstance(module, nn.Linear)][-1]
    new = nn.Linear(last.in_features, labels, bias=last.bias is not None)  # a decoder's has none
    nn.init.normal_(new.weight, std=0.02)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, child = name.rpartition(".")
    setattr(holder.get_submodule(parent), child, new.to(last.weight))
    return holder[0]


def in_its_precision(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cast what a module is called with to the precision of its weights; a forward pre-hook."""
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
