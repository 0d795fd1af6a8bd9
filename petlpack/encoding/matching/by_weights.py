"""Matching by weights, whatever the tensors are called: what is equal, and what is near."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

from petlpack.encoding.matching.samples import FEW_ELEMENTS, correlated
from petlpack.encoding.matching.sides import Content, Matches, Sides, by_likeness, grouped
from petlpack.encoding.matching.spelling import modern, numbers
from petlpack.parallel import ordered_map
from petlpack.tensors.tensor import Tensor

Item = TypeVar("Item")


def equal_weights(sides: Sides) -> Matches:
    """Match tensors that are the base's bit for bit, whatever they are called.

    One tensor of the run for each of the base: further equal ones are equal to another of the run, and take no bytes.
    Constants say nothing, so their names must be equal, too.
    """
    alike = {(tensor.dtype, tensor.shape) for tensor in sides.tuned.values() if tensor.size}
    needed = [name for name, tensor in sides.base.tensors.items() if (tensor.dtype, tensor.shape) in alike]
    base: dict[Content, list[str]] = defaultdict(list)
    for name, digest in zip(needed, ordered_map(sides.base.sha256, needed, sides.jobs), strict=True):
        base[sides.base.tensors[name].dtype, sides.base.tensors[name].shape, digest].append(name)
    tuned: dict[Content, list[str]] = defaultdict(list)
    for name in sides.tuned:
        if (content := sides.content(name)) in base:
            tuned[content].append(name)
    matches: Matches = {}
    for content, names in tuned.items():
        matches |= _namesakes(names, base[content])
        if matches.keys().isdisjoint(names) and not sides.samples.is_constant(names[0]):
            matches |= _likest(names, base[content])
    return matches


def _namesakes(names: Iterable[str], others: Iterable[str]) -> Matches:
    known = {modern(other): other for other in others}
    return {name: known[modern(name)] for name in names if modern(name) in known}


def _likest(names: list[str], others: list[str]) -> Matches:
    """Match names one to one, the likest first; of very many the later steps know more."""
    if len(names) * len(others) > MOST_EQUAL:
        return {}
    pairs = [(name, other) for name in names for other in others]
    matches: Matches = {}
    taken: set[str] = set()
    for name, other in sorted(pairs, key=lambda pair: (by_likeness(*pair), pair)):
        if name not in matches and other not in taken:
            matches[name] = other
            taken.add(other)
    return matches


MOST_EQUAL = 1 << 14
"""Pairs of equal tensors whose names are compared: 128 layers that have the same buffer."""


def near_weights(sides: Sides) -> Matches:
    """Match what is left, and what is a stranger to the tensor of its name (layers that were renumbered), by weights.

    A match has equal shapes, or is the base tensor of another tensor of this shape (an untied head beside resized
    embeddings), and is near. What equals a tensor that has a match is left out: it takes no bytes.
    """
    once = {sides.content(name): name for name in sides.wanted()}
    matches = _near(sides, once.values())
    changed = [(name, other) for name, other in sides.found.items() if sides.digests[name] != sides.base.sha256(other)]
    matrices = [pair for pair in changed if len(sides.tuned[pair[0]].shape) > 1]
    some = _strangers(sides, _spread(matrices, MOST_LOOKED_AT))
    if _near(sides, _spread(some, MOST_TRIED)):
        matches |= _near(sides, _strangers(sides, changed))
    return matches


MOST_LOOKED_AT = 512
"""Matrices of a run that are compared with what they match, before all tensors are."""

MOST_TRIED = 64
"""Strangers of these that are matched by weights, before all are: renumbered layers are many, a new head is one."""


def _spread(items: list[Item], most: int) -> list[Item]:
    """Return some of many items, from first to last."""
    return items[:: -(-len(items) // most) or 1]


def _strangers(sides: Sides, pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [name for name, other in pairs if not sides.samples.is_near(name, other)]


def _near(sides: Sides, names: Iterable[str]) -> Matches:
    """Match tensors with near ones of the base: with those that nothing matches yet, else with any."""
    tuned = [name for name in names if _tells_much(sides.tuned[name])]
    if not tuned:
        return {}
    again = set(tuned)
    taken = {other for name, other in sides.found.items() if name not in again}
    matches = _most_alike(sides, tuned, [other for other in sides.base.tensors if other not in taken])
    rest = [name for name in tuned if name not in matches]
    matches |= _most_alike(sides, rest, list(sides.base.tensors))
    resized = _resized(sides)
    for name in rest:
        if name not in matches:
            matches |= _if_near(sides, name, resized.get(sides.tuned[name].shape, ()))
    return matches


def _tells_much(tensor: Tensor) -> bool:
    return tensor.dtype.kind == "float" and tensor.size >= FEW_ELEMENTS


def _resized(sides: Sides) -> dict[tuple[int, ...], list[str]]:
    """Return by the shape of resized tensors the base tensors that they come from."""
    found: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, other in sides.found.items():
        if sides.tuned[name].shape != sides.base.tensors[other].shape:
            found[sides.tuned[name].shape].append(other)
    return found


def _if_near(sides: Sides, name: str, others: Iterable[str]) -> Matches:
    """Return the nearest of some base tensors for one of the run, if it is near."""
    fitting = [other for other in others if sides.fits(name, other)]
    if not fitting:
        return {}
    nearest = sides.nearest(name, fitting)
    return {name: nearest} if sides.samples.is_surely_near(name, nearest) else {}


def _most_alike(sides: Sides, names: list[str], others: list[str]) -> Matches:
    """Match tensors with the nearest of some base tensors that have their shape."""
    tuned = grouped(names, lambda name: sides.tuned[name].shape)
    base = grouped(
        [other for other in others if sides.base.tensors[other].dtype.kind == "float"],
        lambda other: sides.base.tensors[other].shape,
    )
    matches: Matches = {}
    for shape, group in tuned.items():
        for some, candidates in _affordable(sides, group, base.get(shape, [])):
            for name, alike in correlated(some, candidates, sides.samples).items():
                matches |= _if_near(sides, name, alike)
    return matches


def _affordable(sides: Sides, group: list[str], others: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield tensors of one shape with those of the base to compare them with: all, or those of the same numbers.

    Comparing all with all takes time as the square of their number. It is done where digesting them takes longer.
    """
    if not others:
        return
    count, pairs = len(group) + len(others), len(group) * len(others)
    if READ_COST * count + PAIR_COST * pairs <= FREE_COST + count * sides.tuned[group[0]].nbytes:
        yield group, others
        return
    base = grouped(others, numbers)
    yield from ((some, base[key]) for key, some in grouped(group, numbers).items() if key in base)


READ_COST, PAIR_COST, FREE_COST = 1 << 17, 64, 1 << 32
"""What reading a sample, and comparing two, takes, in bytes that are digested meanwhile; and what is never too much,
some 3 seconds."""
