"""Matching by names: equal ones, without wrappers, under prefixes. Where several fit, the weights tell which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

from petlpack.encoding.matching.prefixes import Subtree
from petlpack.encoding.matching.samples import NEAR
from petlpack.encoding.matching.sides import Matches, Sides
from petlpack.encoding.matching.spelling import modern, plain


def equal_names(sides: Sides) -> Matches:
    """Match tensors of one name, in today's spelling."""
    known = {modern(other): other for other in sides.base.tensors}
    pairs = ((name, name if name in sides.base.tensors else known.get(modern(name))) for name in sides.left())
    return {name: other for name, other in pairs if other is not None and sides.fits(name, other)}


def without_wrappers(sides: Sides) -> Matches:
    """Match tensors whose names are equal without the wrappers in them; of several the nearest."""
    known: dict[str, list[str]] = defaultdict(list)
    for other in sides.base.tensors:
        known[plain(other)].append(other)
    matches: Matches = {}
    for name in sides.left():
        others = [other for other in known.get(plain(name), ()) if sides.fits(name, other)]
        if others:
            matches[name] = sides.nearest(name, others)
    return matches


def main_prefix(sides: Sides) -> Matches:
    """Match what meets under the one pair of prefixes under which most tensors do, or a rival that is nearer."""
    left = set(sides.left())
    if not left or not sides.subtrees:
        return {}
    return _members(_nearest_rival(sides, 0, left), sides, left)


def other_prefixes(sides: Sides) -> Matches:
    """Match what meets under further prefixes (towers, parts that moved), where the weights say that it does."""
    left, matches, measured = set(sides.left()), Matches(), 0
    for at, subtree in enumerate(sides.subtrees if left else ()):
        if not left or measured == MOST_SUBTREES:
            break
        if not _members(subtree, sides, left):
            continue
        measured += 1
        best = _nearest_rival(sides, at, left)
        members = _members(best, sides, left)
        if _distance(sides, members) < NEAR:
            matches |= members
            left -= members.keys()
    return matches


MOST_SUBTREES = 256
"""Pairs of prefixes whose weights are compared. What is left then is looked at tensor by tensor."""

RIVALS = 8
"""Pairs of prefixes that are compared at a time."""

MEASURED = 16
"""Tensors of a subtree whose weights are compared."""


def _members(subtree: Subtree, sides: Sides, left: Set[str]) -> Matches:
    """Return the pairs of a subtree that are left."""
    return {name: other for name, other in subtree.pairs if name in left and sides.fits(name, other)}


def _nearest_rival(sides: Sides, at: int, left: set[str]) -> Subtree:
    """Return a subtree, or one after it that is nearer, and near, and explains at least half as many of its tensors."""
    found = sides.subtrees
    first = found[at]
    own = {name: other for name, other in first.pairs if name in left}
    rivals = [first]
    for rival in found[at + 1 :]:
        if 2 * rival.fitting < first.fitting or len(rivals) == RIVALS:
            break
        if any(own.get(name, other) != other for name, other in rival.pairs):
            rivals.append(rival)
    if len(rivals) == 1:
        return first
    distances = [_distance(sides, _members(rival, sides, own.keys())) for rival in rivals]
    nearest = min(distances)
    return rivals[distances.index(nearest)] if nearest < NEAR else first


def _distance(sides: Sides, members: Matches) -> float:
    pairs = sorted(members.items(), key=lambda pair: sides.tuned[pair[0]].size)
    step = max(1, len(pairs) // MEASURED)
    return sides.samples.mean_distance(pairs[::-1][::step])
