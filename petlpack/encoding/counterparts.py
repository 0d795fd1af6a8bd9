"""What people are told where a base predicts less of a run than they may think."""

from __future__ import annotations

from petlpack.encoding.match import Matched
from petlpack.encoding.matching.samples import NEAR, distance, sample_of
from petlpack.errors import printable
from petlpack.layouts.heads import NEW
from petlpack.layouts.run import Run
from petlpack.records.slot import kind_of
from petlpack.tensors.base import needed
from petlpack.tensors.tensor import Tensor

MOST_WITHOUT = 0.01
"""Share of a run's weights without a counterpart above which it is told; a new head is none of them."""

FEW = 512
"""Weights of which nothing is told, whatever share they are: they take fewer bytes than a pack's own tables."""

LEAST_HELPED = 0.1
"""Share of a run's weights that a base predicts, or holds, below which it is told: it is another model's."""

MEASURED = 64
"""Tensors whose distance from the base is measured, from the largest on: they tell of all."""

NAMED = 5
"""Tensors that are named, of each kind one."""


def counterpart_warnings(run: Run, matched: Matched) -> tuple[str, ...]:
    """Return warnings of a whole model: weights that have no counterpart in the base, a base that hardly helps.

    Equal tensors of a run are counted once. Of a method's run nothing is said: what it trains is new.
    """
    if matched.base is None or not run.whole:
        return ()
    once = {matched.content(name): name for name in (*matched.tensors, *matched.refs)}  # if possible one with a match
    counted = set(once.values())
    sizes = {name: tensor.size for name, tensor in matched.tensors.items() if name in counted}
    total, without = sum(sizes.values()), [name for name in sizes if name not in matched.refs and not _is_new(name)]
    lost = sum(sizes[name] for name in without)
    base = printable(str(matched.base.path))
    told = []
    if lost > max(MOST_WITHOUT * total, FEW):
        kinds = {kind_of(name): name for name in reversed(without)}  # of what is in all layers the first
        shown = [name for name in without if kinds[kind_of(name)] == name][:NAMED]
        names = ", ".join(map(printable, shown)) + (", ..." if len(without) > len(shown) else "")
        told.append(f"{lost:,} of {total:,} weights have no counterpart in the base '{base}': {names}")
    same = sum(size for name, size in sizes.items() if name in matched.unchanged)
    if total and same == total:
        told.append(f"all {total:,} weights are those of the base '{base}', bit for bit: it may be a copy of the run")
    far = 0 if same >= LEAST_HELPED * total else _count_far([name for name in sizes if name in matched.refs], matched)
    if total and total - lost - far < LEAST_HELPED * total:
        told.append(
            f"the base '{base}' hardly helps: {lost + far:,} of {total:,} weights are not in it, or far from it; "
            "the run may have been trained from another checkpoint"
        )
    return tuple(told)


def _is_new(name: str) -> bool:
    """Tell whether a tensor is of a head, which is new with the task and has no counterpart anywhere."""
    return not {*NEW}.isdisjoint(name.replace("/", ".").split(".")[:-1])


def _count_far(names: list[str], matched: Matched) -> int:
    """Return how many weights are in tensors far from the base's, told by some of these; 0 once enough are near."""
    changed = sorted(names, key=lambda name: -matched.tensors[name].size)
    some = changed[:: -(-len(changed) // MEASURED) or 1]
    measured, near = sum(matched.tensors[name].size for name in some), 0
    for name in some:
        near += matched.tensors[name].size * (_distance(name, matched) < NEAR)
        if near >= LEAST_HELPED * measured:
            return 0
    whole = sum(matched.tensors[name].size for name in changed)
    return whole - round(near / measured * whole) if measured else 0


def _distance(name: str, matched: Matched) -> float:
    tensor, ref, base = matched.tensors[name], matched.refs[name], needed(matched.base)
    if ref.shape != tensor.shape:  # resized: most of its rows are the base's
        return 0.0
    near = Tensor(tensor.dtype, tensor.shape, lambda start, stop: base.predict(ref, tensor.dtype, start, stop))
    return distance(sample_of(tensor, tensor.size), sample_of(near, tensor.size), tensor.dtype)
