"""What a stranger writes in the place of a JSON text: every field removed, doubled, renamed, of another value."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = (
    *(
        "..",
        "../x",
        "/etc/passwd",
        "a/../../x",
        "C:\\x",
        "C:x",
        "\\\\host\\share\\x",
        "//host/share",
        "./a",
        "a//b",
        "a/",
    ),
    *("CON", "nul.txt", "a.", "a ", " a", ".git/config", ".petlpack", "x" * 300, "a/" * 300 + "b", "~/x", "%s{0}", ""),
    *(
        "\x1b[2J\x1b]0;x\x07",
        "a\nb",
        "a\rb",
        "a\0b",
        "\u202egpj.exe",
        "\x9b31m",
        "\u2028",
        "A\u030a",
        "\u00c5",
        "{name}",
    ),
)
"""Names that lead elsewhere, that other systems read otherwise, and that drive a terminal."""

RAW = {
    **{"a fraction": b"1.5", "no number": b"NaN", "infinity": b"Infinity", "1e400": b"1e400", "minus zero": b"-0"},
    **{"half a character": b'"\\ud800"', "no UTF-8": b'"\xff\xfe"', "an overlong slash": b'"\xc0\xaf"'},
    **{
        "deep": b"[" * 100 + b"]" * 100,
        "very deep": b"[" * 100_000 + b"]" * 100_000,
        "deep objects": b'{"a":' * 70_000,
    },
    **{"5,000 digits": b"9" * 5000, "one": b"1", "many lists": b"[" + b"[]," * 100_000 + b"[]]"},
}
"""Texts in the place of a value, which Python's writer does not write."""

VALUES: Mapping[str, Any] = {
    **{"nothing": None, "true": True, "zero": 0, "minus one": -1, "2^31": 1 << 31, "2^48": 1 << 48, "2^62": 1 << 62},
    **{"2^63": 1 << 63, "2^64": 1 << 64, "10^30": 10**30, "a list": [], "an object": {}, "zeros": [0] * 40},
    **{"a text": "x", "a digest": "0" * 64, "an inner list": [[[1]]], "numbers": [1 << 40, 1 << 40], "pairs": [[0, 0]]},
    **{f"the name {name[:20]!r}": name for name in NAMES},
}
"""Values that a field may have, but is not meant to."""

_MARK = "\u0001raw\u0001"


@dataclass(frozen=True)
class Attack:
    """A text with one thing in it that is not as it was written."""

    what: str
    text: Callable[[], bytes]
    """Makes it, which takes longer than to count it."""


def attacks(text: bytes) -> Iterator[Attack]:
    """Yield every attack on a JSON text."""
    yield from _of_text(text)
    value = json.loads(text)
    for path in paths(value):
        where = "/".join(map(str, path)) or "all"
        for what, other in VALUES.items():
            yield Attack(f"{where} is {what}", _text(value, path, other))
        for what, raw in RAW.items():
            yield Attack(f"{where} is {what}", _text(value, path, _MARK, raw))
        if path:
            yield from _of_place(value, path, where)


def _of_text(text: bytes) -> Iterator[Attack]:
    """Yield what can be wrong with a text whatever it says."""
    others = {
        **{"nothing": b"", "a mark": b"\xef\xbb\xbf" + text, "a space": b" " + text, "half": text[: len(text) // 2]},
        **{"a line feed": text + b"\n", "twice": text * 2, "UTF-16": text.decode().encode("utf-16")},
        **{
            "a zero": text + b"\0",
            "binary": bytes(range(256)),
            "spaces": json.dumps(json.loads(text), indent=1).encode("utf-8"),
        },
    }
    return (Attack(f"all is {what}", functools.partial(bytes, other)) for what, other in others.items())


def _of_place(value: Any, path: Sequence[str | int], where: str) -> Iterator[Attack]:
    """Yield the texts without a field or an item, with it twice, and with its key another."""
    *outer, last = path
    inside = value
    for step in outer:
        inside = inside[step]
    item = _dumped(inside[last])
    if isinstance(inside, dict):
        rest = {name: one for name, one in inside.items() if name != last}
        yield Attack(f"{where} removed", _text(value, outer, rest))
        twice = item + b"," + json.dumps(last).encode() + b":" + item
        yield Attack(f"{where} doubled", _text(value, path, _MARK, twice))
        for name in NAMES:
            renamed = {name if called == last else called: one for called, one in inside.items()}
            yield Attack(f"{where} renamed {name[:20]!r}", _text(value, outer, renamed))
    else:
        at = int(last)
        yield Attack(f"{where} removed", _text(value, outer, [*inside[:at], *inside[at + 1 :]]))
        yield Attack(f"{where} doubled", _text(value, path, _MARK, item + b"," + item))
        yield Attack(f"{where} turned", _text(value, outer, inside[::-1]))


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every value inside a value; of a list the first two and the last."""
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from paths(item, (*path, name))
    elif isinstance(value, list):
        for i in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from paths(value[i], (*path, i))


def _text(value: Any, path: Sequence[str | int], other: Any, raw: bytes = b"") -> Callable[[], bytes]:
    """Return what makes the text of a value with another one in a place, and that perhaps as a text of its own."""
    return lambda: _dumped(_with(value, path, other), raw)


def _with(value: Any, path: Sequence[str | int], other: Any) -> Any:
    """Return a copy of a value with another one in a place."""
    if not path:
        return other
    first, *rest = path
    if isinstance(value, dict):
        return {**value, str(first): _with(value[first], rest, other)}
    at = int(first)
    return [*value[:at], _with(value[at], rest, other), *value[at + 1 :]]


def _dumped(value: Any, raw: bytes = b"") -> bytes:
    """Return canonical JSON as far as the value has any, with a text in the place of the mark."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    return text.encode("utf-8", "surrogatepass").replace(json.dumps(_MARK, ensure_ascii=False).encode(), raw)
