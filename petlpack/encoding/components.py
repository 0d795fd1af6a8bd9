"""Which tensor of the base each tensor of a run comes from, component by component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from petlpack.errors import BaseError
from petlpack.layouts.run import Run
from petlpack.tensors.base import Base
from petlpack.tensors.components import by_component
from petlpack.tensors.names import match_names
from petlpack.tensors.tensor import Tensor

Component = Mapping[str, Tensor]
"""The tensors of one component by their names in its files."""


def counterparts(run: Run, base: Base) -> dict[str, str]:
    """Return {tensor of the run: tensor of the base} for every tensor that has one.

    A component has its counterpart at its own place in the base, else where most of it has one: of two towers each may
    come from one model. Raises BaseError where the main weights, or all of a run that has none, fit nothing.
    """
    theirs = by_component(base.tensors, base.headers.values())
    found: dict[str, str] = {}
    problem: BaseError | None = None
    for prefix, own in by_component(run.module.tensors, run.headers.values()).items():
        try:
            other, names = _at_its_place(prefix, own, theirs)
        except BaseError as error:
            if not prefix:
                raise
            problem = problem or error
            continue
        found |= {prefix + name: other + namesake for name, namesake in names.items()}
    if problem is not None and not found:
        raise problem
    return found


def whole_counterparts(run: Run, base: Base) -> dict[str, str]:
    """Return {tensor: tensor of the base} of those components of an adapter's run that most of has one."""
    theirs = by_component(base.tensors, base.headers.values())
    found: dict[str, str] = {}
    for prefix, own in by_component(run.module.tensors, run.headers.values()).items():
        if not prefix:
            continue
        try:
            other, names = _at_its_place(prefix, own, theirs)
        except BaseError:
            continue
        if _is_most(names, own):
            found |= {prefix + name: other + namesake for name, namesake in names.items()}
    return found


def _at_its_place(prefix: str, own: Component, theirs: Mapping[str, Component]) -> tuple[str, dict[str, str]]:
    """Return the prefix of the base's component that a run's one comes from, and {name: name} in these two.

    Raises BaseError where there is none.
    """
    if prefix in theirs:
        try:
            return prefix, _match(own, theirs[prefix])
        except BaseError:
            if not prefix:
                raise
    others = [other for other in theirs if other != prefix]
    found = []
    problem: BaseError | None = None
    for other in others:
        try:
            names = _match(own, theirs[other])
        except BaseError as error:
            problem = problem or error
            continue
        found.append((_size(names, own), other, names))
    best = max(found, key=lambda row: row[0], default=None)
    if best is not None and _is_most(best[2], own):
        return best[1], best[2]
    raise problem or BaseError(
        "most of the run's weights have no counterpart in the base",
        hint="pass the checkpoint that the run was trained from as the base",
    )


def _match(own: Component, theirs: Component) -> dict[str, str]:
    return match_names(
        {name: tensor.shape for name, tensor in own.items()}, {name: tensor.shape for name, tensor in theirs.items()}
    )


def _is_most(names: Iterable[str], own: Component) -> bool:
    return 2 * _size(names, own) >= sum(tensor.size for tensor in own.values())


def _size(names: Iterable[str], own: Component) -> int:
    return sum(own[name].size for name in names)
