"""Step 1: every tensor of a run with its digest and its tensor of the base."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from petlpack.encoding.views.find import corrected, find_views
from petlpack.errors import BaseError, printable
from petlpack.layouts.run import Run
from petlpack.parallel import ordered_map
from petlpack.records.template import texts_of
from petlpack.tensors.base import Base, needed
from petlpack.tensors.casting import can_cast
from petlpack.tensors.dtypes import DType
from petlpack.tensors.names import match_names
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.views import BaseRef, View

Content = tuple[DType, tuple[int, ...], str]
"""Dtype, shape and digest: tensors that agree in them are the same, bit for bit."""


class Digests:
    """The sha256 of tensors, each computed once: the tasks of one run have most tensors in common."""

    def __init__(self, jobs: int) -> None:
        """Digest on so many threads."""
        self.jobs = jobs
        self._known: dict[int, tuple[Tensor, str]] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the digest of each tensor by name."""
        new = [tensor for tensor in tensors.values() if id(tensor) not in self._known]
        for tensor, digest in zip(new, ordered_map(Tensor.sha256, new, self.jobs), strict=True):
            self._known[id(tensor)] = tensor, digest  # the tensor, too: an id is its own only while it lives
        return {name: self._known[id(tensor)][1] for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Matched:
    """The tensors of a run by name, their sha256, and what of the base predicts those that have something there."""

    tensors: Mapping[str, Tensor]
    digests: Mapping[str, str]
    refs: Mapping[str, View]
    unchanged: frozenset[str]
    """Those that are the base's, bit for bit, after rounding to their dtype: they need no bytes."""
    base: Base | None

    def content(self, name: str) -> Content:
        """Return what makes a tensor the same as another."""
        return self.tensors[name].dtype, self.tensors[name].shape, self.digests[name]

    def only(self, names: Set[str]) -> Matched:
        """Return some of the tensors."""
        return replace(
            self,
            tensors={name: tensor for name, tensor in self.tensors.items() if name in names},
            refs={name: ref for name, ref in self.refs.items() if name in names},
            unchanged=self.unchanged & names,
        )


def match(run: Run, base: Base | None, digests: Digests) -> Matched:
    """Match a run with its base by names and shapes; tensors whose dtypes cannot be compared have none there."""
    tensors = dict(run.module.tensors)
    refs: dict[str, View] = {}
    if base is not None:
        names = match_names(
            {name: tensor.shape for name, tensor in tensors.items()},
            {name: tensor.shape for name, tensor in base.tensors.items()},
        )
        usable = {
            name: other
            for name, other in names.items()
            if tensors[name].size and can_cast(base.tensors[other].dtype, tensors[name].dtype)
        }
        refs = dict(zip(usable, ordered_map(base.ref, usable.values(), digests.jobs), strict=True))
        if run.whole:  # what a method adds comes from nothing in the base
            left = {name: tensor for name, tensor in tensors.items() if name not in usable}
            refs |= corrected(tensors, usable, base) | find_views(left, base)
    return matched_with(tensors, refs, base, digests)


def matched_with(
    tensors: Mapping[str, Tensor], refs: Mapping[str, View], base: Base | None, digests: Digests
) -> Matched:
    """Return tensors and their tensors of the base, with which of them are equal."""
    hashes = digests.of(tensors)
    unchanged = {name for name, ref in refs.items() if _equals(tensors[name], hashes[name], ref, needed(base))}
    return Matched(tensors, hashes, refs, frozenset(unchanged), base)


def _equals(tensor: Tensor, digest: str, ref: View, base: Base) -> bool:
    """Tell whether a tensor is the base's, bit for bit, after rounding to its dtype."""
    if ref.shape != tensor.shape:
        return False
    if isinstance(ref, BaseRef) and ref.dtype == tensor.dtype:
        return ref.sha256 == digest
    start = 0
    for piece in tensor.pieces():
        if not np.array_equal(piece, base.predict(ref, tensor.dtype, start, start + len(piece))):
            return False
        start += len(piece)
    return True


def without_base(matched: Matched, rule: Mapping[str, Any] | None) -> Matched:
    """Leave out what the base has: its tensors, and those that are tied to one and that the rule does not name."""
    frozen = {matched.content(name) for name in matched.unchanged}
    named = set(texts_of(rule))
    tied = {name for name in matched.tensors if matched.content(name) in frozen and name not in named}
    return matched.only(matched.tensors.keys() - matched.unchanged - tied)


def refuse_stranger(run: Run, matched: Matched) -> None:
    """Raise BaseError where a method's run does not have most of the base, which a method leaves frozen."""
    base = needed(matched.base)
    whole = sum(tensor.size for tensor in base.tensors.values())
    used = {ref.name for name in matched.unchanged for ref in matched.refs[name].refs}
    frozen = sum(base.tensors[name].size for name in used)
    if 2 * frozen < whole:
        other = next((name for name in matched.refs if name not in matched.unchanged), "what is not in both")
        raise BaseError(
            f"'{printable(str(run.path))}': {run.method} freezes its base, but the run has only {frozen:,} of "
            f"the {whole:,} weights of '{printable(str(base.path))}'; '{printable(other)}' differs",
            hint="pass the checkpoint that the run was trained from as the base",
        )
