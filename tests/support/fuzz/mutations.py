"""Mutations of bytes and of what is built of bytes: JSON, headers, containers, archives, each made whole again.

A mutator takes what to change, a source of chance, and `havoc`, which changes bytes blindly: that of the fuzzer, which
knows what was covered, or `blind` where there is none.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any, TypeAlias

import xxhash
import zstandard

from tools.write_vectors import join_file, split_file

Havoc: TypeAlias = Callable[[bytes], bytes]
Mutator: TypeAlias = Callable[[bytes, random.Random, Havoc], bytes]

NUMBERS = (0, 1, -1, 2, 7, 8, 64, 127, 128, 255, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**48, 2**53)
LARGE = (2**61, 2**63 - 1, 2**63, 2**64, 10**30)
TEXTS = (
    *("", "a", "..", "/", "a/../b", "a/b", "{name}", "{name}{name}", "con", "NUL.txt", "a\0b", "\x1b[2J", "\ud800"),
    *(
        "\ufeff",
        "\u0661",
        "x" * 300,
        "0" * 64,
        "F32",
        "BOOL",
        "U8",
        "raw",
        "planes",
        "1e5",
        "nan",
        "-0",
        "__metadata__",
    ),
    *("manifest", "content", "model.safetensors", "pytorch_model.bin", "[1]", "{}", "é", "É", "[0-9]+(a+)+$"),
)


def blind(data: bytes, rng: random.Random) -> bytes:
    """Change bytes in one to four places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        _CHANGES[rng.randrange(len(_CHANGES))](out, rng, rng.randint(0, len(out)))
    return bytes(out)


def _set_number(out: bytearray, rng: random.Random, at: int) -> None:
    width = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS + LARGE) & (1 << 8 * width) - 1
    out[at : at + width] = number.to_bytes(width, "little")


def _flip(out: bytearray, rng: random.Random, at: int) -> None:
    if at < len(out):
        out[at] ^= 1 << rng.randrange(8)


def _set(out: bytearray, rng: random.Random, at: int) -> None:
    out[at : at + 1] = rng.randbytes(1)


def _insert(out: bytearray, rng: random.Random, at: int) -> None:
    out[at:at] = rng.randbytes(rng.randint(1, 8))


def _delete(out: bytearray, rng: random.Random, at: int) -> None:
    del out[at : at + rng.choice((1, 1, 2, 4, 16, 256))]


def _copy(out: bytearray, rng: random.Random, at: int) -> None:
    start = rng.randint(0, len(out))
    out[at : at + rng.choice((0, 8))] = out[start : start + rng.choice((1, 4, 16, 64))]


_CHANGES = (_flip, _flip, _set, _set_number, _set_number, _insert, _delete, _copy)


# JSON


def mutate_bytes(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change bytes blindly."""
    return havoc(data)


def mutate_json(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change values of a JSON text, mostly, and write it canonically; else its bytes."""
    if rng.random() < 0.3:
        return havoc(data)
    try:
        holder = [json.loads(data)]
    except (ValueError, RecursionError):
        return havoc(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change_value(holder, rng, havoc)
    try:
        text = json.dumps(holder[0], separators=(",", ":"), ensure_ascii=False, sort_keys=rng.random() < 0.95)
        return text.encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return havoc(data)


def _change_value(holder: list[Any], rng: random.Random, havoc: Havoc) -> None:
    """Change one value somewhere in a JSON value: walk down by chance, and do something where the walk ends."""
    place: Any = holder
    key: Any = 0
    while isinstance(place[key], (list, dict)) and place[key] and rng.random() < 0.85:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    way, value = rng.random(), place[key]
    if way < 0.1 and place is not holder:
        del place[key]
    elif way < 0.2 and isinstance(place, list) and place is not holder:
        place.insert(key, place[rng.randrange(len(place))])
    elif way < 0.25 and isinstance(place, dict):
        place[_other_text(key, rng, havoc)] = value
    elif way < 0.3:
        place[key] = [value]
    elif way < 0.4:
        place[key] = _any_value(rng)
    elif way < 0.5 and isinstance(place, list) and place is not holder:
        other = rng.randrange(len(place))
        place[key], place[other] = place[other], value
    else:
        place[key] = _near(value, rng, havoc)


def _near(value: Any, rng: random.Random, havoc: Havoc) -> Any:
    """Return a value that is like another."""
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None, 0, 1))
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value * 2, -value, rng.choice(NUMBERS), rng.choice(NUMBERS + LARGE)))
    if isinstance(value, str):
        if value[:1] in ("{", "[") and rng.random() < 0.8:
            return mutate_json(value.encode("utf-8", "surrogatepass"), rng, havoc).decode("utf-8", "replace")
        return _other_text(value, rng, havoc)
    if isinstance(value, list):
        return value[: rng.randint(0, len(value))] if rng.random() < 0.5 else value * rng.choice((2, 3))
    if isinstance(value, dict):
        return {**value, rng.choice(TEXTS): _any_value(rng)}
    return _any_value(rng)


