"""The files of a run, written and read: every tensor has its place in the model, and the model has one for each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from petlpack.errors import RunError, UsageError, printable
from petlpack.tensors.checkpoint import open_saved
from petlpack.tensors.names import modern

if TYPE_CHECKING:
    from petlpack.methods.method import Method


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
            raise UsageError(f"'{name}' has numbers that are not finite", hint="train with a lower learning rate")
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.write_bytes(save(own, metadata={"format": "pt"}))  # save_file's are for their owner's eyes only


GIVE = "give the directory that save() or petlpack decode wrote"


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
            raise self.error(f"has '{name}' of {list(tensor.shape)}, but in the model it is {list(shape)}")
        return tensor

    def copy(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Copy into each tensor what stands under its name; one with several names has to be one tensor."""
        seen: dict[int, str] = {}
        for name, own in wanted.items():
            tensor = self.get(name, own.shape)
            first = seen.setdefault(id(own), name)
            if first == name:
                own.data.copy_(tensor)
            elif not torch.equal(own.data, tensor.to(own)):
                raise self.error(f"has '{name}', which differs from '{first}', but in the model they are one tensor")

    def copy_head(self, method: Method, prefix: str = "", task: str = "") -> None:
        """Copy the model's head, or a task's, whose names begin with `prefix` in the file."""
        own = method.head_tensors(task)
        method.load_head({name: self.get(f"{prefix}{name}", tensor.shape) for name, tensor in own.items()}, task)

    def refuse_others(self) -> None:
        """Raise RunError for a tensor that was not asked for."""
        if self._others:
            raise self.error(f"has '{min(self._others)}', for which the model has no place")

    def error(self, what: str) -> RunError:
        """Return the error of what does not fit in this file."""
        return RunError(
            f"'{printable(str(self.path))}' {printable(what)}",
            hint="load the run on the model that it was trained on, with as many labels",
        )
