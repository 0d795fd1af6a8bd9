"""Step 2, where a density is asked for: only the largest changes are kept, and the error is measured.

Diff pruning (Guo, Rush and Kim 2021), section 3.2, prunes by magnitude to reach an exact share of changed weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Context

import numpy as np
from numpy.typing import NDArray

from petlpack.encoding.match import Digests, Matched, matched_with
from petlpack.errors import RunError, printable
from petlpack.tensors.base import Base, needed
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits, DType
from petlpack.tensors.tensor import PIECE, Tensor
from petlpack.tensors.views import View

DOUBLE = DTYPES["F64"]

_UP = Context(prec=3, rounding=ROUND_UP)
"""Three digits of an error say enough, and must not say too little."""


@dataclass(frozen=True)
class Loss:
    """What pruning cost: `density` of the base's weights differ.

    `errors` are, by tensor, the largest absolute differences from the run, for those tensors that have one. `exact`
    tells that every bit was kept: without an error zeros may still have lost their signs.
    """

    density: float
    errors: dict[str, float]
    exact: bool


def prune(matched: Matched, density: float, digests: Digests) -> tuple[Matched, Loss]:
    """Keep the `density` largest changes of all float weights that the base has; the others become the base's.

    Of changes of one size at the limit all are kept. Tensors of one content and one base tensor, or none (tied
    weights), are one, and counted once. Raises RunError where a change is no number.
    """
    tensors, refs, base = matched.tensors, matched.refs, needed(matched.base)
    first: dict[tuple[object, ...], str] = {}
    for name, ref in refs.items():
        if tensors[name].dtype.kind == "float" and ref.shape == tensors[name].shape:
            first.setdefault((matched.content(name), ref.content), name)
    names = list(first.values())
    total = sum(tensors[name].size for name in names)
    limit = _limit(tensors, {name: refs[name] for name in names}, base, round(density * total))
    pruned = {name: _cut(name, tensors[name], refs[name], base, limit) for name in names}
    kept, errors = _count(tensors, {name: refs[name] for name in names}, base, limit)
    without_base = {matched.content(name): name for name in reversed(names)}
    for name, tensor in tensors.items():
        content = matched.content(name)
        twin = first.get((content, refs[name].content)) if name in refs else without_base.get(content)
        pruned[name] = pruned[twin] if twin is not None else pruned.get(name, tensor)
    pruned = {name: pruned[name] for name in tensors}
    result = matched_with(pruned, refs, base, digests)
    return result, Loss(kept / total if total else 0.0, errors, result.sums == matched.sums)


def _count(
    tensors: Mapping[str, Tensor], refs: Mapping[str, View], base: Base, limit: np.float64
) -> tuple[int, dict[str, float]]:
    """Return how many changes are as large as the limit, and by tensor the largest of the others."""
    kept, errors = 0, {}
    for name, ref in refs.items():
        worst = 0.0
        for size in _changes(name, tensors[name], ref, base):
            large = size >= limit
            kept += int(np.count_nonzero(large))
            worst = max(worst, float(size[~large].max(initial=0)))
        if worst:
            errors[name] = float(_UP.create_decimal_from_float(worst))
    return kept, errors


def _limit(tensors: Mapping[str, Tensor], refs: Mapping[str, View], base: Base, count: int) -> np.float64:
    """Return the size of the `count`-th largest change, found 16 bits at a time by counting."""
    prefix, above = np.uint64(0), 0
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for name, ref in refs.items():
            for size in _changes(name, tensors[name], ref, base):
                bits = size[size > 0].view("<u8")
                if shift < 48:
                    bits = bits[bits >> np.uint64(shift + 16) == prefix]
                digits = ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)  # NumPy 1 counts no uint64
                counts += np.bincount(digits, minlength=1 << 16)
        reached = above + np.cumsum(counts[::-1])[::-1]
        if reached[0] < max(count, 1):  # fewer weights changed than may be kept
            return np.float64(np.finfo(np.float64).smallest_subnormal)
        bucket = int(np.flatnonzero(reached >= max(count, 1))[-1])
        above = int(reached[bucket] - counts[bucket])
        prefix = (prefix << np.uint64(16)) | np.uint64(bucket)
    return np.float64(np.array([prefix], "<u8").view("<f8")[0])


def _changes(name: str, tensor: Tensor, ref: View, base: Base) -> Iterator[NDArray[np.float64]]:
    """Yield the sizes of a tensor's changes, piece by piece, as float64."""
    for start in range(0, tensor.size, PIECE):
        stop = min(start + PIECE, tensor.size)
        near = base.predict(ref, tensor.dtype, start, stop)
        yield _size(tensor.read_flat(start, stop), near, tensor.dtype, name)


def _size(tuned: Bits, near: Bits, dtype: DType, name: str) -> NDArray[np.float64]:
    weights, base_weights = (cast_bits(bits, dtype, DOUBLE).view("<f8") for bits in (tuned, near))
    with np.errstate(over="ignore", invalid="ignore"):
        size: NDArray[np.float64] = np.abs(weights - base_weights)
    size[tuned == near] = 0  # also where both are infinite, or the same NaN
    if np.isnan(size).any():
        raise RunError(f"tensor '{printable(name)}' has NaN weights, so its changes cannot be compared in size")
    return size


def _cut(name: str, tensor: Tensor, ref: View, base: Base, limit: np.float64) -> Tensor:
    def read_flat(start: int, stop: int) -> Bits:
        tuned, near = tensor.read_flat(start, stop), base.predict(ref, tensor.dtype, start, stop)
        return np.where(_size(tuned, near, tensor.dtype, name) >= limit, tuned, near)

    return Tensor(tensor.dtype, tensor.shape, read_flat)
