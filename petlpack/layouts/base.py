"""What a layout reader is, and what it returns: a run, read from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
    directory: Path, weights: Iterable[Path], also: Iterable[str] = ()
) -> tuple[dict[str, Path], tuple[LeftOut, ...]]:
    """Sort the files of a run into those kept byte for byte and those left out, each with the reason.

    `weights` are the files whose tensors are stored, `also` further relative names that loading needs.
    """
    stored = {path.resolve() for path in weights}
    kept: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    wanted = LOADING | set(also)
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.resolve() in stored:
            continue
        name = path.relative_to(directory).as_posix()
        if (name in wanted or (path.name == "config.json" and name.count("/") == 1 and name[0].isdigit())) and (
            name.isprintable() and "\\" not in name and ":" not in name
        ):
            kept[name] = path
        else:
            left_out.append(LeftOut(name, path.stat().st_size, _why(name, path)))
    return kept, tuple(left_out)


def _why(name: str, path: Path) -> str:
    top = name.split("/")[0]
    if path.name.startswith(TRAINING):
        return "training state, not needed for inference"
    if top.startswith("checkpoint-"):
        return "another checkpoint"
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") or name.endswith(".index.json"):
        return "other weights"
    return "not needed for loading"


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; raises RunError that names the file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(f"'{printable(str(path))}' is not JSON: {printable(str(error))}") from error
    if not isinstance(table, dict):
        raise RunError(f"'{printable(str(path))}' is not a JSON object")
    return table
