"""How much a task may take when it is read: what its files and its base explain, or what the caller allows.

A small file may rightly decode to large tensors, and a stranger's to all of a disk. Each cost is added up from sizes
that are stated, before anything is made (formats/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from petlpack.errors import LimitError, printable
from petlpack.records.sources import Sources
from petlpack.records.template import texts_of
from petlpack.rules.modules import Rebuilt
from petlpack.rules.rows import Rule, tables_of
from petlpack.tensors.base import Base
from petlpack.tensors.tensor import Tensor

FREE = 1 << 27
"""Bytes that any task may take: a second's work, whatever it is."""

FREE_FILE = 1 << 25
"""Those of a single kept file, which is in memory as a whole."""

A_BYTE = 1024
"""Bytes more for each byte of the files that it needs: weights of a method take a hundredth of the modules."""

A_STORED_BYTE = 1 << 15
"""Bytes of weights that sections hold, for each of these bytes: equal numbers take so little."""

A_BASE_BYTE = 8
"""Bytes more for each byte of the base at hand: 8-bit weights as F32 and tied, or a model copied into eight experts."""

UNBOUNDED = 1 << 63
"""What is allowed where the task is one's own."""

_HINT = "if you trust who made it, allow more with --max-bytes (max_bytes= of open in Python)"


@dataclass(frozen=True)
class Allowance:
    """What may be made of a task: `said` by the caller, else what `files` bytes of files and the base explain."""

    what: str
    said: int | None
    files: int
    base: int = 0

    def check(self, wanted: int, stored: int = 0, *, free: int = FREE) -> None:
        """Raise LimitError where `wanted` bytes, `stored` of them weights in sections, are more than that."""
        explained = free + A_BYTE * self.files + A_BASE_BYTE * self.base + min(stored, A_STORED_BYTE * self.files)
        most = explained if self.said is None else self.said
        if wanted > most:
            why = "is allowed" if self.said is not None else f"its {self.files:,} bytes of files and its base explain"
            raise LimitError(f"{printable(self.what)} would take {wanted:,} bytes, {why} {most:,}", hint=_HINT)


def base_bytes(base: Base | None) -> int:
    """Return the bytes of all tensors of a base."""
    return 0 if base is None else sum(tensor.nbytes for tensor in base.tensors.values())


def tensor_bytes(sources: Sources, base: Base | None) -> tuple[int, int]:
    """Return the bytes of a task's tensors, and of those that its sections hold.

    Without a base, what only the base can give is not counted: it is not there to be read.
    """
    slots = sources.slots
    absent = {i for i, slot in enumerate(slots) if base is None and slot.base is not None}
    absent |= {alias for alias, other in sources.aliases.items() if other in absent}
    total = sum(slot.nbytes for i, slot in enumerate(slots) if i not in absent)
    return total, sum(slot.nbytes for slot in sources.stored if base is not None or slot.base is None)


def rebuilt_bytes(rule: Rule | None, rebuilt: Rebuilt, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of what a rule makes, and of what is read for that: each row may read all other tables anew."""
    rows, others = ([], []) if rule is None else tables_of(rule)
    read, again = (sum(tensors[name].nbytes for name in texts_of(table) if name in tensors) for table in (rows, others))
    return read + len(rows) * again + sum(tensor.nbytes for tensor in rebuilt.tensors.values())
