"""Which directory of a Trainer run counts, whatever was trained: the root, the best checkpoint, or the highest one.

Transformers saves checkpoints in place, so half-written ones are real: they are skipped with a warning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from petlpack.errors import RunError, printable
from petlpack.layouts.run import read_json
from petlpack.tensors.checkpoint import find_weights
from petlpack.tensors.name_text import name_text
from petlpack.tensors.places import best_checkpoint, best_first, checkpoints

Read = TypeVar("Read")

_ADAPTER_WEIGHTS = (
    *("adapter_model.safetensors", "adapter_model.bin", "adapter_model.safetensors.index.json"),
    *("adapter.safetensors", "pytorch_adapter.bin"),
)
"""The weight files of PEFT's and AdapterHub's adapters."""


def places(path: Path) -> list[Path]:
    """Return where a run's files may be: the run itself, then its checkpoints, the best first."""
    return [path, *best_first(path)] if path.is_dir() else []


def skipped(path: Path, chosen: Path) -> tuple[str, ...]:
    """Return a warning for each checkpoint that comes before the chosen one, and has nothing that could be read."""
    before = list(itertools.takewhile(lambda place: place != chosen, places(path)))
    names = [place.name for place in before if place != path] if chosen in places(path) else []
    gone = missing_best(path) if chosen != path and chosen in places(path) else ()
    return (*gone, *(f"skipped a half-written checkpoint: {printable(name)}" for name in names))


def model_with(place: Path, *names: str) -> Path | None:
    """Return the model file of a directory if parts of tensor names stand in it, all of these; reads no pickle."""
    file = find_weights(place)
    if file is None:
        return None
    text = name_text(file)
    return file if all(name.encode() in text for name in names) else None


def adapter_config(folder: Path) -> Mapping[str, Any]:
    """Return what adapter_config.json says, empty without one; raises RunError for one that cannot be read.

    Beside a whole model, and without an adapter's weights, one that cannot be read is none: it was never written out.
    """
    config = folder / "adapter_config.json"
    if not config.is_file():
        return {}
    try:
        return read_json(config)
    except RunError:
        if find_weights(folder) is None or any((folder / name).exists() for name in _ADAPTER_WEIGHTS):
            raise
        return {}


def first_complete(path: Path, read: Callable[[Path], Read]) -> tuple[Path, Read, tuple[str, ...]]:
    """Return (checkpoint, what `read` gave, warnings) of the best complete checkpoint; raises RunError without one.

    The best is the one that trainer_state.json names, then the one with the highest N. `read` raises RunError for one
    that is not complete.
    """
    warnings: list[str] = []
    hints: set[str | None] = set()
    for checkpoint in best_first(path):
        try:
            return checkpoint, read(checkpoint), (*missing_best(path), *warnings)
        except RunError as error:
            if isinstance(error.__cause__, PermissionError):  # it may be whole: only who may read it knows
                raise
            warnings.append(f"skipped a half-written checkpoint: {error.message}")
            hints.add(error.hint)
    raise RunError(
        f"'{printable(str(path))}' has no complete checkpoint: {'; '.join(warnings) or 'no weights'}",
        hint=(hints.pop() if len(hints) == 1 else None)
        or "a run directory has its weights at the root, or in a complete checkpoint-N",
    )


def missing_best(path: Path) -> tuple[str, ...]:
    """Return a warning where the checkpoint that a run calls its best is not in it, though others are."""
    saved, best = checkpoints(path), best_checkpoint(path)
    if best is None or not saved or best in [checkpoint.name for checkpoint in saved]:
        return ()
    return (f"its best checkpoint, {printable(best)}, is gone: took the last one that is complete",)
