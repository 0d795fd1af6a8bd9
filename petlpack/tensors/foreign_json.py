"""Small files that others wrote, JSON above all: regular, of a bounded size, and parsed once in each state.

Lists, objects and their values are counted before any is built: 60 MB of brackets are gigabytes of lists.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.errors import RefusedError
from petlpack.tensors.pinned import Pin, open_regular, pin_of

MOST_BYTES = 1 << 26
"""Bytes of a file: a trainer_state.json with a hundred thousand log entries has 20 MB."""

MOST_VALUES = 1 << 21
"""Values in a text, keys among them: three times those of that trainer_state.json."""

MOST_DEEP = 256
"""Lists and objects inside one another: fewer than Python's own reader can take."""

_LARGE = 1 << 20
"""Bytes of a text of which only the last one is remembered as values."""


def read_small(path: Path) -> bytes:
    """Read a whole small file; raises OSError where it is none, and RefusedError where it has more than MOST_BYTES."""
    with open_regular(path) as file:
        pin = pin_of(path, file)
        _check_size(pin)
        return pin.read_of(file, 0, pin.state.nbytes).tobytes()


def read_value(path: Path) -> Any:
    """Return the value of a JSON file in UTF-8, which callers must leave as it is: others get the same.

    Raises OSError, ValueError where it is no JSON, and RefusedError (`json-limit`) where it is more than is read.
    """
    with open_regular(path) as file:
        pin = pin_of(path, file)
    _check_size(pin)
    value, problem, code = (_parse_large if pin.state.nbytes > _LARGE else _parse_small)(pin)
    if problem is not None:
        raise ValueError(problem) if code is None else RefusedError(problem, code=code)
    return value


def _check_size(pin: Pin) -> None:
    if pin.state.nbytes > MOST_BYTES:
        raise RefusedError(f"it is {pin.state.nbytes:,} bytes, at most {MOST_BYTES:,} are read", code="json-limit")


def _parse(pin: Pin) -> tuple[Any, str | None, str | None]:
    """Return the value of a text, or what is wrong with it and the code of that: all layouts ask for bad ones, too."""
    text = pin.read(0, pin.state.nbytes).tobytes()
    try:
        check_extent(text)
        return json.loads(text.decode("utf-8")), None, None
    except RefusedError as error:
        return None, str(error), error.code
    except ValueError as error:
        return None, str(error), None


_parse_small = functools.lru_cache(maxsize=16)(_parse)
_parse_large = functools.lru_cache(maxsize=1)(_parse)


def check_extent(text: bytes) -> None:
    """Raise RefusedError (`json-limit`) for JSON with more values or deeper ones than are read; builds nothing."""
    if len(text) <= MOST_DEEP:
        return
    outside = check_values(text, MOST_VALUES)
    opened = (outside == ord("[")) | (outside == ord("{"))
    closed = (outside == ord("]")) | (outside == ord("}"))
    steps = opened[opened | closed].astype(np.int8) * 2 - 1
    depth = int(np.cumsum(steps, dtype=np.int64).max(initial=0))
    if depth > MOST_DEEP:
        raise RefusedError(
            f"it has {depth:,} lists and objects inside one another, at most {MOST_DEEP} are read", code="json-limit"
        )


def check_values(text: bytes, most: int) -> NDArray[np.uint8]:
    """Return what of JSON stands in no string; raises RefusedError (`json-limit`) for more values than so many."""
    plain = np.frombuffer(text.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = plain[~np.logical_xor.accumulate(plain == ord('"'))]
    values = sum(int(np.count_nonzero(outside == ord(mark))) for mark in "[{,:")
    if values > most:
        raise RefusedError(f"it has {values:,} values, at most {most:,} are read", code="json-limit")
    return outside
