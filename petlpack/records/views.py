"""Views as a template says them: a name, or a list of a step and what it is made of (formats/template.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from petlpack.errors import RefusedError, UnknownFormatError, printable
from petlpack.records.base_table import BaseTable
from petlpack.tensors.safetensors_file import is_shape
from petlpack.tensors.views import BaseRef, Concatenated, Reshaped, Scaled, Sliced, Transposed, View, check_view

MOST_DEEP = 8
"""Lists of a view that stand inside one another, each a step."""

MOST_NAMES = 1 << 16
"""Tensors of the base that one view names."""

MOST_TIMES = 16
"""Times that a concatenation may be as large as the base tensors that it names: heads of keys that groups share."""


def view_json(view: View) -> Any:
    """Return the JSON value that says a view."""
    if isinstance(view, BaseRef):
        return view.name
    if isinstance(view, Reshaped):
        return ["reshape", list(view.shape), view_json(view.of)]
    if isinstance(view, Transposed):
        return ["transpose", view_json(view.of)]
    if isinstance(view, Sliced):
        return ["slice", view.axis, view.start, view.stop, view_json(view.of)]
    if isinstance(view, Concatenated):
        return ["concatenate", view.axis, [view_json(part) for part in view.parts]]
    return ["scale", list(view.blocks), view_json(view.of), view_json(view.scales)]


def parse_view(value: object, table: BaseTable) -> View:
    """Parse and check the JSON value of a view of the tensors in a base's table.

    Raises RefusedError, and UnknownFormatError for a step that is not known.
    """
    view = _view(value, table, MOST_DEEP)
    if len(view.refs) > MOST_NAMES:
        raise RefusedError(f"a view of {len(view.refs)} base tensors; {MOST_NAMES} are the most", code="view-limit")
    return view


def _view(value: object, table: BaseTable, deep: int) -> View:
    if isinstance(value, str):
        if value not in table:
            raise RefusedError(f"the base table has no tensor '{printable(value)}'", code="template-reference")
        return table[value]
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise RefusedError(f"neither a tensor of the base nor a view of some: {value!r:.80}", code="view-fields")
    if deep == 0:
        raise RefusedError(f"a view of more than {MOST_DEEP} steps inside one another", code="view-limit")
    step, *fields = value
    if step not in _STEPS:
        message = f"unknown step '{printable(step)}' of a view (known: {', '.join(_STEPS)})"
        raise UnknownFormatError(message, code="view-unknown")
    is_form, make = _STEPS[step]
    if len(fields) != len(is_form) or not all(is_field(field) for is_field, field in zip(is_form, fields, strict=True)):
        raise RefusedError(f"the step '{step}' of a view has other fields", code="view-fields")
    view = check_view(make(fields, lambda inner: _view(inner, table, deep - 1)))
    if isinstance(view, Concatenated):
        _check_growth(view)
    return view


def _check_growth(view: Concatenated) -> None:
    """Check that a concatenation is not many times what it is made of: that would be in memory, sliced or not."""
    named = sum({ref.name: math.prod(ref.shape) for ref in view.refs}.values())
    if math.prod(view.shape) > MOST_TIMES * named:
        raise RefusedError(
            f"a concatenation of {math.prod(view.shape):,} elements from base tensors of {named:,}, "
            f"{MOST_TIMES} times as many are the most",
            code="view-limit",
        )


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_parts(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_view(value: object) -> bool:
    return isinstance(value, (str, list))


Inner = Callable[[object], View]

_STEPS: Mapping[str, tuple[tuple[Callable[[object], bool], ...], Callable[[list[Any], Inner], View]]] = {
    "concatenate": ((_is_number, _is_parts), lambda has, view: Concatenated(has[0], tuple(map(view, has[1])))),
    "reshape": ((is_shape, _is_view), lambda has, view: Reshaped(tuple(has[0]), view(has[1]))),
    "scale": ((is_shape, _is_view, _is_view), lambda has, view: Scaled(tuple(has[0]), view(has[1]), view(has[2]))),
    "slice": (
        (_is_number, _is_number, _is_number, _is_view),
        lambda has, view: Sliced(has[0], has[1], has[2], view(has[3])),
    ),
    "transpose": ((_is_view,), lambda has, view: Transposed(view(has[0]))),
}
"""Each step: of which form its fields are, and the view that it makes of them."""
