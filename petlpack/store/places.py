"""What is a pack, what may become one, and what is refused as neither."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from petlpack.errors import DamageError, PetlpackError, UnknownFormatError, UsageError, printable
from petlpack.errors.arguments import Place, path_of, refuse_file_above
from petlpack.store import lock
from petlpack.store.disk import is_directory, make_directories, read_regular, replacing
from petlpack.store.names import DIRECTORIES, LOCK, MARK, RELEASED, SUFFIX, TEMPORARY
from petlpack.store.released import read_released
from petlpack.tensors.strict_json import decode_once

PACK_JSON = b'{"format": "petlpack", "version": 1}\n'
_MOST_MARK = 1 << 16
"""Bytes that are read of a pack.json."""


def check_mark(pack: Path) -> None:
    """Check the pack.json of a pack; raises UsageError where there is none, UnknownFormatError for a newer one."""
    marker = pack / MARK
    try:
        text = read_regular(marker, _MOST_MARK)
        table = decode_once(text)
        version = table["version"] if table["format"] == "petlpack" else None
        if version == 1 and set(table) != {"format", "version"}:
            raise ValueError("other fields than format and version")
    except (FileNotFoundError, NotADirectoryError) as error:
        refuse_unmarked(pack)
        raise UsageError(
            f"no pack at '{printable(str(pack))}'", hint="`petlpack encode RUN_DIR --pack DIR` creates one"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnknownFormatError(
            f"'{printable(str(marker))}' is not the pack.json of a pack",
            hint="the directory is not a pack, or its pack.json is corrupt: restore it",
            code="pack-json",
        ) from error
    if type(version) is not int or version != 1:
        raise UnknownFormatError(
            f"'{printable(str(marker))}' has format version {printable(repr(version))}, this petlpack reads 1",
            hint="the pack was written by a newer petlpack: upgrade petlpack to read it",
            code="version-unknown" if table["format"] == "petlpack" else "format-unknown",
        )


def refuse_foreign_directories(pack: Path) -> None:
    """Raise DamageError where a pack's own directories are links: what is done in them would be done elsewhere."""
    for name in DIRECTORIES:
        place = pack / name
        if os.path.lexists(place) and not is_directory(place):
            what = "a link" if place.is_dir() or place.is_symlink() else "no directory"
            raise DamageError(
                f"'{printable(str(place))}' is {what}, but the directories of a pack are its own",
                hint="put the directory itself in its place, or open the pack that it belongs to",
                code="pack-directory",
            )


def is_pack(path: Place) -> bool:
    """Tell whether a directory is meant as a pack: its mark says so, or is spoilt and tasks and parts stand beside.

    A pipe in the place of the mark is not waited for.
    """
    path = path_of("path", path)
    try:
        if json.loads(read_regular(path / MARK, _MOST_MARK))["format"] == "petlpack":
            return True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return all((path / name).exists() for name in (MARK, *DIRECTORIES))


def pack_above(path: Path) -> Path | None:
    """Return the pack whose tasks or shared parts a file or directory is among; None where it is in none."""
    real = path.resolve()
    inside = (place for place in (real, *real.parents) if place.name in DIRECTORIES)
    return next((place.parent for place in inside if is_pack(place.parent)), None)


_OWN = {MARK, *DIRECTORIES, LOCK, RELEASED}
_PACK_HINT = "give an existing pack, or a new or empty directory"


def refuse_unmarked(path: Path) -> None:
    """Raise UsageError for a pack that has lost its pack.json: only the text of that is missing, and no task."""
    if any((path / name).is_dir() for name in DIRECTORIES) and not (path / MARK).exists():
        raise UsageError(
            f"'{printable(str(path))}' has the directories of a pack, but no pack.json",
            hint=f"if it is a pack, restore its pack.json, which holds {PACK_JSON.decode().strip()}",
        )


def make_place(path: Path) -> bool:
    """Make the directory of a new pack; returns whether it is new. Raises UsageError where something else is."""
    refuse_file_above(path, _PACK_HINT)
    if path.exists() and not path.is_dir():
        raise UsageError(f"'{printable(str(path))}' is a file, not a pack directory", hint=_PACK_HINT)
    new = not path.exists()
    try:
        names = [] if new else os.listdir(path)  # noqa: PTH208 - only names are asked
    except FileNotFoundError:  # another's, which came to nothing
        names = []
    foreign = [name for name in names if name not in _OWN and not name.startswith(TEMPORARY)]
    if foreign:
        raise UsageError(
            f"'{printable(str(path))}' is neither a pack nor empty: it contains '{printable(min(foreign))}'",
            hint=_PACK_HINT,
        )
    refuse_unmarked(path)
    make_directories(path)
    return new


def mark(path: Path) -> None:
    """Write the mark of a pack where it has none; the caller holds the lock."""
    if not (path / MARK).exists():
        with replacing(path / MARK) as temporary:
            temporary.write_bytes(PACK_JSON)


def undo(path: Path) -> None:
    """Remove a pack that was just made, unless it has a task, or somebody else begins to write into it."""
    with contextlib.suppress(OSError, PetlpackError), lock.locked(path, 0, []):
        if any(name.startswith(TEMPORARY) for name in _names(path)) or _names(path / "tasks"):
            return
        for sha256 in read_released(path):
            (path / "shared" / f"{sha256}{SUFFIX}").unlink(missing_ok=True)
        for name in DIRECTORIES:
            with contextlib.suppress(FileNotFoundError):
                (path / name).rmdir()
        for name in (RELEASED, MARK, LOCK):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.is_dir() else []  # noqa: PTH208 - only names are asked
