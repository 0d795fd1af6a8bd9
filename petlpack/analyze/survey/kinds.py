"""What a file is as far as its name says: training state, tokenizer, config, log; its content is never asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from petlpack.layouts.files import LOADING, LOGS, TRAINING, WEIGHTS

KINDS = (
    *("weights", "other checkpoints", "other weights", "training state", "tokenizer", "config", "log"),
    *("cache", "pack", "code", "other"),
)
"""What a file is, exactly one of these: `weights` are those that `encode` would take of a run."""

WEIGHT_KINDS = ("weights", "other checkpoints", "other weights")

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""How the names of pickled weights end."""

CACHES = {
    *(".cache", ".huggingface", ".locks", ".no_exist", "__pycache__", ".git", ".ipynb_checkpoints"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache"),
}
"""Directories in which everything is cache."""

_CODE = {".py", ".ipynb", ".sh", ".slurm"}
_CONFIGS = {".yaml", ".yml", ".toml", ".ini"}
_STATES = {".pt", ".distcp", ".metadata"}
_MORE_STATES = ("random_states_", "zero_pp_rank_")
_SHARDED_STATE = re.compile(r"(global_step|optimizer_)\d+")
_RESULTS = re.compile(r"(.*_)?(results|logs?)(_.*)?\.(json|jsonl|txt)|.*\.(log|out|err)")


def kind_by_name(parts: Sequence[str]) -> str:
    """Return the kind of a file by its path below what was given; weights are `other weights`, for nobody knows whose.

    The order of the questions matters: an optimizer's `.bin` is state, not weights.
    """
    *folders, name = parts
    suffix = Path(name).suffix
    if not CACHES.isdisjoint(folders) or suffix in (".incomplete", ".lock"):
        return "cache"
    if suffix in _CODE:
        return "code"
    if _is_training_state(folders, name, suffix):
        return "training state"
    if suffix in WEIGHTS or suffix == ".distcp":
        return "other weights"
    if name in LOGS or _RESULTS.fullmatch(name) or name.startswith("events.out.tfevents"):
        return "log"
    if name in LOADING:
        return "config" if name == "modules.json" or ("config" in name and "tokenizer" not in name) else "tokenizer"
    if "additional_chat_templates" in folders:
        return "tokenizer"
    if name.endswith(("config.json", ".index.json")) or suffix in _CONFIGS:
        return "config"
    return "log" if "wandb" in folders else "other"


def _is_training_state(folders: Sequence[str], name: str, suffix: str) -> bool:
    """Tell state by the names that Trainer, accelerate, FSDP and DeepSpeed give it; a config is none."""
    if any(_SHARDED_STATE.fullmatch(folder) for folder in folders[-1:]) and suffix in _STATES:
        return True
    return name == "latest" or (name.startswith((*TRAINING, *_MORE_STATES)) and suffix != ".json")
