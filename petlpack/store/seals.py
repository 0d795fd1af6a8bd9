"""The seal of a pack: `inventory.json` says which files it has, and one digest says it all (formats/inventory.md)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from petlpack.errors import DamageError, UnknownFormatError, UsageError, printable
from petlpack.records.canonical import canonical_json
from petlpack.store.disk import FULL, read_regular, replacing
from petlpack.store.names import DIGEST, INVENTORY, is_sealed_apart
from petlpack.tensors.pinned import SpecialFileError, open_descriptor
from petlpack.tensors.strict_json import decode_integers

FORMAT = "petlpack-inventory"
MAX_INVENTORY = 1 << 28
"""Bytes of an inventory: 256 MB tell of two million files."""

_FIELDS = {"format", "version", "files", "sha256", "stale"}
_HINT = "`petlpack seal` seals the pack as it is now, once you know that it is as it should be"


@dataclass(frozen=True)
class File:
    """What a seal says of a file: its bytes and their sha256."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Seal:
    """The files of a sealed pack by name, as `Store.files` names them; `stale` while a writer changes some."""

    files: Mapping[str, File] = field(default_factory=dict)
    stale: bool = False

    @property
    def rows(self) -> list[list[Any]]:
        """The files as the text has them: sorted by the bytes of their names."""
        return [[name, self.files[name].nbytes, self.files[name].sha256] for name in sorted(self.files, key=_order)]

    @property
    def sha256(self) -> str:
        """The one digest of all: of the canonical JSON of the rows."""
        return hashlib.sha256(_canonical(self.rows)).hexdigest()

    def to_json(self) -> bytes:
        """Return the text of the file."""
        table = {"format": FORMAT, "version": 1, "files": self.rows, "sha256": self.sha256, "stale": self.stale}
        return _canonical(table)


def parse_seal(text: bytes) -> Seal:
    """Parse the text of an `inventory.json`; raises DamageError, UnknownFormatError."""
    table = _parse_table(text)
    if table.keys() != _FIELDS or type(table["stale"]) is not bool or not isinstance(table["files"], list):
        raise _refused("it has not the fields of an inventory", code="inventory-fields")
    files = {}
    for row in table["files"]:
        if not _is_row(row):
            raise _refused("one of its files is not [name, bytes, sha256]", code="inventory-row")
        files[row[0]] = File(row[1], row[2])
    seal = Seal(files, table["stale"])
    if seal.rows != table["files"]:
        raise _refused("its files are not sorted by name, or one stands twice", code="inventory-row")
    if table["sha256"] != seal.sha256:
        said = printable(str(table["sha256"]))
        raise _refused(f"its files have sha256 {seal.sha256}, it says {said}", code="inventory-digest")
    if seal.to_json() != text:
        raise _refused("it is not canonical JSON", code="inventory-json")
    return seal


def _parse_table(text: bytes) -> dict[str, Any]:
    """Parse an inventory of our version."""
    try:
        table = decode_integers(text)
    except (ValueError, RecursionError) as error:
        raise _refused(f"it is no JSON: {printable(str(error))}", code="inventory-json") from error
    if not isinstance(table, dict):
        raise _refused("it is no JSON object", code="inventory-fields")
    if table.get("format") != FORMAT:
        raise UnknownFormatError(f"'{INVENTORY}' is not the inventory of a pack", hint=_HINT, code="format-unknown")
    if type(table.get("version")) is not int or table["version"] != 1:
        raise UnknownFormatError(
            f"'{INVENTORY}' has format version {printable(repr(table.get('version')))}, this petlpack reads 1",
            hint="the pack was sealed by a newer petlpack: upgrade petlpack to read it",
            code="version-unknown",
        )
    return table


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 3:
        return False
    name, nbytes, sha256 = row
    if not isinstance(name, str) or not isinstance(sha256, str) or DIGEST.fullmatch(sha256) is None:
        return False
    plain = all(part not in ("", ".", "..") for part in name.split("/")) and "\0" not in name
    return plain and not is_sealed_apart(name) and type(nbytes) is int and nbytes >= 0


