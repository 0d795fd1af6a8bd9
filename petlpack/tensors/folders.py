"""The directories below one: as `os.walk` gives them, which before Python 3.12 a deep one ends by RecursionError."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def _refuse(error: OSError) -> None:
    raise error


def folders_below(
    top: Path, enters: Callable[[Path], bool] = lambda _: True, unread: Callable[[OSError], None] = _refuse
) -> Iterator[tuple[Path, list[str]]]:
    """Yield a directory and those below it, each with the names in it that are no directories.

    Links to directories are not followed, and neither are directories that `enters` is false of. One that vanished is
    left out; one that cannot be read, too, if `unread` takes its error instead of raising it.
    """
    waiting = [top]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                found = [(entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unread(error)
            continue
        yield place, [name for name, folder, _ in found if not folder]
        inside = (place / name for name, folder, linked in found if folder and not linked)
        waiting += reversed([folder for folder in inside if enters(folder)])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
