"""The parts of a template as they stand in its JSON: the base it came from, what is adapted, headers, names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from petlpack.errors import RefusedError, printable
from petlpack.records.canonical import parse_sha256
from petlpack.tensors.file_names import check_file_name, is_text
from petlpack.tensors.safetensors_file import Header, parse_header


@dataclass(frozen=True)
class Origin:
    """The base that a run was encoded against, as people find it: its name, its path as it was given then.

    `sha256` is that of its table, so of all its tensors.
    """

    name: str
    path: str
    sha256: str

    def __str__(self) -> str:
        """Say which base it is."""
        return f"the base '{self.name}' ({self.path} when it was encoded), sha256 {self.sha256}"


@dataclass(frozen=True)
class Adapts:
    """The tensors of the base that an adapter adapts, sorted by name, and the sha256 of their table alone.

    Decoding does not need them: they tell another base.
    """

    sha256: str
    tensors: tuple[str, ...]


def parse_weights_header(text: str, prefix: object) -> Header:
    """Parse a header, whose tensors have a prefix: a place in the run's directory, or none; raises RefusedError."""
    place = parse_text(prefix)
    if place and check_file_name(place.removesuffix("/")) == place:
        raise RefusedError(f"the prefix '{printable(place)}' does not end with '/'", code="file-name")
    return replace(parse_header(text.encode()), prefix=place)


def parse_origin(row: Any) -> Origin | None:
    """Parse the base that a run was encoded against; raises RefusedError."""
    if row is None:
        return None
    origin = Origin(**_fields("origin", row, {"name", "path", "sha256"}))
    for text in (origin.name, origin.path):
        if not is_text(parse_text(text)):
            raise RefusedError(f"origin has the text {text!r}, with a control character", code="template-fields")
    parse_sha256(origin.sha256)
    return origin


def parse_adapts(row: Any) -> Adapts | None:
    """Parse what an adapter adapts of its base; raises RefusedError."""
    if row is None:
        return None
    fields = _fields("adapts", row, {"sha256", "tensors"})
    return Adapts(parse_sha256(fields["sha256"]), tuple(parse_names(fields["tensors"])))


def _fields(what: str, row: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(row, dict) or set(row) != names:
        raise RefusedError(f"{what} must have the fields {', '.join(sorted(names))}", code="template-fields")
    return row


def parse_text(value: object) -> str:
    """Return a text; raises RefusedError for anything else."""
    if not isinstance(value, str):
        raise RefusedError(f"expected a string, got {value!r}", code="template-fields")
    return value


def parse_names(value: object) -> list[str]:
    """Return a list of different texts; raises RefusedError for anything else."""
    if not isinstance(value, list):
        raise RefusedError(f"expected a list, got {value!r}", code="template-fields")
    texts = [parse_text(item) for item in value]
    if len(set(texts)) != len(texts):
        (twice, _), *_ = Counter(texts).most_common(1)
        raise RefusedError(f"duplicate '{twice}'", code="template-twice")
    return texts


def parse_file_name(name: object) -> str:
    """Return a file name, as `check_file_name`; raises RefusedError for what is none."""
    if not isinstance(name, str):
        raise RefusedError(f"a file name must be a string, got {name!r}", code="file-name")
    return check_file_name(name)
