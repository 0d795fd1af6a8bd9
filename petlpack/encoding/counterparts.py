"""What people are told where a base predicts less of a run than they may think."""

from __future__ import annotations

from petlpack.encoding.match import Matched
from petlpack.encoding.matching.samples import NEAR, distance, sample_of
from petlpack.errors import printable
from petlpack.layouts.run import Run
from petlpack.records.slot import kind_of
from petlpack.tensors.base import needed
from petlpack.tensors.tensor import Tensor

MOST_WITHOUT = 0.01
"""Share of a run's weights without a counterpart above which it is told: new heads are smaller, lost matches larger."""

FEW = 512
"""Weights of which nothing is told, whatever share they are: they take fewer bytes than a pack's own tables."""

LEAST_HELPED = 0.1
"""Share of a run's weights that a base predicts, or holds, below which it is told: it is another model's."""

MEASURED = 64
"""Changed tensors whose distance from the base is measured, small and large ones: they tell of all."""

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
    total, without = sum(sizes.values()), [name for name in sizes if name not in matched.refs]
    lost = sum(sizes[name] for name in without)
    base = printable(str(matched.base.path))
    told = []
    if lost > max(MOST_WITHOUT * total, FEW):
        kinds = {kind_of(name): name for name in reversed(without)}  # of what is in all layers the first
        shown = [name for name in without if kinds[kind_of(name)] == name][:NAMED]
        names = ", ".join(map(printable, shown)) + (", ..." if len(without) > len(shown) else "")
        told.append(f"{lost:,} of {total:,} weights have no counterpart in the base '{base}': {names}")
    changed = [name for name in sizes if name in matched.refs and name not in matched.unchanged]
    far = round(_far_share(changed, matched) * sum(sizes[name] for name in changed))
    if total and total - lost - far < LEAST_HELPED * total:
        told.append(
            f"the base '{base}' hardly helps: {lost + far:,} of {total:,} weights are not in it, or far from it; "
            "the run may have been trained from another checkpoint"
        )
    return tuple(told)


def _far_share(changed: list[str], matched: Matched) -> float:
    """Return the share of changed weights that are in tensors far from the base's, from some of these."""
    ordered = sorted(changed, key=lambda name: matched.tensors[name].size)
    some = ordered[:: max(1, len(ordered) // MEASURED)]
    sizes = [matched.tensors[name].size for name in some]
    far = sum(size for name, size in zip(some, sizes, strict=True) if _distance(name, matched) >= NEAR)
    return far / sum(sizes) if some else 0.0


def _distance(name: str, matched: Matched) -> float:
    tensor, ref, base = matched.tensors[name], matched.refs[name], needed(matched.base)
    if ref.shape != tensor.shape:  # resized: most of its rows are the base's
        return 0.0
    near = Tensor(tensor.dtype, tensor.shape, lambda start, stop: base.predict(ref, tensor.dtype, start, stop))
    return distance(sample_of(tensor, tensor.size), sample_of(near, tensor.size), tensor.dtype)
