"""The whole packs of `formats/packs/`, and their copies that have to be refused: text to directories and back.

`formats/packs.md` says what they are. Nothing here knows what a pack's files mean, but for what an edit needs.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
import zstandard

import petlpack
from petlpack.records.canonical import canonical_json
from petlpack.sections.shared import read_shared, write_shared
from petlpack.store import SUFFIX
from tools.vectors import Vector, unhex, vectors
from tools.write_vectors import join_file, split_file

WIDE = 96
"""Hex digits on a line."""


# Text


def told(data: bytes) -> str | list[str | dict[str, str]]:
    """Return a file as a vector has it: a text, or lines of hex and the header of a safetensors file as text."""
    behind = 8 + int.from_bytes(data[:8], "little")
    if behind > len(data):
        return data.decode()
    return [*_lines(data[:8]), {"text": data[8:behind].decode()}, *_lines(data[behind:])]


def _lines(data: bytes) -> Iterator[str]:
    digits = data.hex()
    return (digits[at : at + WIDE] for at in range(0, len(digits), WIDE))


def untold(said: str | Sequence[str | Mapping[str, str]]) -> bytes:
    """Return the bytes of a file from what `formats/packs/` has of it."""
    if isinstance(said, str):
        return said.encode()
    return b"".join(unhex(part) if isinstance(part, str) else part["text"].encode() for part in said)


def write_files(place: Path, files: Mapping[str, str | Sequence[str | Mapping[str, str]]]) -> Path:
    """Write files that `formats/packs/` has into a directory, and return it."""
    for name, said in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(untold(said))
    return place


def write_whole(vector: Vector, place: Path) -> tuple[Path, Path | None]:
    """Write the pack of a good vector and its base, if any, below a directory; return both places."""
    pack = write_files(place / "pack", vector["pack"])
    return pack, write_files(place / "base", vector["base"]) if vector.get("base") else None


# What an edit is about

_FILE = re.compile(r"(?P<what>.+?)( of (?P<task>[A-Za-z0-9._-]+))?( in (?P<pack>[a-z0-9-]+))?")


class Copy:
    """A copy of a good pack on the disk, to which an edit is done (formats/packs.md)."""

    def __init__(self, bad: Vector, place: Path) -> None:
        self.bad, self.place = bad, place
        self.good = _good(bad["of"])
        self.pack, self.base = write_whole(self.good, place)
        (edit,) = EDITS.keys() & bad.fields.keys()
        value = bad[edit]
        EDITS[edit](self, *(value if isinstance(value, list) else [value]))

    def find(self, file: str) -> Path:
        """Return the place of a file that an edit names."""
        match = _FILE.fullmatch(file)
        assert match is not None, file
        pack = self.pack
        if match["pack"]:
            pack, _ = write_whole(_good(match["pack"]), self.place / match["pack"])
        return _place(pack, match["what"], match["task"] or self.bad["task"])

    def remove(self, file: str) -> None:
        """Do `without`."""
        if file == "base":
            self.base = None
        else:
            self.find(file).unlink()

    def flip(self, file: str, part: str, offset: int, mask: str) -> None:
        """Do `flip`."""
        path = self.find(file)
        data = bytearray(path.read_bytes())
        start, behind = split_file(bytes(data))[part]
        data[range(start, behind)[offset]] ^= int(mask, 16)
        path.write_bytes(data)

    def cut(self, file: str, length: int) -> None:
        """Do `cut`."""
        path = self.find(file)
        path.write_bytes(path.read_bytes()[:length])

    def append(self, file: str, data: str) -> None:
        """Do `append`."""
        path = self.find(file)
        path.write_bytes(path.read_bytes() + unhex(data))

    def put(self, source: str, target: str) -> None:
        """Do `copy`."""
        shutil.copyfile(self.find(source), self.find(target))

    def name(self, number: int, file: str) -> None:
        """Do `names`."""
        source = self.find(file)
        path = self.pack / "shared" / source.name
        if path != source:
            shutil.copyfile(source, path)
        sha256 = source.name.removesuffix(SUFFIX)

        def changed(manifest: Any) -> None:
            manifest["shared"][number:] = [sha256, *manifest["shared"][number + 1 :]]

        _change(self.find("task"), changed)

    def manifest(self, file: str, path: Sequence[str | int], *value: Any) -> None:
        """Do `manifest`."""
        _change(self.find(file), lambda manifest: _set(manifest, path, *value))

    def section(self, file: str, name: str, field: str, value: Any) -> None:
        """Do `section`."""
        path = self.find(file)
        data, manifest = _sections(path.read_bytes()), _manifest(path.read_bytes())
        row = next(row for row in manifest["sections"] if row[0] == name)
        if field == "data":
            data[name] = unhex(value)
        elif field == "cut":
            data[name] = data[name][:value]
        else:
            row[("name", "coder", "dtype", "count").index(field)] = value
        row[4] = xxhash.xxh3_64_hexdigest(data[name])
        sections = {
            called: data[old] for called, old in zip((row[0] for row in manifest["sections"]), data, strict=True)
        }
        path.write_bytes(_file(sections, manifest))

    def content(self, file: str, path: Sequence[str | int], *value: Any) -> None:
        """Do `content`."""

        def changed(content: bytes) -> bytes:
            table = json.loads(content)
            _set(table, path, *value)
            return canonical_json(table)

        self._renew(file, changed)

    def text(self, file: str, old: str, new: str) -> None:
        """Do `text`."""

        def changed(content: bytes) -> bytes:
            assert old.encode() in content, (file, old)
            return content.replace(old.encode(), new.encode(), 1)

        if file == "pack.json":
            path = self.find(file)
            path.write_bytes(changed(path.read_bytes()))
        else:
            self._renew(file, changed)

    def octets(self, file: str, data: str) -> None:
        """Do `octets`."""
        self._renew(file, lambda content: unhex(data))

    def _renew(self, file: str, change: Callable[[bytes], bytes]) -> None:
        """Change the content of a part of bytes, and the digests in all that names it."""
        path = self.find(file)
        old = path.name.removesuffix(SUFFIX)
        content = change(read_shared(petlpack.open(self.pack).store, old))
        new = hashlib.sha256(content).hexdigest()
        (self.pack / "shared" / f"{new}{SUFFIX}").write_bytes(write_shared(content))
        if file == "template":
            _change(self.find("task"), lambda manifest: _set(manifest, ["shared", 0], new))
        else:
            self.text("template", old, new)

    def change_base(self, tensor: str, change: Mapping[str, Any]) -> None:
        """Do `base`."""
        assert self.base is not None
        for path in self.base.rglob("*.safetensors"):
            data = path.read_bytes()
            behind = 8 + int.from_bytes(data[:8], "little")
            table, body = json.loads(data[8:behind]), bytearray(data[behind:])
            if tensor not in table:
                continue
            row = table.pop(tensor)
            if "flip" in change:
                offset, mask = change["flip"]
                body[row["data_offsets"][0] + offset] ^= int(mask, 16)
            row["shape"] = change.get("shape", row["shape"])
            table[change.get("name", tensor)] = row
            text = json.dumps(table, separators=(",", ":")).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))


EDITS: dict[str, Callable[..., None]] = {
    "without": Copy.remove,
    "flip": Copy.flip,
    "cut": Copy.cut,
    "append": Copy.append,
    "copy": Copy.put,
    "names": Copy.name,
    "manifest": Copy.manifest,
    "section": Copy.section,
    "content": Copy.content,
    "text": Copy.text,
    "octets": Copy.octets,
    "base": Copy.change_base,
}


def _good(name: str) -> Vector:
    return next(vector for vector in vectors() if vector.id == name)


def _place(pack: Path, what: str, task: str) -> Path:
    """Return where a file of a task stands in a pack."""
    if what == "pack.json":
        return pack / what
    opened = petlpack.open(pack)[task]
    if what == "task":
        return pack / "tasks" / f"{task}{SUFFIX}"
    parts: dict[str, str | None] = dict(zip(("template", "part"), opened.manifest.shared, strict=False))
    if what not in parts:
        parts = {**opened.template.files, "table": opened.template.base_table}
    return pack / "shared" / f"{parts[what]}{SUFFIX}"


def _manifest(data: bytes) -> Any:
    packed = data[slice(*split_file(data)["manifest"])]
    return json.loads(zstandard.ZstdDecompressor().decompress(packed[4:]))


def _sections(data: bytes) -> dict[str, bytes]:
    return {name: data[slice(*place)] for name, place in list(split_file(data).items())[3:-1]}


def _file(sections: Mapping[str, bytes], manifest: Any) -> bytes:
    text = canonical_json(manifest)
    return join_file(sections, len(text).to_bytes(4, "little") + zstandard.ZstdCompressor(level=19).compress(text))


def _change(path: Path, change: Callable[[Any], None]) -> None:
    """Change the manifest of a file, and what of the header belongs to it."""
    data = path.read_bytes()
    manifest = _manifest(data)
    change(manifest)
    path.write_bytes(_file(_sections(data), manifest))


def _set(table: Any, path: Sequence[str | int], *value: Any) -> None:
    """Set a field inside JSON, or remove it where no value is given."""
    *outer, last = path
    for field in outer:
        table = table[field]
    if value:
        table[last] = value[0]
    else:
        del table[last]
