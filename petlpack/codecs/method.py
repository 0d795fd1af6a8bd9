"""How the tensors of a method are stored, and how its rule is read: what `mask`, `merge` and `hyper` have in common.

The units are laid down in formats/methods.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

from petlpack.codecs.base import (
    Codec,
    Piece,
    ReadSection,
    Section,
    Unit,
    base_pieces,
    exactly,
    group,
    own_pieces,
    own_section,
    read_own,
)
from petlpack.coding.base import Array
from petlpack.errors import DamageError, UnknownFormatError, printable
from petlpack.modules import Rebuilt, Use
from petlpack.template import Slot
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import Tensor

UNIT = 1 << 20
"""Elements of a unit of floats, as in `ulp`."""

MASKS = 1 << 24
"""Entries of a unit of masks: all layers of a model, so that each is coded by what the others say."""

LEAST_LAYER = 1 << 10

Rule = Mapping[str, Any]


class Method(Codec):
    """Units of a method: masks with what shared parts say of them, tensors, what differs from the base, the head."""

    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut into `masks.N`, `tensors.N`, `changed.N` against the base, and `head.N`."""
        own = [piece for piece in own_pieces(slots) if not piece.slot.head]
        masks = [piece for piece in own if is_mask(piece.slot)]
        return [
            *(replace(unit, given=_same_entries(unit, shared)) for unit in _mask_units(masks)),
            *group(
                (piece for piece in own if not is_mask(piece.slot)),
                "tensors",
                UNIT,
                role="own",
                row=lambda slot: slot.row,
            ),
            *group(base_pieces(slots), "changed", UNIT, role="base", row=lambda slot: slot.row),
            *group((p for p in own_pieces(slots) if p.slot.head), "head", UNIT, role="head"),
        ]

    def encode(self, unit: Unit, tuned: Bits, given: Bits | None) -> list[Section]:
        """Return one section."""
        if unit.role == "base":
            array = Array(unit.dtype, unit.size, unit.row, given)
            return [Section(unit.name, tuned, array, ("rows", "ulps", "numbers"))]
        if unit.role == "mask":
            return [Section(unit.name, tuned, Array(unit.dtype, unit.size, unit.row, given), ("masks", "bitmap"))]
        return [own_section(unit, tuned)]

    def decode(self, unit: Unit, read: ReadSection, given: Bits | None) -> Bits:
        """Return the flat elements."""
        return (
            read_own(unit, read) if given is None else read(unit.name, unit.dtype, exactly(unit.size), unit.row, given)
        )


def is_mask(slot: Slot) -> bool:
    """Tell whether a tensor is a binary mask."""
    return slot.dtype.name == "BOOL"


def entries(slot: Slot) -> int:
    """Return the entries of one mask: one layer of a tensor of three or more dimensions, else all of it.

    Layers of fewer than LEAST_LAYER entries are no masks of their own: a decoder works mask by mask.
    """
    layer = slot.size // slot.shape[0] if len(slot.shape) > 2 and slot.shape[0] else 0
    return layer if layer >= LEAST_LAYER else max(1, slot.size)


def _mask_units(masks: list[Piece]) -> list[Unit]:
    """Return units of one kind of masks each: only masks over the same entries say anything of each other."""
    units: list[Unit] = []
    for kind in sorted({piece.slot.kind for piece in masks}):
        members = (piece for piece in masks if piece.slot.kind == kind)
        for unit in group(members, "masks", MASKS, role="mask", row=entries):
            units.append(replace(unit, name=f"masks.{len(units)}"))
    return units


def _same_entries(unit: Unit, shared: Iterable[Slot]) -> tuple[Slot, ...]:
    """Return the masks of shared parts over the same entries as those of a unit: nameless ones alone where there are.

    A nameless mask is what the masks of several tasks have in common, and is there for nothing else.
    """
    kind = unit.pieces[0].slot.kind
    if unit.size % unit.row:
        return ()
    masks = [slot for slot in shared if is_mask(slot) and slot.kind == kind and entries(slot) == unit.row]
    return tuple([slot for slot in masks if not slot.name] or masks)


# Rules


