"""What an export is: a task written as a directory that some library loads."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from petlpack.errors import DamageError, UsageError, printable
from petlpack.exports.code import can_run_code
from petlpack.parallel import Progress
from petlpack.records.slot import Slot
from petlpack.rules.modules import Rebuilt
from petlpack.tensors.base import Bases
from petlpack.tensors.dtypes import Bits

if TYPE_CHECKING:
    from petlpack.records.facts import Facts
    from petlpack.records.sources import Sources
    from petlpack.records.template import Template

Stream = Iterable[tuple[Slot, int, Bits]]
"""Every element of some tensors once, as (tensor, first flat element, bits)."""


@dataclass(frozen=True)
class Reading:
    """How a task is read while it is written: against which base, on how many threads, who is told, what is wanted."""

    base: Bases | None = None
    jobs: int | None = None
    progress: Progress | None = None
    code: bool = True
    """Whether to write files that can run code."""


class Tensors(Protocol):
    """The tensors of a task as exports read them (petlpack.decoding.tensors)."""

    @property
    def sources(self) -> Sources:
        """Where they are found."""

    def stream(self, *, jobs: int | None = None, progress: Progress | None = None) -> Stream:
        """Yield every element once."""


class Exportable(Protocol):
    """A task as exports read it (petlpack.decoding.task)."""

    name: str

    @property
    def method(self) -> str:
        """How the run was trained, in words."""

    @property
    def facts(self) -> Facts:
        """What the encoder knew of the run."""

    @property
    def template(self) -> Template:
        """What the task has in common with others."""

    @property
    def own_name(self) -> str | None:
        """The task's name inside its keys and files."""

    def load(self, base: Bases | None = None) -> Tensors:
        """Return its tensors."""

    def rebuild(self, base: Bases | None = None) -> Rebuilt | None:
        """Return the dense modules that its rule makes."""

    def read_file(self, name: str) -> bytes:
        """Return a kept file."""


class Export(ABC):
    """One layout that tasks are written as."""

    id: ClassVar[str]

    @abstractmethod
    def is_already(self, task: Exportable) -> bool:
        """Tell from the run's own files whether they are what is asked for, so that nothing has to be made of them."""

    @abstractmethod
    def write(self, task: Exportable, directory: Path, reading: Reading) -> list[str]:
        """Write a task to an empty directory; return what the layout cannot say of it.

        Raises UsageError where the task cannot be written so.
        """


def adapter_configs(task: Exportable) -> list[dict[str, Any]]:
    """Return what every adapter_config.json of a run holds."""
    names = [name for name in task.template.files if name.rpartition("/")[2] == "adapter_config.json"]
    return [read_object(task, name) for name in names]


def read_object(task: Exportable, name: str) -> dict[str, Any]:
    """Return the object that a kept file holds; an empty one where it holds none, or there is no such file."""
    try:
        value = json.loads(task.read_file(name)) if name in task.template.files else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_files(task: Exportable, directory: Path, names: Iterable[str], *, code: bool) -> list[str]:
    """Write kept files as the run had them, those that can run code only with `code`; return what is said of those."""
    found = []
    for name in names:
        content = task.read_file(name)
        if can_run_code(name, content):
            found.append(name)
            if not code:
                continue
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    if not found:
        return []
    if not code:
        return [f"left out code and pickles, which loading may need: {_some(found)}"]
    return [f"wrote code or pickles of the run, which loading may execute: {_some(found)} (--no-code leaves them out)"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


_NEEDED: Mapping[str, Sequence[str]] = {"adapter": ("activation", "form", "scaling"), "lora": ("scaling",)}
"""Settings without which no library can compute with a module of that kind."""


def rebuilt_modules(task: Exportable, base: Bases | None, export_id: str) -> tuple[Rebuilt, list[str]]:
    """Return what the task's rule makes, without a head that no other library has, and what is said of that.

    Raises UsageError where the task has no rule, DamageError where the rule does not say how its modules act.
    """
    rebuilt = task.rebuild(base)
    if rebuilt is None:
        raise UsageError(
            f"cannot write task '{task.name}' ({task.method}) as {export_id}: it has no rule that makes such modules",
            hint="decode it without --to, or with --to safetensors",
        )
    missing = [name for name in _NEEDED.get(rebuilt.kind, ()) if name not in rebuilt.settings]
    if missing:
        raise DamageError(f"task '{task.name}': its rule has no setting '{missing[0]}'", code="rule-settings")
    odd = _odd_head(task)
    if odd is None or not rebuilt.head:
        return rebuilt, []
    return replace(rebuilt, head={}), [f"left out the head: its head_config.json says {printable(odd)}"]


def _odd_head(task: Exportable) -> str | None:
    """Return what a run's head_config.json says of its head, where that is no classifier with tanh."""
    file = next((name for name in task.template.files if name.rpartition("/")[2] == "head_config.json"), None)
    usual = {"head_type": "classification", "activation_function": "tanh", "use_pooler": False}
    try:
        config = json.loads(task.read_file(file)).get("config", {}) if file is not None else {}
        return next((f"{key} {config[key]!r}" for key, value in usual.items() if config.get(key, value) != value), None)
    except (ValueError, AttributeError, RecursionError):
        return "nothing that can be read"
