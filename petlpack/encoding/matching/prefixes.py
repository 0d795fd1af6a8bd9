"""Names that differ by a prefix: which of the run stands for which of the base, told by how many tensors meet."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from petlpack.encoding.matching.spelling import Shapes, comparable, plain
from petlpack.errors import BaseError, printable

MAX_CANDIDATES = 8
"""Base tensors of one suffix that are compared: more are one part of many layers, which says nothing of prefixes."""

MAX_PREFIX = 6
"""Leading name parts that may differ between two files, wrappers not counted: `student.model.encoder.` ..."""

HINT = "pass the checkpoint that the run was trained from as the base"


@dataclass(frozen=True)
class Subtree:
    """A prefix of the run's names and one of the base's, and the pairs of tensors that meet without them."""

    prefix: str
    base_prefix: str
    fitting: int
    """How many of the pairs have equal shapes."""
    pairs: tuple[tuple[str, str], ...]


def subtrees(tuned: Shapes, base: Shapes) -> list[Subtree]:
    """Return every pair of prefixes under which tensors of comparable shapes meet, the one with most votes first.

    Only tensors of equal shapes vote. Of pairs with as many votes the shortest comes first, then the first by name.
    """
    suffixes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in base:
        for prefix, suffix in _splits(plain(name)):
            suffixes[suffix].append((prefix, name))
    met: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    votes: dict[tuple[str, str], int] = defaultdict(int)
    for name, shape in tuned.items():
        for prefix, suffix in _splits(plain(name)):
            candidates = suffixes.get(suffix, ())
            for base_prefix, other in candidates if len(candidates) <= MAX_CANDIDATES else ():
                if comparable(shape, base[other]) and not _end_alike(prefix, base_prefix):
                    met[prefix, base_prefix].append((name, other))
                    votes[prefix, base_prefix] += shape == base[other]
    found = [Subtree(*key, votes[key], tuple(pairs)) for key, pairs in met.items() if votes[key]]
    return sorted(found, key=_rank)


def _rank(subtree: Subtree) -> tuple[int, int, str, str]:
    parts = subtree.prefix.count(".") + subtree.base_prefix.count(".")
    return -subtree.fitting, parts, subtree.prefix, subtree.base_prefix


def _end_alike(prefix: str, base_prefix: str) -> bool:
    """Tell whether two prefixes end with the same part: shorter ones then say the same of more tensors."""
    end = prefix.rfind(".", 0, -1)
    return prefix != "" and base_prefix[base_prefix.rfind(".", 0, -1) + 1 :] == prefix[end + 1 :]


def _splits(name: str) -> list[tuple[str, str]]:
    """Return (prefix, suffix) for 0..MAX_PREFIX leading parts taken off, never the last two."""
    cuts = [0]
    while len(cuts) <= MAX_PREFIX:
        cuts.append(name.find(".", cuts[-1]) + 1)
        if name.find(".", cuts[-1]) < 0 or not cuts[-1]:
            cuts.pop()
            break
    return [(name[:cut], name[cut:]) for cut in cuts]


def nothing_fits(tuned: Shapes, base: Shapes, otherwise: str = "") -> BaseError:
    """Return what to say of a base that has no tensor of the run's: other names, or equal names of other shapes.

    `otherwise` is what the hint says besides.
    """
    suffixes: dict[str, list[str]] = defaultdict(list)
    for other in base:
        for _, suffix in _splits(plain(other)):
            suffixes[suffix].append(other)
    for name, shape in tuned.items():
        for _, suffix in _splits(plain(name)):
            sizes = next((base[other] for other in suffixes.get(suffix, ()) if base[other] != shape), None)
            if sizes is not None:
                return BaseError(
                    f"tensor '{printable(name)}' is {list(shape)} in the run and {list(sizes)} in the base",
                    hint=HINT + otherwise,
                )
    sample = printable(next(iter(tuned), "(no tensors)"))
    return BaseError(
        f"the run and the base have no tensor name in common; the run has '{sample}'", hint=HINT + otherwise
    )
