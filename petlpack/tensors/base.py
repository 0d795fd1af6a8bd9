"""The base: the pretrained checkpoint that tasks share, known by a digest per tensor."""

from __future__ import annotations

import threading
from pathlib import Path

from petlpack.errors import BaseError, RunError, printable
from petlpack.errors.arguments import path_of
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import BaseRef, View


class Base:
    """An opened base: tensors by name, digests computed once. Safe to use from several threads, and worth keeping."""

    def __init__(self, path: str | Path) -> None:
        """Open a model directory or a weights file; raises BaseError where there is none."""
        self.path = path_of("base", path)
        from petlpack.tensors.checkpoint import find_weights, open_checkpoint  # here, for tables need no files

        try:
            weights = find_weights(self.path) if self.path.is_dir() else self.path
            if weights is None or not weights.exists():
                raise BaseError(
                    f"no base at '{printable(str(path))}'",
                    hint="--base takes a pretrained model's directory (with model.safetensors), or its weights file",
                    code="base-missing",
                )
            self.tensors = open_checkpoint(weights).tensors
        except RunError as error:
            raise BaseError(f"base: {error.message}", hint=error.hint, code=error.own_code) from error
        self._digests: dict[str, str] = {}
        self._checking: dict[str, threading.Lock] = {name: threading.Lock() for name in self.tensors}
        self._views = ViewReader(self.check)

    def ref(self, name: str) -> BaseRef:
        """Return what this base's tensor is, digest included."""
        tensor = self.tensors[name]
        return BaseRef(name, tensor.dtype, tensor.shape, self.sha256(name))

    def sha256(self, name: str) -> str:
        """Return the sha256 of a tensor's bytes, computed at the first call."""
        with self._checking[name]:
            if name not in self._digests:
                self._digests[name] = self.tensors[name].sha256()
            return self._digests[name]

    def check(self, ref: BaseRef) -> Tensor:
        """Return the tensor that a task needs; raises BaseError where it is missing or differs in a single bit."""
        where = f"base '{printable(str(self.path))}'"
        hint = "pass the exact checkpoint that the task was encoded against"
        tensor = self.tensors.get(ref.name)
        if tensor is None:
            message = f"{where} has no tensor '{printable(ref.name)}', which the task needs"
            raise BaseError(message, hint=hint, code="base-tensor")
        if (tensor.dtype, tensor.shape) != (ref.dtype, ref.shape):
            raise BaseError(
                f"{where}: tensor '{printable(ref.name)}' is {tensor.dtype.name} {list(tensor.shape)}, "
                f"the task needs {ref.dtype.name} {list(ref.shape)}",
                hint=hint,
                code="base-shape",
            )
        if self.sha256(ref.name) != ref.sha256:
            raise BaseError(
                f"{where}: tensor '{printable(ref.name)}' has sha256 {self.sha256(ref.name)}, "
                f"the task needs {ref.sha256}",
                hint=hint,
                code="base-digest",
            )
        return tensor

    def predict(self, view: View, dtype: DType, start: int, stop: int) -> Bits:
        """Return flat elements of a view, rounded to the fine-tune's dtype: a codec's prediction.

        Raises BaseError as `check`, for each tensor that the elements need.
        """
        return cast_bits(self._views.read(view, start, stop), view.dtype, dtype)


def is_directory(name: str) -> bool:
    """Tell whether a name from a config is a directory here; any text may stand there."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def open_base(base: str | Path | Base | None, named: str | None) -> Base | None:
    """Open the base that is given, else the one that a run named, if that is a directory here; None without either."""
    if isinstance(base, Base):
        return base
    if base is not None:
        return Base(base)
    return Base(named) if named is not None and is_directory(named) else None


def needed(base: Base | None) -> Base:
    """Return the base; raises BaseError where there is none."""
    if base is None:
        raise BaseError(
            "the task needs its base to decode", hint="pass the base model's directory with --base", code="base-missing"
        )
    return base
