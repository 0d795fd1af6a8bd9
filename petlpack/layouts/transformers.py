"""`transformers`: what Trainer and `save_pretrained` write, sentence-transformers models included.

The weights are the root's; else those of the best checkpoint that trainer_state.json names; else those of the highest
complete `checkpoint-N`. Half-written checkpoints are skipped with a warning (Transformers saves them in place).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.layouts.base import Run, read_json, sort_files
from petlpack.modules import Dense
from petlpack.tensors.checkpoint import Checkpoint, find_weights, open_checkpoint

FOREIGN = {
    "pytorch_model_fsdp_0": "an FSDP checkpoint; merge it with `accelerate merge-weights`",
    "latest": "a DeepSpeed checkpoint; merge it with its own zero_to_fp32.py",
}
"""Sharded training states that are no checkpoint yet, and what turns them into one."""


@dataclass(frozen=True)
class Transformers:
    """A full checkpoint of a Transformers model."""

    id = "transformers"

    def detect(self, path: Path) -> bool:
        """Tell whether the directory, or a `checkpoint-N` in it, has a model's weights."""
        return path.is_dir() and (find_weights(path) is not None or bool(_checkpoints(path)))

    def read(self, path: Path) -> Run:
        """Read the run."""
        chosen, weights, warnings = _choose(path)
        kept, left_out = sort_files(chosen, weights.sources, _index_names(chosen, weights))
        if chosen != path:
            _, others = sort_files(path, weights.sources)
            inside = f"{chosen.relative_to(path).as_posix()}/"
            left_out += tuple(file for file in others if not file.file.startswith(inside))
        return Run(
            path=path,
            layout="sentence-transformers" if (chosen / "modules.json").is_file() else self.id,
            method="full fine-tune",
            module=Dense(weights.tensors),
            headers=weights.headers,
            weight_bytes=weights.nbytes,
            kept=kept,
            left_out=left_out,
            base_name=_base_name(chosen, path),
            warnings=tuple(warnings),
        )


def _choose(path: Path) -> tuple[Path, Checkpoint, list[str]]:
    """Return the directory whose weights count, the weights, and warnings about what was skipped."""
    weights = find_weights(path)
    if weights is not None:
        return path, open_checkpoint(weights), []
    warnings: list[str] = []
    for checkpoint in _best_first(path):
        weights = find_weights(checkpoint)
        try:
            if weights is None or not (checkpoint / "config.json").is_file():
                raise RunError(f"'{printable(str(checkpoint))}' has no weights or no config.json")
            return checkpoint, open_checkpoint(weights), warnings
        except RunError as error:
            warnings.append(f"skipped a half-written checkpoint: {error.message}")
    for name, what in FOREIGN.items():
        if any((place / name).exists() for place in (path, *_checkpoints(path))):
            raise RunError(f"'{printable(str(path))}' holds {what}", hint="then encode the merged model")
    raise RunError(
        f"'{printable(str(path))}' has no complete checkpoint: {'; '.join(warnings) or 'no weights'}",
        hint="a run directory has model.safetensors, or a checkpoint-N that has it",
    )


def _checkpoints(path: Path) -> list[Path]:
    """Return the `checkpoint-N` directories, the highest N first."""
    found = [(int(match[1]), entry) for entry in path.iterdir() if (match := _CHECKPOINT.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found, reverse=True) if entry.is_dir()]


_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def _best_first(path: Path) -> list[Path]:
    """Return the checkpoints in the order to try them: the best by trainer_state.json, then the highest N."""
    checkpoints = _checkpoints(path)
    for state in (path / "trainer_state.json", *(checkpoint / "trainer_state.json" for checkpoint in checkpoints[:1])):
        best = read_json(state).get("best_model_checkpoint") if state.is_file() else None
        if isinstance(best, str):
            name = best.replace("\\", "/").rstrip("/").rpartition("/")[2]
            return sorted(checkpoints, key=lambda checkpoint: checkpoint.name != name)
    return checkpoints


def _index_names(directory: Path, weights: Checkpoint) -> list[str]:
    """Return the index of shards, which loading needs, where the weights stand in safetensors shards."""
    sharded = len(weights.sources) > 1 and all(source.suffix == ".safetensors" for source in weights.sources)
    return [path.name for path in directory.glob("*.safetensors.index.json")] if sharded else []


def _base_name(chosen: Path, path: Path) -> str | None:
    """Return what the run says of its base, if anything: `_name_or_path` of its config."""
    for config in (chosen / "config.json", path / "config.json"):
        if config.is_file():
            name = read_json(config).get("_name_or_path")
            return name if isinstance(name, str) and name else None
    return None
