"""How near two tensors are, told by a sample of their elements: a fine-tune is near to its base and to no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, DType
from petlpack.tensors.tensor import Tensor

CHUNKS = 4
CHUNK = 128
"""Elements of a sample: 512 in four places, so that one region that is special (unused rows) does not decide alone."""

FAR = 2.0
"""What every distance above it is taken for: of two strangers it is 1.4, and what is farther is as useless."""

NEAR = 0.75
"""Distance below which a tensor is predicted by another. Two strangers of normal weights have 1.4, a fine-tune and its
base rarely 0.1; a prediction at this distance still saves about half a bit a weight."""

MANY_ELEMENTS = 64
FEW_ELEMENTS = 8
VERY_NEAR = 0.1
"""Strangers of MANY_ELEMENTS are never NEAR by chance, those of FEW_ELEMENTS never VERY_NEAR."""

_DOUBLE = DTYPES["F64"]

Values = NDArray[np.float64]


class Samples:
    """Samples of a run's tensors and of its base's, each read once."""

    def __init__(self, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
        """Sample these tensors when asked for."""
        self._tuned, self._base = tuned, base
        self._known: dict[tuple[str, bool, int], Values] = {}

    def of_run(self, name: str) -> Values:
        """Return the sample of a tensor of the run, (up to 512,)."""
        return self._sample(name, self._tuned[name], of_base=False, size=self._tuned[name].size)

    def of_base(self, name: str) -> Values:
        """Return the sample of a tensor of the base, (up to 512,)."""
        return self._sample(name, self._base[name], of_base=True, size=self._base[name].size)

    def distance(self, name: str, other: str) -> float:
        """Return how far a tensor of the run is from one of the base; of resized ones in the rows that both have."""
        size = min(self._tuned[name].size, self._base[other].size)
        tuned = self._sample(name, self._tuned[name], of_base=False, size=size)
        near = self._sample(other, self._base[other], of_base=True, size=size)
        return distance(tuned, near, self._tuned[name].dtype)

    def is_near(self, name: str, other: str) -> bool:
        """Tell whether a tensor of the base predicts one of the run."""
        return self.distance(name, other) < NEAR

    def is_surely_near(self, name: str, other: str) -> bool:
        """Tell whether it does, and not by chance."""
        return self.distance(name, other) < near_enough(self._tuned[name].size)

    def mean_distance(self, pairs: Sequence[tuple[str, str]]) -> float:
        """Return the distance of pairs of tensors, each counted by its elements; FAR where that may be by chance."""
        sizes = [self._tuned[name].size for name, _ in pairs]
        total = sum(sizes)
        distances = (size * self.distance(*pair) for pair, size in zip(pairs, sizes, strict=True))
        mean = sum(distances) / total if total else FAR
        return mean if mean < near_enough(total) else FAR

    def is_constant(self, name: str) -> bool:
        """Tell whether a tensor of the run has one value only: it then says nothing of where it comes from."""
        sample = self.of_run(name)
        return bool((sample == sample[0]).all()) if len(sample) else True

    def _sample(self, name: str, tensor: Tensor, *, of_base: bool, size: int) -> Values:
        """Return the sample of a tensor's first `size` elements."""
        key = name, of_base, size
        if key not in self._known:
            self._known[key] = sample_of(tensor, size)
        return self._known[key]


def sample_of(tensor: Tensor, size: int) -> Values:
    """Return a sample of a tensor's first `size` elements, (up to 512,): values of floats, else bits."""
    if size <= CHUNKS * CHUNK:
        bits = tensor.read_flat(0, size)
    else:
        starts = ((2 * i + 1) * size // (2 * CHUNKS) - CHUNK // 2 for i in range(CHUNKS))
        bits = np.concatenate([tensor.read_flat(start, start + CHUNK) for start in starts])
    if tensor.dtype.kind != "float":
        return bits.astype(np.float64)
    values: Values = cast_bits(bits, tensor.dtype, _DOUBLE).view("<f8")
    return values


def near_enough(size: int) -> float:
    """Return the distance below which tensors of so many elements are not near by chance; 0 for too few."""
    return NEAR if size >= MANY_ELEMENTS else VERY_NEAR if size >= FEW_ELEMENTS else 0.0


def distance(tuned: Values, near: Values, dtype: DType) -> float:
    """Return how far a sample of a run's tensor is from that of another, 0 (equal) to FAR.

    That is the mean size of their differences, in units of the run's own mean deviation; of tensors that hold no floats
    the share of unequal elements, times FAR.
    """
    if dtype.kind != "float":
        return FAR * float(np.mean(tuned != near)) if len(tuned) else FAR
    known = np.isfinite(tuned) & np.isfinite(near)
    if not known.any():
        return FAR
    tuned, near = tuned[known], near[known]
    with np.errstate(over="ignore", invalid="ignore"):
        apart, spread = float(np.abs(tuned - near).mean()), float(np.abs(tuned - tuned.mean()).mean())
    return min(FAR, apart / spread) if spread else FAR * (apart > 0)


def correlated(tuned: Sequence[str], base: Sequence[str], samples: Samples) -> dict[str, list[str]]:
    """Return, for tensors of one shape, those of the base whose weights go with each best, at most MOST_ALIKE.

    They are several where they go with it nearly equally well. Time and memory are those of a matrix product of the
    samples, (BLOCK, 512) by (512, base).
    """
    directions = np.stack([_direction(samples.of_base(other)) for other in base])
    found: dict[str, list[str]] = {}
    for start in range(0, len(tuned), BLOCK):
        block = tuned[start : start + BLOCK]
        cosines = np.stack([_direction(samples.of_run(name)) for name in block]) @ directions.T
        for name, row in zip(block, cosines, strict=True):
            good = np.flatnonzero(row >= max(LEAST_COSINE, float(row.max()) - 0.01))
            best = good[np.argsort(-row[good], kind="stable")]
            found[name] = [base[i] for i in best[:MOST_ALIKE]]
    return found


BLOCK = 1024
"""Tensors of a run that are compared with all of the base's at a time."""

MOST_ALIKE = 8
"""Tensors of a base whose distance is measured, of those that go with a tensor equally well."""

LEAST_COSINE = 0.7
"""Of 64 elements of strangers the largest cosine among ten thousand is 0.54."""


def _direction(values: Values) -> NDArray[np.float32]:
    """Return a sample around its mean, of length 1; 0 where it is constant or has values that are no numbers."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        centred = values - values.mean()
        unit: NDArray[np.float32] = (centred / np.linalg.norm(centred)).astype(np.float32)
    return np.where(np.isfinite(unit), unit, np.float32(0))
