"""The manifest: what a `.petl.safetensors` file holds, parsed once into frozen values (formats/container.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from petlpack.errors import DamageError, RefusedError, UnknownFormatError, printable
from petlpack.records.canonical import canonical_json, parse_checksum, parse_sha256
from petlpack.tensors.dtypes import DTYPES, dtype_named
from petlpack.tensors.strict_json import decode_integers

VERSION = 1
"""Version of the manifest and of the file around it."""

BYTES = "bytes"
"""What the manifest of a shared part of bytes has in the place of a codec."""

_KINDS = ("task", "shared")

_OF_BYTES = {"version", "kind", "codec", "sections"}
"""All that such a part says: it is named by what it decodes to, and needs nothing else."""

_OF_TENSORS = {*_OF_BYTES, "shared", "decoded", "params", "facts"}

_OF_TASK = {*_OF_TENSORS, "checksum"}

_NAME = re.compile(r"[a-z][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class SectionRow:
    """One section: its name, coder id, dtype name, number of elements, and the checksum of its bytes in the file."""

    name: str
    coder: str
    dtype: str
    count: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """What a file holds. `decoded` and `checksum` are the sums of what it decodes to; `shared` names parts it needs.

    A shared part of bytes has only the first three, one of tensors no `checksum`.
    """

    kind: str  # "task" or "shared"
    codec: str
    sections: tuple[SectionRow, ...]
    shared: tuple[str, ...] = ()
    decoded: str = ""
    checksum: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What people are told about the task (layout, method, sizes); nothing that decoding depends on."""

    def to_json(self) -> bytes:
        """Return the canonical JSON: sorted keys, no spaces, UTF-8."""
        table = {
            "version": VERSION,
            "kind": self.kind,
            "codec": self.codec,
            "sections": [[row.name, row.coder, row.dtype, row.count, row.checksum] for row in self.sections],
            "shared": list(self.shared),
            "decoded": self.decoded,
            "checksum": self.checksum,
            "params": dict(self.params),
            "facts": dict(self.facts),
        }
        fields = _fields_of(self.kind, self.codec)
        return canonical_json({name: value for name, value in table.items() if name in fields})


def _fields_of(kind: object, codec: object) -> set[str]:
    if kind == "task":
        return _OF_TASK
    return _OF_BYTES if codec == BYTES else _OF_TENSORS


def parse_manifest(text: bytes) -> Manifest:
    """Parse and check the JSON of a manifest; raises DamageError or UnknownFormatError."""
    table = _parse_table(text)
    rows = _list(table["sections"], "sections")
    manifest = Manifest(
        kind=table["kind"],
        codec=_name(table["codec"]),
        sections=tuple(_section(row) for row in rows),
    )
    if "decoded" in table:
        manifest = replace(
            manifest,
            shared=tuple(_sha256(digest) for digest in _few(_list(table["shared"], "shared"))),
            decoded=_sha256(table["decoded"]),
            checksum=_checksum(table["checksum"]) if "checksum" in table else "",
            params=_object(table["params"], "params"),
            facts=_object(table["facts"], "facts"),
        )
    names = [row.name for row in manifest.sections]
    if len(set(names)) != len(names) or "manifest" in names:
        raise DamageError("manifest has a duplicate or reserved section name", code="section-twice")
    try:
        canonical = manifest.to_json() == text
    except (ValueError, RecursionError) as error:
        raise DamageError(f"manifest is not canonical JSON: {error}", code="manifest-json") from None
    if not canonical:
        raise DamageError("manifest is not canonical JSON", code="manifest-canonical")
    return manifest


def _parse_table(text: bytes) -> dict[str, Any]:
    """Parse a manifest of our version with the fields of its kind."""
    try:
        table = decode_integers(text)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"manifest is not JSON: {error}", code="manifest-json") from None
    if not isinstance(table, dict):
        raise DamageError("manifest is not a JSON object", code="manifest-fields")
    if isinstance(table.get("version"), bool) or table.get("version") != VERSION:
        raise UnknownFormatError(
            f"manifest version is {printable(repr(table.get('version')))}, this petlpack reads {VERSION}",
            hint="the file was written by a newer petlpack: upgrade petlpack to read it",
            code="version-unknown",
        )
    if "kind" in table:
        _one_of(table["kind"], _KINDS)
    fields = _fields_of(table.get("kind"), table.get("codec"))
    if set(table) != fields:
        odd = printable(min(set(table) ^ fields))
        raise DamageError(f"manifest has a missing or unexpected field '{odd}'", code="manifest-fields")
    return table


def _section(row: object) -> SectionRow:
    if not isinstance(row, list) or len(row) != 5:
        raise DamageError(
            "a section in the manifest must be [name, coder, dtype, count, checksum]", code="manifest-row"
        )
    name, coder, dtype, count, checksum = row
    if not isinstance(dtype, str) or dtype not in DTYPES:
        dtype_named(str(dtype))
    if type(count) is not int or not 0 <= count < 2**48:
        message = f"a section's count must be an integer from 0 to 2^48 - 1, manifest says {printable(repr(count))}"
        raise DamageError(message, code="manifest-row")
    return SectionRow(_name(name), _name(coder), dtype, count, _checksum(checksum))


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise DamageError(f"manifest field '{what}' must be a list, got {type(value).__name__}", code="manifest-fields")
    return value


MOST_PARTS = 256
"""Shared parts that a task may name: each is a file that is open while the task is read."""


def _few(parts: list[Any]) -> list[Any]:
    if len(parts) > MOST_PARTS:
        message = f"manifest names {len(parts):,} shared parts, expected at most {MOST_PARTS}"
        raise DamageError(message, code="part-limit")
    return parts


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamageError(
            f"manifest field '{what}' must be an object, got {type(value).__name__}", code="manifest-fields"
        )
    return value


def _one_of(value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UnknownFormatError(
            f"unknown kind {printable(repr(value))} in manifest (known: {', '.join(known)})", code="kind-unknown"
        )
    return str(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise DamageError(f"expected a name in the manifest, got {printable(repr(value))}", code="manifest-name")
    return value


def _sha256(value: object) -> str:
    return _digits(value, "sha256", parse_sha256)


def _checksum(value: object) -> str:
    return _digits(value, "checksum", parse_checksum)


def _digits(value: object, what: str, parse: Callable[[object], str]) -> str:
    try:
        return parse(value)
    except RefusedError as error:
        message = f"expected a {what} in the manifest, got {printable(repr(value))}"
        raise DamageError(message, code=error.code) from None
