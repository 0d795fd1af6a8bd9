"""Rules as templates hold them: rows of JSON by which dense modules are rebuilt (formats/methods.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from petlpack.errors import DamageError, RefusedError, UnknownFormatError, printable, reason
from petlpack.rules.modules import Rebuilt, Use
from petlpack.tensors.decimals import decimal_text, parse_decimal
from petlpack.tensors.tensor import Tensor

Rule = Mapping[str, Any]


def to_rule(use: Use, rows: Sequence[Any], **more: Sequence[Any]) -> dict[str, Any]:
    """Return the JSON of a rule: how the outputs are used, a row for each, and rows of `more`."""
    tables = {name: [_to_json(astuple(row)) for row in table] for name, table in {"rows": rows, **more}.items()}
    return {"kind": use.kind, "settings": {name: _to_json(value) for name, value in use.settings.items()}, **tables}


def _to_json(value: Any) -> Any:
    """Return a value as canonical JSON has it: tuples as lists, floats as decimals."""
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    return decimal_text(value) if isinstance(value, float) else value


def settings_of(rule: Rule) -> dict[str, Any]:
    """Return the settings of a rule, as its module had them."""
    return {name: _number(value) if name in _NUMBERS else value for name, value in rule["settings"].items()}


def _number(value: object) -> object:
    number = parse_decimal(value)
    return value if number is None else number


def check_rule(rule: Rule | None, *more: str) -> Rule:
    """Return a rule that has the fields of every rule and `more`; raises DamageError."""
    if rule is None or set(rule) != {"kind", "settings", "rows", *more}:
        raise DamageError(
            f"a rule must have the fields {', '.join(['kind', 'settings', 'rows', *more])}, "
            f"got {printable(', '.join(sorted(rule or {})))[:200] or 'none'}",
            code="rule-fields",
        )
    if rule["kind"] not in ("adapter", "lora", "prefix"):
        raise UnknownFormatError(
            f"unknown kind of rule {printable(repr(rule['kind']))} (known: adapter, lora, prefix)", code="rule-unknown"
        )
    settings = rule["settings"]
    if not isinstance(settings, dict):
        raise DamageError(
            f"the settings of a rule must be an object, got {type(settings).__name__}", code="rule-settings"
        )
    for name, value in settings.items():
        if name in _SETTINGS and not _SETTINGS[name](value):
            message = f"invalid value {printable(repr(value))} for the setting '{name}' of a rule"
            raise DamageError(message, code="rule-settings")
    return rule


def _is_flags(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 3 and all(type(flag) is bool for flag in value) and any(value)


_SETTINGS: Mapping[str, Callable[[object], bool]] = {
    "scaling": lambda value: type(number := _number(value)) in (int, float) and abs(number) < 1e30,  # type: ignore[arg-type]
    "activation": lambda value: isinstance(value, str),
    "form": lambda value: isinstance(value, str),
    "norm_input": lambda value: type(value) is bool,
    "enable": _is_flags,
}
"""What is checked of the settings of a rule; a reader may not know others, and nothing is computed from them."""

_NUMBERS = {"scaling"}
"""Settings that are numbers: an integer, or the text of a decimal."""


def parse_rows(rows: object, parse: Callable[[Any], Any]) -> list[Any]:
    """Return the rows of a rule as `parse` makes them; raises DamageError for one that it cannot take apart."""
    try:
        return [parse(row) for row in _list(rows)]
    except (TypeError, ValueError, IndexError) as error:
        code = reason(error, "rule-row")
        raise DamageError(f"invalid row in a rule: {printable(str(error))}", code=code) from error


def text(value: object) -> str:
    """Return a text of a rule; raises RefusedError for anything else."""
    if not isinstance(value, str):
        raise RefusedError(f"expected a string, got {value!r}", code="rule-row")
    return value


def maybe_text(value: object) -> str | None:
    """Return a text or None of a rule."""
    return None if value is None else text(value)


def texts(value: object) -> tuple[str, ...]:
    """Return a list of texts of a rule."""
    return tuple(text(item) for item in _list(value))


def pair(value: object) -> tuple[str, str]:
    """Return two texts of a rule."""
    first, second = texts(value)
    return first, second


def whole(value: object) -> int:
    """Return a number from 0 of a rule."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise RefusedError(f"expected an integer from 0 to 2^31 - 1, got {value!r}", code="rule-value")
    return value


def truth(value: object) -> bool:
    """Return a truth value of a rule."""
    if type(value) is not bool:
        raise RefusedError(f"expected true or false, got {value!r}", code="rule-row")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise RefusedError(f"expected a list, got {value!r}", code="rule-row")
    return value


_NUMBERED = re.compile(r"(?<=\.block\.|\.layer\.)\d+|(?<=\.h\.)\d+")


def any_layer(name: str) -> str:
    """Return a name with `l` in the place of its layer's number, for formulas: the first number after its stack."""
    return _NUMBERED.sub("l", f".{name}", count=1)[1:]


def in_all_layers(names: Sequence[str]) -> str:
    """Return what stands in a formula for one tensor in every layer: its name, or that of layer `l`."""
    return names[0] if len(set(names)) == 1 else any_layer(names[0])


def tables_of(rule: Rule) -> tuple[list[Any], list[Any]]:
    """Return the rows of a rule, one an output, and those of its other tables, which each of them may use."""
    return rule["rows"], [table for name, table in rule.items() if name not in ("kind", "settings", "rows")]


def rebuilt(rule: Rule, outputs: Mapping[str, Tensor]) -> Rebuilt:
    """Return the outputs of a rule with how they are used."""
    return Rebuilt(rule["kind"], settings_of(rule), outputs)


def find(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor that a rule names; raises DamageError where there is none."""
    if name not in tensors:
        raise DamageError(
            f"a rule refers to tensor '{printable(name)}', but the task has no such tensor", code="rule-reference"
        )
    if not tensors[name].size:
        raise DamageError(f"a rule refers to tensor '{printable(name)}', which has no elements", code="rule-shape")
    return tensors[name]


def shaped(tensors: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
    """Return a tensor that a rule names, of this shape; raises DamageError where it has another."""
    tensor = find(tensors, name)
    if tensor.shape != shape:
        raise DamageError(
            f"tensor '{printable(name)}' is {list(tensor.shape)}, the rule needs {list(shape)}", code="rule-shape"
        )
    return tensor
