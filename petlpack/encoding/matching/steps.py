"""The steps of matching, in their order: each is asked for what the ones before it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petlpack.encoding.matching.by_kind import renamed_kinds
from petlpack.encoding.matching.by_name import equal_names, main_prefix, other_prefixes, without_wrappers
from petlpack.encoding.matching.by_weights import equal_weights, near_weights
from petlpack.encoding.matching.prefixes import nothing_fits, subtrees
from petlpack.encoding.matching.sides import Matches, Sides, Step, shapes_of
from petlpack.tensors.base import Tensors
from petlpack.tensors.tensor import Tensor

BY_NAME: tuple[Step, ...] = (equal_names, without_wrappers, main_prefix)
"""For runs of a method, whose tensors are new but for those of a frozen base."""

ALL: tuple[Step, ...] = (equal_weights, *BY_NAME, other_prefixes, renamed_kinds, near_weights)
"""For whole models."""


def match_tensors(
    tuned: Mapping[str, Tensor], digests: Mapping[str, str], base: Tensors, jobs: int, steps: Sequence[Step]
) -> Matches:
    """Return {name in the run: name in the base} for every tensor of a run that a tensor of the base predicts.

    `digests` are the run's; several of its tensors may have one of the base.
    """
    sides = Sides(tuned, digests, base, jobs)
    for step in steps:
        sides.found.update(step(sides))
    return {name: sides.found[name] for name in tuned if name in sides.found}


def refuse_unrelated(tuned: Mapping[str, Tensor], base: Tensors, otherwise: str) -> None:
    """Raise BaseError for a base of which no tensor meets one of the run's by name and shape.

    `otherwise` is what its hint says besides.
    """
    shapes, base_shapes = shapes_of(tuned), shapes_of(base.tensors)
    if not subtrees(shapes, base_shapes):
        raise nothing_fits(shapes, base_shapes, otherwise)
