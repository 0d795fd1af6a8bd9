"""Which base a run is encoded against: the one of those given that it fits, never the run itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from petlpack.codecs.registry import codecs_for
from petlpack.encoding.components import counterparts_by_name
from petlpack.encoding.matching.sides import shapes_of
from petlpack.encoding.request import Request
from petlpack.errors import BaseError, printable
from petlpack.layouts.run import Run
from petlpack.tensors.base import Base, Bases, open_bases
from petlpack.tensors.casting import can_cast, cast_bits
from petlpack.tensors.kinds import WEIGHTS
from petlpack.tensors.places import checkpoints

_HINT = "pass the pretrained model that the run was trained from"


def choose_base(run: Run, bases: Bases | None, request: Request) -> Base | None:
    """Return the base to encode a run against; None where it needs none and none is given.

    By default it is the model that the run's own config names by an absolute path. Of several it is the one that most
    of the run's weights have a counterpart in. Raises BaseError where the run needs one and there is none, and for a
    base that is the run.
    """
    opened = open_bases(bases, run.base_name if request.needs_base(run) else None)
    for base in opened:
        refuse_itself(run, base)
    if not opened and request.needs_base(run):
        raise _missing(run)
    return _nearest(run, opened) if len(opened) > 1 else opened[0] if opened else None


def refuse_itself(run: Run, base: Base) -> None:
    """Raise BaseError where a base is the run, lies in it, holds it, or has a weight file in common with it."""
    own, other = run.path.resolve(), base.path.resolve()
    if own == other:
        how = "is the run itself"
    elif other.is_relative_to(own):
        how = "lies in the run"
    elif own.is_relative_to(other):
        how = "holds the run"
    elif _share_weights(run, base):
        how = "has a weight file in common with the run"
    else:
        return
    whose = "" if run.base_name is None else f" (its config names '{printable(run.base_name)}')"
    raise BaseError(
        f"base '{printable(str(base.path))}' {how}, '{printable(str(run.path))}'{whose}: without the run, the task "
        "would be lost",
        hint=_HINT,
        code="base-is-run",
    )


def _share_weights(run: Run, base: Base) -> bool:
    """Tell whether main weights or all files are in common, or a component of the base lies in the run.

    Other components both may have: a pipeline's text encoder that its fine-tune links to is as safe as the base.
    """
    own, theirs = _files(_weight_files(run.path)), _files(base.sources)
    main = _files(base.sources[: len(base.sources) - len(base.components)])
    main |= _files(run.path / name for name, header in run.headers.items() if not header.prefix)
    if own & theirs & main or (own and own <= theirs):
        return True
    return any(source.resolve().is_relative_to(run.path.resolve()) for source in base.components)


def _weight_files(path: Path) -> Iterable[Path]:
    """Yield the weight files of a run, those of checkpoints that are links among them."""
    if path.is_file():
        return [path]
    places = [path, *(place for place in checkpoints(path) if place.is_symlink())]
    return (file for place in places for file in place.rglob("*") if file.suffix in WEIGHTS)


def _files(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Return files as the system knows them, links followed; those that are gone are left out."""
    known = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        known.add((status.st_dev, status.st_ino))
    return known


def _nearest(run: Run, bases: Sequence[Base]) -> Base | None:
    """Return the base that a run fits best: by its weights with a counterpart, then by equal bits of a sample.

    A sibling, which has the run's head, too, fits a little better than the base, but its bits are farther off. The one
    that the run's config names wins over others that fit as well. Of an adapter's weights none is in the base, so
    nothing tells two bases of one architecture apart: None, as where the run needs none and fits none.
    """
    counterparts = [counterparts_by_name(run, base) for base in bases] if run.needs_base else [{} for _ in bases]
    weights = [_fitting(run, base, names) for base, names in zip(bases, counterparts, strict=True)]
    most = max(weights)
    if not most:
        if run.needs_base:
            raise BaseError(
                f"'{printable(str(run.path))}' ({run.method}) fits none of the {len(bases)} bases: no weight has the "
                "name and the shape of one of theirs",
                hint=_HINT,
                code="base-fits-none",
            )
        return None
    tied = [i for i, fits in enumerate(weights) if fits >= NEARLY * most]
    tied = [i for i in tied if _is_named(run, bases[i])] or tied
    if len(tied) == 1:
        return bases[tied[0]]
    if not run.needs_base:
        return None
    return bases[max(tied, key=lambda i: (_likeness(run, bases[i], counterparts[i]), -len(bases[i].tensors)))]


def _is_named(run: Run, base: Base) -> bool:
    """Tell whether the run's config speaks of this base, by its path or by its name."""
    if run.base_name is None:
        return False
    return run.base_name in (base.name, str(base.path)) or os.path.realpath(run.base_name) == str(base.path.resolve())


def _fitting(run: Run, base: Base, counterparts: Mapping[str, str]) -> int:
    """Return how many of a run's weights have a counterpart in a base, or adapt one of its modules."""
    tensors = run.module.tensors
    shapes = shapes_of(tensors) if run.has_widths else dict.fromkeys(tensors, ())
    strangers = base.modules.adapted(shapes).strangers if not run.needs_base else ()
    names = counterparts if run.needs_base else tensors.keys() - {*strangers}
    return sum(tensors[name].size for name in names)


NEARLY = 0.9
"""Share of the best base's counterparts with which another one may still be the base: it lacks the run's head."""

MOST_SAMPLED = 8
"""Tensors that are looked at to tell two bases of one architecture apart: the largest ones."""

SAMPLE = 1 << 12
"""Elements that are looked at of each."""


def _likeness(run: Run, base: Base, names: Mapping[str, str]) -> float:
    """Return the mean share of the upper halves of elements that counterparts have in common, on a sample."""
    tensors = run.module.tensors
    comparable = [name for name in names if can_cast(base.tensors[names[name]].dtype, tensors[name].dtype)]
    shares = [0.0]
    for name in sorted(comparable, key=lambda name: -tensors[name].size)[:MOST_SAMPLED]:
        tensor, other = tensors[name], base.tensors[names[name]]
        count = min(SAMPLE, tensor.size, other.size)
        theirs = cast_bits(other.read_flat(0, count), other.dtype, tensor.dtype)
        half = tensor.dtype.bits.type(4 * tensor.dtype.itemsize)
        shares.append(float(np.count_nonzero(tensor.read_flat(0, count) >> half == theirs >> half)) / max(1, count))
    return sum(shares) / len(shares)


def _missing(run: Run) -> BaseError:
    """Return what to say of a run that needs its base, where there is none."""
    named = ""
    if run.base_name:
        named = f"; its config names '{printable(run.base_name)}', which is no directory by its absolute path"
    without = [codec.id for codec in codecs_for(run.module) if not codec.uses_base and not run.on_base]
    return BaseError(
        f"'{printable(str(run.path))}' ({run.method}) needs its base, but no base was given{named}",
        hint="pass the pretrained model's directory with --base"
        + "".join(f"; --codec {codec_id} stores the run without a base" for codec_id in without),
        code="base-missing",
    )
