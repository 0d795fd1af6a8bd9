"""`safetensors`: one file of tensors, or a directory with nothing but one.

It is a model, an adapter of a library that writes no config beside it (diffusers, kohya), or embeddings of new tokens
(textual inversion): names tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from petlpack.layouts.files import refuse_methods, sort_files, warnings_of
from petlpack.layouts.layout import Layout, Names, model_in
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run
from petlpack.rules.modules import Dense, Plain
from petlpack.store import SUFFIX
from petlpack.tensors.checkpoint import PICKLED, open_checkpoint
from petlpack.tensors.content import called
from petlpack.tensors.places import TRAINING
from petlpack.tensors.safetensors_file import Header

_ADAPTERS = {
    "loha": re.compile(r"(.+\.)?hada_(w[12]_[ab]|t[12])(\..+)?"),
    "lokr": re.compile(r"(.+\.)?lokr_(w[12](_[ab])?|t2)(\..+)?"),
    "oft": re.compile(r"(.+\.)?(oft_(blocks|diag|r)|boft_r)(\..+)?"),
    "lora": re.compile(
        r"(.+[._])?lora(_(A|B|down|up|mid|embedding_[AB]|magnitude_vector)|(_linear_layer)?\.(down|up))(\..+)?"
    ),
}
"""What an adapter's tensors are called in the files of PEFT, diffusers, kohya and LyCORIS, by its method."""

_EMBEDDINGS = re.compile(r"(?P<stem>learned_embeds)(-steps-(?P<steps>\d+))?\.\w+")
"""What the scripts of diffusers call the embeddings of new tokens, and earlier states of them."""

_TOKEN = re.compile(r"<.+>|clip_[lg]|t5|emb_params|(string_to_param\.)?\*")
"""What such embeddings are called in the file: by their token, by the text encoder, or alike in all files."""

_FROZEN = "base_layer"
"""What PEFT calls a module below an adapter, so that a file that has it is a whole model."""


@dataclass(frozen=True)
class BareLayout(Layout):
    """A bare `.safetensors` file, or what torch saved; embeddings of new tokens with earlier states beside them."""

    id = "safetensors"
    method = "full fine-tune"
    components = True

    def may_be(self, names: Names) -> bool:
        """Tell whether there is something called like weights."""
        return names.show_weights

    def detect(self, path: Path) -> bool:
        """Tell whether this is such a file, or a directory with exactly one model."""
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
        adapter = _method_of(file.name, weights.headers)
        run = Run(
            path=path,
            layout=self.id,
            method=adapter or self.method,
            module=Plain(weights.tensors, frozenset()) if adapter else Dense(weights.tensors),
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
        return model_in(place) or [file for file in [_file(place)] if file is not None]

    def method_of(self, weights: Path) -> str:
        """Return the method of an adapter, told by the header of a safetensors file; no pickle is opened."""
        if weights.suffix != ".safetensors":
            return self.method
        return _method_of(weights.name, open_checkpoint(weights).headers) or self.method


def _method_of(file: str, headers: Mapping[str, Header]) -> str | None:
    """Return the method of what is stored beside a model, told by the names in its file; None for a model."""
    entries = {name: entry for header in headers.values() for name, entry in header.entries.items()}
    tokens = all(_TOKEN.fullmatch(name) for name in entries) or _EMBEDDINGS.fullmatch(file)
    if tokens and all(len(entry.shape) in (1, 2) for name, entry in entries.items()):
        return "textual inversion"
    return _adapter_method({name: entry.stop - entry.start for name, entry in entries.items()})


def _adapter_method(sizes: Mapping[str, int]) -> str | None:
    """Return the method of an adapter, whose own tensors are most of the bytes of the file; None for a model."""
    if any(_FROZEN in name.split(".") for name in sizes):
        return None
    whole = sum(sizes.values())
    for method, pattern in _ADAPTERS.items():
        own = sum(nbytes for name, nbytes in sizes.items() if pattern.fullmatch(name))
        if own and 2 * own >= whole:
            return method
    return None


def _file(path: Path) -> Path | None:
    """Return the one weight file: of a directory its only .safetensors, or without any the only one of torch.

    Of embeddings with earlier states it is the last state; the others come along as components.
    """
    if path.is_file():
        return path if path.suffix in (".safetensors", *PICKLED) and not path.name.endswith(SUFFIX) else None
    if not path.is_dir():
        return None
    for suffixes in ((".safetensors",), PICKLED):
        files = [file for file in path.iterdir() if file.suffix in suffixes and file.is_file() and _is_model(file)]
        if files:
            return files[0] if len(files) == 1 else _last_embeddings(files)
    return None


def _last_embeddings(files: list[Path]) -> Path | None:
    """Return the embeddings that a training ended with, else those after most steps; None where a file is none."""
    states = {file: match for file in files if (match := _EMBEDDINGS.fullmatch(file.name))}
    if len(states) < len(files):
        return None
    return max(states, key=lambda file: (states[file]["steps"] is None, int(states[file]["steps"] or 0)))


def _is_model(file: Path) -> bool:
    """Tell by its name that a file is no state of a training, nor a part of one, nor of a pack."""
    if file.suffix == ".safetensors":
        return not file.name.endswith(SUFFIX)
    return not (file.name.startswith(TRAINING) or called([file.name]))
