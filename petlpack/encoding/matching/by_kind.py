"""Matching of parts that were renamed in every layer: `w1` for `gate_proj`, `attention.query` for `q_proj`."""

from __future__ import annotations

from petlpack.encoding.matching.samples import NEAR
from petlpack.encoding.matching.sides import Matches, Sides, grouped
from petlpack.encoding.matching.spelling import likeness, numbers, plain
from petlpack.records.slot import kind_of

MEASURED = 4
"""Tensors of a kind whose weights are compared: they tell of all layers."""

MOST_KINDS = 64
"""Kinds of one shape that are compared with each: models have about ten, and more say that names have no kinds."""

Kind = tuple[tuple[int, ...], str]
"""Shape, and name without its numbers."""


def renamed_kinds(sides: Sides) -> Matches:
    """Match tensors of one kind in all layers with those of the nearest kind that the base has of their shape, if near.

    The numbers in the names must be equal: the same layer, the same expert.
    """
    wanted = grouped(sides.wanted(), lambda name: (sides.tuned[name].shape, kind_of(plain(name))))
    shapes = {shape for shape, _ in wanted}
    tensors = sides.base.tensors
    base = grouped(
        [other for other in tensors if tensors[other].shape in shapes],
        lambda other: (tensors[other].shape, kind_of(plain(other))),
    )
    alike: dict[tuple[int, ...], list[Kind]] = {shape: [] for shape in shapes}
    for kind in base:
        alike[kind[0]].append(kind)
    placed = {kind: {numbers(other): other for other in others} for kind, others in base.items()}
    matches: Matches = {}
    for (shape, _), names in wanted.items():
        alone = len(names) == 1 and sides.samples.is_constant(names[0])  # a new head's bias is 0 like many others
        if len(alike[shape]) <= MOST_KINDS and not alone:
            matches |= _nearest(sides, names, [placed[kind] for kind in alike[shape]])
    return matches


def _nearest(sides: Sides, names: list[str], kinds: list[dict[tuple[str, ...], str]]) -> Matches:
    """Return the matches of one kind with the nearest of some; none where that is not near."""
    best: tuple[float, tuple[int, ...], Matches] | None = None
    for placed in kinds:
        pairs = [(name, placed[numbers(name)]) for name in names if numbers(name) in placed]
        members = {name: other for name, other in pairs if sides.fits(name, other)}
        if not members:
            continue
        some = list(members.items())[:: -(-len(members) // MEASURED)]
        likest = tuple(-count for count in likeness(*some[0]))
        found = sides.samples.mean_distance(some), likest, members
        best = found if best is None or found[:2] < best[:2] else best
    return best[2] if best is not None and best[0] < NEAR else {}
