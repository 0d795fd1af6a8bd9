"""A run made ready to be written: matched with its base, pruned, its shared parts found, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from petlpack.encoding.counterparts import counterpart_warnings
from petlpack.encoding.describe import Described, describe
from petlpack.encoding.match import Digests, Matched, match, refuse_stranger, without_base
from petlpack.encoding.prune import prune
from petlpack.encoding.share import SharedTensors, share
from petlpack.layouts.run import Run
from petlpack.tensors.base import Base


@dataclass(frozen=True)
class Prepared:
    """A run whose tensors are known by their digests: what has to be stored, and what is said of it."""

    run: Run
    matched: Matched
    parts: tuple[SharedTensors, ...]
    described: Described

    def noting(self, options: Mapping[str, str | bool | float], figures: Mapping[str, int]) -> Prepared:
        """Return the run with what was asked of it, and with further figures, among the facts."""
        facts = self.described.facts
        facts = replace(facts, options=options, figures={**facts.figures, **figures})
        return replace(self, described=replace(self.described, facts=facts))


def prepare(
    run: Run,
    base: Base | None,
    digests: Digests,
    *,
    rule: Mapping[str, Any] | None = None,
    density: float | None = None,
) -> Prepared:
    """Make a run ready for a codec; every tensor is digested once, and equal digests are tensors that need no bytes.

    `rule` is the codec's; without one, nothing is put into shared parts of tensors. `density` is as in `encode`.
    Raises BaseError where the base is another than a method's run was trained on, RunError as `prune` and `describe`.
    """
    matched, loss = match(run, base, digests), None
    told = counterpart_warnings(run, matched)
    if density is not None:
        matched, loss = prune(matched, density, digests)
    if rule is not None and base is not None:
        refuse_stranger(run, matched)
    if run.omits_base:
        matched = without_base(matched, rule)
    parts: tuple[SharedTensors, ...] = ()
    if rule is not None:
        matched, parts = share(run, matched, digests)
    described = describe(run, matched, parts, rule, loss, digests.jobs)
    return Prepared(replace(run, warnings=(*run.warnings, *told)), matched, parts, described)
