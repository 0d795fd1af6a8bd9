"""A task written to a directory that appears only when it is complete."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from petlpack.errors import UsageError, printable
from petlpack.exports.export import Exportable, Reading
from petlpack.exports.registry import export


@dataclass(frozen=True)
class Decoded:
    """Where a task was written to, and what its new layout cannot say."""

    path: Path
    notes: tuple[str, ...]


def write_task(task: Exportable, out: Path, to: str, reading: Reading) -> Decoded:
    """Write a task to a new directory as one of `petlpack.exports`; raises UsageError.

    A run whose own files are what is asked for comes back as it was.
    """
    chosen = export(to)
    if chosen.is_already(task):
        chosen = export("run")
    with new_directory(out) as directory:
        notes = chosen.write(task, directory, reading)
    return Decoded(out, tuple(notes))


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Lend a directory that becomes `out` when the block ends well; raises UsageError where `out` is not empty."""
    out = out.resolve()
    if out == Path.cwd():
        raise UsageError("cannot decode into the current directory", hint="give a new directory to decode into")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"'{printable(str(out))}' exists already", hint="give a new directory to decode into")
    out.parent.mkdir(parents=True, exist_ok=True)
    half_written = out.parent / f".petlpack-{uuid.uuid4().hex}"
    try:
        half_written.mkdir()
        yield half_written
        if out.exists():
            out.rmdir()
        half_written.rename(out)
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
