"""Packs that a stranger made: golden packs with one thing in them another, and every digest right."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import zstandard

from petlpack.coding.registry import CODERS
from petlpack.sections.shared import write_shared
from petlpack.store import SUFFIX
from tests.support.hostile_json import NAMES, attacks
from tools.packs import write_whole
from tools.vectors import Vector, vectors
from tools.write_vectors import join_file, split_file


@dataclass(frozen=True)
class Hostile:
    """One pack: what is wrong with it, and what writes it into a directory, with the name of the task to ask for."""

    what: str
    write: Callable[[Path], str]


def parts_of(data: bytes) -> tuple[dict[str, bytes], bytes]:
    """Return the sections of a file, and the text of its manifest."""
    places = split_file(data)
    sections = {name: data[slice(*place)] for name, place in list(places.items())[3:-1]}
    packed = data[slice(*places["manifest"])]
    return sections, zstandard.ZstdDecompressor().decompress(packed[4:])


def file_of(sections: dict[str, bytes], text: bytes) -> bytes:
    """Return a file of sections and the text of a manifest, whatever that says."""
    return join_file(sections, len(text).to_bytes(4, "little") + zstandard.ZstdCompressor(level=19).compress(text))


class Stranger:
    """A golden pack on the disk, of which one task is changed."""

    def __init__(self, vector: Vector, place: Path) -> None:
        self.pack, self.base = write_whole(vector, place)
        self.task: str = next(iter(vector["tasks"]))
        self.file = self.pack / "tasks" / f"{self.task}{SUFFIX}"
        self.sections, self.manifest = parts_of(self.file.read_bytes())
        self.names: list[str] = json.loads(self.manifest)["shared"]

    def shared(self, sha256: str) -> Path:
        """Return the file of a shared part."""
        return self.pack / "shared" / f"{sha256}{SUFFIX}"

    def content(self, sha256: str) -> bytes:
        """Return what a shared part of bytes holds."""
        from petlpack.sections.shared import read_shared_file

        return read_shared_file(self.shared(sha256), sha256)

    @property
    def template(self) -> Any:
        """The template of the task."""
        return json.loads(self.content(self.names[0]))

    def put_manifest(self, text: bytes) -> None:
        """Put another manifest into the task's file."""
        self.file.write_bytes(file_of(self.sections, text))

    def put(self, old: str, content: bytes) -> None:
        """Put other content into the place of a part of bytes, and its name into the place of the old one."""
        new = hashlib.sha256(content).hexdigest()
        self.shared(new).write_bytes(write_shared(content))
        if old != self.names[0]:
            self.put(self.names[0], self.content(self.names[0]).replace(old.encode(), new.encode()))
        else:
            self.put_manifest(self.manifest.replace(old.encode(), new.encode()))


Change = Callable[[Stranger, bytes], None]


def documents(made: Stranger) -> dict[str, tuple[bytes, Change]]:
    """Return every JSON text of a pack, with what puts another one into its place."""
    template = made.template
    names = {"template": made.names[0], **template["files"]}
    if template["base"] is not None:
        names["table"] = template["base"]["table"]
    found: dict[str, tuple[bytes, Change]] = {
        "pack.json": ((made.pack / "pack.json").read_bytes(), lambda it, text: _write(it.pack / "pack.json", text)),
        "manifest": (made.manifest, Stranger.put_manifest),
        "file header": (_head(made.file.read_bytes()), lambda it, text: _put_head(it.file, text)),
    }
    for name, sha256 in names.items():
        content = made.content(sha256)
        if content[:1] in (b"{", b"["):
            found[name] = content, functools.partial(_put_content, sha256)
    for number, sha256 in enumerate(made.names):
        _, text = parts_of(made.shared(sha256).read_bytes())
        found[f"manifest of part {number}"] = text, functools.partial(_put_manifest, sha256)
    for number, (_, header, _) in enumerate(template["weights"]):
        found[f"weights header {number}"] = header.rstrip(" ").encode(), functools.partial(_put_weights, number)
    return found


def _put_content(sha256: str, made: Stranger, text: bytes) -> None:
    made.put(sha256, text)


def _put_manifest(sha256: str, made: Stranger, text: bytes) -> None:
    file = made.shared(sha256)
    file.write_bytes(file_of(parts_of(file.read_bytes())[0], text))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _head(data: bytes) -> bytes:
    return data[slice(*split_file(data)["header"])]


def _put_head(path: Path, text: bytes) -> None:
    data = path.read_bytes()
    body = data[split_file(data)["padding"][1] :]
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def _put_weights(number: int, made: Stranger, text: bytes) -> None:
    """Put another header of a weight file into the template; what is no text cannot stand there."""
    template = made.template
    template["weights"][number][1] = text.decode("utf-8", "replace")
    changed = json.dumps(template, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    made.put(made.names[0], changed.encode("utf-8", "replace"))


def golden() -> list[Vector]:
    """Return the whole packs of the format's pages."""
    return [vector for vector in vectors() if vector.kind == "whole pack" and not vector.bad]


def texts(scratch: Path) -> Iterator[Hostile]:
    """Yield the packs in which one JSON text is another."""
    for vector in golden():
        made = Stranger(vector, scratch / vector.id)
        for name, (text, put) in documents(made).items():
            for attack in attacks(text):
                yield Hostile(f"{vector.id}: {name}: {attack.what}", _texts_writer(vector, put, attack.text))


def _texts_writer(vector: Vector, put: Change, text: Callable[[], bytes]) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        made = Stranger(vector, place)
        put(made, text())
        return made.task

    return write


def _others(data: bytes) -> dict[str, bytes]:
    """Return what else may stand in a section: of another length, of another content."""
    middle = len(data) // 2
    return {
        **{"empty": b"", "cut": data[:-1], "half": data[:middle], "longer": data + b"\0", "twice": data * 2},
        **{"zeros": bytes(len(data)), "ones": b"\xff" * len(data), "turned": data[::-1], "short": b"\x01"},
        **{"a bit": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :] if data else b"\x04"},
        **{"large counts": b"\xff\xff\xff\x7f" * 16, "as it is": data},
    }


