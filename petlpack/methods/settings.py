"""The Config of a method and its tasks, checked before a model is touched: `keep must be in (0, 1], got 1.2`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from petlpack.errors import UsageError
from petlpack.errors.arguments import Check, check, shown


def check_all(config: object, rules: Mapping[str, tuple[Check, str]]) -> None:
    """Check the fields of a config, each by a rule and with a hint that says what the field is."""
    for name, (rule, hint) in rules.items():
        check(name, getattr(config, name), rule, hint)


def check_config(config: object, wanted: type) -> None:
    """Raise UsageError for anything but an instance of a method's Config."""
    if isinstance(config, wanted):
        return
    name = _called(wanted)
    got = f"the class {_called(config)} itself" if isinstance(config, type) else _an(type(config))
    hint = f"create one: {name}(), with parentheses" if config is wanted else f"create one: {name}(...)"
    raise UsageError(f"config must be {_an(wanted)}, got {got}", hint=hint)


_EXAMPLE = 'tasks={"sst2": 2, "rte": 2}'


def check_tasks(tasks: object, *, empty: str | None = None) -> None:
    """Raise UsageError for tasks that are not a mapping; for none, too, where there is a hint for that case."""
    if not isinstance(tasks, Mapping):
        raise UsageError(
            f"tasks must map task names to numbers of labels, got {shown(tasks)}",
            hint=f"for example {_EXAMPLE}; a task of a generative model has 0 labels",
        )
    if empty and not tasks:
        raise UsageError(f"tasks must name at least one task, got {shown(tasks)}", hint=empty)


def check_name(task: object, reserved: Callable[[str], bool], hint: str) -> None:
    """Raise UsageError for a name that cannot stand in the names of tensors and modules."""
    if not isinstance(task, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", task):
        raise UsageError(f"invalid task name {shown(task)}: use 1-128 of A-Z a-z 0-9 _ -", hint=hint)
    if reserved(task):
        raise UsageError(f"invalid task name '{task}': it is reserved", hint=hint)


def _called(kind: object) -> str:
    """Return a class's name as a caller writes it: `propetl.Config`."""
    name = getattr(kind, "__name__", repr(kind))
    module = getattr(kind, "__module__", "builtins")
    return name if module == "builtins" else f"{module.rpartition('.')[2]}.{name}"


def _an(kind: type) -> str:
    name = _called(kind)
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}" if kind is not type(None) else "None"
