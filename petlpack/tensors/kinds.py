"""What a file of a run is as far as its path says: the one table for what comes along and for what `survey` counts.

A file's content is never asked. Everything comes along with a run but the kinds in `LEAVES` and the weight files that
`petlpack.layouts.files` tells apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from petlpack.tensors.places import TRAINING

LOADING = frozenset(
    {
        *("config.json", "generation_config.json", "adapter_config.json", "head_config.json", "config_setfit.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
        *("vocab.txt", "vocab.json", "merges.txt", "vocab.bpe", "bpe.codes", "entity_vocab.json", "tekken.json"),
        *("tokenizer.model", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model", "spm.model"),
        *("source.spm", "target.spm", "chat_template.jinja", "chat_template.json"),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "router_config.json"),
    }
)
"""Files without which a run is not the same, by name: a link of theirs that leads nowhere, or none, is an error."""

TEMPLATES = "additional_chat_templates"
"""The directory of further chat templates, all of which loading needs."""

LOGS = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "result.json"}
"""Files that say how a training went, by name."""

LOG_FOLDERS = {"runs", "wandb", "mlruns", "lightning_logs", "tensorboard", "tb_logs", ".aim", ".neptune"}
"""Directories in which everything is a log, but for weights and what is named as training state."""

READ = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
"""How the names of weight files end, in formats that are read."""

OTHER_RUNTIMES = {
    ".h5",
    ".keras",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".ggml",
    ".tflite",
    ".ot",
    ".mlmodel",
    ".pte",
}
"""How the names of weight files end, in formats of other runtimes."""

WEIGHTS = READ | OTHER_RUNTIMES
"""How the names of weight files end, in formats that are read and in others."""

CACHES = {
    *(".cache", ".huggingface", ".locks", ".no_exist", "__pycache__", ".git", ".hg", ".svn", ".ipynb_checkpoints"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv", "node_modules"),
}
"""Directories in which everything is cache, or another program's own."""

LEAVES: Mapping[str, str] = {
    "training state": "training state, not needed for inference",
    "log": "training log",
    "cache": "a cache, or another program's own file",
}
"""Why files of these kinds do not come along."""

_CODE = {".py", ".ipynb", ".sh", ".slurm"}
_CONFIGS = {".yaml", ".yml", ".toml", ".ini"}
_CACHE_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
_STATES = {".pt", ".distcp", ".metadata"}
_MORE_STATES = (
    "random_states_",
    "zero_pp_rank_",
    "mp_rank_",
    "bf16_zero_pp_rank_",
    "custom_checkpoint_",
    "dl_state_dict",
)
_SHARDED_STATE = re.compile(r"(global_step|optimizer_)\d+")
_RESULTS = re.compile(
    r"(.*_)?(results|logs|log_history|predictions|predicted_answers|null_odds)(_.*)?\.(json|jsonl|txt|csv|tsv)"
    r"|(.*_)?log\.(json|jsonl|txt|csv|tsv)|.*\.(log|out|err)|(.*_)?loss(_.*)?\.png"
)
_OPENVINO = re.compile(r"openvino_.*\.(xml|bin)")
_CHECKPOINT = re.compile(
    r"checkpoint-.*|(checkpoint|ckpt|epoch|iter|step|global_step)s?[-_=.]?(\d+|best|last|final|latest)([-_.=].*)?"
)


def kind_by_name(parts: Sequence[str]) -> str:
    """Return the kind of a file by its path below a run; weights are `other weights`, for nobody knows whose.

    The order of the questions matters: an optimizer's `.bin` is state, not weights.
    """
    *folders, name = parts
    suffix = PurePosixPath(name).suffix
    if not CACHES.isdisjoint(folders) or suffix in (".incomplete", ".lock") or name in _CACHE_FILES:
        return "cache"
    if _is_training_state(folders, name, suffix):
        return "training state"
    if suffix in _CODE:
        return "code"
    if suffix in WEIGHTS or suffix == ".distcp":
        return "other weights"
    if (
        name in LOGS
        or (_RESULTS.fullmatch(name) and not name.endswith("config.json"))
        or name.startswith("events.out.tfevents")
    ):
        return "log"
    if name in LOADING:
        return "config" if name == "modules.json" or ("config" in name and "tokenizer" not in name) else "tokenizer"
    if TEMPLATES in folders:
        return "tokenizer"
    if name.endswith(("config.json", ".index.json")) or suffix in _CONFIGS:
        return "config"
    return "log" if "wandb" in folders else "other"


def kind_in_run(parts: Sequence[str]) -> str:
    """Return the kind of a file by its path below its run, in which the directories of logs are known, too."""
    kind = kind_by_name(parts)
    in_logs = not LOG_FOLDERS.isdisjoint(parts[:-1]) and kind in ("tokenizer", "config", "code", "other")
    return "log" if in_logs else kind


def is_needed(name: PurePosixPath) -> bool:
    """Tell whether loading is known to need a file, by its path below the directory whose weights count."""
    return name.as_posix() in LOADING or TEMPLATES in name.parts[:1]


def is_checkpoint(folder: str) -> bool:
    """Tell whether a directory of a run is called as a state of its training is."""
    return _CHECKPOINT.fullmatch(folder) is not None


def is_for_other_runtime(name: str) -> bool:
    """Tell whether a file holds a model for another runtime than torch: ONNX, TensorFlow, Flax, GGUF, OpenVINO, ..."""
    return PurePosixPath(name).suffix in OTHER_RUNTIMES or _OPENVINO.fullmatch(name) is not None


def _is_training_state(folders: Sequence[str], name: str, suffix: str) -> bool:
    """Tell state by the names that Trainer, accelerate, FSDP and DeepSpeed give it; a config is none."""
    if any(_SHARDED_STATE.fullmatch(folder) for folder in folders[-1:]) and suffix in _STATES:
        return True
    if name in ("latest", "zero_to_fp32.py"):
        return True
    return name.startswith((*TRAINING, *_MORE_STATES)) and suffix not in (".json", *_CODE)
