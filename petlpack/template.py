"""What tasks of one kind have in common: weight files, tensor names, shapes, the base's digests, kept files.

A template is written once per pack and named by its sha256, so a task says 32 bytes instead of kilobytes. Its JSON is
laid down in formats/template.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from petlpack.errors import DamageError, printable
from petlpack.tensors.base import BaseRef
from petlpack.tensors.casting import can_cast
from petlpack.tensors.dtypes import DType, dtype_named
from petlpack.tensors.safetensors_file import Header, MalformedError, is_shape, parse_header


@dataclass(frozen=True)
class Slot:
    """One tensor of a run: its name, dtype and shape, the base tensor it comes from, and whether it is the head's."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    size: int
    base: BaseRef | None
    head: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    @property
    def row(self) -> int:
        """Elements of one row of a matrix (of one output channel of a kernel); a vector is one row."""
        return max(1, self.size // self.shape[0] if len(self.shape) > 1 and self.shape[0] else self.size)


@dataclass(frozen=True)
class Template:
    """The common part of tasks. `headers` holds the safetensors header of each weight file, verbatim."""

    headers: Mapping[str, Header]
    base_name: str | None
    base: Mapping[str, BaseRef]
    head: frozenset[str]
    files: Mapping[str, str]

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every tensor, in the order of the weight files and of the bytes in them."""
        return tuple(self._slots())

    def _slots(self) -> Iterator[Slot]:
        for header in self.headers.values():
            for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].start, item[1].stop)):
                size = (entry.stop - entry.start) // entry.held_as.itemsize
                yield Slot(name, entry.held_as, entry.held_shape, size, self.base.get(name), name in self.head)

    def to_json(self) -> bytes:
        """Return the canonical JSON of this template."""
        table = {
            "weights": [[file, header.text] for file, header in self.headers.items()],
            "base_name": self.base_name,
            "base": [
                [name, ref.name, ref.dtype.name, list(ref.shape), ref.sha256] for name, ref in sorted(self.base.items())
            ],
            "head": sorted(self.head),
            "files": dict(sorted(self.files.items())),
        }
        return json.dumps(table, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()


def parse_template(text: bytes, where: str) -> Template:
    """Parse and check the JSON of a template read from `where`; raises DamageError."""
    try:
        table = json.loads(text)
        base_name = table["base_name"]
        template = Template(
            headers={_file_name(file): parse_header(header.encode()) for file, header in table["weights"]},
            base_name=None if base_name is None else str(base_name),
            base={name: _parse_ref(*rest) for name, *rest in table["base"]},
            head=frozenset(str(name) for name in table["head"]),
            files={_file_name(name): _sha256(digest) for name, digest in table["files"].items()},
        )
        _check(template)
        if template.to_json() != text:
            raise ValueError("it is not canonical JSON")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MalformedError) as error:
        raise DamageError(f"{where} is not a template: {printable(str(error))}") from error
    return template


def check_file_name(name: str) -> str:
    """Return a relative path that stays below a directory; raises ValueError for one that leads elsewhere."""
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"'{printable(name)}' is not a plain relative file name")
    return name


def _check(template: Template) -> None:
    names = [slot.name for slot in template.slots]
    if len(set(names)) != len(names):
        raise ValueError("two weight files hold the same tensor")
    if template.headers.keys() & template.files.keys():
        raise ValueError("a kept file has the name of a weight file")
    for slot in template.slots:
        base = slot.base
        if base is None:
            continue
        resized = len(base.shape) == len(slot.shape) >= 2 and base.shape[1:] == slot.shape[1:]
        if base.shape != slot.shape and not resized:
            raise ValueError(f"tensor '{slot.name}' is {slot.shape} and its base {base.shape}")
        if not can_cast(base.dtype, slot.dtype):
            raise ValueError(f"tensor '{slot.name}' is {slot.dtype.name} and its base {base.dtype.name}")


def _file_name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError("a file name is not a string")
    return check_file_name(name)


def _sha256(digest: object) -> str:
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"'{digest}' is not a sha256")
    return digest


def _parse_ref(name: object, dtype: object, shape: object, digest: object) -> BaseRef:
    if not isinstance(name, str) or not is_shape(shape):
        raise ValueError(f"'{name}' is not a tensor of a base")
    return BaseRef(name, dtype_named(str(dtype)), tuple(shape), _sha256(digest))
