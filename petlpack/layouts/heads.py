"""What a task's head is called: in the model, in a run, and in what other libraries load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

HEADS = ("classifier", "score", "classification_head", "qa_outputs")
"""What a model of Transformers calls its head, where it has one of its own."""

FIRST = ("pre_classifier", "pooler", "head")
"""What stands in front of such a head in DistilBERT, DeBERTa and ModernBERT, new with it and not the base's."""

NEW = (*HEADS, *FIRST)
"""Modules that are new with a task. Only for runs that do not name their own."""

MODULES = "head_modules"
"""Where the config.json that petlpack.methods writes names them."""

_OF_TASK = re.compile(r"heads\.[^.]+\.(?P<name>[^.\d].*)")
"""A head in a run of several tasks; AdapterHub's own are numbered (`heads.mrpc.1.weight`), and no module of a model."""


def modules_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the head's modules in the model, as a run's config.json has them, or the usual ones."""
    named = config.get(MODULES)
    return tuple(named) if isinstance(named, list) and all(isinstance(name, str) for name in named) else NEW


def module_of(name: str, modules: Iterable[str]) -> str | None:
    """Return which of the modules a tensor belongs to; None where it belongs to none."""
    return next((module for module in modules if name.startswith(f"{module}.")), None)


def in_model(head: Mapping[str, T]) -> dict[str, T]:
    """Return a task's head by its names in the model: `classifier.weight` of `heads.sst2.classifier.weight`."""
    matches = {name: _OF_TASK.fullmatch(name) for name in head}
    return {match["name"] if match else name: head[name] for name, match in matches.items()}
