"""What callers give, checked before anything is touched: `keep must be in (0, 1], got 1.2`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from petlpack.errors import UsageError, printable


@dataclass(frozen=True)
class Check:
    """What a value must be, in words, and whether one is it."""

    what: str
    holds: Callable[[Any], bool]


def number(what: str, holds: Callable[[float], bool] = lambda value: True) -> Check:
    """Return the rule of a finite number for which `holds` is true."""
    return Check(
        what,
        lambda value: (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and holds(value)
        ),
    )


def whole(least: int) -> Check:
    """Return the rule of an integer that is no smaller than `least`."""
    return Check(f"an integer >= {least}", lambda value: type(value) is int and value >= least)


def one_of(known: Collection[str]) -> Check:
    """Return the rule of one of several words."""
    return Check(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def optional(rule: Check) -> Check:
    """Return a rule that takes None as well, of which the hint says what it means."""
    return Check(rule.what, lambda value: value is None or rule.holds(value))


SHARE = number("in (0, 1]", lambda value: 0 < value <= 1)
POSITIVE = number("a finite number > 0", lambda value: value > 0)
NOT_NEGATIVE = number("a finite number >= 0", lambda value: value >= 0)
NOT_ZERO = number("a finite number other than 0", lambda value: value != 0)
TRUTH = Check("True or False", lambda value: isinstance(value, bool))


def check(name: str, value: object, rule: Check, hint: str) -> None:
    """Raise UsageError for a value that is not what the rule says."""
    if not rule.holds(value):
        raise UsageError(f"{name} must be {rule.what}, got {shown(value)}", hint=hint)


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


def shown(value: object) -> str:
    """Return a value as messages show it: short, and printable."""
    text = repr(value)
    return printable(text if len(text) <= 100 else f"{text[:100]}...")


def _called(kind: object) -> str:
    """Return a class's name as a caller writes it: `propetl.Config`."""
    name = getattr(kind, "__name__", repr(kind))
    module = getattr(kind, "__module__", "builtins")
    return name if module == "builtins" else f"{module.rpartition('.')[2]}.{name}"


def _an(kind: type) -> str:
    name = _called(kind)
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}" if kind is not type(None) else "None"