def to_rule(use: Use, rows: Sequence[Any], **more: Sequence[Any]) -> dict[str, Any]:
    """Return the JSON of a rule: how the outputs are used, a row for each, and rows of `more`."""
    tables = {name: [_as_lists(astuple(row)) for row in table] for name, table in {"rows": rows, **more}.items()}
    return {"kind": use.kind, "settings": dict(use.settings), **tables}


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def check_rule(rule: Rule | None, *more: str) -> Rule:
    """Return a rule that has the fields of every rule and `more`; raises DamageError."""
    if rule is None or set(rule) != {"kind", "settings", "rows", *more}:
        raise DamageError(f"a rule has other fields than kind, settings, rows{''.join(f', {name}' for name in more)}")
    if rule["kind"] not in ("adapter", "lora", "prefix"):
        raise UnknownFormatError(f"a rule for {printable(repr(rule['kind']))}, known are adapter, lora, prefix")
    settings = rule["settings"]
    if not isinstance(settings, dict):
        raise DamageError("a rule has settings that are not an object")
    for name, value in settings.items():
        if name in _SETTINGS and not _SETTINGS[name](value):
            raise DamageError(f"a rule has {name} {printable(repr(value))}, which makes no sense")
    return rule


def _is_flags(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 3 and all(type(flag) is bool for flag in value) and any(value)


_SETTINGS: Mapping[str, Callable[[object], bool]] = {
    "scaling": lambda value: type(value) in (int, float) and abs(value) < 1e30,  # type: ignore[arg-type]
    "activation": lambda value: isinstance(value, str),
    "form": lambda value: isinstance(value, str),
    "norm_input": lambda value: type(value) is bool,
    "enable": _is_flags,
}
"""What is checked of the settings of a rule; a reader may not know others, and nothing is computed from them."""


def parse_rows(rows: object, parse: Callable[[Any], Any]) -> list[Any]:
    """Return the rows of a rule as `parse` makes them; raises DamageError for one that it cannot take apart."""
    try:
        return [parse(row) for row in _list(rows)]
    except (TypeError, ValueError, IndexError) as error:
        raise DamageError(f"a rule has a row that makes no sense: {printable(str(error))}") from error


def text(value: object) -> str:
    """Return a text of a rule; raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def maybe_text(value: object) -> str | None:
    """Return a text or None of a rule."""
    return None if value is None else text(value)


def texts(value: object) -> tuple[str, ...]:
    """Return a list of texts of a rule."""
    return tuple(text(item) for item in _list(value))


def pair(value: object) -> tuple[str, str]:
    """Return two texts of a rule."""
    first, second = texts(value)
    return first, second


def whole(value: object) -> int:
    """Return a number from 0 of a rule."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise TypeError(f"{value!r} is not a number from 0")
    return value


def truth(value: object) -> bool:
    """Return a truth value of a rule."""
    if type(value) is not bool:
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


_NUMBERED = re.compile(r"(?<=\.block\.|\.layer\.)\d+|(?<=\.h\.)\d+")


def any_layer(name: str) -> str:
    """Return a name with `l` in the place of its layer's number, for formulas: the first number after its stack."""
    return _NUMBERED.sub("l", f".{name}", count=1)[1:]


def in_all_layers(names: Sequence[str]) -> str:
    """Return what stands in a formula for one tensor in every layer: its name, or that of layer `l`."""
    return names[0] if len(set(names)) == 1 else any_layer(names[0])


# Rebuilding


def rebuilt(rule: Rule, outputs: Mapping[str, Tensor]) -> Rebuilt:
    """Return the outputs of a rule with how they are used."""
    return Rebuilt(rule["kind"], rule["settings"], outputs)


def find(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor that a rule names; raises DamageError where there is none."""
    if name not in tensors:
        raise DamageError(f"a rule names tensor '{printable(name)}', which the task does not have")
    return tensors[name]


def shaped(tensors: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
    """Return a tensor that a rule names, of this shape; raises DamageError where it has another."""
    tensor = find(tensors, name)
    if tensor.shape != shape:
        raise DamageError(f"'{printable(name)}' is {list(tensor.shape)}, the rule needs {list(shape)}")
    return tensor
