"""A tiny model of every family, and every method for it: a new family or a new method has a line here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from petlpack.methods import adamix, diff_pruning, pha, propetl
from tests.support.attached import switched

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENCODER = {"vocab_size": 40, "max_position_embeddings": 20, "num_labels": 2, "initializer_range": 0.2, **SIZES}
DECODER = {**ENCODER, "num_key_value_heads": 1, "pad_token_id": 0, "head_dim": 8}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "ForSequenceClassification", ENCODER),
    "roberta": ("Roberta", "ForSequenceClassification", ENCODER),
    "distilbert": (
        "DistilBert",
        "ForSequenceClassification",
        {"vocab_size": 40, "max_position_embeddings": 20, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    ),
    "deberta-v2": (
        "DebertaV2",
        "ForSequenceClassification",
        {**ENCODER, "relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"]},
    ),
    "modernbert": ("ModernBert", "ForSequenceClassification", {**ENCODER, "pad_token_id": 0}),
    "t5": ("T5", "ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
    "gpt2": (
        "GPT2",
        "LMHeadModel",
        {"vocab_size": 40, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2},
    ),
    "llama": ("Llama", "ForCausalLM", DECODER),
    "llama classifier": ("Llama", "ForSequenceClassification", DECODER),
    "qwen2": ("Qwen2", "ForCausalLM", DECODER),
    "mistral": ("Mistral", "ForCausalLM", DECODER),
    "gemma": ("Gemma", "ForCausalLM", DECODER),
}
CLASSIFIERS = {
    **{family: case for family, case in FAMILIES.items() if case[1] == "ForSequenceClassification"},
    "mistral classifier": ("Mistral", "ForSequenceClassification", DECODER),
    "gpt2 classifier": ("GPT2", "ForSequenceClassification", {**FAMILIES["gpt2"][2], "pad_token_id": 0}),
    "t5 classifier": ("T5", "ForSequenceClassification", {**FAMILIES["t5"][2], "eos_token_id": 1}),
}
ALL = FAMILIES | CLASSIFIERS


def generates(family: str) -> bool:
    return not ALL[family][1].endswith("ForSequenceClassification")


def tasks_of(family: str) -> dict[str, int]:
    return {"one": 0, "two": 0} if generates(family) else {"one": 2, "two": 3}


METHODS: dict[str, tuple[Any, Callable[[Any, str], Any]]] = {
    "propetl adapter": (
        propetl,
        lambda model, _: propetl.attach(model, propetl.Config(kind="adapter", bottleneck=4, activation="gelu")),
    ),
    "propetl lora": (propetl, lambda model, _: propetl.attach(model, propetl.Config(kind="lora", rank=4, keep=0.5))),
    "propetl prefix": (
        propetl,
        lambda model, _: propetl.attach(model, propetl.Config(kind="prefix", length=5, hidden=8, keep=0.5)),
    ),
    "propetl lora of tasks": (
        propetl,
        lambda model, family: switched(
            propetl.attach(model, propetl.Config(kind="lora", rank=4, keep=0.5), tasks=tasks_of(family))
        ),
    ),
    "adamix adapter": (adamix, lambda model, _: adamix.attach(model, adamix.Config(bottleneck=4, consistency=False))),
    "adamix lora": (
        adamix,
        lambda model, _: adamix.attach(model, adamix.Config(kind="lora", rank=2, consistency=False)),
    ),
    "diff pruning": (
        diff_pruning,
        lambda model, _: diff_pruning.attach(model, diff_pruning.Config(density=0.05)),
    ),
    "pha": (
        pha,
        lambda model, family: switched(pha.attach(model, pha.Config(bottleneck=4, code=8, trunk=8), tasks_of(family))),
    ),
}


def write_base(directory: Path, family: str) -> None:
    prefix, kind, sizes = ALL[family]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which DeBERTa's code is written in
        model = getattr(transformers, prefix + kind)(getattr(transformers, f"{prefix}Config")(**sizes))
    (model if generates(family) else model.base_model).save_pretrained(directory / family)


def opened(bases: Path, family: str, dtype: Any = torch.float32, seed: int = 1, **settings: Any) -> Any:
    """Return a family's model on its base, the head drawn anew, without dropout."""
    torch.manual_seed(seed)
    prefix, kind, _ = ALL[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, prefix + kind).from_pretrained(bases / family, dtype=dtype, **settings)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def batch_of(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 40, (4, 6), generator=torch.Generator().manual_seed(seed))
    if family == "t5 classifier":
        ids[:, -1] = 1  # the end of a sentence, which it reads
    return {"input_ids": ids, "labels": ids.clone() if generates(family) else ids[:, 0] % 2}
