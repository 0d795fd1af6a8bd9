"""What a layout reader is, and what it returns: a run, read from its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from petlpack.errors import RunError, printable
from petlpack.modules import Module
from petlpack.tensors.safetensors_file import Header


@dataclass(frozen=True)
class LeftOut:
    """A file of a run that does not go into the pack, and why."""

    file: str
    nbytes: int
    why: str


@dataclass(frozen=True)
class Run:
    """A run as read: its module, the headers of its weight files, the files kept byte for byte, what is left out."""

    path: Path
    layout: str
    method: str
    module: Module
    headers: dict[str, Header]
    weight_bytes: int
    kept: dict[str, Path]
    left_out: tuple[LeftOut, ...]
    base_name: str | None
    warnings: tuple[str, ...] = field(default=())


class Layout(Protocol):
    """One way in which runs stand on disk."""

    id: str

    def detect(self, path: Path) -> bool:
        """Tell whether a path holds a run of this layout; reads names and small JSON files only."""

    def read(self, path: Path) -> Run:
        """Read a run; raises RunError that names the file."""


_JSON_HINT = "the file is damaged or only half written: copy it again, or save the run again"


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; raises RunError that names the file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(f"'{printable(str(path))}' is not JSON: {printable(str(error))}", hint=_JSON_HINT) from error
    if not isinstance(table, dict):
        raise RunError(f"'{printable(str(path))}' is not a JSON object", hint=_JSON_HINT)
    return table
