"""How large the bases of a pack's tasks are, and what a LoRA on them takes: what tasks are compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from petlpack.analyze.reading import Kind, Opened, Reader
from petlpack.facts import counts_of

WHOLE = frozenset({"transformers", "safetensors", "diff-pruning"})
"""Layouts whose runs are whole models; those of the others leave the base out, or have it frozen."""

LORA_RANK = 8
"""Rank of the LoRA that a pack is compared with: PEFT's default."""

LORA_TARGETS = re.compile(
    r"(?:.*\.)?(?:query|value|q_proj|v_proj|query_proj|value_proj|q_lin|v_lin|q|v|in_proj|c_attn|query_key_value"
    r"|qkv_proj|Wqkv)\.weight"
)
"""The matrices that PEFT gives a LoRA by default: queries and values, by the names that models have for them."""


@dataclass(frozen=True)
class BaseSize:
    """Bytes of a base's tensors, and those of one LoRA on it; None where none of its matrices is in LORA_TARGETS."""

    nbytes: int
    lora: int | None


class Bases:
    """The bases of a pack's tasks, as far as they are known."""

    def __init__(self, reader: Reader, opened: Iterable[Opened], rank: int) -> None:
        """Look at every base's table, once; LoRAs have this rank."""
        self._rank = rank
        self._given: BaseSize | None = None
        if reader.base is not None:
            self._given = self._size((name, t.shape, t.dtype.itemsize) for name, t in reader.base.tensors.items())
        self._tables: dict[str, BaseSize] = {}
        for kind in {id(task.kind): task.kind for task in opened}.values():
            self._add_table(reader, kind)

    def of(self, task: Opened) -> BaseSize | None:
        """Return the base of a task.

        It is the one whose table its template names, else the one that is given, else what the encoder was told, else
        the only one of the pack; None where none of these is.
        """
        table = task.kind.template.base_table
        if table is not None:
            return self._tables[table]
        if self._given is not None:
            return self._given
        said = counts_of(task.facts).get("base_bytes")
        if said is not None:
            return next((base for base in self._tables.values() if base.nbytes == said), BaseSize(said, None))
        return next(iter(self._tables.values())) if len(self._tables) == 1 else None

    def _add_table(self, reader: Reader, kind: Kind) -> None:
        sha256, table = kind.template.base_table, reader.table(kind)
        if sha256 is not None and table is not None and sha256 not in self._tables:
            self._tables[sha256] = self._size((name, ref.shape, ref.dtype.itemsize) for name, ref in table.items())

    def _size(self, tensors: Iterable[tuple[str, tuple[int, ...], int]]) -> BaseSize:
        nbytes = lora = 0
        for name, shape, itemsize in tensors:
            nbytes += math.prod(shape) * itemsize
            if len(shape) == 2 and LORA_TARGETS.fullmatch(name):
                lora += 4 * self._rank * sum(shape)  # float32, as PEFT trains and saves adapters
        return BaseSize(nbytes, lora or None)


def dense_bytes(task: Opened, layout: str, base: BaseSize | None) -> int | None:
    """Return the bytes of a whole model of a task: of a whole run its own, else the base's and the head's."""
    if layout in WHOLE:
        return task.kind.run_bytes
    return None if base is None else base.nbytes + sum(slot.nbytes for slot in task.kind.stored if slot.head)
