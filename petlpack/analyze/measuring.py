"""How many bits the sections of a pack need at least: all of them decoded, and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from petlpack.analyze.bounds import measured_bounds
from petlpack.analyze.tables import Bounds
from petlpack.decoding.task import Task
from petlpack.errors import PetlpackError, kept
from petlpack.parallel import Progress
from petlpack.sections.parts import open_part
from petlpack.sections.read import DecodedSection
from petlpack.store import Store
from petlpack.tensors.base import Base

if TYPE_CHECKING:
    from petlpack.analyze.stats import Stats


def measure(
    stats: Stats, store: Store, base: Base | None, progress: Progress | None = None
) -> tuple[Bounds, dict[str, Exception]]:
    """Decode every section of a pack's tasks and parts; return the bits that each needs at least, and what failed.

    What cannot be decoded (damage, another base) is named with its error, and the rest is measured.
    """
    bounds: dict[tuple[str, str], float] = {}
    failed: dict[str, Exception] = {}
    tasks, parts, most = stats.inventory.tasks, stats.inventory.tensors, stats.max_bytes
    readers: list[tuple[str, Callable[[], Iterator[DecodedSection]]]] = [
        *(
            (task.name, lambda name=task.name: Task(store, name, max_bytes=most).load(base).sections())
            for task in tasks
        ),
        *((part, lambda part=part: open_part(store, part, most).sections()) for part in parts),
    ]
    for done, (name, read) in enumerate(readers):
        if progress is not None:
            progress(done, len(readers))
        try:
            bounds |= {(name, section): bits for section, bits in measured_bounds(read()).items()}
        except (PetlpackError, OSError) as error:
            failed[name] = kept(error)
    return bounds, failed
