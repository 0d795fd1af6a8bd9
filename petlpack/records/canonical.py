"""Canonical JSON: one text for one value, so that what says the same has the same digest."""

from __future__ import annotations

import json
import re

from petlpack.errors import RefusedError

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True, allow_nan=False)

_SHA256 = re.compile(r"[0-9a-f]{64}")


def canonical_json(value: object) -> bytes:
    """Return the canonical JSON of a value: sorted keys, no spaces, UTF-8; raises ValueError for what has none."""
    return _ENCODER.encode(value).encode()


def parse_sha256(value: object) -> str:
    """Return a sha256 in lower-case hexadecimal digits; raises ValueError for anything else."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise RefusedError(f"expected a sha256, got {value!r}", code="sha256-digits")
    return value