def _other_text(text: str, rng: random.Random, havoc: Havoc) -> str:
    way = rng.random()
    if way < 0.3:
        return rng.choice(TEXTS)
    if way < 0.4:
        return text + rng.choice(TEXTS)
    if way < 0.5 and text:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice("0123456789.-_/aZ{}%\n") + text[at + rng.randint(0, 1) :]
    return havoc(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")


def _any_value(rng: random.Random) -> Any:
    plain: list[Any] = [*NUMBERS, *LARGE, *TEXTS, None, True, False, 0.5, [], {}, [[]], [None], {"a": []}]
    return rng.choice(plain)


# Files


def mutate_container(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change the manifest or a section of a file, and make header and digests those of it; else its bytes."""
    if rng.random() < 0.2:
        return havoc(data)
    try:
        parts = split_file(data)
        packed = data[slice(*parts.pop("manifest"))]
        text = zstandard.ZstdDecompressor().decompress(packed[4:], max_output_size=1 << 20)
        sections = {name: data[slice(*parts[name])] for name in list(parts)[3:]}
        if sections and rng.random() < 0.5:
            text = _change_section(sections, text, rng, havoc)
        else:
            text = mutate_json(text, rng, havoc)
        return join_file(sections, with_size(zstandard.ZstdCompressor(level=1).compress(text), len(text)))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, zstandard.ZstdError, RecursionError):
        return havoc(data)


def with_size(frame: bytes, size: int) -> bytes:
    """Return a frame of zstd behind the size of its content."""
    return size.to_bytes(4, "little") + frame


def _change_section(sections: dict[str, bytes], text: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change a section's bytes, and return the manifest with their digest."""
    manifest = json.loads(text)
    row = rng.choice(manifest["sections"])
    sections[row[0]] = havoc(sections[row[0]])
    row[4] = xxhash.xxh3_64_hexdigest(sections[row[0]])
    return json.dumps(manifest, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()


def mutate_safetensors(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change the header of a safetensors file, and make its length, and mostly the file's, fit; else its bytes."""
    behind = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or behind > len(data):
        return havoc(data)
    text = mutate_json(data[8:behind], rng, havoc)
    body = data[behind:]
    try:
        rows = [row for name, row in json.loads(text).items() if name != "__metadata__"]
        needed = max(row["data_offsets"][1] for row in rows)
        if rng.random() < 0.9 and needed < 1 << 16:
            body = body[:needed].ljust(needed, b"\0")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        pass
    return len(text).to_bytes(8, "little") + text + body


def mutate_archive(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change a record of a zip archive, and write the archive anew with its checksums; else its bytes."""
    if rng.random() < 0.2:
        return havoc(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {row.filename: archive.read(row) for row in archive.infolist() if row.file_size < 1 << 16}
        name = rng.choice([*records, *(name for name in records if name.endswith("data.pkl"))])
        if rng.random() < 0.1:
            records[_other_text(name, rng, havoc)] = records.pop(name)
        else:
            records[name] = havoc(records[name])
        return archive_of(records)
    except Exception:  # of what is no archive, zipfile says so in every way there is
        return havoc(data)


def archive_of(records: dict[str, bytes]) -> bytes:
    """Return a zip archive of records as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return file.getvalue()


# Several in one


def bundle(parts: dict[str, bytes]) -> bytes:
    """Return several byte strings with their names as one."""
    rows = [(name.encode("utf-8", "surrogatepass"), data) for name, data in parts.items()]
    return b"".join(struct.pack("<BI", len(name), len(data)) + name + data for name, data in rows)


def unbundle(data: bytes) -> dict[str, bytes]:
    """Return the parts of a bundle; whatever the bytes are, they are one."""
    parts: dict[str, bytes] = {}
    while len(data) >= 5:
        name, size = struct.unpack_from("<BI", data)
        parts[data[5 : 5 + name].decode("utf-8", "replace")] = data[5 + name : 5 + name + size]
        data = data[5 + name + size :]
    return parts


SUFFIXES: dict[str, Mutator] = {
    ".json": mutate_json,
    ".petl": mutate_container,
    ".safetensors": mutate_safetensors,
    ".bin": mutate_archive,
    ".pt": mutate_archive,
    ".pth": mutate_archive,
}
"""How the parts of a bundle are changed, by the ends of their names."""


def mutate_bundle(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change a part of a bundle by its kind, mostly; else leave it out, rename it, or give it another's content."""
    parts = unbundle(data)
    if not parts:
        return havoc(data)
    name, way = rng.choice(list(parts)), rng.random()
    if way < 0.05:
        del parts[name]
    elif way < 0.1:
        parts[_other_text(name, rng, havoc)[:60]] = parts.pop(name)
    elif way < 0.15:
        parts[name] = parts[rng.choice(list(parts))]
    else:
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(list(parts))
            mutator = next((one for end, one in SUFFIXES.items() if name.endswith(end)), mutate_bytes)
            parts[name] = mutator(parts[name], rng, havoc)
    return bundle({name: data for name, data in parts.items() if len(name.encode("utf-8", "surrogatepass")) < 256})
