"""Which of several bases a run comes from: by names and shapes, then by weights, then by equal bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from petlpack.encoding.bind import adapting
from petlpack.encoding.components import counterparts_by_name
from petlpack.encoding.match import Digests, views_of, whole_counterparts
from petlpack.encoding.request import Request, without_base_hint
from petlpack.errors import BaseError, printable
from petlpack.layouts.run import Run
from petlpack.parallel import ordered_map
from petlpack.tensors.adapted import Adapted
from petlpack.tensors.base import Base
from petlpack.tensors.casting import can_cast, cast_bits
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import UNKNOWN, BaseRef, View

HINT = "pass the pretrained model that the run was trained from"

Views = Mapping[str, View]
"""What of a base stands for the tensors of a run, by their names."""


@dataclass(frozen=True)
class Choice:
    """The base of a run, if it has one, and what a person should know of how it was chosen."""

    base: Base | None
    warnings: tuple[str, ...] = ()


def nearest(run: Run, bases: Sequence[Base], request: Request, jobs: int) -> Choice:
    """Return the base that a run fits best, the one that its config names where several fit as well.

    Raises BaseError where the run needs one and fits none.
    """
    if run.needs_base:
        return _base_of_model(run, bases, jobs, needed=request.needs_base(run))
    return _base_of_adapter(run, bases, request, jobs)


NEARLY = 0.9
"""Share of what the best base fits with which another one may still be the base: it lacks the run's head."""

ENOUGH = 0.5
"""Share of a run's weights that meet a base by name with which nothing is looked for by weights."""


def _base_of_model(run: Run, bases: Sequence[Base], jobs: int, *, needed: bool) -> Choice:
    """Choose by the weights with a counterpart, then by equal bits of a sample.

    A sibling, which has the run's head, too, fits a little better than the base, but its bits are farther off.
    """
    views: list[Views] = [_views_by_name(run, base) for base in bases]
    if needed and max(_size(found, run) for found in views) < ENOUGH * _size(run.module.tensors, run):
        digests = Digests(jobs)
        views = [_larger(found, views_of(run, base, digests), run) for found, base in zip(views, bases, strict=True)]
    fitting = [_size(found, run) for found in views]
    if not max(fitting):
        if needed:
            raise _fits_none(run, bases)
        return Choice(None, (f"{run.method} has no weight of {_shown(bases)}: it is stored without a base",))
    tied = _tied(run, bases, fitting)
    if len(tied) == 1:
        return Choice(bases[tied[0]])
    return Choice(bases[max(tied, key=lambda i: (_likeness(run, bases[i], views[i]), -len(bases[i].tensors)))])


def _larger(first: Views, second: Views, run: Run) -> Views:
    return first if _size(first, run) >= _size(second, run) else second


def _fits_none(run: Run, bases: Sequence[Base]) -> BaseError:
    return BaseError(
        f"'{printable(str(run.path))}' ({run.method}) fits none of the {len(bases)} bases: no weight has a counterpart "
        "in one of them, by its name and shape or by its values",
        hint=HINT + without_base_hint(run),
        code="base-fits-none",
    )


def _base_of_adapter(run: Run, bases: Sequence[Base], request: Request, jobs: int) -> Choice:
    """Choose by the modules that an adapter adapts, then by tensors of the base that its file has whole.

    Nothing else tells two bases of one architecture apart. Where they are one to the adapter, bit for bit, the first is
    as good as any; else it is none of them.
    """
    shapes = adapting(run, request.candidates(run)[0].rule_of(run.module))
    found = [base.modules.adapted(shapes, run.width) for base in bases]
    fitting = [_adapting_size(shapes, adapted) for adapted in found]
    if shapes and not max(fitting):
        return Choice(None, (f"{run.method} adapts no module of {_shown(bases)}: it is stored without a base",))
    tied = _tied(run, bases, fitting)
    tied = _likest(run, bases, tied) if len(tied) > 1 else tied
    if len(tied) == 1 or len({_content(bases[i], found[i], jobs) for i in tied}) == 1:
        return Choice(bases[tied[0]])
    doubt = (
        f"{run.method} fits {_shown([bases[i] for i in tied])} alike, so it is stored without a base: "
        "give the one that it was trained on, or name it in the run's config"
    )
    return Choice(None, (doubt,))


