"""What was trained, in memory, typed by its mathematics. Layout readers make modules, codecs take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class Dense:
    """A full fine-tune: every weight of the model, most of them near the base's."""

    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Plain:
    """Tensors with no counterpart in the base, kept as they are; `head` names those of the task's head."""

    tensors: Mapping[str, Tensor]
    head: frozenset[str]


Module = Dense | Plain
