"""What stands on a model, hooks and modules, and how it is taken off again: in reverse."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from petlpack.errors import UsageError
from petlpack.methods.heads import OF_METHOD
from petlpack.methods.probe import Insert

if TYPE_CHECKING:
    from petlpack.methods.method import Method

M = TypeVar("M", bound="Method")


class Attachment:
    """What a method puts on a model, from `attach` to `detach`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._undo: list[Callable[[], None]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._inserts: list[Insert] = []
        self._added: list[nn.Module] = []

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to copy and to pickle."""
        return _refuse_copies(protocol)

    def hook(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        """Note a hook that `detach` removes."""
        self._hooks.append(handle)
        self._undo.append(handle.remove)

    def insert(self, what: str, layer: str, module: nn.Module, tensors: Callable[[], Sequence[torch.Tensor]]) -> None:
        """Note what was put into a layer, for the probe: by `tensors` it changes the module's output."""
        self._inserts.append(Insert(what, layer, module, tensors))

    def add(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        """Register a module on the model, on the device of the model's weights; `detach` takes it out."""
        if hasattr(parent, name):
            raise UsageError(
                f"{type(parent).__name__} already has an attribute '{name}'",
                hint="reload the model: something else has modified it",
            )
        parent.add_module(name, child.to(self.device))
        setattr(child, OF_METHOD, True)
        self._added.append(child)
        self._undo.append(lambda: delattr(parent, name))

    def detach(self) -> None:
        """Take the method off: the model computes what it did before; only its own head keeps what it learned."""
        while self._undo:
            self._undo.pop()()

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def _mark(self) -> None:
        """Let the model know its method, and be neither copied nor run as it was compiled before."""
        for name, value in (("_petl_method", self), ("__reduce_ex__", _refuse_copies)):
            object.__setattr__(self.model, name, value)  # not a submodule, and no parameter of the model
            self._undo.append(functools.partial(object.__delattr__, self.model, name))
        _forget_compiled()
        self._undo.append(_forget_compiled)

    def _hooks_stand(self) -> bool:
        """Tell whether no hook was taken off by somebody else, as copying and compiling a model do."""
        registries = ((handle.id, handle.hooks_dict_ref()) for handle in self._hooks)
        return all(registry is not None and key in registry for key, registry in registries)


def put_on(model: nn.Module, make: Callable[[], M], batch: Mapping[str, Any] | None) -> M:
    """Return a method that `make` puts on a model, when its probe has shown that it acts.

    Where that fails, the model is as it was before, also where only half of it was there.
    """
    before = method_on(model)
    try:
        method = make()
        method.remember()
        method.note_own()
        method.probe(batch)
    except BaseException:
        left = method_on(model)
        if left is not None and left is not before:
            left.detach()
        raise
    return method


@contextmanager
def loading(method: Method) -> Iterator[None]:
    """Fill a method from a run, and probe it again, in eval mode when it is done.

    Where that fails, the model is as it was before.
    """
    head = method.head_tensors()
    try:
        yield
        method.probe()
    except BaseException:
        try:
            method.detach()
        finally:
            method.load_head(head)
        raise
    method.model.eval()


def refuse_second(model: nn.Module) -> None:
    """Raise UsageError for a model that has a method on it."""
    method = method_on(model)
    if method is not None:
        raise UsageError(
            f"{type(model).__name__} already has a method attached ({type(method).__module__})",
            hint="detach it first: method.detach()",
        )


def method_on(model: nn.Module) -> Any:
    """Return the method that stands on a model; None where there is none."""
    return getattr(model, "_petl_method", None)


def _refuse_copies(_protocol: Any) -> Any:
    """Refuse to copy and to pickle a model, in whose `__reduce_ex__` it stands: its hooks call the method's modules."""
    raise UsageError(
        "a model with a method attached cannot be copied or pickled",
        hint="call method.save() and load() it on another model; for a checkpoint, torch.save(model.state_dict(), ...)",
    )


def _forget_compiled() -> None:
    """Have a model that torch.compile has seen compiled anew: what it made knows the hooks that were there then."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
