"""Which directory of a Trainer run counts, whatever was trained: the root, the best checkpoint, or the highest one.

Transformers saves checkpoints in place, so half-written ones are real: they are skipped with a warning.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from petlpack.errors import RunError, printable
from petlpack.layouts.run import read_json
from petlpack.tensors.checkpoint import find_weights, name_text

Read = TypeVar("Read")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

_DEEPSPEED = "a DeepSpeed checkpoint; merge it with its own zero_to_fp32.py"

_SHARDED_STATES = {
    "pytorch_model_fsdp_0": "an FSDP checkpoint; merge it with `accelerate merge-weights`",
    "latest": _DEEPSPEED,
    "global_step*": _DEEPSPEED,
    "zero_pp_rank_*": _DEEPSPEED,
}
"""Training states that are no checkpoint yet, by a name in them, and what turns them into one."""


def is_checkpoint(name: str) -> bool:
    """Tell whether a directory is called like a checkpoint of Trainer."""
    return _CHECKPOINT.fullmatch(name) is not None


def checkpoints(path: Path) -> list[Path]:
    """Return the `checkpoint-N` directories of a run, the highest N first."""
    if not path.is_dir():
        return []
    steps = [(int(match[1]), entry) for entry in path.iterdir() if (match := _CHECKPOINT.fullmatch(entry.name))]
    return [entry for _, entry in sorted(steps, reverse=True) if entry.is_dir()]


def places(path: Path) -> list[Path]:
    """Return where a run's files may be: the run itself, then its checkpoints, the best first."""
    return [path, *_best_first(path)] if path.is_dir() else []


def skipped(path: Path, chosen: Path) -> tuple[str, ...]:
    """Return a warning for each checkpoint that comes before the chosen one, and has nothing that could be read."""
    before = list(itertools.takewhile(lambda place: place != chosen, places(path)))
    names = [place.name for place in before if place != path] if chosen in places(path) else []
    return tuple(f"skipped a half-written checkpoint: {printable(name)}" for name in names)


def model_with(place: Path, *names: str) -> Path | None:
    """Return the model file of a directory if parts of tensor names stand in it, all of these; reads no pickle."""
    file = find_weights(place)
    if file is None:
        return None
    text = name_text(file)
    return file if all(name.encode() in text for name in names) else None


def first_complete(path: Path, read: Callable[[Path], Read]) -> tuple[Path, Read, tuple[str, ...]]:
    """Return (checkpoint, what `read` gave, warnings) of the best complete checkpoint; raises RunError without one.

    The best is the one that trainer_state.json names, then the one with the highest N. `read` raises RunError for one
    that is not complete.
    """
    warnings: list[str] = []
    for checkpoint in _best_first(path):
        try:
            return checkpoint, read(checkpoint), tuple(warnings)
        except RunError as error:
            warnings.append(f"skipped a half-written checkpoint: {error.message}")
    raise RunError(
        f"'{printable(str(path))}' has no complete checkpoint: {'; '.join(warnings) or 'no weights'}",
        hint="a run directory has its weights at the root, or in a complete checkpoint-N",
    )


def sharded_state(path: Path) -> str | None:
    """Return what kind of sharded training state a directory or its checkpoints hold, if any, and what merges it."""
    places = [place for place in (path, *checkpoints(path)) if place.is_dir()]
    return next((what for name, what in _SHARDED_STATES.items() if any(any(p.glob(name)) for p in places)), None)


def _best_first(path: Path) -> list[Path]:
    saved = checkpoints(path)
    for state in (path / "trainer_state.json", *(checkpoint / "trainer_state.json" for checkpoint in saved[:1])):
        best = read_json(state).get("best_model_checkpoint") if state.is_file() else None
        if isinstance(best, str):
            name = best.replace("\\", "/").rstrip("/").rpartition("/")[2]
            return sorted(saved, key=lambda checkpoint: checkpoint.name != name)
    return saved
