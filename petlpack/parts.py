"""Shared parts: bytes (templates, tables of bases, kept files) and tensors, each named by what it decodes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petlpack import coding, container
from petlpack.codecs.base import Role, Unit
from petlpack.codecs.registry import codec
from petlpack.container import Container, Manifest
from petlpack.decoding import DecodedSection, Decoder
from petlpack.errors import DamageError, UnknownFormatError, printable
from petlpack.store import Store
from petlpack.template import BaseTable, Slot, Template, parse_base_table, parse_template
from petlpack.tensors.dtypes import DTYPES, DType, dtype_named
from petlpack.tensors.safetensors_file import is_shape
from petlpack.tensors.tensor import Tensor

MAX_SHARED = 1 << 28
"""Bytes that a kept file may decode to: 256 MB, many times the largest tokenizer."""

MAX_TEMPLATE = 1 << 25
"""Bytes of a template: 32 MB describe a hundred thousand tensors, and parsing a hostile one stays cheap."""

TEMPLATES = 64
"""Templates that a pack keeps in memory: tasks of one kind share one."""

BYTES = "bytes"
"""What the manifest of a shared part of bytes has in the place of a codec."""


class Templates:
    """The templates of a pack that were read lately, and the tables of bases that they name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._texts: dict[str, bytes] = {}
        self._tables: dict[str, BaseTable] = {}
        self._templates: dict[tuple[str, str | None], Template] = {}

    def read(self, sha256: str, name: str | None) -> Template:
        """Read and parse a template for a task that is called `name` in it; raises DamageError."""
        if (sha256, name) not in self._templates:
            if len(self._templates) == TEMPLATES:
                self._templates.clear()
                self._texts = dict.fromkeys([sha256], self._texts[sha256]) if sha256 in self._texts else {}
            if sha256 not in self._texts:
                self._texts[sha256] = read_shared(self._store, sha256, MAX_TEMPLATE)
            text = self._texts[sha256]
            self._templates[sha256, name] = parse_template(text, f"shared part {sha256}", name, self.table)
        return self._templates[sha256, name]

    def table(self, sha256: str) -> BaseTable:
        """Read and parse the table of a base; raises DamageError."""
        if sha256 not in self._tables:
            text = read_shared(self._store, sha256, MAX_TEMPLATE)
            self._tables[sha256] = parse_base_table(text, f"shared part {sha256}")
        return self._tables[sha256]

    def put(self, sha256: str, name: str | None, template: Template) -> None:
        """Keep a template that is not in the store yet."""
        self._templates[sha256, name] = template


def read_shared(store: Store, sha256: str, most: int = MAX_SHARED) -> bytes:
    """Read a shared part of at most so many bytes, and check that it decodes to what its name says.

    Raises DamageError.
    """
    opened = container.read(find_shared(store, sha256))
    manifest, path = opened.manifest, printable(str(opened.path))
    rows = manifest.sections
    made = Manifest("shared", BYTES, rows, (), sha256, {}, {})
    if manifest != made or [(row.name, row.dtype) for row in rows] != [("content", "U8")]:
        raise DamageError(f"'{path}' is not a shared part of bytes")
    if rows[0].count > most:
        raise DamageError(f"'{path}' claims {rows[0].count:,} bytes, at most {most:,} are read")
    array = coding.Array(DTYPES["U8"], rows[0].count, max(1, rows[0].count))
    data = opened.open_sections().read(rows[0])
    content = bytes(coding.decode(rows[0].coder, data, array, rows[0].name))
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamageError(f"'{path}' decodes to something else than its name says")
    return content


def find_shared(store: Store, sha256: str) -> Path:
    """Return the file of a shared part; raises DamageError where it is missing."""
    path = store.shared_path(sha256)
    if not path.is_file():
        raise DamageError(
            f"shared part {sha256} is missing from pack '{printable(str(store.path))}'",
            hint="restore the file from a copy of the pack, or encode the runs that need it again",
        )
    return path


