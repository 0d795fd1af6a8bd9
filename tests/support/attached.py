"""Every method on one tiny BERT, and how it is trained there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from petlpack.methods import adamix, diff_pruning, pha, propetl

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = 2


def switched(method: Any) -> Any:
    """Return a method, switched to the first of its tasks where it has several."""
    if method.tasks:
        method.switch(method.task)
    return method


ATTACH: dict[str, Callable[[Any], Any]] = {
    "propetl": lambda model: propetl.attach(model, propetl.Config(bottleneck=4)),
    "propetl of tasks": lambda model: switched(
        propetl.attach(model, propetl.Config(bottleneck=4), tasks={"sst2": 2, "rte": 2})
    ),
    "adamix": lambda model: adamix.attach(model, adamix.Config(bottleneck=4)),
    "diff pruning": lambda model: diff_pruning.attach(model, diff_pruning.Config(density=0.05)),
    "pha": lambda model: switched(
        pha.attach(model, pha.Config(bottleneck=4, code=8, trunk=8), tasks={"sst2": 2, "rte": 2})
    ),
}
LOAD = {"propetl": propetl.load, "adamix": adamix.load, "diff": diff_pruning.load, "pha": pha.load}
every = pytest.mark.parametrize("name", ATTACH)


def open_model(base: Path) -> Any:
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BertForSequenceClassification.from_pretrained(base, num_labels=LABELS, **NO_DROPOUT)


def a_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 40, (6, 5), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids[:, 0] % LABELS}


def train(method: Any, steps: int = 4) -> None:
    """Train as the docs' examples do, which say nothing of modes."""
    optimizer = torch.optim.AdamW(method.groups(lr=1e-2), weight_decay=0.0)
    for step in range(steps):
        method.model(**a_batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits_of(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=a_batch(9)["input_ids"]).logits
    return logits
