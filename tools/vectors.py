"""The vectors of `formats/`: what must be read stands in the pages, what must be refused in `formats/vectors/`.

A good vector is a fence ` ```json vector ` of a page, or a whole pack: a file in `formats/packs/`. A bad one is a line
of JSON in the file of its kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ROOT / "formats"
FENCE = re.compile(r"^```json vector\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST = ("id", "kind", "why", "code", "error", "of")
"""The fields with which a line begins: what is tested, before the bytes that test it."""


@dataclass(frozen=True)
class Vector:
    """One vector: the file below `formats/` that it stands in, and its fields."""

    page: str
    fields: dict[str, Any]

    @property
    def id(self) -> str:
        """The name of the vector, unique over all files."""
        return str(self.fields["id"])

    @property
    def kind(self) -> str:
        """What the vector is about: the test that runs it."""
        return str(self.fields["kind"])

    @property
    def bad(self) -> bool:
        """Whether the vector has to be refused."""
        return "code" in self.fields

    def __getitem__(self, field: str) -> Any:
        """Return a field."""
        return self.fields[field]

    def get(self, field: str) -> Any:
        """Return a field, or None."""
        return self.fields.get(field)


def pages() -> list[Path]:
    """Return every page."""
    return sorted(FORMATS.rglob("*.md"))


def line_files() -> list[Path]:
    """Return every file of bad vectors."""
    return sorted((FORMATS / "vectors").glob("*.jsonl"))


def pack_files() -> list[Path]:
    """Return every file of a whole pack."""
    return sorted((FORMATS / "packs").glob("*.json"))


def pack_file_of(name: str) -> Path:
    """Return the file in which a whole pack stands."""
    return FORMATS / "packs" / f"{name}.json"


def line_file_of(kind: str) -> Path:
    """Return the file in which the bad vectors of a kind stand."""
    return FORMATS / "vectors" / f"{kind.replace(' ', '-')}.jsonl"


def vectors() -> list[Vector]:
    """Return every vector, those of the pages first, then whole packs, in order."""
    return list(_vectors())


def _vectors() -> Iterator[Vector]:
    for page in pages():
        for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
            yield Vector(page.relative_to(FORMATS).as_posix(), json.loads(fence[1]))
    for file in pack_files():
        yield Vector(file.relative_to(FORMATS).as_posix(), json.loads(file.read_text(encoding="utf-8")))
    for file in line_files():
        for line in file.read_text(encoding="utf-8").splitlines():
            yield Vector(file.relative_to(FORMATS).as_posix(), json.loads(line))


def line_of(fields: Mapping[str, Any]) -> str:
    """Return a bad vector as a line of JSON, whatever the order of its fields."""
    first = {field: fields[field] for field in FIRST if field in fields}
    return json.dumps({**first, **fields}, ensure_ascii=True) + "\n"


def unhex(value: str | Sequence[str]) -> bytes:
    """Return bytes from hex: a string, or a list of them that follow each other."""
    return bytes.fromhex(value if isinstance(value, str) else "".join(value))
