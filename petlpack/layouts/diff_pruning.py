"""`diff-pruning`: what the three stages of diff pruning leave behind; the difference is taken against the base.

Guo, Rush and Kim 2021; dguo98/DiffPruning. Only `model` counts: the masks are sampled and not saved, and `w` in
`bert_params` is a step ahead of the model (run_glue_diffpruning.py:356-393, 457, 551). Without such files, as
petlpack.methods saves it, the last stage's model is known by a config.json that states its density.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.layouts.files import sort_files, warnings_of
from petlpack.layouts.layout import Layout, Names, first_of, model_in
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run, headers_of, read_json
from petlpack.rules.modules import Dense
from petlpack.tensors.checkpoint import open_saved
from petlpack.tensors.name_text import name_text

_FINAL = "pytorch_model.bin"
_STAGES = ("checkpoint-best-info.pt", "checkpoint-last-info.pt")
_INSTEAD = (_FINAL, "model.safetensors", "checkpoint-*.pt", "mag*.pt")
"""Whole models of the same run, of which one counts."""


@dataclass(frozen=True)
class DiffPruningLayout(Layout):
    """The final model, else the best epoch's, else the last's, or a pruned `mag*.pt`; or what a config says is one."""

    id = "diff-pruning"
    method = "diff pruning"

    def may_be(self, names: Names) -> bool:
        """Tell whether there is something called like weights."""
        return names.show_weights

    def detect(self, path: Path) -> bool:
        """Tell whether this is such a stage file, or a directory with one, or with a model that says it is pruned."""
        return any(_is_stage(file) for file in _stage_files(path)) or _stated(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the model."""
        stages = [file for file in _stage_files(path) if _is_stage(file)]
        final = path / _FINAL
        stated = None if stages else _stated(path)
        file = stated or (final if path.is_dir() and final.is_file() else stages[0])
        weights = open_saved(file, "model", name=_FINAL)
        tensors = {name.removeprefix("module."): tensor for name, tensor in weights.tensors.items()}
        if len(tensors) != len(weights.tensors):
            raise RunError(f"'{printable(str(file))}' has tensors both with and without the prefix 'module.'")
        kept, left_out = (
            sort_files(path, path, [file], selection=options.selection, instead=_INSTEAD) if path.is_dir() else ({}, ())
        )
        config = path / "config.json"
        base = read_json(config).get("_name_or_path") if config.is_file() else None
        return [
            Run(
                path=path,
                layout=self.id,
                method="diff pruning",
                module=Dense(tensors),
                headers=headers_of({_FINAL: list(tensors)}, tensors) if stated is None else weights.headers,
                weight_bytes=file.stat().st_size,
                kept=kept,
                left_out=left_out,
                base_name=base if isinstance(base, str) and base else None,
                warnings=warnings_of(weights, left_out),
            )
        ]

    def weights(self, place: Path) -> list[Path]:
        """Return the final model, else the stage that counts, else the model."""
        return first_of(place, (_FINAL, *_STAGES, "mag*.pt")) or model_in(place)


def _stage_files(path: Path) -> list[Path]:
    """Return the files that may be a stage's, the one that counts first."""
    if path.is_file():
        return [path] if path.suffix == ".pt" else []
    if not path.is_dir():
        return []
    return [*(path / name for name in _STAGES if (path / name).is_file()), *sorted(path.glob("mag*.pt"))]


def _stated(path: Path) -> Path | None:
    """Return the weights of a directory whose config says that they are diff pruning's."""
    file = next((path / name for name in ("model.safetensors", _FINAL) if (path / name).is_file()), None)
    try:
        stated = file is not None and "diff_pruning" in read_json(path / "config.json")
    except RunError:  # no config, or a damaged one: for the layout to say that it is of
        return None
    return file if stated else None


def _is_stage(file: Path) -> bool:
    """Look for the key that only diff pruning's dictionaries have."""
    return b"bert_params" in name_text(file)
