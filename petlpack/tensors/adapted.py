"""Which modules of a base an adapter's tensors belong to, told by names and widths: no adapter says it by itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Shapes = Mapping[str, tuple[int, ...]]

MOST_DROPPED = 4
"""Leading parts of a name that may differ between adapter and base (`base_model.model.`, `bert.`)."""

WRAPPER = "base_model."
"""What PEFT puts in front of every name, also of what belongs to no module."""

MOST_MISFITS = 0.1
"""Share of an adapter's modules that may not fit its base: embeddings that were resized have LoRA of their own rows."""

LEAST_PARTS = 3
"""Parts by which a module is told where a name has more in front: `encoder`, or `layer.0`, is in every model."""


@dataclass(frozen=True)
class Adapted:
    """The modules of a base that tensors adapt: a base tensor's names by module, and the tensors that fit nowhere.

    A tensor whose name has no module at all (a prompt) is in neither. `misfits` has a stranger of each module that the
    base has in another width, or in other layers; others may be new with the adapter. `count` is that of all but those.
    """

    modules: Mapping[str, tuple[str, ...]]
    strangers: tuple[str, ...]
    misfits: tuple[str, ...]
    count: int

    @property
    def fits(self) -> bool:
        """Whether the base may be the one that was adapted: nearly all has its place there, if anything has."""
        if self.strangers and not self.modules:
            return False
        return len(self.misfits) <= MOST_MISFITS * self.count

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the base in these modules, sorted."""
        return tuple(sorted({name for names in self.modules.values() for name in names}))


_REMEMBERED = 8
"""Kinds of adapters whose modules are remembered: those of one training have one."""


class Modules:
    """The modules of a base, found by the ends of their names; worth keeping, for all adapters ask the same."""

    def __init__(self, base: Shapes) -> None:
        """Take the shapes of a base's tensors by name."""
        self._base, self._modules = base, _modules(base)
        self._endings = _endings(self._modules)
        self._kinds = {_without_numbers(ending) for ending in self._endings}
        self._sizes = {size for shape in base.values() for size in shape}
        self._find = functools.lru_cache(maxsize=_REMEMBERED)(self._find_each)

    def adapted(self, shapes: Shapes, width: int | None = None) -> Adapted:
        """Find the module of the base that each tensor adapts.

        It is the longest name of a module, but for leading parts on both sides, that the tensor's name begins with; it
        must have a tensor with a size in common with it. Shapes are by name; without one a tensor fits by name alone.
        `width` is what tensors without a module say of the base's hidden states.
        """
        return self._find(tuple(shapes.items()), width)

    def _find_each(self, shapes: tuple[tuple[str, tuple[int, ...]], ...], width: int | None) -> Adapted:
        groups: dict[tuple[str, ...], list[tuple[str, tuple[int, ...]]]] = {}
        strangers, misfits = [], []
        for name, shape in shapes:
            if "." in name.removeprefix(WRAPPER):
                groups.setdefault(self._place(name), []).append((name, shape))
            elif width is not None and width not in self._sizes:
                strangers.append(name)
                misfits.append(name)
        fitting: dict[str, tuple[str, ...]] = {}
        for place, tensors in groups.items():
            module = next((module for module in place if self._fits(tensors, module)), None)
            if module is not None:
                fitting[module] = self._modules[module]
                continue
            strangers += [name for name, _ in tensors]
            misfits += [tensors[0][0]] if place else []
        new = sum(not place for place in groups)
        return Adapted(fitting, tuple(strangers), tuple(misfits), max(len(misfits), len(groups) - new))

    def _place(self, name: str) -> tuple[str, ...]:
        """Return the modules that a tensor's name may stand in; the name of none where only another layer has it."""
        candidates = _candidates(name, self._endings)
        if candidates:
            return tuple(candidates)
        return (name.rpartition(".")[0],) if self._is_of_another_layer(name) else ()

    def _fits(self, tensors: Sequence[tuple[str, tuple[int, ...]]], module: str) -> bool:
        """Tell whether the tensors of one module of an adapter have its widths: each LoRA factor, else one of them."""
        names = self._modules.get(module, ())
        if any(not _PACKED.isdisjoint(name.split(".")) for name in names):
            return True
        sizes = {size for name in names for size in self._base[name]}
        last = module.rpartition(".")[2]
        own = [_widths(name, shape) for name, shape in tensors]
        factors = [widths for (name, _), widths in zip(tensors, own, strict=True) if _is_factor(name, last)]
        if not all(widths & sizes for widths in factors if widths):
            return False
        return bool(names) and any(not widths or widths & sizes for widths in own)

    def _is_of_another_layer(self, name: str) -> bool:
        """Tell whether the base has the module of a name, but for the numbers in it."""
        parts = _without_numbers(name).split(".")
        return any(
            ".".join(parts[dropped:end]) in self._kinds
            for end in range(len(parts) - 1, 1, -1)
            for dropped in range(min(MOST_DROPPED, end - 2) + 1)
        )


def _modules(base: Shapes) -> dict[str, tuple[str, ...]]:
    """Return the tensors of each module: its own, else those of all modules in it."""
    own: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for name in base:
        parts = name.split(".")[:-1]
        own.setdefault(".".join(parts), []).append(name)
        for end in range(LEAST_PARTS, len(parts)):
            below.setdefault(".".join(parts[:end]), []).append(name)
    return {module: tuple(names) for module, names in {**below, **own}.items() if module}


def _endings(modules: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Return the modules by their names without 0 to MOST_DROPPED leading parts, the least dropped first."""
    endings: dict[str, list[tuple[int, str]]] = {}
    for module in modules:
        parts = module.split(".")
        for dropped in range(max(0, min(MOST_DROPPED, len(parts) - LEAST_PARTS)) + 1):
            endings.setdefault(".".join(parts[dropped:]), []).append((dropped, module))
    return {ending: [module for _, module in sorted(found)] for ending, found in endings.items()}


def _candidates(name: str, endings: Mapping[str, list[str]]) -> list[str]:
    """Return the modules of the longest name that a tensor's name may begin with, the least dropped first."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        drops = range(min(MOST_DROPPED, end - 1) + 1)
        found = [module for dropped in drops for module in endings.get(".".join(parts[dropped:end]), ())]
        if found:
            return found
    return []


def _without_numbers(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdecimal())


_AXES = {"lora_A": -1, "lora_B": 0, "lora_down": -1, "lora_up": 0, "lora_embedding_A": -1, "lora_embedding_B": 0}
"""Which axis of a LoRA factor is the module's: the other is its rank, which may be any size by chance."""

_PACKED = {"qweight", "weight_packed", "absmax", "quant_map", "SCB", "blocks", "weight_blocks"}
"""Ends of the names of quantised weights, whose shapes say nothing of their module's widths."""


def _axis(name: str) -> int | None:
    return next((_AXES[part] for part in name.split(".") if part in _AXES), None)


def _is_factor(name: str, module: str) -> bool:
    """Tell whether a tensor is a LoRA factor of a module itself, called so, and not of one that the base has fused."""
    parts = name.split(".")
    return any(part in _AXES and before == module for before, part in pairwise(parts))


def _widths(name: str, shape: tuple[int, ...]) -> set[int]:
    """Return the sizes of a tensor that may be its module's; none where it has no shape, or only ones.

    Behind the first two axes of a LoRA factor are those of a convolution.
    """
    axis = _axis(name)
    known = shape if axis is None or len(shape) < 2 else (shape[:2][axis],)
    return {size for size in known if size > 1}
