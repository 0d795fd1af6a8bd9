"""`safetensors`: one file of tensors, or a directory with nothing but one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from petlpack.layouts.files import refuse_methods, sort_files, warnings_of
from petlpack.layouts.layout import Layout, first_of, model_in
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run
from petlpack.rules.modules import Dense
from petlpack.tensors.checkpoint import open_checkpoint


@dataclass(frozen=True)
class BareLayout(Layout):
    """A bare `.safetensors` file."""

    id = "safetensors"
    method = "full fine-tune"
    components = True

    def detect(self, path: Path) -> bool:
        """Tell whether this is such a file, or a directory with exactly one."""
        return _file(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the file."""
        file = _file(path)
        assert file is not None
        weights = open_checkpoint(file)
        refuse_methods(weights)
        kept, left_out = (
            sort_files(path, path, [file], selection=options.selection, components=True) if path.is_dir() else ({}, ())
        )
        run = Run(
            path=path,
            layout=self.id,
            method="full fine-tune",
            module=Dense(weights.tensors),
            headers=weights.headers,
            weight_bytes=weights.nbytes,
            kept=kept,
            left_out=left_out,
            base_name=None,
            warnings=warnings_of(weights, left_out),
        )
        return [run]

    def weights(self, place: Path) -> list[Path]:
        """Return the file."""
        return model_in(place) or first_of(place, ("*.safetensors",))


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".safetensors" else None
    files = [file for file in path.glob("*.safetensors") if file.is_file()] if path.is_dir() else []
    return files[0] if len(files) == 1 else None
