"""Shared parts of bytes: templates, tables of bases, kept files, each named by the sha256 of what it holds."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from petlpack import coding, container
from petlpack.container import BYTES, Container, EncodedSection, Manifest, SectionRow
from petlpack.errors import DamageError, PetlpackError, RefusedError, naming, printable
from petlpack.store import MAX_SHARED, Store
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.strict_json import check_marks, most_text


def write_shared(content: bytes) -> bytes:
    """Return the bytes of the shared part that holds `content`; raises PetlpackError where that does not come back."""
    bits = np.frombuffer(content, np.uint8)
    array = coding.Array(DTYPES["U8"], len(bits), max(1, len(bits)))
    coder_id, data = coding.encode(bits, array, ("planes",), "small")
    if coding.decode(coder_id, data, array, "content").tobytes() != content:
        raise PetlpackError(
            f"a shared part of {len(content):,} bytes as written does not decode to what it holds",
            hint="this is a bug; the task was not put into the pack",
            code="decoded-digest",
        )
    section = EncodedSection("content", coder_id, "U8", len(bits), data)
    file = io.BytesIO()

    def manifest_of(rows: tuple[container.SectionRow, ...]) -> container.Manifest:
        return container.Manifest("shared", BYTES, rows)

    container.write(file, ["content"], len(data) + 1024, iter([section]), manifest_of)
    return file.getvalue()


def read_shared(store: Store, sha256: str, most: int = MAX_SHARED) -> bytes:
    """Read a shared part of at most so many bytes, and check that it decodes to what its name says.

    Raises DamageError.
    """
    return read_shared_file(find_shared(store, sha256), sha256, most)


def read_shared_file(file: Path, sha256: str, most: int = MAX_SHARED) -> bytes:
    """Read the file of a shared part wherever it is, as `read_shared`."""
    opened, row = _open_bytes(file)
    return _read_bytes(opened, row, sha256, most)


def read_text_file(file: Path, sha256: str, most: int) -> bytes:
    """Read the file of a shared part that holds JSON, which may not be larger than its bytes explain."""
    opened, row = _open_bytes(file)
    packed = opened.section_bytes(row.name)
    text = _read_bytes(opened, row, sha256, min(most, most_text(packed)))
    try:
        check_marks(text, packed)
    except RefusedError as error:
        raise DamageError(f"'{printable(str(file))}': {error}", code=error.code) from error
    return text


def size_of_shared(store: Store, sha256: str) -> int:
    """Return the bytes that a shared part of bytes holds, by its manifest; raises DamageError."""
    return _open_bytes(find_shared(store, sha256))[1].count


def _open_bytes(file: Path) -> tuple[Container, SectionRow]:
    """Open a shared part of bytes, and return its one section; raises DamageError for another file."""
    opened = container.read(file)
    rows = opened.manifest.sections
    alone = [(row.name, row.dtype) for row in rows] == [("content", "U8")]
    if not alone or opened.manifest != Manifest("shared", BYTES, rows):
        raise DamageError(f"'{printable(str(opened.path))}' is not a shared part of bytes", code="file-kind")
    return opened, rows[0]


def _read_bytes(opened: Container, row: SectionRow, sha256: str, most: int) -> bytes:
    path = printable(str(opened.path))
    if row.count > most:
        raise DamageError(f"'{path}' declares {row.count:,} bytes, expected at most {most:,}", code="size-limit")
    array = coding.Array(DTYPES["U8"], row.count, max(1, row.count))
    data = opened.open_sections().read(row)
    with naming(opened.path):
        content = bytes(coding.decode(row.coder, data, array, row.name))
    decoded = hashlib.sha256(content).hexdigest()
    if decoded != sha256:
        raise DamageError(f"'{path}' decodes to {decoded}, its name says {sha256}", code="decoded-digest")
    return content


def find_shared(store: Store, sha256: str) -> Path:
    """Return the file of a shared part; raises DamageError where it is missing."""
    path = store.shared_path(sha256)
    if not path.is_file():
        raise DamageError(
            f"shared part {sha256} is missing from pack '{printable(str(store.path))}'",
            hint="restore the file from a backup of the pack, or encode again the runs that need it",
            code="part-missing",
        )
    return path
