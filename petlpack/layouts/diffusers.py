"""`diffusers`: a model that Diffusers wrote, or a pipeline, whose parts are in folders of their own.

So are the models in a state of a training (`checkpoint-N`), which is taken where the run has no model beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import first_complete
from petlpack.layouts.files import refuse_methods, sort_files, warnings_of
from petlpack.layouts.layout import Layout, Names, model_in
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run, read_json
from petlpack.rules.modules import Dense
from petlpack.tensors.checkpoint import Checkpoint, find_weights, open_checkpoint
from petlpack.tensors.components import PIPELINE, find_components, is_in_parts, is_state_of_parts
from petlpack.tensors.places import DIFFUSERS, checkpoints, find_main


@dataclass(frozen=True)
class DiffusersLayout(Layout):
    """diffusion_pytorch_model.safetensors, or model_index.json with the folders of a pipeline."""

    id = "diffusers"
    method = "full fine-tune"
    components = True
    base_keys = ((PIPELINE, "_name_or_path"), *Layout.base_keys)

    def may_be(self, names: Names) -> bool:
        """Tell whether there is something called like weights, or the index of a pipeline."""
        folders = any(file.startswith(DIFFUSERS) for files in names.folders.values() for file in files)
        return names.show_weights or PIPELINE in names.files or folders

    def detect(self, path: Path) -> bool:
        """Tell whether the directory has the weights of a model of Diffusers, is a pipeline, or a training's state."""
        if not path.is_dir():
            return False
        if (path / PIPELINE).is_file():
            return True
        if find_weights(path) is not None:
            return False
        alone = bool(model_in(path, DIFFUSERS, DIFFUSERS))
        return alone or any(map(is_state_of_parts, (path, *checkpoints(path))))

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the model; the parts of a pipeline are components, and all that it has."""
        chosen, weights, warnings = _open_best(path)
        refuse_methods(weights)
        kept, left_out = sort_files(path, chosen, weights.sources, selection=options.selection, components=True)
        run = Run(
            path=path,
            layout=self.id,
            method=self.method,
            module=Dense(weights.tensors),
            headers=weights.headers,
            weight_bytes=weights.nbytes,
            kept=kept,
            left_out=left_out,
            base_name=_base_name(chosen),
            warnings=(*warnings, *warnings_of(weights, left_out)),
        )
        return [run]

    def weights(self, place: Path) -> list[Path]:
        """Return the model, else the weights of a pipeline's parts."""
        main = find_main(place)
        if main is not None:
            return [main]
        return sorted(find_components(place, ()).values()) if is_in_parts(place) else []


def _open_best(path: Path) -> tuple[Path, Checkpoint, tuple[str, ...]]:
    """Return the directory whose weights count, those of its root, and warnings about checkpoints that were skipped."""
    main = find_main(path)
    if main is not None:
        return path, open_checkpoint(main), ()
    if is_in_parts(path):
        return path, Checkpoint({}, {}, ()), ()
    if (path / PIPELINE).is_file():
        raise RunError(
            f"'{printable(str(path / PIPELINE))}' is of a pipeline, but none of its folders has weights",
            hint="copy the whole pipeline: each folder has its own weights",
        )
    return first_complete(path, _open_complete)


def _open_complete(checkpoint: Path) -> Checkpoint:
    """Open a state of a training; raises RunError where it has no models."""
    main = find_main(checkpoint)
    if main is None and not is_in_parts(checkpoint):
        raise RunError(f"'{printable(str(checkpoint))}' has no weights, nor folders of models")
    return Checkpoint({}, {}, ()) if main is None else open_checkpoint(main)


def _base_name(path: Path) -> str | None:
    """Return what the run says of its base, if anything: `_name_or_path` of the pipeline, or of the model."""
    about = next((path / name for name in (PIPELINE, "config.json") if (path / name).is_file()), None)
    name = None if about is None else read_json(about).get("_name_or_path")
    return name if isinstance(name, str) and name else None
