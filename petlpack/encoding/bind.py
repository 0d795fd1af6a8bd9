"""Step 4a: which base a task belongs to, as people find it and as one bit tells it from another."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from petlpack.errors import printable
from petlpack.layouts.run import Run
from petlpack.parallel import ordered_map
from petlpack.records.base_table import base_table_json, parameters, table_digest
from petlpack.records.template import texts_of
from petlpack.records.template_parts import Adapts, Origin
from petlpack.rules.modules import Dense
from petlpack.tensors.adapted import Adapted
from petlpack.tensors.base import Base
from petlpack.tensors.file_names import is_text
from petlpack.tensors.views import BaseRef


@dataclass(frozen=True)
class Bound:
    """What a template says of the base: its table, which it is, what an adapter adapts of it; and its size."""

    table: bytes
    origin: Origin
    adapts: Adapts | None
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class _KnownBase:
    """What every run on a base says of it alike, made once."""

    refs: Mapping[str, BaseRef]
    bound: Bound
    digests: dict[tuple[str, ...], str] = field(default_factory=dict)
    """The digest of the table of some of its tensors, by their names: adapters of one kind adapt the same."""


_KNOWN: weakref.WeakKeyDictionary[Base, _KnownBase] = weakref.WeakKeyDictionary()


def bind(run: Run, base: Base, rule: Mapping[str, Any] | None, *, against: bool, jobs: int) -> Bound:
    """Bind a run to its base: every tensor of it is digested, so that it is one table whatever tasks use of it.

    A run that is coded `against` the base says by that which tensors it needs. Of another, those are bound that it
    adapts.
    """
    known = _KNOWN.get(base)
    if known is None:
        known = _KNOWN[base] = _look_at(base, jobs)
    if against:
        return replace(known.bound, origin=_called_by(run, base, known.bound.origin))
    return replace(known.bound, adapts=_adapts(adapted_by(run, base, rule), known))


def adapted_by(run: Run, base: Base, rule: Mapping[str, Any] | None) -> Adapted:
    """Return what an adapter adapts of a base, and what of it fits nowhere there."""
    return base.modules.adapted(adapting(run, rule), run.width)


def _look_at(base: Base, jobs: int) -> _KnownBase:
    refs = dict(zip(base.tensors, ordered_map(base.ref, base.tensors, jobs), strict=True))
    origin = Origin(printable(base.name), printable(str(base.path)), table_digest(refs))
    nbytes = sum(tensor.nbytes for tensor in base.tensors.values())
    return _KnownBase(refs, Bound(base_table_json(refs), origin, None, parameters(refs), nbytes))


def _called_by(run: Run, base: Base, origin: Origin) -> Origin:
    """Return the base as its directory is called, where the run's config names that: it was trained from there.

    The config of such a model, which is often a fine-tune itself, names what that was trained from.
    """
    if run.base_name is None or base.own_name is None or not base.is_at(run.base_name):
        return origin
    return replace(origin, name=printable(base.path.resolve().name))


def other_name(run: Run, base: Base) -> tuple[str, ...]:
    """Return the warning for a base that calls itself by another name of the Hub than the run's config calls it by."""
    names = run.base_name, base.own_name
    if not all(name is not None and _ON_HUB.fullmatch(name) for name in names):
        return ()
    wanted, given = (str(name).rpartition("/")[2].casefold() for name in names)
    if wanted == given:
        return ()
    return (
        f"the run's config names the base '{names[0]}', but '{printable(str(base.path))}' calls itself '{names[1]}'",
    )


_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def plain_text(name: str | None) -> str | None:
    """Return a base's name as a template keeps it: none where it is no text, for it is only a hint to people."""
    return name if name is not None and is_text(name) else None


def misfits(run: Run, base: Base, rule: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the warning for an adapter that a base does not fit, or not all of it."""
    found, place = adapted_by(run, base, rule), printable(str(base.path))
    if not found.strangers or (found.fits and not found.misfits):
        return ()
    told = f"{run.method} adapts no module of base '{place}'"
    if found.misfits and (found.modules or run.width is not None):
        shape = (
            list(run.module.tensors[found.misfits[0]].shape) if found.misfits[0] in run.module.tensors else "of a rule"
        )
        told = (
            f"{len(found.misfits)} of {found.count} modules of {run.method} do not fit base '{place}', "
            f"such as '{printable(found.misfits[0])}', {shape}"
        )
    if found.fits:
        return (told,)
    return (f"{told}: it is stored without a base, whose size and digest the pack then does not know",)


def _adapts(modules: Adapted, known: _KnownBase) -> Adapts | None:
    """Return what a run adapts of a base; None where its names have no module that a base could have."""
    if not modules.modules:
        return None
    names = modules.tensors
    if names not in known.digests:
        known.digests[names] = table_digest({name: known.refs[name] for name in names})
    return Adapts(known.digests[names], names)


def adapting(run: Run, rule: Mapping[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """Return what of a run may stand for modules, with shapes: what a rule names, else the tensors but the head's."""
    tensors = run.module.tensors
    if rule is not None:
        named = [text for text in texts_of(rule.get("rows")) if "." in text]
        return {text: tensors[text].shape if text in tensors else () for text in named}
    head: frozenset[str] = frozenset() if isinstance(run.module, Dense) else run.module.head
    return {name: tensor.shape if run.has_widths else () for name, tensor in tensors.items() if name not in head}
