"""Which names a file of a run may have in a pack: the same on every system, and in every version of Unicode."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from petlpack.errors import RefusedError, printable

LONGEST = 255
"""Bytes of UTF-8 between two slashes: what the file systems in use can hold."""

LONGEST_PATH = 4096
"""Bytes of UTF-8 of a whole name, in a pack: what no system in use opens is longer."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Controls, and halves of characters. By ranges, for what is printable differs from one Python to the next."""

_ELSEWHERE = re.compile(r"[\\:]")

_NOT_ON_WINDOWS = re.compile(r'[<>"|?*]|[. ]\Z|\A(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)', re.IGNORECASE)
"""In a part of a name: characters, ends and devices that Windows keeps for itself."""


def is_text(name: str) -> bool:
    """Tell whether a text has no control character and no half of a character in it."""
    return _CONTROL.search(name) is None


def is_file_name(name: str) -> bool:
    """Tell whether a name is a relative path below a directory, on every system, with `/` between its parts."""
    if not is_text(name) or _ELSEWHERE.search(name) or len(name.encode()) > LONGEST_PATH:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= LONGEST for part in name.split("/"))


def check_file_name(name: str) -> str:
    """Return a name that `is_file_name`; raises RefusedError for one that leads elsewhere, or nowhere."""
    if not is_file_name(name):
        raise RefusedError(f"'{printable(name)}' is not a relative path inside the directory", code="file-name")
    return name


def check_apart(names: Iterable[str]) -> None:
    """Raise RefusedError where two names are one file on some system, or one is a file where another has a directory.

    Only A to Z are told from a to z: what else is one letter in two cases changes with Unicode.
    """
    files: dict[str, str] = {}
    for name in names:
        other = files.setdefault(_folded(name), name)
        if other != name:
            raise RefusedError(
                f"'{printable(other)}' and '{printable(name)}' differ only in case: one file on some systems",
                code="file-clash",
            )
    for folded, name in files.items():
        for place in PurePosixPath(folded).parents:
            if str(place) in files:
                raise RefusedError(
                    f"'{printable(files[str(place)])}' is a file, and a directory in '{printable(name)}'",
                    code="file-clash",
                )


def not_everywhere(names: Collection[str]) -> list[str]:
    """Return the names that are legal, but that Windows does not have, or that are one with another of them there.

    What it says of letters beyond A to Z is what the Unicode of this Python says, so it is for a warning only.
    """
    alike = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    return [
        name
        for name in names
        if any(map(_NOT_ON_WINDOWS.search, name.split("/"))) or alike[unicodedata.normalize("NFC", name).casefold()] > 1
    ]


def _folded(name: str) -> str:
    return re.sub("[A-Z]+", lambda found: found[0].lower(), name)
