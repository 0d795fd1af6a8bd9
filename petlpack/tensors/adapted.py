"""Which modules of a base an adapter's tensors belong to, told by names and widths: no adapter says it by itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

MOST_DROPPED = 4
"""Leading parts of a name that may differ between adapter and base (`base_model.model.`, `bert.`)."""

WRAPPER = "base_model."
"""What PEFT puts in front of every name, also of what belongs to no module."""

LEAST_PARTS = 3
"""Parts by which a module is told where a name has more in front: `encoder`, or `layer.0`, is in every model."""


@dataclass(frozen=True)
class Adapted:
    """The modules of a base that tensors adapt: a base tensor's names by module, and the tensors that fit nowhere.

    A tensor whose name has no module at all (a prompt) is in neither.
    """

    modules: Mapping[str, tuple[str, ...]]
    strangers: tuple[str, ...]

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
        self._find = functools.lru_cache(maxsize=_REMEMBERED)(self._find_each)

    def adapted(self, shapes: Shapes) -> Adapted:
        """Find the module of the base that each tensor adapts.

        It is the longest name of a module, but for leading parts on both sides, that the tensor's name begins with, and
        that has a tensor with a size in common with it. Shapes are by name; without one a tensor fits by name alone.
        """
        return self._find(tuple(shapes.items()))

    def _find_each(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Adapted:
        fitting: dict[str, tuple[str, ...]] = {}
        strangers = []
        for name, shape in shapes:
            if "." not in name.removeprefix(WRAPPER):
                continue
            candidates = _candidates(name, self._endings)
            module = next((m for m in candidates if _fits(shape, self._modules[m], self._base)), None)
            if module is None:
                strangers.append(name)
            else:
                fitting[module] = self._modules[module]
        return Adapted(fitting, tuple(strangers))


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


def _candidates(name: str, endings: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the modules that a tensor's name may begin with: the longest name first, then the least dropped."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        for dropped in range(min(MOST_DROPPED, end - 1) + 1):
            yield from endings.get(".".join(parts[dropped:end]), ())


def _fits(shape: tuple[int, ...], names: tuple[str, ...], base: Shapes) -> bool:
    return not shape or any(set(shape) & set(base[name]) for name in names)
