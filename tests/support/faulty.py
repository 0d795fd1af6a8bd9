"""A writer with a fault: it makes what a rule of a reader forbids, and `encode` has to find it in time."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import zstandard

from petlpack import coding
from petlpack.codecs.registry import codec
from petlpack.errors import PetlpackError
from petlpack.records.base_table import base_table_json
from petlpack.records.template import Template
from petlpack.sections.write import write_file
from petlpack.tensors.dtypes import Bits
from tests.support.places import snapshot
from tools.write_vectors import join_file, split_file

Bytes = Callable[[bytes], bytes]
"""A fault in bytes."""
Table = Callable[[Any], Any]
"""A fault in a JSON value: it is changed in place, or another is returned."""


def canonical(value: object) -> bytes:
    """Return the canonical JSON of a value, as the pages say."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()


def in_json(change: Table) -> Bytes:
    """Return the fault in the text of a value."""

    def changed(text: bytes) -> bytes:
        value = json.loads(text)
        return canonical(change(value) or value)

    return changed


def in_manifest(change: Bytes) -> Bytes:
    """Return the fault in the text of a file's manifest; the header fits it."""

    def changed(data: bytes) -> bytes:
        parts = split_file(data)
        sections = {name: data[slice(*place)] for name, place in list(parts.items())[3:-1]}
        text = change(zstandard.ZstdDecompressor().decompress(data[slice(*parts["manifest"])][4:]))
        return join_file(sections, len(text).to_bytes(4, "little") + zstandard.ZstdCompressor().compress(text))

    return changed


def files(patch: pytest.MonkeyPatch, change: Bytes) -> None:
    """Put a fault into the files of tasks and of parts of tensors."""

    def write(file: BinaryIO, *rest: Any) -> None:
        right = io.BytesIO()
        write_file(right, *rest)
        file.write(change(right.getvalue()))

    patch.setattr("petlpack.encoding.write.write_file", write)


def templates(patch: pytest.MonkeyPatch, change: Bytes) -> None:
    """Put a fault into templates."""
    real = Template.to_json
    patch.setattr(Template, "to_json", lambda self, name=None: change(real(self, name)))


def tables(patch: pytest.MonkeyPatch, change: Bytes) -> None:
    """Put a fault into the tables of bases, and their names along with it."""

    def digest(refs: Any) -> str:
        return hashlib.sha256(change(base_table_json(refs))).hexdigest()

    patch.setattr("petlpack.encoding.bind.base_table_json", lambda refs: change(base_table_json(refs)))
    patch.setattr("petlpack.encoding.bind.table_digest", digest)


def rules(patch: pytest.MonkeyPatch, codec_id: str, change: Table) -> None:
    """Put a fault into the rules of a codec."""
    kind = type(codec(codec_id))
    real = kind.rule_of

    def rule_of(self: Any, module: Any) -> Any:
        rule = json.loads(json.dumps(real(self, module)))
        return change(rule) or rule

    patch.setattr(kind, "rule_of", rule_of)


def sections(patch: pytest.MonkeyPatch, coder_id: str, data: bytes, array: coding.Array) -> None:
    """Put bytes into the place of the section of such an array."""
    real = coding.encode

    def encode(bits: Bits, found: coding.Array, *rest: Any) -> tuple[str, bytes]:
        if (found.dtype, found.count) == (array.dtype, array.count):
            return coder_id, data
        return real(bits, found, *rest)

    patch.setattr(coding, "encode", encode)


def refused(pack: Path, code: str, call: Callable[[], object]) -> None:
    """Check that a call is refused for a reason, and that no file of the pack is another afterwards."""
    before = snapshot(pack) if pack.exists() else None
    with pytest.raises(PetlpackError) as caught:
        call()
    assert caught.value.code == code, caught.value
    assert (snapshot(pack) if pack.exists() else None) == before
