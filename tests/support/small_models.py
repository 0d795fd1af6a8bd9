"""Models that are made without a base, and every kind of every method to put on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from petlpack.methods import adamix, diff_pruning, pha, propetl

TASKS = {"sst2": 2, "rte": 3}


def bert(kind: str = "BertForSequenceClassification", **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=24, max_position_embeddings=20, initializer_range=0.2, **sizes, **more)
    return getattr(transformers, kind)(config)


def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=24, decoder_start_token_id=0, **sizes)
    )


def _propetl(kind: str, several: bool = False) -> Callable[[Any], Any]:
    config = propetl.Config(kind=kind, bottleneck=4, rank=3, length=5, hidden=8)

    def attach(model: Any) -> Any:
        tasks = {task: 0 if model.config.model_type == "t5" else labels for task, labels in TASKS.items()}
        return propetl.attach(model, config, tasks=tasks if several else None)

    return attach


def _pha(model: Any) -> Any:
    tasks = {task: 0 if model.config.model_type == "t5" else labels for task, labels in TASKS.items()}
    return pha.attach(model, pha.Config(bottleneck=4, code=8, trunk=8), tasks)


METHODS: dict[str, Callable[[Any], Any]] = {
    "propetl adapter": _propetl("adapter"),
    "propetl lora": _propetl("lora"),
    "propetl prefix": _propetl("prefix"),
    "propetl adapter of tasks": _propetl("adapter", True),
    "propetl prefix of tasks": _propetl("prefix", True),
    "adamix adapter": lambda model: adamix.attach(model, adamix.Config(bottleneck=4)),
    "adamix lora": lambda model: adamix.attach(model, adamix.Config(kind="lora", rank=2)),
    "diff pruning": lambda model: diff_pruning.attach(model),
    "diff pruning, no groups": lambda model: diff_pruning.attach(model, diff_pruning.Config(structured=False)),
    "pha": _pha,
}
