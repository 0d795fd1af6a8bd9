"""`mask`: prototypes that layers and tasks share, and a binary mask for each (formats/codecs/mask.md).

PROPETL, "One Network, Many Masks" (Zeng, Zhang and Lu 2023), section 3: a layer's weights are the prototype's where the
layer's mask keeps them, and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from petlpack.codecs.codec import Way
from petlpack.codecs.method import MethodCodec, Rule
from petlpack.errors import DamageError, RefusedError, printable
from petlpack.rules.arithmetic import computed, floats, produce
from petlpack.rules.modules import Masked, MaskedMatrix, Module, Produced, Rebuilt
from petlpack.rules.rows import (
    any_layer,
    check_rule,
    find,
    in_all_layers,
    pair,
    parse_rows,
    rebuilt,
    shaped,
    text,
    texts,
    to_rule,
    truth,
    whole,
)
from petlpack.tensors.tensor import Tensor

COMBINE = ("none", "or", "and", "add")


@dataclass(frozen=True)
class MaskCodec(MethodCodec):
    """Prototype times mask."""

    id = "mask"
    takes = MappingProxyType({Masked: (Way(),)})

    def rule_of(self, module: Module) -> dict[str, Any]:
        """Return the rule of a masked module."""
        assert isinstance(module, Masked)
        return to_rule(module.use, module.rows, produced=module.produced)

    def kinds(self, rule: Rule | None) -> dict[str, str]:
        """Return for each mask the prototype that it is used with: masks over one prototype are of one kind."""
        rows, _ = _parse(rule)
        return {mask: row.prototype for row in reversed(rows) for mask in row.masks}

    def rebuild(self, rule: Rule | None, tensors: Mapping[str, Tensor]) -> Rebuilt:
        """Return the masked matrices: the prototype's floats times 0, 1, or 2 where masks are added."""
        rows, produced = _parse(rule)
        assert rule is not None
        prototypes = {row.name: _produce(row, tensors) for row in produced}
        sources = {**tensors, **prototypes}
        return rebuilt(rule, {row.output: _masked(row, sources) for row in rows})

    def formula(self, rule: Rule | None) -> list[str]:
        """Return the rule as formulas."""
        rows, produced = _parse(rule)
        lines = [f"{row.name} = W2 tanh(W1 {row.codes} + b1) + b2" for row in produced]
        groups: dict[tuple[str, int], list[MaskedMatrix]] = {}
        for row in rows:
            groups.setdefault((any_layer(row.output), len(row.masks)), []).append(row)
        for (output, _), group in groups.items():
            first = group[0]
            sources = [in_all_layers([row.masks[i] for row in group]) for i in range(len(first.masks))]
            names = [source if first.index is None else f"{source}[l]" for source in sources]
            mask = {"or": " or ", "and": " and ", "add": " + "}.get(first.combine, "").join(names)
            mask = f"({mask})" if len(names) > 1 else mask
            product = f" * {mask}{'^T' if first.transposed else ''}" if names else ""
            lines.append(f"{output} = {in_all_layers([row.prototype for row in group])}{product}")
        return sorted(lines)


def _parse(rule: Rule | None) -> tuple[list[MaskedMatrix], list[Produced]]:
    rule = check_rule(rule, "produced")
    return parse_rows(rule["rows"], _matrix), parse_rows(rule["produced"], _produced)


def _matrix(row: Any) -> MaskedMatrix:
    output, prototype, masks, combine, transposed, index = row
    matrix = MaskedMatrix(
        text(output),
        text(prototype),
        texts(masks),
        text(combine),
        truth(transposed),
        None if index is None else whole(index),
    )
    if combine not in COMBINE or (len(matrix.masks) > 1) == (combine == "none"):
        raise RefusedError(f"cannot combine {len(matrix.masks)} masks by '{combine}'", code="rule-value")
    return matrix


def _produced(row: Any) -> Produced:
    name, codes, first, second = row
    return Produced(text(name), text(codes), pair(first), pair(second))


def _masked(row: MaskedMatrix, tensors: Mapping[str, Tensor]) -> Tensor:
    prototype = find(tensors, row.prototype)
    if not row.masks:
        return prototype
    masks = [find(tensors, name) for name in row.masks]
    shape = tuple(reversed(prototype.shape)) if row.transposed else prototype.shape
    for name, mask in zip(row.masks, masks, strict=True):
        of_mask = mask.shape if row.index is None else mask.shape[1:]
        if mask.dtype.name != "BOOL" or of_mask != shape or (row.index is not None and row.index >= mask.shape[0]):
            code = "rule-shape" if mask.dtype.name != "BOOL" or of_mask != shape else "rule-reference"
            raise DamageError(
                f"mask '{printable(name)}' is {mask.dtype.name} {list(mask.shape)}, but masks "
                f"prototype '{printable(row.prototype)}' {list(prototype.shape)}",
                code=code,
            )

    def compute() -> NDArray[Any]:
        layers = [mask.bits() if row.index is None else mask.bits()[row.index] for mask in masks]
        kept = layers[0]
        for layer in layers[1:]:
            kept = kept | layer if row.combine == "or" else kept & layer if row.combine == "and" else kept + layer
        numbers = floats(prototype)
        product: NDArray[Any] = numbers * (kept.T if row.transposed else kept).astype(numbers.dtype)
        return product

    return computed(prototype, prototype.shape, compute)


MOST_HIDDEN = 1 << 24
"""Hidden numbers of a produced prototype, over all its rows: 1,000 rows of 4,096 are a fourth of it."""


def _produce(row: Produced, tensors: Mapping[str, Tensor]) -> Tensor:
    codes, first, second = (find(tensors, name) for name in (row.codes, row.first[0], row.second[0]))
    if len(codes.shape) != 2 or not first.shape or not second.shape:
        raise DamageError(
            f"tensor '{printable(row.codes)}' is {list(codes.shape)}, the rule needs a matrix", code="rule-shape"
        )
    inner, outer = first.shape[0], second.shape[0]
    if codes.shape[0] * inner > MOST_HIDDEN:
        message = f"prototype '{printable(row.name)}' needs {codes.shape[0] * inner:,} hidden numbers"
        raise DamageError(f"{message}, expected at most {MOST_HIDDEN:,}", code="rule-shape")
    return produce(
        codes,
        (shaped(tensors, row.first[0], inner, codes.shape[1]), shaped(tensors, row.first[1], inner)),
        (shaped(tensors, row.second[0], outer, inner), shaped(tensors, row.second[1], outer)),
    )
