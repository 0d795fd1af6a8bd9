"""What is matched: a run's tensors and a base's, and what of both matches so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from petlpack.encoding.matching.prefixes import Subtree, subtrees
from petlpack.encoding.matching.samples import Samples
from petlpack.encoding.matching.spelling import comparable, likeness
from petlpack.tensors.base import Tensors
from petlpack.tensors.casting import can_cast
from petlpack.tensors.dtypes import DType
from petlpack.tensors.tensor import Tensor

Key = TypeVar("Key", bound=Hashable)

Matches = dict[str, str]
"""{name in the run: name in the base}"""

Content = tuple[DType, tuple[int, ...], str]
"""Dtype, shape and digest: tensors that agree in them are the same, bit for bit."""


@dataclass(frozen=True)
class Sides:
    """A run's tensors with their digests, the base, and what of both matches so far."""

    tuned: Mapping[str, Tensor]
    digests: Mapping[str, str]
    base: Tensors
    jobs: int
    found: Matches = field(default_factory=dict)

    @cached_property
    def samples(self) -> Samples:
        """Samples of both sides."""
        return Samples(self.tuned, self.base.tensors)

    @cached_property
    def subtrees(self) -> list[Subtree]:
        """Every pair of prefixes under which tensors of both sides meet, those that most vote for first."""
        return subtrees(shapes_of(self.tuned), shapes_of(self.base.tensors))

    def left(self) -> Iterator[str]:
        """Yield the tensors that match nothing yet."""
        return (name for name in self.tuned if name not in self.found)

    def wanted(self) -> list[str]:
        """Return those of them that are not equal to one that has a match: such a one takes no bytes."""
        known = {self.content(name) for name in self.found}
        return [name for name in self.left() if self.tuned[name].size and self.content(name) not in known]

    def content(self, name: str) -> Content:
        """Return what makes a tensor of the run the same as another."""
        return self.tuned[name].dtype, self.tuned[name].shape, self.digests[name]

    def fits(self, name: str, other: str) -> bool:
        """Tell whether a tensor of the base can predict one of the run."""
        tensor, near = self.tuned[name], self.base.tensors[other]
        return bool(tensor.size) and comparable(tensor.shape, near.shape) and can_cast(near.dtype, tensor.dtype)

    def nearest(self, name: str, others: Iterable[str]) -> str:
        """Return the one of some base tensors that a tensor of the run is nearest to; of equally near ones by name."""
        first, *more = sorted(others, key=lambda other: by_likeness(name, other))
        if not more:
            return first
        return min([first, *more], key=lambda other: self.samples.distance(name, other))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def grouped(names: Iterable[str], key: Callable[[str], Key]) -> dict[Key, list[str]]:
    """Return names by what a function says of them, in their order."""
    groups: dict[Key, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


Step = Callable[[Sides], Matches]


def by_likeness(name: str, other: str) -> tuple[tuple[int, ...], str]:
    """Order base tensors by how alike their names are to one, the likest first."""
    return tuple(-count for count in likeness(name, other)), other
