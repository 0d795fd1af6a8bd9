"""How the tensors of a task are found: in its own units, in shared parts, in the base, or as others of the task."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from petlpack.errors import DamageError, RefusedError, printable, reason
from petlpack.records.slot import Slot


@dataclass(frozen=True)
class Sources:
    """How the tensors of a task are found.

    Unchanged ones are in the base, aliases in others, some in shared parts, the rest in units.
    """

    slots: tuple[Slot, ...]
    unchanged: frozenset[int]
    aliases: Mapping[int, int]
    name: str | None = None
    """The task's own name inside keys and files, a parameter of the template."""

    @property
    def stored(self) -> list[Slot]:
        """The tensors that the task's own sections hold."""
        elsewhere = {*self.unchanged, *self.aliases}
        return [slot for i, slot in enumerate(self.slots) if i not in elsewhere and slot.part is None and slot.size]

    def to_params(self) -> dict[str, Any]:
        """Return the manifest's form: ranges of unchanged tensors and pairs of aliases, as indices."""
        return {
            "unchanged": _ranges(sorted(self.unchanged)),
            "aliases": [list(pair) for pair in sorted(self.aliases.items())],
            "name": self.name,
        }


def _ranges(numbers: list[int]) -> list[list[int]]:
    """Return rising numbers as [start, stop] ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    return ranges


def parse_sources(params: Mapping[str, Any], slots: tuple[Slot, ...]) -> Sources:
    """Parse and check the sources in a manifest's parameters; raises DamageError."""
    if set(params) != {"unchanged", "aliases", "name"}:
        odd = printable(min(map(str, set(params) ^ {"unchanged", "aliases", "name"})))
        raise DamageError(f"manifest params have a missing or unexpected field '{odd}'", code="params-fields")
    try:
        ranges = [(start, stop) for start, stop in params["unchanged"]]
        if not all(type(i) is int and 0 <= i <= len(slots) for pair in ranges for i in pair):
            raise RefusedError(f"tensor index out of range: there are {len(slots)} tensors", code="params-index")
        if not all(first[1] < second[0] for first, second in itertools.pairwise(ranges)):
            raise RefusedError("the ranges of unchanged must rise and not touch", code="params-order")
        unchanged = frozenset(i for start, stop in ranges for i in range(start, stop))
        sources = Sources(slots, unchanged, {alias: other for alias, other in params["aliases"]}, params["name"])
        if not all(type(i) is int and 0 <= i < len(slots) for i in [*sources.aliases, *sources.aliases.values()]):
            raise RefusedError(f"tensor index out of range: there are {len(slots)} tensors", code="params-index")
        _check(sources)
        if sources.to_params() != dict(params):
            lists = isinstance(params["unchanged"], list) and isinstance(params["aliases"], list)
            raise RefusedError(
                "unchanged and aliases are not in canonical order" if lists else "unchanged and aliases must be lists",
                code="params-order" if lists else "params-fields",
            )
    except (TypeError, ValueError) as error:
        code = reason(error, "params-fields")
        raise DamageError(f"invalid params in the manifest: {printable(str(error))}", code=code) from error
    return sources


def _check(sources: Sources) -> None:
    """Raise RefusedError where a tensor is not what is said to be the same: the base's, or another of the task."""
    slots = sources.slots
    for i in sources.unchanged:
        base = slots[i].base
        if base is None or base.shape != slots[i].shape:
            raise RefusedError(
                f"'{slots[i].name}' is listed as unchanged, but the base has no tensor of that name and shape",
                code="unchanged-tensor",
            )
    for alias, other in sources.aliases.items():
        if (slots[alias].dtype, slots[alias].shape) != (slots[other].dtype, slots[other].shape):
            raise RefusedError(
                f"'{slots[alias].name}' is {slots[alias].dtype.name} {list(slots[alias].shape)}, but an alias of "
                f"'{slots[other].name}', which is {slots[other].dtype.name} {list(slots[other].shape)}",
                code="alias-shape",
            )
        if slots[alias].part is not None:
            raise RefusedError(f"'{slots[alias].name}' is both in a shared part and an alias", code="part-elsewhere")
    if sources.aliases.keys() & {*sources.unchanged, *sources.aliases.values()}:
        raise RefusedError("an alias cannot be unchanged, or point to another alias", code="alias-chain")
