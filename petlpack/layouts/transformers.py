"""`transformers`: what Trainer and `save_pretrained` write, sentence-transformers models included.

The weights are the root's; else those of the best checkpoint that trainer_state.json names; else those of the highest
complete `checkpoint-N`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import first_complete
from petlpack.layouts.files import refuse_methods, sort_files, warnings_of
from petlpack.layouts.layout import Layout, Names, model_in
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run, read_json
from petlpack.rules.modules import Dense
from petlpack.tensors.checkpoint import Checkpoint, find_weights, open_checkpoint, within
from petlpack.tensors.components import MODULES, find_components, is_in_parts
from petlpack.tensors.places import checkpoints


@dataclass(frozen=True)
class TransformersLayout(Layout):
    """A full checkpoint of a Transformers model."""

    id = "transformers"
    method = "full fine-tune"
    components = True

    def may_be(self, names: Names) -> bool:
        """Tell whether there is something called like weights, or a list of modules that may have some."""
        return names.show_weights or MODULES in names.files

    def detect(self, path: Path) -> bool:
        """Tell whether the directory, folders of its modules, or a `checkpoint-N` in it, have a model's weights."""
        return path.is_dir() and (find_weights(path) is not None or is_in_parts(path) or bool(checkpoints(path)))

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the run."""
        chosen, weights, warnings = _open_best(path)
        refuse_methods(weights)
        kept, left_out = sort_files(path, chosen, weights.sources, selection=options.selection, components=True)
        run = Run(
            path=path,
            layout="sentence-transformers" if MODULES in kept else self.id,
            method="full fine-tune",
            module=Dense(weights.tensors),
            headers=weights.headers,
            weight_bytes=weights.nbytes,
            kept=kept,
            left_out=left_out,
            base_name=_base_name(chosen, path),
            warnings=(*warnings, *warnings_of(weights, left_out)),
        )
        return [run]

    def weights(self, place: Path) -> list[Path]:
        """Return the model, else the weights of its modules."""
        return model_in(place) or (sorted(find_components(place, ()).values()) if is_in_parts(place) else [])

    def check_complete(self, place: Path, path: Path) -> None:
        """Raise RunError for a checkpoint without its config, which Trainer writes first."""
        if place != path and not (place / "config.json").is_file() and not is_in_parts(place):
            raise RunError(f"'{printable(str(place))}' has no config.json")


def _open_best(path: Path) -> tuple[Path, Checkpoint, tuple[str, ...]]:
    """Return the directory whose weights count, the weights, and warnings about checkpoints that were skipped."""
    weights = find_weights(path)
    if weights is not None:
        return path, _open(weights, path), ()
    if is_in_parts(path):
        return path, Checkpoint({}, {}, ()), ()
    return first_complete(path, _open_complete)


def _open_complete(checkpoint: Path) -> Checkpoint:
    """Open the weights of a checkpoint; raises RunError where it is only half written."""
    weights = find_weights(checkpoint)
    if weights is None and is_in_parts(checkpoint):
        return Checkpoint({}, {}, ())
    if weights is None or not (checkpoint / "config.json").is_file():
        raise RunError(f"'{printable(str(checkpoint))}' has no weights or no config.json")
    return _open(weights, checkpoint)


def _open(weights: Path, place: Path) -> Checkpoint:
    """Open the weights of a directory, or of one in it that is called like a weight file."""
    return within(open_checkpoint(weights), PurePosixPath(weights.parent.relative_to(place).as_posix()))


def _base_name(chosen: Path, path: Path) -> str | None:
    """Return what the run says of its base, if anything: `_name_or_path` of its config."""
    for config in (chosen / "config.json", path / "config.json"):
        if config.is_file():
            name = read_json(config).get("_name_or_path")
            return name if isinstance(name, str) and name else None
    return None
