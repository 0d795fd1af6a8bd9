"""The Hub's cache: `models--org--name` with `blobs`, `refs` and `snapshots/<revision>`, which are links to blobs."""

from __future__ import annotations

import re
from pathlib import Path

from petlpack.errors import RefusedError, RunError, printable
from petlpack.tensors.foreign_json import read_small

_FOLDER = re.compile(r"models--(?P<name>.+)")


def snapshot_of(path: Path) -> Path:
    """Return the snapshot in a model's folder of the Hub's cache; any other path as it is.

    That is the one of the branch `main`, else the only one. Raises RunError where several are left to choose from, or
    none was downloaded.
    """
    snapshots = path / "snapshots"
    if not _FOLDER.fullmatch(_own_name(path)) or not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    revision = _text_of(main) if main.is_file() else ""
    there = sorted(entry.name for entry in snapshots.iterdir() if entry.is_dir())
    if revision in there:
        return snapshots / revision
    if len(there) == 1:
        return snapshots / there[0]
    shown = printable(str(path))
    if not there:
        raise RunError(f"'{shown}' has no snapshot", hint="download the model again: `hf download ORG/NAME`")
    raise RunError(
        f"'{shown}' has {len(there)} snapshots, and none of them is the branch main's",
        hint=f"pass one of them: {', '.join(printable(str(snapshots / name)) for name in there[:3])}",
    )


def _text_of(main: Path) -> str:
    """Return the revision that a file of `refs` names; one that is too large for one names none."""
    try:
        return read_small(main).decode("utf-8", errors="replace").strip()
    except RefusedError:
        return ""


def cached_name(path: Path) -> str | None:
    """Return `org--name` of a model's folder in the Hub's cache, or of a snapshot in it; None of any other path."""
    folder = _folder_of(path)
    match = _FOLDER.fullmatch(_own_name(folder))
    return match["name"] if match and (folder / "snapshots").is_dir() else None


def own_folders(path: Path) -> list[Path]:
    """Return the real folder that holds all of a model in the Hub's cache; of any other path none."""
    return [] if cached_name(path) is None else [_folder_of(path).resolve()]


def _folder_of(path: Path) -> Path:
    return path.absolute().parent.parent if path.absolute().parent.name == "snapshots" else path


def _own_name(path: Path) -> str:
    return path.name if path.name not in ("", "..") else path.resolve().name
