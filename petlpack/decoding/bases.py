"""Which base a task is decoded against: the one of those given that it was encoded with, told by digests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from petlpack.errors import BaseError, printable
from petlpack.records.base_table import table_digest
from petlpack.records.template import Template
from petlpack.records.template_parts import Adapts
from petlpack.tensors.base import Base, Bases, open_bases
from petlpack.tensors.views import BaseRef

_HINT = "pass the base model's directory with --base"


def base_of_task(task: str, template: Template, bases: Bases | None) -> Base | None:
    """Return the base that a task needs, or is bound to; None where it needs none and none was given.

    Of several given bases it is the one with the digests that the template says. Without any it is the one that the
    run's config named by an absolute path, if it is there. Raises BaseError where there is none, or none of several is
    the one.
    """
    if bases is None and not template.needs_base:
        return None
    opened = open_bases(bases, template.base_name)
    for base in opened:  # a kept one may have been replaced since, and what is known of it is of its old files
        base.check_unchanged()
    if not opened and template.needs_base:
        raise BaseError(f"task '{task}' needs its base to decode{_which(template)}", hint=_HINT, code="base-missing")
    if len(opened) > 1:
        return _matching(task, template, opened)
    return _known(opened[0], template) if opened else None


def _which(template: Template) -> str:
    """Say which base a task needs, behind what is wrong: nothing where nothing is known of it."""
    if template.origin is not None:
        return f": {template.origin}"
    return "" if template.base_name is None else f"; its run names '{printable(template.base_name)}'"


def _known(base: Base, template: Template) -> Base:
    """Return a base whose errors say which one is needed instead of it."""
    return base if template.origin is None else base.needed_by(str(template.origin))


def _matching(task: str, template: Template, bases: Sequence[Base]) -> Base | None:
    """Return the one of several bases that a task was encoded with; None where its template binds it to none."""
    refs = template.base_refs
    if not template.needs_base and template.adapts is None:
        return None
    for base in bases:
        if _holds(base, refs) and (template.adapts is None or _adapted_in(base, template.adapts)):
            return _known(base, template)
    given = ", ".join(f"'{printable(str(base.path))}'" for base in bases[:5])
    raise BaseError(
        f"task '{task}' needs its base, which is none of {given}{', ...' if len(bases) > 5 else ''}{_which(template)}",
        hint=_HINT,
        code="base-fits-none",
    )


def _holds(base: Base, refs: Iterable[BaseRef]) -> bool:
    """Tell whether a base has these tensors, bit for bit; what differs is found by names and shapes, if it can be."""
    rows = [(ref, base.tensors.get(ref.name)) for ref in refs]
    if any(tensor is None or (tensor.dtype, tensor.shape) != (ref.dtype, ref.shape) for ref, tensor in rows):
        return False
    return all(base.checksum(ref.name) == ref.sums.checksum for ref, _ in rows)


def check_adapted(task: str, template: Template, base: Base) -> None:
    """Raise BaseError where a base has other tensors than those that a task adapts."""
    if template.adapts is not None and not _adapted_in(base, template.adapts):
        raise BaseError(
            f"base '{printable(str(base.path))}' is not the one that task '{task}' adapts, some of its "
            f"{len(template.adapts.tensors)} adapted tensors are missing or differ{_which(template)}",
            hint="pass the model that the adapter was trained on; check_base=False loads it without the check",
            code="base-digest",
        )


def _adapted_in(base: Base, adapts: Adapts) -> bool:
    if not base.tensors.keys() >= set(adapts.tensors):
        return False
    rows = {name: base.ref(name) for name in adapts.tensors}
    return table_digest(rows) == adapts.sha256
