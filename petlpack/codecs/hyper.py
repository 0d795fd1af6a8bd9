"""`hyper`: adapters that a network generates from codes of layer and task (formats/codecs/hyper.md).

PHA (Zhao, Fu and He 2023), section 3.3, and HyperFormer++ (Mahabadi et al. 2021), section 2.3. The network is
stored exactly; what it generates is computed in float64 and rounded once to the network's own dtype, so it lies within
one rounding of the formula, and within some 1e-6 of what a float32 matrix product gives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.codecs.codec import Way
from petlpack.codecs.method import MethodCodec, Rule
from petlpack.errors import DamageError, RefusedError, printable
from petlpack.rules.arithmetic import computed, floats
from petlpack.rules.modules import Generated, Generator, Module, Rebuilt, Trunk
from petlpack.rules.rows import (
    any_layer,
    check_rule,
    find,
    maybe_text,
    pair,
    parse_rows,
    rebuilt,
    shaped,
    text,
    to_rule,
    truth,
    whole,
)
from petlpack.tensors.decimals import parse_decimal
from petlpack.tensors.safetensors_file import is_shape
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class HyperCodec(MethodCodec):
    """A generator, shared by all tasks, and a row of codes for each."""

    id = "hyper"
    takes = MappingProxyType({Generator: (Way(),)})

    def rule_of(self, module: Module) -> dict[str, Any]:
        """Return the rule of a generator."""
        assert isinstance(module, Generator)
        return to_rule(module.use, module.rows, trunks=module.trunks)

    def kinds(self, rule: Rule | None) -> dict[str, str]:
        """Return no kinds: the names tell them."""
        _parse(rule)
        return {}

    def rebuild(self, rule: Rule | None, tensors: Mapping[str, Tensor]) -> Rebuilt:
        """Return the generated matrices."""
        rows, trunks = _parse(rule)
        assert rule is not None
        hidden = _Hidden(trunks, tensors)
        return rebuilt(rule, {row.output: _generate(row, hidden, tensors) for row in rows})

    def formula(self, rule: Rule | None) -> list[str]:
        """Return the rule as formulas."""
        rows, trunks = _parse(rule)
        lines = set()
        for row in rows:
            if row.trunk is None:
                lines.add(f"{any_layer(row.output)} = {any_layer(row.weight)}")
                continue
            norm = trunks[row.trunk].norm is not None
            h = "norm(W2 relu(W1 c + b1) + b2)" if norm else "W2 relu(W1 c + b1) + b2"
            codes = ", ".join(f"{any_layer(name)}[{'l' if i else 0}]" for i, (name, _) in enumerate(row.codes))
            lines.add(f"h = {h}, c = [{codes}]")
            shape = "x".join(map(str, row.shape)) + (", transposed" if row.transposed else "")
            lines.add(f"{any_layer(row.output)} = ({any_layer(row.weight)} h + bias) as {shape}")
        return sorted(lines)


class _Hidden:
    """What the trunks make of codes, each computed once: the outputs of a layer share it."""

    def __init__(self, trunks: list[Trunk], tensors: Mapping[str, Tensor]) -> None:
        self._trunks, self._tensors = trunks, tensors
        self.of = functools.lru_cache(maxsize=256)(self._compute)

    def _compute(self, trunk: int, codes: tuple[tuple[str, int], ...]) -> NDArray[np.float64]:
        rule, tensors = self._trunks[trunk], self._tensors
        code = np.concatenate([_code(tensors, name, row) for name, row in codes])
        inner, outer = _rows(tensors, rule.first[0]), _rows(tensors, rule.second[0])
        w1, b1 = _wide(tensors, rule.first[0], inner, len(code)), _wide(tensors, rule.first[1], inner)
        w2, b2 = _wide(tensors, rule.second[0], outer, inner), _wide(tensors, rule.second[1], outer)
        hidden: NDArray[np.float64] = w2 @ np.maximum(w1 @ code + b1, 0) + b2
        if rule.norm is not None:
            scale, shift = (_wide(tensors, name, outer) for name in rule.norm)
            centred = hidden - hidden.mean()
            hidden = centred / np.sqrt((centred**2).mean() + rule.eps) * scale + shift
        return hidden


def _generate(row: Generated, hidden: _Hidden, tensors: Mapping[str, Tensor]) -> Tensor:
    weight = find(tensors, row.weight)
    if row.trunk is None:
        return weight
    trunk, size = row.trunk, math.prod(row.shape)
    if weight.shape[:1] != (size,):
        raise DamageError(
            f"tensor '{printable(row.weight)}' is {list(weight.shape)}, the rule needs {size:,} rows for an output "
            f"of {list(row.shape)}",
            code="rule-shape",
        )

    def compute() -> NDArray[Any]:
        h = hidden.of(trunk, row.codes)
        flat = _wide(tensors, row.weight, size, len(h)) @ h
        if row.bias is not None:
            flat = flat + _wide(tensors, row.bias, size)
        matrix: NDArray[Any] = flat.reshape(row.shape)
        return matrix.T if row.transposed else matrix

    shape = tuple(reversed(row.shape)) if row.transposed else row.shape
    return computed(weight, shape, compute)


def _wide(tensors: Mapping[str, Tensor], name: str, *shape: int) -> NDArray[np.float64]:
    """Return a tensor of this shape as float64."""
    return floats(shaped(tensors, name, *shape)).astype(np.float64)


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    tensor = find(tensors, name)
    return tensor.shape[0] if tensor.shape else 0


def _code(tensors: Mapping[str, Tensor], name: str, row: int) -> NDArray[np.float64]:
    """Return one row of a matrix of codes; a vector is one row."""
    table = np.atleast_2d(floats(find(tensors, name)).astype(np.float64))
    if table.ndim != 2 or row >= len(table):
        raise DamageError(
            f"tensor '{printable(name)}' is {list(table.shape)}, the rule needs its row {row}",
            code="rule-reference" if table.ndim == 2 else "rule-shape",
        )
    code: NDArray[np.float64] = table[row]
    return code


def _parse(rule: Rule | None) -> tuple[list[Generated], list[Trunk]]:
    rule = check_rule(rule, "trunks")
    trunks = parse_rows(rule["trunks"], _trunk)
    rows = parse_rows(rule["rows"], _generated)
    if any(row.trunk is not None and row.trunk >= len(trunks) for row in rows):
        raise DamageError(f"a row refers to a trunk out of range: the rule has {len(trunks)}", code="rule-reference")
    return rows, trunks


def _trunk(row: Any) -> Trunk:
    first, second, norm, said = row
    eps = parse_decimal(said)
    if eps is None or not 0 <= eps < 1:
        raise RefusedError(f"epsilon must be a decimal in [0, 1), got {said!r}", code="rule-value")
    return Trunk(pair(first), pair(second), None if norm is None else pair(norm), eps)


def _shape(value: Any) -> tuple[int, ...]:
    shape = [whole(size) for size in value]
    if not is_shape(shape):
        raise RefusedError(f"no array has the shape {shape!r:.80}", code="rule-value")
    return tuple(shape)


def _generated(row: Any) -> Generated:
    output, weight, bias, trunk, codes, shape, transposed = row
    if trunk is not None and not codes:
        raise RefusedError("a row with a trunk needs codes, got none", code="rule-value")
    return Generated(
        text(output),
        text(weight),
        maybe_text(bias),
        None if trunk is None else whole(trunk),
        tuple((text(name), whole(index)) for name, index in codes),
        _shape(shape),
        truth(transposed),
    )
