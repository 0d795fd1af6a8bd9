"""The tensors of a base with their sums: a shared part that all tasks on it need (formats/template.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from petlpack.errors import DamageError, RefusedError, printable, reason
from petlpack.records.canonical import canonical_json, parse_checksum, parse_sha256, read_canonical
from petlpack.tensors.dtypes import dtype_named, width_of
from petlpack.tensors.safetensors_file import is_shape
from petlpack.tensors.tensor import Sums
from petlpack.tensors.views import BaseRef

BaseTable = Mapping[str, BaseRef]


def base_table_json(refs: BaseTable) -> bytes:
    """Return the canonical JSON of a base's tensors, the content of a shared part."""
    return canonical_json([_row(ref) for _, ref in sorted(refs.items())])


def _row(ref: BaseRef) -> list[Any]:
    return [ref.name, ref.dtype.name, list(ref.shape), ref.sums.sha256, ref.sums.checksum]


def table_digest(refs: BaseTable) -> str:
    """Return the sha256 of the table of a base's tensors, or of some of them alone."""
    return hashlib.sha256(base_table_json(refs)).hexdigest()


def parse_base_table(text: bytes, where: str) -> BaseTable:
    """Parse and check the JSON of a base's tensors, read from `where`; raises DamageError."""
    try:
        rows, canonical = _parse_json(text)
        table = {row[0]: _parse_ref(*row) for row in rows}
        if len(table) != len(rows) or canonical != text or base_table_json(table) != text:
            code = "base-table-canonical" if isinstance(rows, list) else "base-table-row"
            wrong = "not canonical JSON" if isinstance(rows, list) else f"expected a list, got {type(rows).__name__}"
            raise RefusedError(wrong, code=code)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        code = reason(error, "base-table-row")
        raise DamageError(f"{where} is not a valid base table: {printable(str(error))}", code=code) from error
    return table


def parameters(refs: BaseTable) -> int:
    """Return the float numbers of a base."""
    return sum(math.prod(ref.shape) for ref in refs.values() if ref.dtype.kind == "float")


def _parse_json(text: bytes) -> tuple[Any, bytes]:
    """Return a value with its canonical JSON, which half a character does not have."""
    try:
        return read_canonical(text)
    except ValueError as error:
        raise RefusedError(str(error), code="base-table-json") from error


def _parse_ref(name: object, dtype: object, shape: object, sha256: object, checksum: object) -> BaseRef:
    if not isinstance(name, str) or not is_shape(shape, width_of(dtype)):
        raise RefusedError(
            f"expected the name and shape of a tensor, got {name!r} and {shape!r}", code="base-table-row"
        )
    return BaseRef(name, dtype_named(str(dtype)), tuple(shape), Sums(parse_sha256(sha256), parse_checksum(checksum)))
