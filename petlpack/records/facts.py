"""What a manifest tells people of a task. Decoding depends on nothing of it, so anything may stand there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from petlpack.tensors.decimals import decimal_text, parse_decimal

_MOST = 1 << 62
"""No count is larger; what says more says nothing."""


@dataclass(frozen=True)
class Score:
    """What a run says it reached: the metric's name, and its value as the run states it (0.9 or 90)."""

    metric: str
    value: float


@dataclass(frozen=True)
class Facts:
    """What the encoder knew of a run. Texts are as they are: who shows them escapes them.

    What a manifest does not say has its default.

    `whole` tells that the run is a whole trained model; `run_bytes` are those of all its tensors; `errors` are the
    largest absolute errors of tensors that lost changes, `density` the share of changes that they kept. `figures` are
    counts: `trained` parameters, mask entries `kept`, float numbers and bytes (`base`, `base_bytes`) of a base that
    only the accounting needs.
    """

    layout: str = "unknown"
    method: str = "unknown"
    whole: bool = False
    exact: bool = True
    run_bytes: int | None = None
    task: str = ""
    score: Score | None = None
    note: str = ""
    density: float | None = None
    errors: Mapping[str, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, int] = field(default_factory=dict)

    @property
    def error(self) -> float | None:
        """The largest error that is stated of a tensor; None where none is."""
        return max((self.errors or {}).values(), default=None)

    @property
    def asked_density(self) -> float | None:
        """The share of changes that the encoder was asked to keep; None where it was to keep all."""
        density = parse_decimal(self.options.get("density"))
        return density if density is not None and 0 < density < 1 else None

    @classmethod
    def parse(cls, facts: Mapping[str, Any]) -> Facts:
        """Read the facts of a manifest; what makes no sense counts as not said."""
        errors = facts.get("error")
        figures, options = _object(facts, "figures"), _object(facts, "options")
        return cls(
            layout=_text(facts, "layout", "unknown"),
            method=_text(facts, "method", "unknown"),
            whole=facts.get("whole") is True,
            exact=facts.get("exact", True) is True,
            run_bytes=_count(facts.get("run_bytes")),
            task=_text(facts, "task", ""),
            score=_score(facts.get("score")),
            note=_text(facts, "note", ""),
            density=parse_decimal(facts.get("density")),
            errors=_numbers(errors) if isinstance(errors, dict) else None,
            options=options,
            figures={name: count for name, value in figures.items() if (count := _count(value)) is not None},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a manifest holds them: those that say anything."""
        score = None if self.score is None else [self.score.metric, self.score.value]
        figures = {name: count for name, count in self.figures.items() if _count(count) is not None}
        rows: dict[str, Any] = {
            **{"layout": self.layout, "method": self.method, "whole": self.whole or None},
            **{"exact": None if self.exact else False, "run_bytes": self.run_bytes, "task": self.task or None},
            **{"score": score, "note": self.note or None, "density": self.density, "error": self.errors},
            **{"options": dict(self.options) or None, "figures": figures or None},
        }
        return {name: _plain(row) for name, row in rows.items() if row is not None}


def _plain(value: Any) -> Any:
    """Return a value as canonical JSON can have it: floats as decimals, half a character as its escape."""
    if isinstance(value, float):
        return decimal_text(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _text(facts: Mapping[str, Any], name: str, default: str) -> str:
    return str(facts.get(name, default))


def _object(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = facts.get(name)
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST else None


def _numbers(table: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: parse_decimal(value) for name, value in table.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _score(pair: object) -> Score | None:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        return None
    value = parse_decimal(pair[1])
    return None if value is None else Score(pair[0], value)
