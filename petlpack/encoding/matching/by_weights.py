"""Matching by weights, whatever the tensors are called: what is equal, and what is near."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from petlpack.encoding.matching.samples import correlated
from petlpack.encoding.matching.sides import Content, Matches, Sides, by_likeness
from petlpack.encoding.matching.spelling import modern, numbers
from petlpack.parallel import ordered_map
from petlpack.tensors.tensor import Tensor


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
    known = {sides.content(name) for name in sides.found}
    wanted: dict[Content, str] = {}
    for name in sides.left():
        if sides.content(name) not in known:
            wanted.setdefault(sides.content(name), name)
    names = [name for name in (*wanted.values(), *_strangers(sides)) if _tells_much(sides.tuned[name])]
    matches: Matches = {}
    resized = _resized(sides)
    for group, others in _alike(sides, names):
        for name, alike in correlated(group, others, sides.samples, sides.fits).items() if others else ():
            matches |= _if_near(sides, name, alike)
        for name in group:
            if name not in matches:
                matches |= _if_near(sides, name, resized.get(sides.tuned[name].shape, ()))
    return matches


def _if_near(sides: Sides, name: str, others: Iterable[str]) -> Matches:
    """Return the nearest of some base tensors for one of the run, if it is near."""
    fitting = [other for other in others if sides.fits(name, other)]
    if not fitting:
        return {}
    nearest = sides.nearest(name, fitting)
    return {name: nearest} if sides.samples.is_near(name, nearest) else {}


def _tells_much(tensor: Tensor) -> bool:
    """Tell whether a tensor has so many floats that it is no chance if they go with another's."""
    return tensor.dtype.kind == "float" and tensor.size >= LEAST_ELEMENTS


LEAST_ELEMENTS = 64


def _resized(sides: Sides) -> dict[tuple[int, ...], list[str]]:
    """Return by the shape of resized tensors the base tensors that they come from."""
    found: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, other in sides.found.items():
        if sides.tuned[name].shape != sides.base.tensors[other].shape:
            found[sides.tuned[name].shape].append(other)
    return found


def _strangers(sides: Sides) -> list[str]:
    """Return those that are not near to what they match: of very many only if there is one among some of them."""
    pairs = [(name, other) for name, other in sides.found.items() if sides.digests[name] != sides.base.sha256(other)]
    some = pairs[:: max(1, len(pairs) // MOST_LOOKED_AT)]
    if all(sides.samples.is_near(*pair) for pair in some):
        return []
    return [name for name, other in pairs if not sides.samples.is_near(name, other)]


MOST_LOOKED_AT = 512
"""Matches of a run whose weights are compared: renumbered layers are many."""


def _alike(sides: Sides, names: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield groups of the run's tensors with the base tensors of their shape; of very many, of their numbers, too."""
    tuned: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in names:
        tuned[sides.tuned[name].shape].append(name)
    base: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for other, tensor in sides.base.tensors.items():
        if tensor.shape in tuned and tensor.dtype.kind == "float":
            base[tensor.shape].append(other)
    for shape, group in tuned.items():
        others = base[shape]
        if len(group) * len(others) <= MOST_PAIRS:
            yield group, others
            continue
        of_numbers: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for other in others:
            of_numbers[numbers(other)].append(other)
        tuned_of_numbers: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in group:
            tuned_of_numbers[numbers(name)].append(name)
        yield from ((some, of_numbers[key]) for key, some in tuned_of_numbers.items())


MOST_PAIRS = 1 << 24
"""Pairs of tensors of one shape that are compared, half a second's work: beyond, time would grow as the square."""