def _refused(what: str, *, code: str) -> DamageError:
    return DamageError(f"'{INVENTORY}' is damaged: {what}", hint=_HINT, code=code)


def read_seal(pack: Path) -> Seal | None:
    """Return the seal of a sealed pack, None where it has none; raises DamageError, UnknownFormatError."""
    try:
        text = read_regular(pack / INVENTORY, MAX_INVENTORY)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _refused(str(error), code="size-limit") from error
    return parse_seal(text)


def taken(pack: Path, names: Iterable[str]) -> dict[str, File]:
    """Return what the disk says of files by name; those that are not there are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found[name] = file_now(pack / name)
    return found


def file_now(path: Path) -> File:
    """Return the bytes of a file and their sha256; raises UsageError for what is no file, or grows as it is read."""
    digest, nbytes = hashlib.sha256(), 0
    try:
        with open(path, "rb", opener=open_descriptor) as file:
            size = os.fstat(file.fileno()).st_size
            while nbytes <= size and (block := file.read(1 << 20)):
                digest.update(block)
                nbytes += len(block)
    except (SpecialFileError, IsADirectoryError, FileNotFoundError) as error:
        if not os.path.lexists(path):
            raise
        raise UsageError(f"'{printable(str(path))}' is no file", hint="move it out of the pack") from error
    if nbytes > size:
        raise UsageError(f"'{printable(str(path))}' grows while it is read", hint="wait until nothing writes to it")
    return File(nbytes, digest.hexdigest())


def write_seal(pack: Path, seal: Seal) -> None:
    """Write a seal in the place of the one that is there; the caller holds the lock."""
    with replacing(pack / INVENTORY) as temporary:
        temporary.write_bytes(seal.to_json())


def _mark_in_place(path: Path, seal: Seal) -> None:
    """Write a shorter text over that of a seal, which takes no room; nothing is done where the file is another's, too.

    Killed on the way, that leaves an inventory that is refused, which is no worse than a stale one.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "r+b") as file:
            if os.fstat(descriptor).st_nlink == 1:
                file.write(seal.to_json())
                file.truncate()
                file.flush()
                os.fsync(descriptor)


@contextlib.contextmanager
def keeping_seal(pack: Path, names: Iterable[str], told: list[str], *, frees: bool = False) -> Iterator[None]:
    """Keep the seal of a pack, where it has one, while these files change; the caller holds the lock.

    It is stale until the block has ended, and stays so where the writer is killed. A seal that was stale stays stale:
    nobody knows what it has missed. What keeps it from being written again is `told`. Where the block frees space, a
    disk too full to say that the seal is stale does not keep it from that.
    """
    sealed = read_seal(pack)
    if sealed is None or sealed.stale:
        yield
        return
    changing = list(names)
    try:
        write_seal(pack, replace(sealed, stale=True))
    except OSError as error:
        if not frees or error.errno not in FULL:
            raise
        _mark_in_place(pack / INVENTORY, replace(sealed, stale=True))
    try:
        yield
    finally:
        try:
            others = {name: file for name, file in sealed.files.items() if name not in changing}
            write_seal(pack, Seal({**others, **taken(pack, changing)}))
        except OSError as error:
            told.append(f"the pack's seal is stale: {error}")


def _order(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _canonical(value: object) -> bytes:
    """Return canonical JSON; raises UsageError where a name has none."""
    try:
        return canonical_json(value)
    except UnicodeEncodeError as error:
        name = printable(repr(error.object[max(error.start - 20, 0) : error.end + 20]))
        raise UsageError(
            f"a file of the pack has a name that is no Unicode: {name}",
            hint="rename it, or move it out of the pack",
        ) from error
