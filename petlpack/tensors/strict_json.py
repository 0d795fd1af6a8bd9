"""JSON as other languages read it, too: UTF-8 without a mark, integers of 64 bits, no key twice, not deep."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from petlpack.errors import RefusedError, printable

MOST_DEEP = 64
"""Lists and objects inside one another: more is a stack overflow in some reader."""

FREE_TEXT, TEXT_A_BYTE = 1 << 20, 256
"""Bytes of a text that any file may have, and those more for each byte that it takes there: names of layers, zstd at
its best, take a sixtieth."""

FREE_MARKS, MARKS_A_BYTE = 1 << 17, 16
"""The same of `[`, `{` and `,`, of which each may become a value of a hundred bytes in memory."""

_BEYOND = 1 << 63


def most_text(packed: int) -> int:
    """Return how many bytes a text has at most that takes `packed` bytes in its file."""
    return FREE_TEXT + TEXT_A_BYTE * packed


def check_marks(text: bytes, packed: int) -> None:
    """Check that a text that takes `packed` bytes in its file has few values, before it is parsed.

    Raises RefusedError. Marks are counted wherever they stand, in strings, too.
    """
    marks, most = sum(map(text.count, (b"[", b"{", b","))), FREE_MARKS + MARKS_A_BYTE * packed
    if marks > most:
        raise RefusedError(
            f"{packed:,} bytes hold JSON with {marks:,} of '[', '{{' and ',', expected at most {most:,}",
            code="json-values",
        )


def decode_integers(text: bytes) -> Any:
    """Return the value of JSON that holds no other number than integers below 2^63 from zero; raises ValueError.

    A key that stands twice is for the caller to see, who compares the text with the canonical one.
    """
    value = _INTEGERS.decode(_text(text))
    _check_depth(value, MOST_DEEP)
    return value


def decode_once(text: bytes) -> Any:
    """Return the value of JSON in which no key stands twice; raises ValueError, a RefusedError for such a key."""
    return _ONCE.decode(_text(text))


def _text(text: bytes) -> str:
    """Return the characters of UTF-8; a byte order mark is one that no JSON starts with."""
    return text.decode("utf-8")


def _check_depth(value: Any, left: int) -> None:
    items = value.values() if isinstance(value, dict) else value
    if not left:
        raise ValueError(f"it has more than {MOST_DEEP} lists and objects inside one another")
    for item in items if isinstance(value, (dict, list)) else ():
        if isinstance(item, (dict, list)):
            _check_depth(item, left - 1)


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) < 21 else _BEYOND
    if not -_BEYOND < number < _BEYOND:
        raise ValueError(f"the integer {printable(digits[:40])} has more than 63 bits")
    return number


def _no_float(text: str) -> None:
    raise ValueError(f"'{printable(text[:40])}' is no integer")


def _no_constant(name: str) -> None:
    raise ValueError(f"'{name}' is not JSON")


def _signed(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is not the text of 0")
    return int(digits)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise RefusedError(f"duplicate key '{printable(twice)}'", code="header-twice")
    return table


_INTEGERS = json.JSONDecoder(parse_float=_no_float, parse_int=_integer, parse_constant=_no_constant)
_ONCE = json.JSONDecoder(object_pairs_hook=_no_key_twice, parse_int=_signed, parse_constant=_no_constant)
