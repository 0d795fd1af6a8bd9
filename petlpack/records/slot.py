"""A tensor of a run, as a template knows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from petlpack.tensors.dtypes import DType
from petlpack.tensors.views import View


@dataclass(frozen=True)
class Slot:
    """One tensor of a run: name, dtype, shape, what of the base predicts it, whether it is the head's.

    `part` is where it stands in a shared part, as (part, tensor); `kind` is what tensors that are coded together share.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    size: int
    base: View | None
    head: bool
    part: tuple[int, int] | None = None
    kind: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    @property
    def row(self) -> int:
        """Elements of one row of a matrix (of one output channel of a kernel); a vector is one row."""
        return max(1, self.size // self.shape[0] if len(self.shape) > 1 and self.shape[0] else self.size)


def kind_of(name: str) -> str:
    """Return a tensor name without its layer numbers: what the tensors of one kind have in common."""
    return re.sub(r"\.[0-9]+(?=\.|\Z)", "", name)


def with_kinds(slots: Sequence[Slot], kinds: Mapping[str, str]) -> list[Slot]:
    """Return slots with the kinds that a rule tells in the place of those that names tell."""
    return [replace(slot, kind=kinds[slot.name]) if slot.name in kinds else slot for slot in slots]
