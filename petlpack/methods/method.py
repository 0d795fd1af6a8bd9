"""What all methods have in common: a method stands on a model, trains by itself, is saved, and is taken off."""

from __future__ import annotations

import copy
import functools
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from petlpack.errors import UsageError
from petlpack.methods.places import head_of
from petlpack.tensors.checkpoint import open_saved


class Method(ABC):
    """A method on a model, from `attach` to `detach`.

    The base is frozen, the method's parameters and the head's train, and `model(..., labels=...).loss` is the method's
    whole loss, so that any loop and `transformers.Trainer` train it. With `tasks` (labels by task) the model gets a
    head for each, and `switch` says whose batch comes next; a task with 0 labels has no head (a T5 that generates).
    """

    def __init__(self, model: nn.Module, tasks: Mapping[str, int] | None = None) -> None:
        if getattr(model, "_petl_method", None) is not None:
            raise UsageError(
                f"{type(model).__name__} has a method already ({type(model._petl_method).__module__})",
                hint="take it off first: method.detach()",
            )
        self.model = model
        self.tasks = dict(tasks or {})
        self.task = next(iter(self.tasks), "")
        self._undo: list[Callable[[], None]] = []
        self._freeze()
        object.__setattr__(model, "_petl_method", self)  # not a submodule, and no parameter of the model
        self._undo.append(lambda: object.__delattr__(model, "_petl_method"))
        try:
            self.heads = self._add_heads() if self.tasks else None
        except UsageError:
            self.detach()
            raise

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains: the method's parameters and the head's."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return what trains as an optimizer's parameter groups, where parts of a method want a rate of their own."""
        return [{"params": self.parameters(), "lr": lr}]

    def switch(self, task: str) -> None:
        """Let `task`, one of those that the method was attached for, be the next batches'."""
        if task not in self.tasks:
            raise UsageError(f"no task '{task}', the method was attached for {', '.join(self.tasks) or 'one task'}")
        self.task = task
        if self.tasks[task]:
            self._set_labels(self.tasks[task])

    @abstractmethod
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the run that `petlpack encode` reads."""

    def detach(self) -> None:
        """Take the method off: the model computes what it did before, its own weights were never touched."""
        while self._undo:
            self._undo.pop()()

    def head_tensors(self, task: str = "") -> dict[str, torch.Tensor]:
        """Return a head's tensors as the model names them, `classifier.weight`; of a task with its own head, that."""
        found = head_of(self.model)
        if found is None:
            return {}
        name, head = found
        if self.heads is not None and task:
            head = self.heads[task]
        return {f"{name}.{key}": tensor.detach().clone() for key, tensor in head.state_dict().items()}

    def load_head(self, tensors: Mapping[str, torch.Tensor], task: str = "") -> None:
        """Copy tensors named as `head_tensors` names them into the model's head, or into a task's."""
        found = head_of(self.model)
        if found is None or not tensors:
            return
        name, head = found
        if self.heads is not None and task:
            head = self.heads[task]
        head.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items()})

    def config_json(self, **more: Any) -> dict[str, Any]:
        """Return the model's config with the base's path and whatever the method notes in it."""
        config = json.loads(self.model.config.to_json_string(use_diff=False))
        name = getattr(self.model.config, "_name_or_path", "")
        return {
            **config,
            "architectures": [type(self.model).__name__],
            **({"_name_or_path": name} if name else {}),
            **more,
        }

    # What attach is made of; everything is undone in reverse

    def hook(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        """Note a hook that `detach` removes."""
        self._undo.append(handle.remove)

    def add(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        """Register a module on the model, on the device of the model's weights; `detach` takes it out."""
        if hasattr(parent, name):
            raise UsageError(f"{type(parent).__name__} has a '{name}' already")
        parent.add_module(name, child.to(self.device))
        self._undo.append(lambda: delattr(parent, name))

    def wrap_forward(self, wrapper: Callable[..., Any]) -> None:
        """Call `wrapper(forward, *args, **kwargs)` for the model's forward, whose signature stays (Trainer asks it)."""
        forward = self.model.forward
        self.model.forward = functools.wraps(forward)(functools.partial(wrapper, forward))
        self._undo.append(lambda: self.model.__dict__.pop("forward", None))

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def _freeze(self) -> None:
        wanted = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        head = head_of(self.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        if head is not None:
            head[1].requires_grad_(True)

        def restore() -> None:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(wanted[name])

        self._undo.append(restore)

    def _add_heads(self) -> nn.ModuleDict | None:
        """Give each task with labels a head: the model's, with as many outputs; its own stays as it is, unused."""
        for task in self.tasks:
            if not task or "." in task or hasattr(nn.ModuleDict, task):
                raise UsageError(
                    f"'{task}' is no name for a task: it stands between dots in names of modules",
                    hint="choose a name without a dot that is no Python word of modules, as 'type' and 'keys' are",
                )
        found = head_of(self.model)
        if found is None or not any(self.tasks.values()):
            return None
        own = found[1]
        heads = nn.ModuleDict({task: with_outputs(own, labels) for task, labels in self.tasks.items()})
        self.add(self.model, "task_heads", heads)
        own.requires_grad_(False)
        self.hook(own.register_forward_hook(lambda _module, args, _out: heads[self.task](*args)))
        config = self.model.config
        names, problem = (config.id2label, config.label2id), config.problem_type

        def restore() -> None:
            self._set_labels(len(names[0]))
            config.id2label, config.label2id = names
            config.problem_type = problem

        self._undo.append(restore)
        self._set_labels(self.tasks[self.task])
        return heads

    def _set_labels(self, labels: int) -> None:
        """Tell the model's own loss how many labels there are; what it concluded of other labels is forgotten."""
        self.model.config.num_labels = labels
        self.model.config.problem_type = None
        if hasattr(self.model, "num_labels"):
            self.model.num_labels = labels


def with_outputs(head: nn.Module, labels: int) -> nn.Module:
    """Return a copy of a head with so many outputs, the last linear layer new: weights N(0, 0.02), bias 0."""
    head = copy.deepcopy(head)
    holder = nn.Sequential(head)
    name, last = [(name, module) for name, module in holder.named_modules() if isinstance(module, nn.Linear)][-1]
    new = nn.Linear(last.in_features, labels)
    nn.init.normal_(new.weight, std=0.02)
    nn.init.zeros_(new.bias)
    parent, _, child = name.rpartition(".")
    setattr(holder.get_submodule(parent), child, new.to(last.weight))
    return holder[0]


# Files


@contextmanager
def writing(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a directory to write a run into; its files replace `directory`'s of the same names when all are written."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as made:
        yield Path(made)
        for file in sorted(path for path in Path(made).rglob("*") if path.is_file()):
            place = target / file.relative_to(made)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with two spaces and a line feed; keys stay in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file of tensors, moved to the CPU; it has no aliases, so each name has its own bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.write_bytes(save(own, metadata={"format": "pt"}))  # save_file's are for their owner's eyes only


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file, or of what torch saved; raises RunError that names the file."""
    return {name: tensor.torch() for name, tensor in open_saved(path).tensors.items()}
