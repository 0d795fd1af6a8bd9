"""Where in a directory the weights stand: its root, the best or the last checkpoint of a training, a Hub's snapshot."""

from __future__ import annotations

import os
import re
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.tensors.checkpoint import PICKLED, find_weights
from petlpack.tensors.content import called
from petlpack.tensors.foreign_json import read_value
from petlpack.tensors.hub_cache import snapshot_of

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

DIFFUSERS = "diffusion_pytorch_model"
"""What diffusers calls the weights of a model."""

TRAINING = ("optimizer", "scheduler", "scaler.pt", "rng_state", "training_args.bin", "global_step")
"""How the names of training state begin; most of it is pickled, and none is ever opened."""


def checkpoints(path: Path) -> list[Path]:
    """Return the `checkpoint-N` directories of a run, the highest N first."""
    try:
        names = os.listdir(path)  # noqa: PTH208 - every layout asks, and most directories have none
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [(int(match[1]), path / name) for name in names if (match := _CHECKPOINT.fullmatch(name))]
    return [entry for _, entry in sorted(steps, reverse=True) if entry.is_dir()]


def best_checkpoint(path: Path) -> str | None:
    """Return the name of the checkpoint that a run calls its best, if it says so; what cannot be read says nothing."""
    for place in (path, *checkpoints(path)[:1]):
        try:
            best = read_value(place / "trainer_state.json")["best_model_checkpoint"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(best, str) and best:
            return best.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return None


def best_first(path: Path) -> list[Path]:
    """Return the checkpoints of a run: the one that it calls its best, then the highest N."""
    saved = checkpoints(path)
    best = best_checkpoint(path) if len(saved) > 1 else None
    return saved if best is None else sorted(saved, key=lambda checkpoint: checkpoint.name != best)


def find_model(path: Path) -> Path | None:
    """Return the weights of a model, in a file, a directory, a Trainer's run or a folder of the Hub's cache; or None.

    In a directory they are what a library would load, else its only weight file, else those of its best checkpoint.
    Raises RunError where the Hub's cache has several snapshots to choose from.
    """
    place = snapshot_of(path)
    if not place.is_dir():
        return place if place.exists() else None
    found = weights_in(place)
    return found or next(filter(None, map(weights_in, best_first(place))), None)


def find_main(directory: Path) -> Path | None:
    """Return the weights of a model's directory by the names that Transformers and diffusers give them, or None."""
    return find_weights(directory) or find_weights(directory, DIFFUSERS, DIFFUSERS)


def weights_in(place: Path) -> Path | None:
    """Return the weights of one directory: by the names that libraries give them, else the only file of weights.

    Raises RunError where there are several, and nothing says which of them is the model.
    """
    known = find_main(place)
    if known is not None:
        return known
    names = sorted(entry.name for entry in place.iterdir() if entry.is_file() and not entry.name.startswith(TRAINING))
    for suffixes in ((".safetensors.index.json",), (".safetensors",), PICKLED):
        files = [name for name in names if name.endswith(suffixes) and not called([name])]
        if len(files) > 1:
            raise RunError(
                f"'{printable(str(place))}' has {len(files)} weight files, none of which has the name of a model: "
                f"{printable(', '.join(files[:3]))}",
                hint="pass one of them",
            )
        if files:
            return place / files[0]
    return None
