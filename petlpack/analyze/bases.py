"""How large the bases of a pack's tasks are, and what a LoRA on them takes: what tasks are compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from petlpack.analyze.reading import Opened, Reader
from petlpack.records.template import texts_of
from petlpack.tensors.adapted import Modules
from petlpack.tensors.dtypes import DType
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.views import BaseRef

LORA_RANK = 8
"""Rank of the LoRA that a pack is compared with: PEFT's default."""

MOST_RANK = 1 << 16
"""No LoRA has a higher rank: no model is wider."""

LORA_TARGETS = re.compile(
    r"(?:.*\.)?(?:query|value|q_proj|v_proj|query_proj|value_proj|q_lin|v_lin|q|v|in_proj|c_attn|query_key_value"
    r"|qkv_proj|Wqkv)\.weight"
)
"""The matrices that PEFT gives a LoRA by default: queries and values, by the names that models have for them."""


MOST_BYTES = 1 << 50
"""Bytes of a base that a manifest may state: a petabyte; what says more says nothing."""

Source = Literal["task", "encoder", "option"]
"""How a task's base is known: its template names the table, the encoder was told, or `--base` is given and the task
has modules of it."""


@dataclass(frozen=True)
class BaseSize:
    """Which base it is, bytes of its tensors, those of one LoRA on it; None where no matrix is in LORA_TARGETS."""

    key: str
    nbytes: int
    lora: int | None


class Bases:
    """The bases of a pack's tasks, as far as they are known."""

    def __init__(self, reader: Reader, opened: Iterable[Opened], rank: int) -> None:
        """Look at every base's table, once; LoRAs have this rank."""
        self._rank = rank
        self._tables: dict[str, BaseSize] = {}
        given = None if reader.base is None else _rows_of(reader.base.tensors)
        self._given = None if given is None else self._size("given", given)
        self._given_modules = None if reader.base is None else reader.base.modules
        self._fits: dict[int, bool] = {}
        for kind in {id(task.kind): task.kind for task in opened}.values():
            sha256, table = kind.template.base_table, reader.table(kind)
            if sha256 is not None and table is not None and sha256 not in self._tables:
                rows = _rows_of(table)
                self._tables[sha256] = self._size(sha256, rows)
                if rows == given:  # by names, dtypes and shapes; their digests would have to be computed
                    self._given = self._tables[sha256]

    def of(self, task: Opened) -> tuple[BaseSize | None, Source | None]:
        """Return the base of a task, and how it is known; None and None where it is not."""
        table = task.kind.template.base_table
        if table is not None:
            return self._tables[table], "task"
        nbytes = task.facts.figures.get("base_bytes")
        if nbytes is not None and nbytes <= MOST_BYTES:
            known = [*self._tables.values(), *([self._given] if self._given else [])]
            same = next((base for base in known if base.nbytes == nbytes), None)
            return same or BaseSize(str(nbytes), nbytes, None), "encoder"
        if self._given_modules is not None and self._may_be_given(task, self._given_modules):
            return self._given, "option"
        return None, None

    def _may_be_given(self, task: Opened, modules: Modules) -> bool:
        """Tell whether the given base may be a task's: it has modules that the task names, where that names any."""
        kind = task.kind
        if id(kind) not in self._fits:
            shapes = {slot.name: slot.shape for slot in kind.template.slots if not slot.head}
            named = {text: () for text in texts_of(kind.template.rule) if "." in text and text not in shapes}
            found = modules.adapted(named or shapes)
            self._fits[id(kind)] = found.fits
        return self._fits[id(kind)]

    def _size(self, key: str, rows: Shapes) -> BaseSize:
        targets = [shape for name, (_, shape) in rows.items() if len(shape) == 2 and LORA_TARGETS.fullmatch(name)]
        lora = sum(4 * self._rank * sum(shape) for shape in targets)  # float32, as PEFT trains and saves adapters
        return BaseSize(key, sum(math.prod(shape) * dtype.itemsize for dtype, shape in rows.values()), lora or None)


Shapes = Mapping[str, tuple[DType, tuple[int, ...]]]
"""Dtype and shape of each tensor of a base, by name."""


def _rows_of(tensors: Mapping[str, BaseRef] | Mapping[str, Tensor]) -> Shapes:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def dense_bytes(task: Opened, base: BaseSize | None) -> int | None:
    """Return the bytes of a whole model of a task: of a whole run its own, else the base's and the head's."""
    if task.facts.whole:
        return task.kind.run_bytes
    return None if base is None else base.nbytes + sum(slot.nbytes for slot in task.kind.head)
