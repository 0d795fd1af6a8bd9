"""What a layout reader is, and what it returns: a run, read from its directory."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from petlpack.errors import RunError, printable
from petlpack.modules import Module
from petlpack.tensors.safetensors_file import Header


@dataclass(frozen=True)
class LeftOut:
    """A file of a run that does not go into the pack, and why."""

    file: str
    nbytes: int
    why: str


@dataclass(frozen=True)
class Run:
    """A run as read: its module, the headers of its weight files, the files kept byte for byte, what is left out."""

    path: Path
    layout: str
    method: str
    module: Module
    headers: dict[str, Header]
    weight_bytes: int
    kept: dict[str, Path]
    left_out: tuple[LeftOut, ...]
    base_name: str | None
    warnings: tuple[str, ...] = field(default=())


class Layout(Protocol):
    """One way in which runs stand on disk."""

    id: str

    def detect(self, path: Path) -> bool:
        """Tell whether a path holds a run of this layout; reads names and small JSON files only."""

    def read(self, path: Path) -> Run:
        """Read a run; raises RunError that names the file."""


LOADING = frozenset(
    {
        *("config.json", "generation_config.json", "adapter_config.json", "head_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
        *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
        *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
    }
)
"""Files that loading a model needs, by name; Transformers, PEFT and sentence-transformers write them."""

TRAINING = ("optimizer", "scheduler", "scaler.pt", "rng_state", "training_args.bin", "global_step")
"""How the names of training state begin; most of it is pickled, and none is ever opened."""


def sort_files(
    run: Path, chosen: Path, weights: Iterable[Path], also: Collection[str] = ()
) -> tuple[dict[str, Path], tuple[LeftOut, ...]]:
    """Sort the files of a run into those kept byte for byte and those left out, each with the reason.

    `chosen` is the run or the checkpoint in it whose files count, `weights` are the files whose tensors are stored,
    `also` names further files, relative to `chosen`, that loading needs.
    """
    stored = {path.resolve() for path in weights}
    modules = _module_directories(chosen)
    kept: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    for path in sorted(run.rglob("*")):
        if not path.is_file() or path.resolve() in stored:
            continue
        name = path.relative_to(chosen).as_posix() if path.is_relative_to(chosen) else ""
        loading = name in LOADING or name in also or name.partition("/")[0] in modules
        if loading and name.isprintable() and "\\" not in name and ":" not in name:
            kept[name] = path
        else:
            name = path.relative_to(run).as_posix()
            left_out.append(LeftOut(name, path.stat().st_size, _why(name, path)))
    return kept, tuple(left_out)


def _module_directories(directory: Path) -> set[str]:
    """Return the directories that a sentence-transformers modules.json names (pooling, dense layers, ...)."""
    index = directory / "modules.json"
    if not index.is_file():
        return set()
    try:
        paths = [module["path"] for module in json.loads(index.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"'{printable(str(index))}' is not a list of modules: {error!r}", hint="save the model again"
        ) from error
    return {path for path in paths if isinstance(path, str) and path and "/" not in path}


def _why(name: str, path: Path) -> str:
    top = name.split("/")[0]
    if path.name.startswith(TRAINING):
        return "training state, not needed for inference"
    if top.startswith("checkpoint-"):
        return "another checkpoint"
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") or name.endswith(".index.json"):
        return "other weights"
    return "not needed for loading"


_JSON_HINT = "the file is damaged or only half written: copy it again, or save the run again"


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; raises RunError that names the file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(f"'{printable(str(path))}' is not JSON: {printable(str(error))}", hint=_JSON_HINT) from error
    if not isinstance(table, dict):
        raise RunError(f"'{printable(str(path))}' is not a JSON object", hint=_JSON_HINT)
    return table
