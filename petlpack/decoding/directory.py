"""A task written to a directory that appears only when it is complete."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import refuse_file_above
from petlpack.exports.export import Exportable, Reading
from petlpack.exports.registry import RUN, export
from petlpack.store.disk import make_directories, sync, sync_tree
from petlpack.store.lock import alive, bury


@dataclass(frozen=True)
class Decoded:
    """Where a task was written to, as what, and what its new layout cannot say.

    `restored` tells that it was written as the run that it was, which may be what was asked for in other words.
    """

    path: Path
    notes: tuple[str, ...]
    task: str
    to: str
    codec: str
    exact: bool
    decoded: str
    """The sha256 of what the task decodes to."""
    seconds: float
    restored: bool
    files: Mapping[str, int]
    """Bytes of every file, by name."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack decode --json` prints."""
        return {
            **{"task": self.task, "out": str(self.path), "to": self.to, "notes": list(self.notes)},
            **{"codec": self.codec, "exact": self.exact, "decoded_sha256": self.decoded},
            "files": [{"file": name, "bytes": nbytes} for name, nbytes in self.files.items()],
            **{"bytes": sum(self.files.values()), "seconds": round(self.seconds, 6)},
        }


@dataclass(frozen=True)
class WrittenTask:
    """What a task was written as; what that cannot say, and whether it is the run as it was."""

    notes: tuple[str, ...]
    restored: bool
    files: Mapping[str, int]


def write_task(task: Exportable, out: Path, to: str, reading: Reading) -> WrittenTask:
    """Write a task to a new directory as one of `petlpack.exports`; raises UsageError.

    A run whose own files are what is asked for comes back as it was.
    """
    chosen = export(to)
    if chosen.is_already(task):
        chosen = export(RUN)
    told: list[str] = []
    with new_directory(out, told) as directory:
        try:
            notes = tuple(chosen.write(task, directory, reading))
        except UsageError as error:  # of a place or a kind of module: here it is known of which task
            message = f"cannot write task '{printable(task.name)}' as {to}: {error.message}"
            raise UsageError(message, hint=error.hint, code=error.own_code) from error
        files = _files_in(directory)  # now: what fails once the directory is in its place is no failure of the decode
    return WrittenTask((*notes, *told), chosen.restores, files)


def _files_in(directory: Path) -> dict[str, int]:
    """Return the bytes of every file below a directory, by name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}


_OUT_HINT = "choose a new directory to decode into"
_HALF = ".petlpack-"
"""How a directory begins that is not complete."""


@contextlib.contextmanager
def new_directory(out: Path, told: list[str]) -> Iterator[Path]:
    """Lend a directory that becomes `out`, on the disk for good, when the block ends well.

    Raises UsageError where `out` is not empty. What fails once `out` is there is `told`.
    """
    out = out.resolve()
    if out == Path.cwd():
        raise UsageError("cannot decode into the current directory", hint=_OUT_HINT)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"'{printable(str(out))}' already exists", hint=_OUT_HINT)
    refuse_file_above(out, _OUT_HINT)
    make_directories(out.parent)
    bury(out.parent, _HALF, lambda owner: _delete(out.parent / owner))
    with alive(out.parent, _HALF, lambda owner: (out.parent / owner).exists()) as owner:
        half_written = out.parent / owner
        try:
            half_written.mkdir()
            yield half_written
            sync_tree(half_written)
            if out.exists():
                out.rmdir()
            half_written.rename(out)
        finally:
            shutil.rmtree(half_written, ignore_errors=True)
    try:
        sync(out.parent)
    except OSError as error:
        told.append(f"the task is written, but may not outlive a power cut: {error}")


def _delete(directory: Path) -> None:
    """Delete what a killed decode left."""
    if directory.exists():
        shutil.rmtree(directory)
