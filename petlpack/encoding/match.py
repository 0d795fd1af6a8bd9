"""Step 1: every tensor of a run with its digest and its tensor of the base."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from petlpack.encoding.components import counterparts, whole_counterparts
from petlpack.errors import BaseError, printable
from petlpack.layouts.run import Run
from petlpack.parallel import ordered_map
from petlpack.records.template import texts_of
from petlpack.tensors.base import Base, BaseRef, needed
from petlpack.tensors.casting import can_cast
from petlpack.tensors.dtypes import DType
from petlpack.tensors.tensor import Tensor

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
    """The tensors of a run by name, their sha256, and the base's tensor of those that have one."""

    tensors: Mapping[str, Tensor]
    digests: Mapping[str, str]
    refs: Mapping[str, BaseRef]
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
    refs: dict[str, BaseRef] = {}
    if base is not None:
        refs = _refs(_usable(counterparts(run, base), tensors, base), base, digests)
    return matched_with(tensors, refs, base, digests)


def _usable(names: Mapping[str, str], tensors: Mapping[str, Tensor], base: Base) -> dict[str, str]:
    """Return the pairs of tensors whose dtypes can be compared."""
    return {
        name: other
        for name, other in names.items()
        if tensors[name].size and can_cast(base.tensors[other].dtype, tensors[name].dtype)
    }


def _refs(names: Mapping[str, str], base: Base, digests: Digests) -> dict[str, BaseRef]:
    return dict(zip(names, ordered_map(base.ref, names.values(), digests.jobs), strict=True))


def match_adapter(run: Run, base: Base | None, digests: Digests) -> Matched:
    """Match the whole tensors of the base that an adapter's file has, too: its embeddings, its output layer.

    They have the base's name behind the adapter's wrappers, its dtype and its shape. So has the whole model that may
    stand beside an adapter, which is matched as any model is. A model that is stored without its base has none.
    """
    tensors = dict(run.module.tensors)
    if base is None or run.whole:
        return matched_with(tensors, {}, base, digests)
    known = base.tensors
    prefixes = {name: header.prefix for header in run.headers.values() for name in header.tensors}
    same = {name: whole_name(name.removeprefix(prefixes.get(name, ""))) for name in tensors}
    whole = {
        name: other
        for name, other in same.items()
        if other in known and (known[other].dtype, known[other].shape) == (tensors[name].dtype, tensors[name].shape)
    }
    names = {**_usable(whole_counterparts(run, base), tensors, base), **whole}
    return matched_with(tensors, _refs(names, base, digests), base, digests)


def whole_name(name: str) -> str:
    """Return the name that a tensor of an adapter's file has in the model, without what PEFT puts around it."""
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in ("modules_to_save", "original_module", "base_layer"))


def matched_with(
    tensors: Mapping[str, Tensor], refs: Mapping[str, BaseRef], base: Base | None, digests: Digests
) -> Matched:
    """Return tensors and their tensors of the base, with which of them are equal."""
    hashes = digests.of(tensors)
    unchanged = {name for name, ref in refs.items() if _equals(tensors[name], hashes[name], ref, needed(base))}
    return Matched(tensors, hashes, refs, frozenset(unchanged), base)


def _equals(tensor: Tensor, digest: str, ref: BaseRef, base: Base) -> bool:
    """Tell whether a tensor is the base's, bit for bit, after rounding to its dtype."""
    if ref.shape != tensor.shape:
        return False
    if ref.dtype == tensor.dtype:
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
    components = {name for header in base.headers.values() if header.prefix for name in header.tensors}
    whole = sum(base.tensors[name].size for name in base.tensors.keys() - components)
    frozen = sum(base.tensors[name].size for name in {matched.refs[name].name for name in matched.unchanged})
    if 2 * frozen < whole:
        other = next((name for name in matched.refs if name not in matched.unchanged), "what is not in both")
        raise BaseError(
            f"'{printable(str(run.path))}': {run.method} freezes its base, but the run has only {frozen:,} of "
            f"the {whole:,} weights of '{printable(str(base.path))}'; '{printable(other)}' differs",
            hint="pass the checkpoint that the run was trained from as the base",
        )