def sections(scratch: Path) -> Iterator[Hostile]:
    """Yield the packs in which a section, of a task or of a part of tensors, holds something else, by every coder."""
    for vector in golden():
        made = Stranger(vector, scratch / f"{vector.id}-sections")
        files = [made.file, *map(made.shared, made.names)]
        for number, file in enumerate(files):
            held, _ = parts_of(file.read_bytes())
            for row, (name, data) in enumerate(held.items()):
                for coder_id in (*CODERS, "unknown"):
                    for what, other in _others(data).items():
                        where = f"{vector.id}: file {number}: {name} by {coder_id} is {what}"
                        yield Hostile(where, _section_writer(vector, number, row, coder_id, other))


def _section_writer(vector: Vector, number: int, row: int, coder_id: str, data: bytes) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        made = Stranger(vector, place)
        file = [made.file, *map(made.shared, made.names)][number]
        held, text = parts_of(file.read_bytes())
        manifest = json.loads(text)
        manifest["sections"][row][1] = coder_id
        manifest["sections"][row][4] = xxhash.xxh3_64_hexdigest(data)
        held[manifest["sections"][row][0]] = data
        file.write_bytes(file_of(held, json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode()))
        return made.task

    return write


def references(scratch: Path) -> Iterator[Hostile]:
    """Yield the packs in which one part stands where another does, or a part is none."""
    for vector in golden():
        made = Stranger(vector, scratch / f"{vector.id}-references")
        held = sorted(path.name.removesuffix(SUFFIX) for path in (made.pack / "shared").iterdir())
        for old in held:
            for new in (*held, "0" * 64):
                if old != new:
                    where = f"{vector.id}: {old[:8]} is {new[:8]}"
                    yield Hostile(f"{where} by name", _named(vector, old, new))
                    yield Hostile(f"{where} by file", _copied(vector, old, new))
            yield Hostile(f"{vector.id}: {old[:8]} is the task's file", _copied(vector, old, None))


def _named(vector: Vector, old: str, new: str) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        made = Stranger(vector, place)
        text = made.content(made.names[0])
        if old.encode() in text:
            made.put(made.names[0], text.replace(old.encode(), new.encode()))
        else:
            made.put_manifest(made.manifest.replace(old.encode(), new.encode()))
        return made.task

    return write


def _copied(vector: Vector, old: str, new: str | None) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        made = Stranger(vector, place)
        source = made.file if new is None else made.shared(new)
        if source.exists():
            shutil.copyfile(source, made.shared(old))
        else:
            made.shared(old).unlink()
        return made.task

    return write


def directories(scratch: Path) -> Iterator[Hostile]:
    """Yield the packs in which files are called what nothing of a pack is, beside others or instead of them."""
    vector = golden()[-1]
    for name in (*NAMES, "Tuned", "tune\u0301d", ".tmp-x", "._tuned", "\udcff", "-x", "con", "lpt1.x"):
        if not name or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > 200:
            continue
        for folder in ("tasks", "shared", "."):
            for what in ("file", "directory"):
                where = f"{folder}: a {what} called {name[:20]!r}"
                yield Hostile(where, _beside(vector, folder, name.replace("/", "_"), what == "file"))


def _beside(vector: Vector, folder: str, name: str, is_file: bool) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        made = Stranger(vector, place)
        beside = made.pack / folder / f"{name}{SUFFIX}"
        if is_file:
            shutil.copyfile(made.file, beside)
        else:
            beside.mkdir(exist_ok=True)
        return made.task

    return write


def journals(scratch: Path) -> Iterator[Hostile]:
    """Yield the packs whose seal or journal is another."""
    import petlpack

    vector = golden()[-1]
    made = Stranger(vector, scratch / "seal")
    petlpack.seal(made.pack)
    for attack in attacks((made.pack / "inventory.json").read_bytes()):
        yield Hostile(f"inventory.json: {attack.what}", _file_writer(vector, "inventory.json", attack.text))
    lines = {
        **{"empty": b"", "no lines": b"x" * 1000, "zeros": bytes(1 << 16), "many": b"0" * 64 + b"\n" * (1 << 20)},
        **{"parts": b"".join(path.name[:64].encode() + b"\n" for path in (made.pack / "shared").iterdir())},
        **{"no text": b"\xff\xfe\n" * 100, "controls": b"\x1b[2J\n", "JSON": b"[" * 100_000},
    }
    for what, text in lines.items():
        yield Hostile(f".released: {what}", _file_writer(vector, ".released", functools.partial(bytes, text)))


def _file_writer(vector: Vector, name: str, text: Callable[[], bytes]) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        made = Stranger(vector, place)
        (made.pack / name).write_bytes(text())
        return made.task

    return write


KINDS: dict[str, Callable[[Path], Iterator[Hostile]]] = {
    "texts": texts,
    "sections": sections,
    "references": references,
    "directories": directories,
    "journals": journals,
}
"""Every way to make one."""
