"""The base: the pretrained checkpoint that tasks share, known by sums of each tensor."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from petlpack.errors import BaseError, RunError, printable
from petlpack.errors.arguments import path_of
from petlpack.errors.foreign import errors_of_run
from petlpack.tensors.adapted import Modules
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import Bits, DType
from petlpack.tensors.file_names import is_text
from petlpack.tensors.foreign_json import read_value
from petlpack.tensors.pinned import watching
from petlpack.tensors.tensor import Sums, Tensor
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import BaseRef, View


class Base:
    """An opened base: tensors by name, sums computed once. Safe to use from several threads, and worth keeping."""

    def __init__(self, path: str | Path, *, pickles: bool = True) -> None:
        """Open a model directory or a weights file; raises BaseError where there is none, or only a pickle unasked."""
        self.path = path_of("base", path)
        from petlpack.tensors.components import open_model  # here, for tables need no files

        with _errors_of_base(), errors_of_run(self.path), watching() as files:
            opened = open_model(self.path, pickles=pickles)
            if opened is None:
                raise BaseError(
                    f"no base at '{printable(str(path))}'",
                    hint="--base takes a pretrained model's directory (with model.safetensors), or its weights file",
                    code="base-missing",
                )
        self.tensors = _tensors_of_base(opened.tensors)
        """By name; those of a component have its prefix in front, as in a run (formats/template.md)."""
        self.headers = opened.headers
        self.sources = opened.sources
        """Its weight files."""
        self.components = opened.components
        """Those of them, the last, that are none of the main weights."""
        self._files = files.only(opened.sources)
        self._needed = "the exact checkpoint that the task was encoded against"
        self._sums: dict[str, Sums] = {}
        self._checksums: dict[str, str] = {}
        self._checking: dict[str, threading.Lock] = {name: threading.Lock() for name in self.tensors}
        self._views = ViewReader(self.check)

    @property
    def name(self) -> str:
        """What people call it: its name on the Hub, as far as that is known, else its directory's."""
        return self.own_name or self.path.resolve().name

    @property
    def own_name(self) -> str | None:
        """Its name on the Hub, which the folder of a cache or its own config says; None where neither does.

        A config may still say what the base itself was trained from.
        """
        hub = next((part for part in reversed(self.path.resolve().parts) if part.startswith(_HUB)), None)
        if hub is not None:
            return hub.removeprefix(_HUB).replace("--", "/")
        named = _name_in_config(self.path if self.path.is_dir() else self.path.parent)
        known = named is not None and not Path(named).is_absolute() and is_text(named) and "\\" not in named
        return named if known else None

    def is_at(self, name: str) -> bool:
        """Tell whether a name from a config is this base's place, as an absolute path."""
        return is_model(name) and Path(name).resolve() == self.path.resolve()

    @cached_property
    def modules(self) -> Modules:
        """Its modules, in which adapters find those that they adapt."""
        return Modules({name: tensor.shape for name, tensor in self.tensors.items()})

    @cached_property
    def parts(self) -> Mapping[str, Component]:
        """The main weights, if there are any, and each component, by prefix."""
        from petlpack.tensors.components import by_component  # as above

        parts = by_component(self.tensors, self.headers.values())
        return {prefix: Component(self, prefix, tensors) for prefix, tensors in parts.items()}

    def needed_by(self, what: str) -> Base:
        """Return the same base, with sums in common, whose errors say what is needed instead of it."""
        known = copy.copy(self)
        known._needed = what
        known._views = ViewReader(known.check)
        return known

    def check_unchanged(self) -> None:
        """Raise BaseError where a weight file is no longer the one that was opened; elements are read from no other."""
        with _errors_of_base():
            self._files.check()

    def ref(self, name: str) -> BaseRef:
        """Return what this base's tensor is, sums included."""
        tensor = self.tensors[name]
        return BaseRef(name, tensor.dtype, tensor.shape, self._sums_of(name))

    def sha256(self, name: str) -> str:
        """Return the sha256 of a tensor's bytes, computed at the first call."""
        return self._sums_of(name).sha256

    def checksum(self, name: str) -> str:
        """Return the checksum of a tensor's bytes, computed at the first call; the sha256 takes eight times as long."""
        with self._checking[name]:
            if name not in self._checksums:
                self._checksums[name] = self.tensors[name].checksum()
            return self._checksums[name]

    def _sums_of(self, name: str) -> Sums:
        with self._checking[name]:
            if name not in self._sums:
                self._sums[name] = sums = self.tensors[name].sums()
                self._checksums[name] = sums.checksum
            return self._sums[name]

    def check(self, ref: BaseRef) -> Tensor:
        """Return the tensor that a task needs; raises BaseError where it is missing or its checksum is another."""
        where = f"base '{printable(str(self.path))}'"
        hint = f"pass {self._needed}"
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
        if self.checksum(ref.name) != ref.sums.checksum:
            raise self._differs(ref)
        return tensor

    def check_digest(self, ref: BaseRef) -> None:
        """Raise BaseError as `check`, and where only the sha256 differs: a tensor made to be taken for another."""
        self.check(ref)
        if self._sums_of(ref.name) != ref.sums:
            raise self._differs(ref)

    def _differs(self, ref: BaseRef) -> BaseError:
        found = self._sums_of(ref.name)
        kind = "sha256" if found.sha256 != ref.sums.sha256 else "checksum"
        return BaseError(
            f"base '{printable(str(self.path))}': tensor '{printable(ref.name)}' has {kind} {getattr(found, kind)}, "
            f"the task needs {getattr(ref.sums, kind)}",
            hint=f"pass {self._needed}",
            code="base-digest",
        )

    def predict(self, view: View, dtype: DType, start: int, stop: int) -> Bits:
        """Return flat elements of a view, rounded to the fine-tune's dtype: a codec's prediction.

        Raises BaseError as `check`, for each tensor that the elements need.
        """
        return cast_bits(self._views.read(view, start, stop), view.dtype, dtype)


