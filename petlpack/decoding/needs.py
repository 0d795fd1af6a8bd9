"""Which shared parts a task needs, as the store asks before one is removed or replaced."""

from __future__ import annotations

from petlpack.decoding.task import Task
from petlpack.decoding.templates import Templates
from petlpack.store import Needs, Store


def needs_of(store: Store, templates: Templates | None = None) -> Needs:
    """Return what tells the shared parts that the task in a file needs, each template being read once.

    It raises PetlpackError where the task or its template cannot be read.
    """
    known = Templates(store) if templates is None else templates
    return lambda path: Task(store, path.name, path, known).parts
