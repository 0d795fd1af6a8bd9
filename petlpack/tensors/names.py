"""Which tensor of the base each tensor of a fine-tune comes from: names differ by prefixes and old spellings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from petlpack.errors import BaseError, printable

Shapes = Mapping[str, tuple[int, ...]]

MAX_CANDIDATES = 8
"""Base tensors of one suffix that are compared: more are one part of many layers, which says nothing of prefixes."""

MAX_PREFIX = 3
"""Leading name parts that may differ between two files (`module.`, `_orig_mod.`, `base_model.`, `bert.` ...)."""


def modern(name: str) -> str:
    """Return a name in today's spelling: LayerNorm's gamma and beta became weight and bias."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def match_names(tuned: Shapes, base: Shapes) -> dict[str, str]:
    """Return {name in the fine-tune: name in the base} for every tensor that both have.

    One prefix is taken off the fine-tune's names and one off the base's, the same for all: the pair under which most
    tensors meet (equal shapes count, then equal shapes but for the number of rows, as in resized embeddings). Raises
    BaseError where nothing fits, or two pairs fit equally well.
    """
    votes: Counter[tuple[str, str]] = Counter()
    misfits: Counter[tuple[str, str]] = Counter()
    suffixes = _suffixes(base)
    for name, shape in tuned.items():
        for prefix, suffix in _splits(modern(name)):
            candidates = suffixes.get(suffix, ())
            for base_prefix, base_name in candidates if len(candidates) <= MAX_CANDIDATES else ():
                fits = shape == base[base_name]
                (votes if fits else misfits)[prefix, base_prefix] += 1
    if not votes:
        raise _nothing_fits(tuned, base, misfits)
    prefix, base_prefix = _most_votes(votes)
    spelled = {modern(name): name for name in base}
    matches = {}
    for name, shape in tuned.items():
        if not modern(name).startswith(prefix):
            continue
        namesake = spelled.get(base_prefix + modern(name)[len(prefix) :])
        if namesake is not None and comparable(shape, base[namesake]):
            matches[name] = namesake
    return matches


def comparable(shape: tuple[int, ...], base: tuple[int, ...]) -> bool:
    """Tell whether two shapes are equal, or differ only in the number of rows of a matrix (resized embeddings)."""
    return shape == base or (len(shape) == len(base) >= 2 and shape[1:] == base[1:])


def _splits(name: str) -> list[tuple[str, str]]:
    """Return (prefix, suffix) for 0..MAX_PREFIX leading parts taken off, never the last two."""
    parts = name.split(".")
    cuts = range(max(1, min(MAX_PREFIX + 1, len(parts) - 1)))
    return [("".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])) for cut in cuts]


def _suffixes(base: Shapes) -> dict[str, list[tuple[str, str]]]:
    table: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in base:
        for prefix, suffix in _splits(modern(name)):
            table[suffix].append((prefix, name))
    return table


def _most_votes(votes: Counter[tuple[str, str]]) -> tuple[str, str]:
    """Return the pair of prefixes with most votes, among those the shortest; refuse a tie."""

    def rank(pair: tuple[str, str]) -> tuple[int, int]:
        return -votes[pair], pair[0].count(".") + pair[1].count(".")

    best, *others = sorted(votes, key=rank)
    if others and rank(others[0]) == rank(best):
        raise BaseError(
            f"the run's tensors match the base's '{printable(best[1])}*' and '{printable(others[0][1])}*' equally well",
            hint="pass the checkpoint that the run was trained from as the base",
        )
    return best


def _nothing_fits(tuned: Shapes, base: Shapes, misfits: Counter[tuple[str, str]]) -> BaseError:
    hint = "pass the checkpoint that the run was trained from as the base"
    if not misfits:
        sample = printable(next(iter(tuned), "(no tensors)"))
        return BaseError(f"the run and the base have no tensor name in common; the run has '{sample}'", hint=hint)
    (prefix, base_prefix), _ = misfits.most_common(1)[0]
    spelled = {modern(name): name for name in base}
    for name, shape in tuned.items():
        other = spelled.get(base_prefix + modern(name).removeprefix(prefix))
        if other is not None and base[other] != shape:
            return BaseError(
                f"tensor '{printable(name)}' is {list(shape)} in the run and {list(base[other])} in the base", hint=hint
            )
    return BaseError("no tensor of the run has the shape of the base tensor of the same name", hint=hint)
