"""Matching where only names and shapes are known, not the weights."""

from __future__ import annotations

from petlpack.encoding.matching.prefixes import nothing_fits, subtrees
from petlpack.encoding.matching.spelling import Shapes, comparable, modern, plain


def match_names(tuned: Shapes, base: Shapes) -> dict[str, str]:
    """Return {name in the fine-tune: name in the base} for every tensor that both have.

    Names meet as they are, then without wrappers, then under the one pair of prefixes under which most tensors meet.
    Raises BaseError where no tensor meets one of its shape.
    """
    found = subtrees(tuned, base)
    if not found:
        raise nothing_fits(tuned, base)
    matches: dict[str, str] = {}
    for spell in (modern, plain):
        known = {spell(other): other for other in sorted(base, reverse=True)}
        for name in tuned.keys() - matches.keys():
            other = name if name in base else known.get(spell(name))
            if other is not None and comparable(tuned[name], base[other]):
                matches[name] = other
    matches = {**dict(found[0].pairs), **matches}
    return {name: matches[name] for name in tuned if name in matches}
