"""What was trained, in memory, typed by its mathematics. Layout readers make modules, codecs take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class Dense:
    """A full fine-tune: every weight of the model, most of them near the base's."""

    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Use:
    """How rebuilt tensors act in the model: `kind` is adapter, lora or prefix.

    `settings`: `activation`, `scaling`, and `form`, the place of an adapter in its layer: `pfeiffer`, `output`,
    `output-norm`, `t5-output`, `parallel` or `other` (formats/methods.md).
    """

    kind: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Copy:
    """`output` is the tensor `tensor`, under another name."""

    output: str
    tensor: str


@dataclass(frozen=True)
class Plain:
    """Tensors with no counterpart in the base, kept as they are; `head` names those of the task's head.

    `use` and `rows` say how they act, where that is known.
    """

    tensors: Mapping[str, Tensor]
    head: frozenset[str]
    use: Use | None = None
    rows: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class MaskedMatrix:
    """`output` = prototype * masks, elementwise. The masks are combined by or, and, add; none leaves the prototype.

    `transposed` tells that the masks have the prototype's shape reversed; `index` takes one row of masks that stand in
    one tensor, layer by layer.
    """

    output: str
    prototype: str
    masks: tuple[str, ...] = ()
    combine: str = "none"
    transposed: bool = False
    index: int | None = None


@dataclass(frozen=True)
class Produced:
    """A prototype that no tensor holds: `name` = W2 tanh(W1 codes + b1) + b2, a row for each row of `codes`."""

    name: str
    codes: str
    first: tuple[str, str]
    second: tuple[str, str]


@dataclass(frozen=True)
class Masked:
    """PROPETL: prototypes shared by layers and tasks, and binary masks."""

    tensors: Mapping[str, Tensor]
    head: frozenset[str]
    use: Use
    rows: tuple[MaskedMatrix, ...]
    produced: tuple[Produced, ...] = ()


@dataclass(frozen=True)
class Average:
    """`output` = the weighted sum of the experts, weights softmax(scores); scores None where there is one expert."""

    output: str
    experts: tuple[str, ...]
    scores: str | None = None


@dataclass(frozen=True)
class Mixture:
    """AdaMix: experts that are averaged into one."""

    tensors: Mapping[str, Tensor]
    head: frozenset[str]
    use: Use
    rows: tuple[Average, ...]


@dataclass(frozen=True)
class Trunk:
    """h = norm(W2 relu(W1 code + b1) + b2): the tensors' names; `norm` (weight, bias) may be missing."""

    first: tuple[str, str]
    second: tuple[str, str]
    norm: tuple[str, str] | None
    eps: float


@dataclass(frozen=True)
class Generated:
    """`output` = (weight h + bias) as `shape`, transposed if said; h is what trunk `trunk` makes of the codes.

    A code is (tensor, row). Without a trunk the output is the tensor `weight` itself.
    """

    output: str
    weight: str
    bias: str | None = None
    trunk: int | None = None
    codes: tuple[tuple[str, int], ...] = ()
    shape: tuple[int, ...] = ()
    transposed: bool = False


@dataclass(frozen=True)
class Generator:
    """PHA, HyperFormer: a network that makes adapters of codes of layer and task."""

    tensors: Mapping[str, Tensor]
    head: frozenset[str]
    use: Use
    trunks: tuple[Trunk, ...]
    rows: tuple[Generated, ...]


Module = Dense | Plain | Masked | Mixture | Generator


@dataclass(frozen=True)
class Rebuilt:
    """What a task's rule gives: dense modules by their place in the model, and how they are applied.

    Names are `<place>.down.weight`, `.down.bias`, `.up.weight`, `.up.bias` of an adapter, `<place>.lora_A` and
    `.lora_B`, `<place>.prefix`.
    """

    kind: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor] = field(default_factory=dict)
