"""Which shared parts a task needs, as the store asks before one is removed or replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from petlpack.decoding.task import Task
from petlpack.decoding.templates import Templates
from petlpack.store import Needs, Store
from petlpack.store.replaced import state_of
from petlpack.tensors.pinned import State

_MOST = 1 << 17
"""Tasks of which is remembered what they need: a few dozen megabytes."""


def needs_of(store: Store, templates: Templates | None = None) -> Needs:
    """Return what tells the shared parts that the task in a file needs, each template being read once.

    It raises PetlpackError where the task or its template cannot be read.
    """
    known = Templates(store) if templates is None else templates
    return lambda path: Task(store, path.name, path, known).parts


_REMEMBERED: dict[Path, tuple[State, tuple[str, ...]]] = {}


def remembering(needs: Needs) -> Needs:
    """Return what tells the same, and reads a file of a pack again only once it has changed.

    Whoever removes or replaces many tasks asks what all others need, each time.
    """

    def told(path: Path) -> Iterable[str]:
        key, state = path.absolute(), state_of(path)
        known = _REMEMBERED.get(key)
        if known is not None and known[0] == state:
            return known[1]
        parts = tuple(needs(path))
        if state is not None:
            if len(_REMEMBERED) >= _MOST:
                _REMEMBERED.clear()
            _REMEMBERED[key] = state, parts
        return parts

    return told
