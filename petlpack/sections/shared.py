"""Shared parts of bytes: templates, tables of bases, kept files, each named by the sha256 of what it holds."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from petlpack import coding, container
from petlpack.container import BYTES, EncodedSection, Manifest
from petlpack.errors import DamageError, PetlpackError, naming, printable
from petlpack.store import MAX_SHARED, Store
from petlpack.tensors.dtypes import DTYPES


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
    opened = container.read(file)
    manifest, path = opened.manifest, printable(str(opened.path))
    rows = manifest.sections
    if manifest != Manifest("shared", BYTES, rows) or [(row.name, row.dtype) for row in rows] != [("content", "U8")]:
        raise DamageError(f"'{path}' is not a shared part of bytes", code="file-kind")
    if rows[0].count > most:
        raise DamageError(f"'{path}' declares {rows[0].count:,} bytes, expected at most {most:,}", code="size-limit")
    array = coding.Array(DTYPES["U8"], rows[0].count, max(1, rows[0].count))
    data = opened.open_sections().read(rows[0])
    with naming(opened.path):
        content = bytes(coding.decode(rows[0].coder, data, array, rows[0].name))
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
