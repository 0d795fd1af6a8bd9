"""Canonical JSON: one text for one value, so that what says the same has the same digest."""

from __future__ import annotations

import json
import re
from typing import Any

from petlpack.errors import RefusedError
from petlpack.tensors.strict_json import decode_integers

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True, allow_nan=False)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECKSUM = re.compile(r"[0-9a-f]{16}")


def canonical_json(value: object) -> bytes:
    """Return the canonical JSON of a value: sorted keys, no spaces, UTF-8; raises ValueError for what has none.

    Floats are for the caller to write as texts (`decimal`): a reader refuses them.
    """
    return _ENCODER.encode(value).encode()


def read_canonical(text: bytes) -> tuple[Any, bytes]:
    """Return the value of a JSON text, and the canonical text of that value; raises ValueError for what has none."""
    try:
        value = decode_integers(text)
        return value, canonical_json(value)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def parse_sha256(value: object) -> str:
    """Return a sha256 in lower-case hexadecimal digits; raises ValueError for anything else."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise RefusedError(f"expected a sha256, got {value!r}", code="sha256-digits")
    return value


def parse_checksum(value: object) -> str:
    """Return an XXH3 of 64 bits in lower-case hexadecimal digits; raises ValueError for anything else."""
    if not isinstance(value, str) or not _CHECKSUM.fullmatch(value):
        raise RefusedError(f"expected a checksum, got {value!r}", code="checksum-digits")
    return value