@contextlib.contextmanager
def _errors_of_base() -> Iterator[None]:
    """Tell what is wrong with weight files as an error of the base."""
    try:
        yield
    except RunError as error:
        raise BaseError(f"base: {error.message}", hint=error.hint, code=error.own_code) from error


def _tensors_of_base(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose errors are those of a base; what is one tensor stays one."""
    made = {id(tensor): replace(tensor, read_flat=_Reader(tensor.read_flat)) for tensor in tensors.values()}
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _Reader:
    read_flat: Callable[[int, int], Bits]

    def __call__(self, start: int, stop: int) -> Bits:
        with _errors_of_base():
            return self.read_flat(start, stop)


@dataclass(frozen=True, eq=False)
class Component:
    """The main weights of a base, or one of its components: tensors by the names that they have in its files."""

    base: Base
    prefix: str
    tensors: Mapping[str, Tensor]

    def ref(self, name: str) -> BaseRef:
        """Return what a tensor is, by the name that it has in the base."""
        return self.base.ref(self.prefix + name)

    def sha256(self, name: str) -> str:
        """Return the sha256 of a tensor's bytes, computed at the first call."""
        return self.base.sha256(self.prefix + name)


class Tensors(Hashable, Protocol):
    """What tensors are matched with: a base, or a component of one."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name."""

    def ref(self, name: str) -> BaseRef:
        """Return what a tensor is, sums included."""

    def sha256(self, name: str) -> str:
        """Return the sha256 of a tensor's bytes."""


AnyBase = str | Path | Base
"""A base as a caller gives it: the model's directory, its weights file, or an opened one."""

Bases = AnyBase | Sequence[AnyBase]
"""One base, or several to choose from; a directory of models stands for all of them."""


def is_model(name: str) -> bool:
    """Tell whether a name from a config says for certain where a model is: any text may stand there.

    A relative path may name a directory here that only happens to be called so.
    """
    try:
        return Path(name).is_absolute() and Path(name).is_dir()
    except (OSError, ValueError):
        return False


def open_bases(bases: Bases | None, named: str | None = None, *, pickles: bool = True) -> list[Base]:
    """Open the bases that are given, else the one that a config names by an absolute path, if it is here; else [].

    Without `pickles` none is opened. Raises BaseError where one of those given is none, or a pickle then.
    """
    if bases is None:
        return [Base(named, pickles=pickles)] if named is not None and is_model(named) else []
    several = bases if isinstance(bases, Sequence) and not isinstance(bases, str) else [bases]
    return [
        opened
        for base in several
        for opened in ([base] if isinstance(base, Base) else _models_at(path_of("base", base), pickles=pickles))
    ]


def _models_at(path: Path, *, pickles: bool) -> list[Base]:
    """Open a model, or the models in the directories of a directory that is none itself."""
    from petlpack.tensors.components import holds_model  # as above

    with _errors_of_base():
        if not path.is_dir() or holds_model(path):
            return [Base(path, pickles=pickles)]
        inside = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and holds_model(folder)]
    return [Base(folder, pickles=pickles) for folder in inside or [path]]


_HUB = "models--"
"""How the directories of a Hub cache begin: `models--org--name`."""


def _name_in_config(directory: Path) -> str | None:
    try:
        name = read_value(directory / "config.json")["_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and name else None


def needed(base: Base | None) -> Base:
    """Return the base; raises BaseError where there is none."""
    if base is None:
        raise BaseError(
            "the task needs its base to decode", hint="pass the base model's directory with --base", code="base-missing"
        )
    return base
