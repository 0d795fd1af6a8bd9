"""`merge`: a mixture of experts averaged into one (formats/codecs/merge.md).

AdaMix (Wang et al. 2022), section 3.3: after training with random routing the experts' weights are averaged. The sum
runs in the experts' order in the tensors' own precision, as the reference code runs it (expert_soup.py:34-45).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from petlpack.codecs.codec import Way
from petlpack.codecs.method import MethodCodec, Rule
from petlpack.errors import DamageError, RefusedError, printable
from petlpack.rules import arithmetic
from petlpack.rules.modules import Average, Mixture, Module, Rebuilt
from petlpack.rules.rows import any_layer, check_rule, find, maybe_text, parse_rows, rebuilt, text, texts, to_rule
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class MergeCodec(MethodCodec):
    """Weighted sum of experts; one expert is itself."""

    id = "merge"
    takes = MappingProxyType({Mixture: (Way(),)})

    def rule_of(self, module: Module) -> dict[str, Any]:
        """Return the rule of a mixture."""
        assert isinstance(module, Mixture)
        return to_rule(module.use, module.rows)

    def kinds(self, rule: Rule | None) -> dict[str, str]:
        """Return no kinds: the names tell them."""
        _parse(rule)
        return {}

    def rebuild(self, rule: Rule | None, tensors: Mapping[str, Tensor]) -> Rebuilt:
        """Return the averages."""
        rows = _parse(rule)
        assert rule is not None
        return rebuilt(rule, {row.output: _average_of(row, tensors) for row in rows})

    def formula(self, rule: Rule | None) -> list[str]:
        """Return the rule as formulas."""
        lines = set()
        for row in _parse(rule):
            if row.scores is None:
                lines.add(f"{any_layer(row.output)} = {any_layer(row.experts[0])}")
            else:
                weights = f"softmax({any_layer(row.scores)})"
                expert = re.sub(r"(experts(?:_lora_[AB])?)\.0\b", r"\1.e", any_layer(row.experts[0]))
                total = f"sum over e < {len(row.experts)} of {weights}[e] * {expert}"
                lines.add(f"{any_layer(row.output)} = {total}")
        return sorted(lines)


def _average_of(row: Average, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted sum of a row's experts; raises DamageError where they disagree in number, shape or dtype."""
    experts = [find(tensors, name) for name in row.experts]
    if row.scores is None:
        return experts[0]
    scores = find(tensors, row.scores)
    if scores.shape != (len(experts),):
        raise DamageError(
            f"scores '{printable(row.scores)}' are {list(scores.shape)}, expected [{len(experts)}], one an expert",
            code="rule-shape",
        )
    first = experts[0]
    for name, expert in zip(row.experts, experts, strict=True):
        if (expert.dtype, expert.shape) != (first.dtype, first.shape):
            raise DamageError(
                f"expert '{printable(name)}' is {expert.dtype.name} {list(expert.shape)}, "
                f"but '{printable(row.experts[0])}' is {first.dtype.name} {list(first.shape)}",
                code="rule-shape",
            )

    return arithmetic.average(experts, scores)


def _parse(rule: Rule | None) -> list[Average]:
    return parse_rows(check_rule(rule)["rows"], _average)


def _average(row: Any) -> Average:
    output, experts, scores = row
    parsed = Average(text(output), texts(experts), maybe_text(scores))
    if not parsed.experts or (parsed.scores is None and len(parsed.experts) > 1):
        raise RefusedError(f"{len(parsed.experts)} experts need scores, got none", code="rule-value")
    return parsed
