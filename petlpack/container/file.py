"""The bytes of one `.petl.safetensors` file: written canonically, validated whole, interpreted not at all.

The file is valid safetensors: an 8-byte length, a JSON header, then the sections in order and the manifest behind them,
every one a U8 tensor. The header is written last, into room that is reserved for the longest it can become, so sections
stream. formats/container.md is the law.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from petlpack.coding.zstd import compress, decompress
from petlpack.container.manifest import VERSION, Manifest, SectionRow, parse_manifest
from petlpack.errors import DamageError, RefusedError, UnknownFormatError, printable, reason
from petlpack.tensors.pinned import SpecialFileError, State, open_descriptor
from petlpack.tensors.safetensors_file import MAX_HEADER, Entry, Header, MalformedError, read_header_of
from petlpack.tensors.strict_json import check_marks, most_text

MAX_MANIFEST = 1 << 26
"""Bytes of a manifest's JSON: 64 MB describe a million sections, and a bomb stays small."""


@dataclass(frozen=True)
class EncodedSection:
    """One encoded section: what the manifest says of it, and its bytes."""

    name: str
    coder: str
    dtype: str
    count: int
    data: bytes


def write(
    file: BinaryIO,
    names: Sequence[str],
    limit: int,
    sections: Iterator[EncodedSection],
    manifest_of: Callable[[tuple[SectionRow, ...]], Manifest],
) -> Manifest:
    """Write a whole file: the sections as they come, then the manifest made from their rows, then the header.

    `names` are the sections' names in order and `limit` a bound on the bytes behind the header; both only reserve room
    for the header, of which a small file takes what it needs. Returns the manifest.
    """
    room = len(_header_text([(name, limit) for name in names], limit, "0" * 64, start=limit))
    room += -room % 8
    rows, sizes = [], []
    held = io.BytesIO()
    body: BinaryIO = held
    for section in sections:
        body.write(section.data)
        sizes.append((section.name, len(section.data)))
        checksum = xxhash.xxh3_64_hexdigest(section.data)
        rows.append(SectionRow(section.name, section.coder, section.dtype, section.count, checksum))
        if body is held and held.tell() > MOST_HELD:
            file.write(bytes(8 + room))
            file.write(held.getbuffer())
            body = file
    manifest = manifest_of(tuple(rows))
    packed = _pack_manifest(manifest.to_json())
    body.write(packed)
    header = _header_text(sizes, len(packed), hashlib.sha256(packed).hexdigest())
    if [row.name for row in rows] != list(names) or len(header) > room:
        raise AssertionError("sections are not those that room was reserved for")
    if body is held:
        room = len(header) + -len(header) % 8
    else:
        file.seek(0)
    file.write(room.to_bytes(8, "little") + header.ljust(room).encode())
    if body is held:
        file.write(held.getbuffer())
    return manifest


MOST_HELD = 1 << 20
"""Bytes of sections that are held until the header's size is known: to a larger file a few spaces are nothing."""


@dataclass(frozen=True)
class Container:
    """A file as it was when it was opened: its validated manifest, and where its sections are."""

    path: Path
    manifest: Manifest
    header: Header
    state: State
    """What tells the file from one that replaces it, even by the same bytes."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self.header.file_size

    def section_bytes(self, name: str) -> int:
        """Bytes of a section in the file."""
        entry = self.header.entries[name]
        return entry.stop - entry.start

    def open_sections(self) -> Sections:
        """Open the sections for reading; raises ReplacedError where the path is another file by now."""
        return Sections(self)


class ReplacedError(DamageError):
    """The file was replaced after its manifest was read: read it again."""


def _close(descriptor: int) -> None:
    """Close what was only read, whatever the file system says: nobody is there who could be told."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


