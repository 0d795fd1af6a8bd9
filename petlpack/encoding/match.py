"""Step 1: every tensor of a run with its digest and what of the base predicts it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from petlpack.encoding.components import components_of, is_most, match_component
from petlpack.encoding.matching.samples import Samples
from petlpack.encoding.matching.sides import Content
from petlpack.encoding.matching.spelling import comparable
from petlpack.encoding.matching.steps import ALL, BY_NAME, match_tensors, refuse_unrelated
from petlpack.encoding.request import without_base_hint
from petlpack.encoding.views.find import corrected, find_views
from petlpack.errors import BaseError, printable
from petlpack.layouts.run import Run
from petlpack.parallel import ordered_map
from petlpack.records.template import texts_of
from petlpack.tensors.base import Base, needed
from petlpack.tensors.tensor import Sums, Tensor
from petlpack.tensors.views import BaseRef, View


class Digests:
    """The sums of tensors, each computed once: the tasks of one run have most tensors in common."""

    def __init__(self, jobs: int) -> None:
        """Digest on so many threads."""
        self.jobs = jobs
        self._known: dict[int, tuple[Tensor, Sums]] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the sha256 of each tensor by name."""
        return {name: sums.sha256 for name, sums in self.sums_of(tensors).items()}

    def sums_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Sums]:
        """Return the sums of each tensor by name."""
        new = [tensor for tensor in tensors.values() if id(tensor) not in self._known]
        for tensor, sums in zip(new, ordered_map(Tensor.sums, new, self.jobs), strict=True):
            self._known[id(tensor)] = tensor, sums  # the tensor, too: an id is its own only while it lives
        return {name: self._known[id(tensor)][1] for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Matched:
    """The tensors of a run by name, their sums, and what of the base predicts those that have something there."""

    tensors: Mapping[str, Tensor]
    sums: Mapping[str, Sums]
    refs: Mapping[str, View]
    unchanged: frozenset[str]
    """Those that are the base's, bit for bit, after rounding to their dtype: they need no bytes."""
    base: Base | None

    def content(self, name: str) -> Content:
        """Return what makes a tensor the same as another."""
        return self.tensors[name].dtype, self.tensors[name].shape, self.sums[name].sha256

    def only(self, names: Set[str]) -> Matched:
        """Return some of the tensors."""
        return replace(
            self,
            tensors={name: tensor for name, tensor in self.tensors.items() if name in names},
            refs={name: ref for name, ref in self.refs.items() if name in names},
            unchanged=self.unchanged & names,
        )


LEAST_IN_VIEWS = 0.1
"""Share of a component's weights that views must hold where no tensor has a counterpart by itself."""


def match(run: Run, base: Base | None, digests: Digests) -> Matched:
    """Match a run with its base, a method's by names and shapes, a whole model by its weights, too.

    What of a whole model has no counterpart may be several of the base's tensors, or a part of one: then it is a view.
    Tensors whose dtypes cannot be compared have none there. Raises BaseError where nothing of the main weights, or of a
    run that has none, is in the base.
    """
    refs: dict[str, View] = {}
    if base is not None:
        refs = views_of(run, base, digests)
        main = components_of(run).get("", run.module.tensors)
        if refs.keys().isdisjoint(main):
            refuse_unrelated(main, base.parts.get("", base), without_base_hint(run) if run.whole else "")
    return matched_with(dict(run.module.tensors), refs, base, digests)


def views_of(run: Run, base: Base, digests: Digests) -> dict[str, View]:
    """Return what of the base predicts the tensors of a run, as `match` finds it."""
    refs: dict[str, View] = {}
    for prefix, own in components_of(run).items():
        refs |= _with_prefix(prefix, _views_of(prefix, own, base, digests, whole=run.whole))
    return refs | (_equal_elsewhere(run.module.tensors, refs, base, digests) if run.whole else {})


def _equal_elsewhere(
    tensors: Mapping[str, Tensor], refs: Mapping[str, View], base: Base, digests: Digests
) -> dict[str, View]:
    """Return the base's tensors that what has no counterpart yet equals, in whatever part of the base they stand."""
    left = {name: tensor for name, tensor in tensors.items() if name not in refs and tensor.size}
    if len(base.parts) < 2 or not left:
        return {}
    shapes = {(tensor.dtype, tensor.shape) for tensor in left.values()}
    some = [name for name, tensor in base.tensors.items() if (tensor.dtype, tensor.shape) in shapes]
    known = {(ref.dtype, ref.shape, ref.sums.sha256): ref for ref in ordered_map(base.ref, some, digests.jobs)}
    same = ((name, known.get((left[name].dtype, left[name].shape, sha))) for name, sha in digests.of(left).items())
    return {name: ref for name, ref in same if ref is not None}


def _views_of(prefix: str, own: Mapping[str, Tensor], base: Base, digests: Digests, *, whole: bool) -> dict[str, View]:
    """Return what of the base predicts the tensors of one component of a run, by their names in its files."""
    found = match_component(prefix, own, digests.of(own), base, digests.jobs, ALL if whole else BY_NAME)
    if found is None:
        return {}
    part, names = found
    refs: dict[str, View] = dict(zip(names, ordered_map(part.ref, names.values(), digests.jobs), strict=True))
    if whole:  # what a method adds comes from nothing in the base
        refs |= corrected(own, names, part) | find_views(_left(own, names, digests), part)
    # a few norms, which are 1 in every model, are views by chance
    return refs if names or _size(refs, own) >= LEAST_IN_VIEWS * _size(own, own) else {}


def _size(names: Iterable[str], own: Mapping[str, Tensor]) -> int:
    return sum(own[name].size for name in names)


def _with_prefix(prefix: str, refs: Mapping[str, View]) -> dict[str, View]:
    return {prefix + name: view for name, view in refs.items()}


def _left(tensors: Mapping[str, Tensor], names: Mapping[str, str], digests: Digests) -> dict[str, Tensor]:
    """Return the tensors without a counterpart that are not equal to one that has one: such a one takes no bytes."""
    hashes = digests.of(tensors)
    known = {(tensors[name].dtype, tensors[name].shape, hashes[name]) for name in names}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in names and (tensor.dtype, tensor.shape, hashes[name]) not in known
    }


