"""A rebuilt module taken apart by its places, as the writers of other libraries' layouts need it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from petlpack.errors import UsageError, printable
from petlpack.rules.modules import Rebuilt
from petlpack.tensors.tensor import Tensor

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""The two factors of a LoRA, A and B, by place."""

SAFETENSORS_HINT = "`--to safetensors` writes the tensors as they are"


def lora_factors(rebuilt: Rebuilt, library: str) -> Factors:
    """Return the factors of a rebuilt LoRA by place; raises UsageError where it is none, or its shapes disagree."""
    if rebuilt.kind != "lora":
        hint = "`--to adapterhub` writes adapters, " if rebuilt.kind == "adapter" and library == "PEFT" else ""
        raise UsageError(f"it is of kind '{rebuilt.kind}', which {library} cannot hold", hint=hint + SAFETENSORS_HINT)
    groups = sum(rebuilt.settings.get("enable") or (True,))
    factors = {place: (parts[0], parts[1]) for place, parts in by_place(rebuilt, ("lora_A", "lora_B")).items()}
    for place, (a, b) in factors.items():
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != groups * b.shape[1] or b.shape[0] % groups:
            raise UsageError(
                f"the LoRA at '{printable(place)}' has A {list(a.shape)} and B {list(b.shape)}, "
                f"which do not agree on a rank for {groups} group{'s' if groups > 1 else ''}",
                hint=SAFETENSORS_HINT,
            )
    return factors


def by_place(rebuilt: Rebuilt, parts: Sequence[str]) -> dict[str, list[Tensor]]:
    """Return the tensors of each place in the order of `parts`; raises UsageError for a place that has others."""
    places: dict[str, dict[str, Tensor]] = {}
    for name, tensor in rebuilt.tensors.items():
        part = next((part for part in parts if name.endswith(f".{part}")), "")
        place = name.removesuffix(f".{part}") if part else name
        places.setdefault(place, {})[part] = tensor
    for place, of_place in places.items():
        if of_place.keys() != set(parts):
            raise UsageError(
                f"'{printable(place)}' has {_list(of_place) or 'other tensors'}, an exported {rebuilt.kind} needs "
                f"{_list(parts)}",
                hint=SAFETENSORS_HINT,
            )
    if not places:
        raise UsageError(f"the {rebuilt.kind} has no tensors to export", hint=SAFETENSORS_HINT)
    return {place: [of_place[part] for part in parts] for place, of_place in places.items()}


def alpha_of(scaling: float, rank: int) -> float:
    """Return an alpha with `alpha / rank == scaling`, to the bit; raises UsageError where there is none."""
    nearest = float(scaling * rank)
    for alpha in (nearest, math.nextafter(nearest, math.inf), math.nextafter(nearest, -math.inf)):
        if alpha / rank == scaling:
            return int(alpha) if alpha.is_integer() else alpha
    raise UsageError(f"no alpha gives a scaling of {scaling!r} at rank {rank}", hint=SAFETENSORS_HINT)


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a config as the libraries do: indented, keys sorted."""
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def left_out(names: Iterable[str], why: str) -> str:
    """Return the warning about tensors of a head that have no place in what is written."""
    return f"left out {_list(names)}: {why}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{printable(name)}'" for name in names if name)