def _adapting_size(shapes: Mapping[str, tuple[int, ...]], adapted: Adapted) -> int:
    """Return the weights of an adapter that have a place in a base; 0 where it is another model's."""
    if not adapted.fits:
        return 0
    return sum(math.prod(shapes[name]) for name in shapes.keys() - {*adapted.strangers})


def _content(base: Base, adapted: Adapted, jobs: int) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Return what the adapted tensors are, whatever they are called; the whole base where no module is known."""
    names = adapted.tensors or tuple(base.tensors)
    digests = ordered_map(base.sha256, names, jobs)
    rows = ((base.tensors[name], digest) for name, digest in zip(names, digests, strict=True))
    return tuple(sorted((tensor.dtype.name, tensor.shape, digest) for tensor, digest in rows))


SURE = 0.5
"""Least share of bits by which whole tensors in an adapter's file tell its base."""


def _likest(run: Run, bases: Sequence[Base], tied: Sequence[int]) -> list[int]:
    """Return those of some bases whose tensors an adapter's file has whole; all where it has none, or of none."""
    likeness = {i: _likeness(run, bases[i], _whole_views(run, bases[i])) for i in tied}
    best = max(likeness.values())
    return [i for i in tied if likeness[i] >= NEARLY * best] if best >= SURE else list(tied)


def _shown(bases: Sequence[Base]) -> str:
    names = [f"'{printable(str(base.path))}'" for base in bases]
    return " and ".join(names) if len(names) <= 2 else ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _tied(run: Run, bases: Sequence[Base], fitting: Sequence[int]) -> list[int]:
    """Return the bases that fit best or nearly so; of these the ones that the run's config names, if it does."""
    tied = [i for i, fits in enumerate(fitting) if fits >= NEARLY * max(fitting)]
    return [i for i in tied if _is_named(run, bases[i])] or tied


def _is_named(run: Run, base: Base) -> bool:
    """Tell whether the run's config speaks of this base, by its path or by its name."""
    if run.base_name is None:
        return False
    return run.base_name in (base.name, str(base.path)) or base.is_at(run.base_name)


def _views_by_name(run: Run, base: Base) -> Views:
    return {name: _ref(base, other) for name, other in counterparts_by_name(run, base).items()}


def _whole_views(run: Run, base: Base) -> Views:
    return {name: _ref(base, other) for name, other in whole_counterparts(run.module.tensors, base).items()}


def _ref(base: Base, name: str) -> BaseRef:
    """Return a tensor of a base to look at, which needs no digest."""
    return BaseRef(name, base.tensors[name].dtype, base.tensors[name].shape, UNKNOWN)


def _size(names: Mapping[str, object], run: Run) -> int:
    return sum(run.module.tensors[name].size for name in names)


MOST_SAMPLED = 8
"""Tensors that are looked at to tell two bases of one architecture apart: the largest ones."""

SAMPLE = 1 << 12
"""Elements that are looked at of each."""


def _likeness(run: Run, base: Base, views: Views) -> float:
    """Return the mean share of the upper halves of elements that counterparts have in common, on a sample."""
    tensors, reader = run.module.tensors, ViewReader(lambda ref: base.tensors[ref.name])
    comparable = [name for name, view in views.items() if can_cast(view.dtype, tensors[name].dtype)]
    shares = [0.0]
    for name in sorted(comparable, key=lambda name: -tensors[name].size)[:MOST_SAMPLED]:
        tensor, view = tensors[name], views[name]
        count = min(SAMPLE, tensor.size, math.prod(view.shape))
        theirs = cast_bits(reader.read(view, 0, count), view.dtype, tensor.dtype)
        half = tensor.dtype.bits.type(4 * tensor.dtype.itemsize)
        shares.append(float(np.count_nonzero(tensor.read_flat(0, count) >> half == theirs >> half)) / max(1, count))
    return sum(shares) / len(shares)
