"""The files of a run, written and read: every tensor has its place in the model, and the model has one for each."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from petlpack.encoding.matching.spelling import modern
from petlpack.errors import RunError, UsageError, printable
from petlpack.layouts.heads import MODULES
from petlpack.methods.heads import head_modules
from petlpack.tensors.checkpoint import open_saved

if TYPE_CHECKING:
    from petlpack.methods.method import Method


_WEIGHTS = ("*.safetensors", "pytorch_*.bin", "propetl_*.bin", "*/adapter*.safetensors", "*/pytorch_adapter.bin")
"""Weights of a run, beside which no other run may be saved."""


@contextmanager
def writing(model: nn.Module, directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a directory to write a run into; its files replace `directory`'s of the same names when all are written.

    Raises UsageError where `directory` is the base's, or holds weights that the run would not replace: encoding
    would take one of the two.
    """
    target, base = Path(directory), _base_of(model)
    if base and Path(base).is_dir() and target.resolve() == Path(base).resolve():
        raise UsageError(
            f"'{printable(str(target))}' is the directory of the base model", hint="save the run to another directory"
        )
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as name:
        made = Path(name)
        yield made
        written = [path.relative_to(made) for path in sorted(made.rglob("*")) if path.is_file()]
        there = {path.relative_to(target) for pattern in _WEIGHTS for path in target.glob(pattern)}
        if others := sorted(path.as_posix() for path in there - set(written) if path.parts[0] != made.name):
            raise UsageError(
                f"'{printable(str(target))}' already holds other weights: {printable(others[0])}",
                hint="save the run to its own directory",
            )
        for file in written:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).replace(target / file)


def config_of(model: nn.Module, **settings: Any) -> dict[str, Any]:
    """Return a model's config with the base's path, the head's modules, and whatever the method notes in it."""
    base = _base_of(model)
    return {
        **json.loads(model.config.to_json_string(use_diff=False)),
        "architectures": [type(model).__name__],
        **({"_name_or_path": base} if base else {}),
        MODULES: list(head_modules(model)),
        **settings,
    }


def write_config(directory: Path, model: nn.Module, **settings: Any) -> None:
    """Write a run's config.json: the model's config, and whatever the method notes in it."""
    write_json(directory / "config.json", config_of(model, **settings))


def _base_of(model: nn.Module) -> str:
    """Return where the model says that it was loaded from; nothing where it says nothing."""
    return getattr(model.config, "_name_or_path", "")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with two spaces and a line feed; keys stay in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file of tensors, moved to the CPU; it has no aliases, so each name has its own bytes.

    Raises UsageError for numbers that are not finite: the training diverged.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"'{name}' has NaN or infinite values", hint="train with a lower learning rate")
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.write_bytes(save(copies, metadata={"format": "pt"}))  # save_file's are for their owner's eyes only


GIVE = "give a directory that method.save() or `petlpack decode` wrote"


def run_directory(directory: str | os.PathLike[str]) -> Path:
    """Return the directory of a run; raises RunError where there is none."""
    path = Path(directory)
    if not path.is_dir():
        shown = printable(str(path))
        raise RunError(f"'{shown}' is not a directory" if path.exists() else f"no directory '{shown}'", hint=GIVE)
    return path


@contextmanager
def stated_in(file: Path) -> Iterator[None]:
    """Raise RunError, which names the file, for a setting in it that is refused."""
    try:
        yield
    except UsageError as error:
        raise RunError(f"'{printable(str(file))}': {error.message}", hint=error.hint) from error


class TensorFile:
    """A run's safetensors file, or what torch saved; keeps account of the tensors that were asked for."""

    def __init__(self, path: Path) -> None:
        """Read all tensors, by the names of today (Transformers 5.0 to 5.5 saves gamma and beta); raises RunError."""
        self.path = path
        self.tensors = {modern(name): tensor.torch() for name, tensor in open_saved(path).tensors.items()}
        self._others = set(self.tensors)

    def get(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Return a tensor; raises RunError where it is missing or has another shape."""
        if name not in self.tensors:
            raise self.error(f"has no '{name}', which the model needs")
        self._others.discard(name)
        tensor = self.tensors[name]
        if tuple(tensor.shape) != tuple(shape):
            raise self.error(f"has '{name}' of shape {list(tensor.shape)}, but the model expects {list(shape)}")
        return tensor

    def copy(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Copy into each tensor what stands under its name; one with several names has to be one tensor."""
        first_names: dict[int, str] = {}
        for name, target in wanted.items():
            tensor = self.get(name, target.shape)
            first = first_names.setdefault(id(target), name)
            if first == name:
                target.data.copy_(tensor)
            elif not torch.equal(target.data, tensor.to(target)):
                raise self.error(f"has '{name}', which differs from '{first}', but the model ties the two")

    def copy_head(self, method: Method, prefix: str = "", task: str = "") -> None:
        """Copy the model's head, or a task's, whose names begin with `prefix` in the file."""
        head = method.head_tensors(task)
        method.load_head({name: self.get(f"{prefix}{name}", tensor.shape) for name, tensor in head.items()}, task)

    def refuse_others(self) -> None:
        """Raise RunError for a tensor that was not asked for."""
        if self._others:
            raise self.error(f"has '{min(self._others)}', which the model does not have")

    def error(self, what: str) -> RunError:
        """Return the error of what does not fit in this file."""
        return RunError(
            f"'{printable(str(self.path))}' {printable(what)}",
            hint="load the run on the model it was trained on, with the same number of labels",
        )