def match_adapter(run: Run, base: Base | None, digests: Digests) -> Matched:
    """Match the whole tensors of the base that an adapter's file has, too: its embeddings, its output layer.

    They have the base's name behind the adapter's wrappers, or its shape, and may have more rows or fewer. A whole
    model that stands beside the adapter is matched as any model is. A model that is stored without its base has none.
    """
    tensors, refs = dict(run.module.tensors), dict[str, View]()
    if base is None or run.whole:
        return matched_with(tensors, refs, base, digests)
    for prefix, own in components_of(run).items():
        views = _views_of(prefix, own, base, digests, whole=True) if prefix else {}
        refs |= _with_prefix(prefix, views) if is_most(views, own) else {}
        refs |= _with_prefix(prefix, _whole_tensors(own, base, digests))
    return matched_with(tensors, refs, base, digests)


def _whole_tensors(own: Mapping[str, Tensor], base: Base, digests: Digests) -> dict[str, View]:
    """Return the base's tensors that an adapter's file has whole, by the names in the file: resized, or another tensor.

    An output layer that was untied from the embeddings comes from them.
    """
    named, rows = whole_counterparts(own, base), _rows_by_width(base.tensors)
    names = {whole_name(name): name for name in own if name in named or _is_as_large(own[name], rows)}
    if not names:
        return {}
    some = {inner: own[name] for inner, name in names.items()}
    hashes, samples = digests.of(some), Samples(some, base.tensors)
    matches = match_tensors(some, hashes, base, digests.jobs, ALL)
    whole = {
        names[inner]: other
        for inner, other in matches.items()
        if hashes[inner] == base.sha256(other) or samples.is_near(inner, other)
    }
    return dict(zip(whole, ordered_map(base.ref, whole.values(), digests.jobs), strict=True))


def whole_counterparts(own: Mapping[str, Tensor], base: Base) -> dict[str, str]:
    """Return {name in an adapter's file: name in the base} of the base's tensors that the file may have whole."""
    known = base.tensors
    return {
        name: other
        for name, other in ((name, whole_name(name)) for name in own)
        if other in known and comparable(own[name].shape, known[other].shape)
    }


def _rows_by_width(tensors: Mapping[str, Tensor]) -> dict[tuple[int, ...], set[int]]:
    """Return how many rows there are in matrices of the same other axes."""
    rows: dict[tuple[int, ...], set[int]] = {}
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            rows.setdefault(tensor.shape[1:], set()).add(tensor.shape[0])
    return rows


def _is_as_large(tensor: Tensor, rows: Mapping[tuple[int, ...], set[int]]) -> bool:
    """Tell whether a matrix has about as many rows as one of the base: what adapters add has far fewer, or columns."""
    if len(tensor.shape) < 2:
        return False
    return any(
        max(tensor.shape[0], count) < 2 * min(tensor.shape[0], count) for count in rows.get(tensor.shape[1:], ())
    )


def whole_name(name: str) -> str:
    """Return the name that a tensor of an adapter's file has in the model, without what PEFT puts around it."""
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in ("modules_to_save", "original_module", "base_layer"))


def matched_with(
    tensors: Mapping[str, Tensor], refs: Mapping[str, View], base: Base | None, digests: Digests
) -> Matched:
    """Return tensors and their tensors of the base, with which of them are equal."""
    sums = digests.sums_of(tensors)
    unchanged = {name for name, ref in refs.items() if _equals(tensors[name], sums[name], ref, needed(base))}
    return Matched(tensors, sums, refs, frozenset(unchanged), base)


def _equals(tensor: Tensor, sums: Sums, ref: View, base: Base) -> bool:
    """Tell whether a tensor is the base's, bit for bit, after rounding to its dtype."""
    if ref.shape != tensor.shape:
        return False
    if isinstance(ref, BaseRef) and ref.dtype == tensor.dtype:
        return ref.sums == sums
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
    whole = sum(tensor.size for tensor in (base.parts[""].tensors if "" in base.parts else base.tensors).values())
    used = {ref.name for name in matched.unchanged for ref in matched.refs[name].refs}
    frozen = sum(base.tensors[name].size for name in used)
    if 2 * frozen < whole:
        other = next((name for name in matched.refs if name not in matched.unchanged), "what is not in both")
        raise BaseError(
            f"'{printable(str(run.path))}': {run.method} freezes its base, but the run has only {frozen:,} of "
            f"the {whole:,} weights of '{printable(str(base.path))}'; '{printable(other)}' differs",
            hint="pass the checkpoint that the run was trained from as the base",
        )
