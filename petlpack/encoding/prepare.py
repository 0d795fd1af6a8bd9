"""A run made ready to be written: matched with its base, pruned, its shared parts found, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from petlpack.encoding.bind import adapted_by, bind, misfits, other_name
from petlpack.encoding.counterparts import counterpart_warnings
from petlpack.encoding.describe import Described, describe
from petlpack.encoding.match import Digests, Matched, match, match_adapter, refuse_stranger, without_base
from petlpack.encoding.prune import prune
from petlpack.encoding.share import SharedTensors, share
from petlpack.layouts.files import some
from petlpack.layouts.run import Run
from petlpack.tensors.base import Base
from petlpack.tensors.file_names import not_everywhere


@dataclass(frozen=True)
class Prepared:
    """A run whose tensors are known by their digests: what has to be stored, and what is said of it."""

    run: Run
    matched: Matched
    parts: tuple[SharedTensors, ...]
    described: Described
    warnings: tuple[str, ...] = ()
    """What a person should know of the run, and of its base."""

    def noting(self, options: Mapping[str, str | bool | float]) -> Prepared:
        """Return the run with what was asked of it among the facts."""
        facts = replace(self.described.facts, options=options)
        return replace(self, described=replace(self.described, facts=facts))


def prepare(
    run: Run,
    base: Base | None,
    digests: Digests,
    *,
    rule: Mapping[str, Any] | None = None,
    density: float | None = None,
    against: bool = True,
) -> Prepared:
    """Make a run ready for a codec; every tensor is digested once, and equal digests are tensors that need no bytes.

    `rule` is the codec's; without one, nothing is put into shared parts of tensors. `density` is as in `encode`.
    `against` tells that the run is coded against the base, and not only bound to it, as an adapter is. Raises BaseError
    where the base is another than a method's run was trained on, and as `bind`, RunError as `prune` and `describe`.
    """
    misfit = misfits(run, base, rule) if base is not None and not against else ()
    if base is not None and not against and not adapted_by(run, base, rule).fits:
        base = None  # another model's, in which nothing of the adapter is looked for
    told = other_name(run, base) if base is not None else ()
    matched, loss = match(run, base, digests) if against else match_adapter(run, base, digests), None
    told += counterpart_warnings(run, matched) if against else ()
    if density is not None:
        matched, loss = prune(matched, density, digests)
    if rule is not None and base is not None and against and not run.whole:
        refuse_stranger(run, matched)
    if run.omits_base:
        matched = without_base(matched, rule)
    parts: tuple[SharedTensors, ...] = ()
    if rule is not None:
        matched, parts = share(run, matched, digests)
    bound = None if base is None else bind(run, base, rule, against=against, jobs=digests.jobs)
    described = describe(run, matched, parts, rule, loss, bound)
    return Prepared(run, matched, parts, described, (*run.warnings, *told, *misfit, *_named_elsewhere(run)))


def _named_elsewhere(run: Run) -> tuple[str, ...]:
    """Return the warning for files of a run that Windows or macOS cannot hold under their names."""
    names = not_everywhere([*run.headers, *run.kept])
    return (f"not every system can hold files called {some(names)}: decode it where they can be",) if names else ()
