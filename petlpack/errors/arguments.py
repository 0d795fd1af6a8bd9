"""What callers give, checked before anything is touched: `density must be in (0, 1), got 1.2`."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import UsageError, printable

Place = str | os.PathLike[str]
"""A path as callers give it; an opened pack is one, too: that of its directory."""


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


def whole(least: int, most: float = math.inf) -> Check:
    """Return the rule of an integer from `least` on, up to `most`."""
    what = f"an integer >= {least}" if most == math.inf else f"an integer from {least} to {most:,}"
    return Check(what, lambda value: type(value) is int and least <= value <= most)


def one_of(known: Collection[str]) -> Check:
    """Return the rule of one of several words."""
    return Check(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def optional(rule: Check) -> Check:
    """Return a rule that takes None as well, of which the hint says what it means."""
    return Check(rule.what, lambda value: value is None or rule.holds(value))


SHARE = number("in (0, 1]", lambda value: 0 < value <= 1)
PART = number("in (0, 1)", lambda value: 0 < value < 1)
POSITIVE = number("a finite number > 0", lambda value: value > 0)
NOT_NEGATIVE = number("a finite number >= 0", lambda value: value >= 0)
NOT_ZERO = number("a finite number other than 0", lambda value: value != 0)
TRUTH = Check("True or False", lambda value: isinstance(value, bool))
TEXT = Check("a string", lambda value: isinstance(value, str))
JOBS = optional(whole(1))


def check(name: str, value: object, rule: Check, hint: str) -> None:
    """Raise UsageError for a value that is not what the rule says."""
    if not rule.holds(value):
        raise UsageError(f"{name} must be {rule.what}, got {shown(value)}", hint=hint)


def check_jobs(jobs: object) -> None:
    """Raise UsageError for anything but a number of threads, or None."""
    check("jobs", jobs, JOBS, "jobs is the number of threads; omit it for one per processor")


def check_max_bytes(max_bytes: object) -> None:
    """Raise UsageError for anything but a number of bytes, or None."""
    hint = "max_bytes is the most that a task may decode to; omit it for what its files explain"
    check("max_bytes", max_bytes, optional(whole(0)), hint)


def check_flags(**flags: object) -> None:
    """Raise UsageError for a switch that is neither True nor False: any other value would count as one of them."""
    for name, value in flags.items():
        check(name, value, TRUTH, f"{name} is a switch: {name}=True turns it on")


def check_mapping(name: str, value: object, hint: str) -> None:
    """Raise UsageError for anything but a mapping whose keys are strings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{name} must map names to values, got {shown(value)}", hint=hint)


def path_of(name: str, value: object) -> Path:
    """Return a path that a caller gives; raises UsageError for what is none, and for an empty one, which means `.`."""
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name} must be a path, got {shown(value)}", hint="give a string or a pathlib.Path")
    refuse_empty(name, value)
    return Path(value)


def refuse_empty(name: str, value: object) -> None:
    """Raise UsageError for an empty path, which would mean the current directory."""
    if value == "":
        raise UsageError(f"{name} is an empty path", hint="check the variable that it comes from")


def paths_of(name: str, value: object) -> list[Path]:
    """Return one or several paths that a caller gives; raises UsageError for anything else."""
    return [path_of(name, item) for item in _several(name, value, (str, os.PathLike), "a path, or several")]


def texts_of(name: str, value: object) -> list[str]:
    """Return one or several strings that a caller gives; raises UsageError for anything else."""
    items = _several(name, value, str, "a string, or several")
    for item in items:
        check(name, item, TEXT, f"give one string, or a list of them, as {name}")
    return items


def counts_of(name: str, value: object) -> list[int]:
    """Return one or several integers that a caller gives, NumPy's among them; raises UsageError for anything else."""
    what = "an integer, or several"
    hint = 'such as [100, 2000], or petlpack.parse_counts("1e2..1e6")'
    if isinstance(value, str):
        raise UsageError(f"{name} must be {what}, got {shown(value)}", hint=hint)
    try:
        return [operator.index(item) for item in _several(name, value, numbers.Integral, what)]
    except TypeError:
        raise UsageError(f"{name} must be {what}, got {shown(value)}", hint=hint) from None


def _several(name: str, value: object, one: type | tuple[type, ...], what: str) -> list[Any]:
    """Return a value in a list, or what is in it; a mapping or an object that is neither raises UsageError."""
    if isinstance(value, one):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise UsageError(f"{name} must be {what}, got {shown(value)}", hint=f"give one, or a list, as {name}")
    return list(value)


def refuse_file_above(path: Path, hint: str) -> None:
    """Raise UsageError where a new file or directory cannot be made because a file stands in the place of a parent."""
    above = next((parent for parent in path.parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        shown_path, file = printable(str(path)), printable(str(above))
        raise UsageError(f"'{shown_path}' cannot be created: '{file}' is a file, not a directory", hint=hint)


def shown(value: object) -> str:
    """Return a value as messages show it: short, and printable."""
    text = repr(value)
    return printable(text if len(text) <= 100 else f"{text[:100]}...")
