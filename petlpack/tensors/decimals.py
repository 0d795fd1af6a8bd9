"""Fractions as texts: canonical JSON has no floats, which every language prints in its own way."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?")
_LONGEST = 32
"""Characters: the shortest decimal of any F64 has at most 24."""


def decimal_text(value: float) -> str:
    """Return the shortest decimal that rounds to a float; `parse_decimal` takes it where the float is finite."""
    return repr(float(value))


def parse_decimal(text: object) -> float | None:
    """Return the float nearest to a decimal as it stands in a pack; None for what is none, or is not finite."""
    if not isinstance(text, str) or len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None
