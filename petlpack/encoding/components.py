"""Which component of the base each component of a run comes from, and which tensors of both are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from petlpack.encoding.matching.names import match_names
from petlpack.encoding.matching.sides import Matches, Step, shapes_of
from petlpack.encoding.matching.steps import match_tensors
from petlpack.errors import BaseError
from petlpack.layouts.run import Run
from petlpack.tensors.base import Base, Component
from petlpack.tensors.components import by_component
from petlpack.tensors.tensor import Tensor

Own = Mapping[str, Tensor]
"""The tensors of one component of a run by their names in its files."""


def components_of(run: Run) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a run by prefix, and by the names that they have in their files."""
    return by_component(run.module.tensors, run.headers.values())


def match_component(
    prefix: str, own: Own, digests: Mapping[str, str], base: Base, jobs: int, steps: Sequence[Step]
) -> tuple[Component, Matches] | None:
    """Return the component of the base that one of a run comes from, and {name: name} of their tensors in their files.

    It is the one at its own place, else the one where most of it has a counterpart: of two towers each may come from
    one model. None where the base has neither. `digests` are those of its tensors.
    """
    place = base.parts.get(prefix)
    names = {} if place is None else match_tensors(own, digests, place, jobs, steps)
    if place is not None and names:
        return place, names
    other = _likest(own, [part for part in base.parts.values() if part is not place])
    if other is None:
        return None if place is None else (place, {})
    return other, match_tensors(own, digests, other, jobs, steps)


def counterparts_by_name(run: Run, base: Base) -> Matches:
    """Return {tensor of the run: tensor of the base} for those that meet by name and shape, component by component."""
    found: Matches = {}
    for prefix, own in components_of(run).items():
        place = base.parts.get(prefix)
        if place is None or not _by_name(own, place):
            place = _likest(own, [part for part in base.parts.values() if part is not place])
        if place is not None:
            found |= {prefix + name: place.prefix + namesake for name, namesake in _by_name(own, place).items()}
    return found


def is_most(names: Iterable[str], own: Own) -> bool:
    """Tell whether some tensors are most of the weights of a component."""
    return 2 * _size(names, own) >= sum(tensor.size for tensor in own.values())


def _likest(own: Own, parts: Iterable[Component]) -> Component | None:
    """Return the component of a base in which most of a run's one has a tensor of its name and shape, if there is."""
    found = [(part, _by_name(own, part)) for part in parts]
    best, names = max(found, key=lambda row: _size(row[1], own), default=(None, {}))
    return best if names and is_most(names, own) else None


def _by_name(own: Own, part: Component) -> Matches:
    try:
        return match_names(shapes_of(own), shapes_of(part.tensors))
    except BaseError:
        return {}


def _size(names: Iterable[str], own: Own) -> int:
    return sum(own[name].size for name in names)