class Part:
    """A shared part of tensors: they have no names of their own, for tasks call them differently."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Open a part's file; raises DamageError where it is not one, or another than `sha256`."""
        self.path, self.sha256 = path, sha256
        opened: Container = container.read(path)
        manifest = opened.manifest
        if (manifest.kind, manifest.shared, manifest.decoded, set(manifest.params), dict(manifest.facts)) != (
            *("shared", (), sha256, {"tensors"}, {}),
        ):
            raise DamageError(f"'{printable(str(path))}' is not the shared part {sha256}")
        self.slots = _parse_slots(manifest.params["tensors"], path)
        self._decoder = Decoder(
            f"shared part {sha256}", opened, opened.open_sections(), codec(manifest.codec), self.slots
        )

    def tensor(self, index: int) -> Tensor:
        """Return one tensor; nothing is decoded before its bits are read."""
        slot = self.slots[index]
        return Tensor(slot.dtype, slot.shape, lambda start, stop: self._decoder.read(slot, start, stop))

    @property
    def units(self) -> dict[str, Unit]:
        """The unit that each section is of, by the section's name."""
        return self._decoder.units

    @property
    def roles(self) -> dict[str, Role]:
        """The role of each section, by its name."""
        return self._decoder.roles

    def sections(self) -> Iterator[DecodedSection]:
        """Yield every section decoded, with what its coder is given."""
        return self._decoder.sections()

    def check(self) -> None:
        """Decode everything; raises DamageError where that is not what the part's name says."""
        found = part_name([(s.dtype, s.shape, self.tensor(i).sha256()) for i, s in enumerate(self.slots)])
        if found != self.sha256:
            raise DamageError(f"'{printable(str(self.path))}' decodes to {found}, its name says {self.sha256}")


def part_slots(slots: Sequence[Slot]) -> list[Slot]:
    """Return slots as a part holds them: numbered, without names, kinds numbered as they come."""
    kinds: dict[str, int] = {}
    numbers = [kinds.setdefault(slot.kind, len(kinds)) for slot in slots]
    return [
        _slot(i, slot.dtype, slot.shape, number) for i, (slot, number) in enumerate(zip(slots, numbers, strict=True))
    ]


def part_params(slots: Sequence[Slot]) -> dict[str, Any]:
    """Return the parameters of the manifest of a part with these slots."""
    return {"tensors": [[slot.dtype.name, list(slot.shape), int(slot.kind)] for slot in slots]}


def part_name(tensors: Sequence[tuple[DType, tuple[int, ...], str]]) -> str:
    """Return the name of a part from dtype, shape and sha256 of each of its tensors."""
    table = [[dtype.name, list(shape), digest] for dtype, shape, digest in tensors]
    return hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest()


def _slot(index: int, dtype: DType, shape: tuple[int, ...], kind: int) -> Slot:
    size = int(np.prod(shape, dtype=np.int64))
    return Slot(str(index), dtype, shape, size, None, head=False, kind=f"{kind:04d}")


def _parse_slots(rows: object, path: Path) -> list[Slot]:
    slots: list[Slot] = []
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, list) or len(row) != 3 or not is_shape(row[1]):
            raise DamageError(f"'{printable(str(path))}' has a tensor that is not [dtype, shape, kind]")
        dtype, shape, kind = row
        if type(kind) is not int or not 0 <= kind < len(rows):  # type: ignore[arg-type]
            raise DamageError(f"'{printable(str(path))}' has a tensor of kind {printable(repr(kind))}")
        slots.append(_slot(len(slots), dtype_named(str(dtype)), tuple(shape), kind))
    return slots


def check_shared(store: Store, sha256: str) -> None:
    """Check that a shared part, of bytes or of tensors, decodes to what its name says; raises DamageError."""
    path = find_shared(store, sha256)
    if container.read(path).manifest.codec == BYTES:
        read_shared(store, sha256)
    else:
        Part(path, sha256).check()


def unreadable(store: Store, shared: Iterable[str]) -> set[str]:
    """Return those of the shared parts that are in the store, but damaged, and so have to be written again.

    A part that a `gc` takes while it is checked counts as damaged: either way the caller has to write it.
    """
    damaged = set()
    for sha256 in shared:
        try:
            if store.shared_path(sha256).exists():
                check_shared(store, sha256)
        except (DamageError, UnknownFormatError, FileNotFoundError):
            damaged.add(sha256)
    return damaged
