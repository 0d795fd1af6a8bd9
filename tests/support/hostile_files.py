"""What somebody could have done to any file or folder of a run: cut, nested, replaced by a pipe, filled with links."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

Change = Callable[[Path], object]
"""What is done to a run's directory, or to one file."""


def _instead(make: Change) -> Change:
    """Put something in the place of a file."""

    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


# Any file

OF_FILES: dict[str, Change] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0" * 4096),
    "null": lambda file: file.write_text("null"),
    "a list": lambda file: file.write_text("[]"),
    "a long number": lambda file: file.write_text('{"a":' + "5" * 5000 + "}"),
    "nested": lambda file: file.write_text('{"a":' * 100_000),
    "brackets": lambda file: file.write_text("[" * 100_000 + "]" * 100_000),
    "two gigabytes": lambda file: os.truncate(file, 1 << 31),
    "not UTF-8": lambda file: file.write_bytes(b'{"a":"\xff\xfe"}'),
    "UTF-16": lambda file: file.write_bytes('{"a":1}'.encode("utf-16")),
    "a pipe": _instead(lambda file: os.mkfifo(file)),
    "a link to itself": _instead(lambda file: file.symlink_to(file.name)),
    "a link to nothing": _instead(lambda file: file.symlink_to("nowhere")),
    "a device": _instead(lambda file: file.symlink_to("/dev/zero")),
    "a folder": _instead(lambda file: file.mkdir()),
    "noise": lambda file: file.write_bytes(bytes((i * i * 31) % 251 for i in range(5000))),
    "an object of objects": lambda file: file.write_text(
        json.dumps({"a": {"b": {"c": {}}}, "config": {}, "weight_map": {}})
    ),
}


# Folders


def _deep(run: Path) -> None:
    """Make 1,500 directories in one another, which no path could name at once."""
    here = os.open(run, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inside = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inside
    os.close(here)


def _many(run: Path) -> None:
    for i in range(1000):
        (run / f"{i}.txt").write_text("x")


def _bytes_names(run: Path) -> None:
    for name in (b"x\xff.txt", b"w\xfe.safetensors", b"c\x80.json"):
        with open(os.path.join(os.fsencode(run), name), "wb") as file:  # noqa: PTH118, PTH123 - a name of bytes
            file.write(b"x")


def _twins(run: Path) -> None:
    for name in (
        "CON",
        "con",
        "aux.txt",
        "end.",
        "a b ",
        "x" * 255,
        "new\nline",
        "\x1b[31m",
        "Model.SAFETENSORS",
        "-rf",
    ):
        (run / name).write_text("{}")


def _links(run: Path) -> None:
    for name, target in (("itself", "itself"), ("a", "b"), ("b", "a"), ("up", ".."), ("here", "."), ("root", "/")):
        (run / name).symlink_to(target)


OF_FOLDERS: dict[str, Change] = {
    "deep folders": _deep,
    "many files": _many,
    "names of bytes": _bytes_names,
    "odd names": _twins,
    "links": _links,
    "a pipe beside": lambda run: os.mkfifo(run / "other.json"),
}