class Sections:
    """The sections of one file, read on demand through one handle, so that they stay those of the manifest."""

    def __init__(self, opened: Container) -> None:
        self._container = opened
        try:
            self._descriptor = open_descriptor(opened.path)
        except SpecialFileError as error:
            raise _special(opened.path, error) from error
        weakref.finalize(self, _close, self._descriptor)
        self._lock = threading.Lock()
        head = opened.header.head_bytes()
        if self._read_at(0, len(head)) != head:
            raise ReplacedError(
                f"{_quoted(opened.path)} was replaced while it was being read",
                hint="run it again",
                code="file-replaced",
            )

    def read(self, row: SectionRow) -> bytes:
        """Read the bytes of a section; raises DamageError where they are not those that were written."""
        header = self._container.header
        entry = header.entries[row.name]
        data = self._read_at(header.data_start + entry.start, entry.stop - entry.start)
        checksum = xxhash.xxh3_64_hexdigest(data)
        if checksum != row.checksum:
            raise DamageError(
                f"{_quoted(self._container.path)}: section '{row.name}' has checksum {checksum}, "
                f"the manifest says {row.checksum}",
                hint=_DAMAGE_HINT,
                code="section-digest",
            )
        return data

    def _read_at(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; positioned reads do not exist everywhere, so there is one reader at a time."""
        with self._lock, open(self._descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            return file.read(size)


def read(path: Path) -> Container:
    """Open a file and check all of it but the sections' bytes; raises DamageError, UnknownFormatError."""
    try:
        with open(path, "rb", opener=open_descriptor) as file:
            state = State.of(os.fstat(file.fileno()))
            _check_crowd(file)
            canonical = _read_canonical(file)
            header = canonical or read_header_of(file, path)
            _check_format(header)
            packed = _read_manifest(file, header)
        manifest = parse_manifest(decompress_manifest(packed))
        if canonical is None or [*header.entries] != [*(row.name for row in manifest.sections), "manifest"]:
            _check_header(header, manifest, packed)
    except SpecialFileError as error:
        raise _special(path, error) from error
    except MalformedError as error:
        raise DamageError(error.message, hint=_DAMAGE_HINT, code=error.code) from error
    except ValueError as error:
        code = reason(error, "damage")
        raise DamageError(f"{_quoted(path)} is damaged: {error}", hint=_DAMAGE_HINT, code=code) from error
    except (DamageError, UnknownFormatError) as error:
        hint = error.hint or _DAMAGE_HINT
        raise type(error)(f"{_quoted(path)}: {error.message}", hint=hint, code=error.code) from error
    return Container(path, manifest, header, state)


def _special(path: Path, error: SpecialFileError) -> DamageError:
    return DamageError(
        f"{_quoted(path)} is no part of a pack: {error.strerror}", hint=_DAMAGE_HINT, code="file-special"
    )


def _check_crowd(file: BinaryIO) -> None:
    """Check before a header is parsed that the bytes behind it can be those of so many sections."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if MAX_SMALL_HEADER < length <= min(MAX_HEADER, size - 8):
        sections = max(0, file.read(length).count(b"{") - _OTHER_OBJECTS)
        most = FREE_SECTIONS + (size - 8 - length) // LEAST_SECTION
        if sections > most:
            raise RefusedError(
                f"{size - 8 - length:,} bytes behind the header are said to be {sections:,} sections, "
                f"expected at most {most:,}",
                code="section-crowd",
            )
    file.seek(0)


FREE_SECTIONS, LEAST_SECTION = 1 << 14, 16
"""Sections that any file may have, and the bytes that all others take on an average: a section of elements that are
equal takes more, and only one of no elements takes none."""

_OTHER_OBJECTS = 3
"""Objects of a header that are no sections: itself, the metadata, and the manifest's row."""


def _read_canonical(file: BinaryIO) -> Header | None:
    """Read a header that is, to the byte, one that the writer makes; None for any other, with the file at its start.

    Text that equals what is made from its own sizes needs no other check, which halves the time of a small file.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length).decode("ascii", "replace") if length <= min(MAX_SMALL_HEADER, size) else ""
    file.seek(0)
    digest = _DIGEST.search(text)
    sizes = [(name, int(nbytes)) for name, nbytes in _SIZES.findall(text)]
    if digest is None or not sizes or sizes[-1][0] != "manifest" or len(dict(sizes)) != len(sizes) or length % 8:
        return None
    entries, start = {}, 0
    for name, nbytes in sizes:
        entries[name] = Entry("U8", (nbytes,), start, start + nbytes)
        start += nbytes
    if 8 + length + start != size or _header_text(sizes[:-1], sizes[-1][1], digest[1]).ljust(length) != text:
        return None
    return Header(text, entries, {"format": "petlpack", "version": str(VERSION), "manifest_sha256": digest[1]})


_DIGEST = re.compile(r'"manifest_sha256":"([0-9a-f]{64})"')

_SIZES = re.compile(r'"([A-Za-z0-9._-]+)":\{"dtype":"U8","shape":\[([0-9]{1,15})\]')

MAX_SMALL_HEADER = 1 << 20
"""Bytes of a header that is looked at as a whole before it is parsed: ten thousand sections have less."""

_DAMAGE_HINT = "restore the file from a backup, or encode the run again with --replace"


def decompress_manifest(packed: bytes) -> bytes:
    """Return the JSON of a packed manifest: u32 size, then a zstd frame of exactly that size."""
    size = int.from_bytes(packed[:4], "little")
    most = min(MAX_MANIFEST, most_text(len(packed)))
    if size > most:
        raise RefusedError(
            f"manifest is {size:,} bytes in {len(packed):,}, expected at most {most:,}", code="size-limit"
        )
    text = decompress(packed[4:], size)
    check_marks(text, len(packed))
    return text


def _pack_manifest(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + compress(text, 19)


def _header_text(sizes: Sequence[tuple[str, int]], manifest: int, digest: str, start: int = 0) -> str:
    """Return the canonical header of sections and a manifest that follow each other from offset `start` on.

    Names of sections need no escapes.
    """
    rows = [f'"__metadata__":{{"format":"petlpack","version":"{VERSION}","manifest_sha256":"{digest}"}}']
    offset = start
    for name, size in [*sizes, ("manifest", manifest)]:
        rows.append(f'"{name}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{offset},{offset + size}]}}')
        offset += 0 if start else size
    return f"{{{','.join(rows)}}}"


def _check_format(header: Header) -> None:
    if header.metadata.get("format") != "petlpack":
        raise UnknownFormatError(
            "not a petlpack file: its metadata has no format 'petlpack'",
            hint="a pack may contain only files that petlpack wrote: move this one out",
            code="format-unknown",
        )
    if header.metadata.get("version") != str(VERSION):
        raise UnknownFormatError(
            f"format version is {printable(str(header.metadata.get('version')))}, this petlpack reads {VERSION}",
            hint="the file was written by a newer petlpack: upgrade petlpack to read it",
            code="version-unknown",
        )


def _read_manifest(file: BinaryIO, header: Header) -> bytes:
    entry = header.entries.get("manifest")
    if entry is None:
        raise DamageError("no manifest", code="manifest-missing")
    if entry.stop - entry.start > MAX_MANIFEST:
        raise DamageError(
            f"manifest is {entry.stop - entry.start:,} bytes, expected at most {MAX_MANIFEST:,}",
            code="size-limit",
        )
    file.seek(header.data_start + entry.start)
    packed = file.read(entry.stop - entry.start)
    digest = hashlib.sha256(packed).hexdigest()
    if digest != header.metadata.get("manifest_sha256"):
        stated = printable(str(header.metadata.get("manifest_sha256")))
        raise DamageError(f"manifest has sha256 {digest}, the header says {stated}", code="manifest-digest")
    return packed


def _check_header(header: Header, manifest: Manifest, packed: bytes) -> None:
    """Check that the header is, to the byte, the one that the writer makes for this manifest."""
    names = [row.name for row in manifest.sections]
    if set(header.entries) != {*names, "manifest"}:
        odd = printable(min(set(header.entries) ^ {*names, "manifest"}))
        raise DamageError(f"section '{odd}' is only in one of header and manifest", code="header-sections")
    sizes = [(name, header.entries[name].stop - header.entries[name].start) for name in names]
    canonical = _header_text(sizes, len(packed), hashlib.sha256(packed).hexdigest())
    if header.text != canonical.ljust(len(header.text)) or len(header.text) % 8:
        raise DamageError("header is not canonical", code="header-canonical")


def _quoted(path: Path) -> str:
    return f"'{printable(str(path))}'"
