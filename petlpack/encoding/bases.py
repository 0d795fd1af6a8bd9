"""Which base a run is encoded against: the one of those given that it fits, never the run itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from petlpack.encoding.nearest import HINT, Choice, nearest
from petlpack.encoding.request import Request, without_base_hint
from petlpack.errors import BaseError, printable
from petlpack.layouts.run import Run
from petlpack.tensors.base import Base, Bases, open_bases
from petlpack.tensors.folders import folders_below
from petlpack.tensors.kinds import WEIGHTS, is_checkpoint
from petlpack.tensors.places import checkpoints


def choose_base(run: Run, bases: Bases | None, request: Request, jobs: int) -> Choice:
    """Return the base to encode a run against; none where it needs none and none is given, or none of several is it.

    By default it is the model that the run's own config names by an absolute path. Of several it is the one that the
    run fits best, and not the run. Raises BaseError where the run needs one and there is none, or none but the run.
    """
    opened = open_bases(bases, run.base_name if request.needs_base(run) else None)
    itself = [_itself(run, base, named=bases is None) for base in opened]
    if opened and all(itself):
        raise _is_itself(run, opened[0], str(itself[0]))
    opened = [base for base, how in zip(opened, itself, strict=True) if how is None]
    if not opened and request.needs_base(run):
        raise _missing(run)
    return nearest(run, opened, request, jobs) if len(opened) > 1 else Choice(opened[0] if opened else None)


def _is_itself(run: Run, base: Base, how: str) -> BaseError:
    whose = "" if run.base_name is None else f" (its config names '{printable(run.base_name)}')"
    return BaseError(
        f"base '{printable(str(base.path))}' {how}, '{printable(str(run.path))}'{whose}: without the run, the task "
        "would be lost",
        hint=HINT,
        code="base-is-run",
    )


def _itself(run: Run, base: Base, *, named: bool) -> str | None:
    """Say how a base is the run, lies in it, holds it, or has a weight file in common with it; None where it does not.

    One that the run's own config has `named` is no other checkpoint of the same training, which goes with the run.
    """
    own, other = run.path.resolve(), base.path.resolve()
    if own == other:
        return "is the run itself"
    beside = other.relative_to(own.parent).parts if own.is_file() and other.is_relative_to(own.parent) else ("",)
    if other.is_relative_to(own) or is_checkpoint(beside[0]):
        return "lies in the run"
    if own.is_relative_to(other):
        return "holds the run"
    if _share_weights(run, base):
        return "has a weight file in common with the run"
    if named and own.parent == other.parent and is_checkpoint(own.name) and is_checkpoint(other.name):
        return "is another checkpoint of the same training as the run"
    return None


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
    """Yield the weight files of a run, those of checkpoints that are links among them.

    What cannot be read has none of the run's: the layout has told of it, or refused it.
    """
    if path.is_file():
        return [path]
    places = [path, *(place for place in checkpoints(path) if place.is_symlink())]
    below = (pair for place in places for pair in folders_below(place, unread=lambda _: None))
    return (file for folder, names in below for name in names if (file := folder / name).suffix in WEIGHTS)


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


def _missing(run: Run) -> BaseError:
    """Return what to say of a run that needs its base, where there is none."""
    named = ""
    if run.base_name:
        named = f"; its config names '{printable(run.base_name)}', which is no directory by its absolute path"
    return BaseError(
        f"'{printable(str(run.path))}' ({run.method}) needs its base, but no base was given{named}",
        hint="pass the pretrained model's directory with --base" + without_base_hint(run),
        code="base-missing",
    )
