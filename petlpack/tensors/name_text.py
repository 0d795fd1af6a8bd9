"""The names of a weight file's tensors, as a text to look into before the file is opened as anything."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import BinaryIO

from petlpack.tensors.content import BAD_ZIP, is_archive, opened_archive
from petlpack.tensors.foreign_json import read_small
from petlpack.tensors.pinned import State, open_regular
from petlpack.tensors.safetensors_file import MalformedError, read_header

MOST_NAMES = 1 << 24
"""Bytes of a pickle that are looked at for names: those of a hundred thousand tensors."""


def name_text(path: Path) -> bytes:
    """Return a text in which the names of a weight file's tensors stand, without reading a pickle as one.

    It is the header of a safetensors file, or the pickle of what torch saved, whose names are plain text. Empty for a
    file that is neither. Every layout asks for the same file, which is read once.
    """
    try:
        return _name_text(path, State.of(path.stat()))
    except (MalformedError, OSError, *BAD_ZIP):
        return b""


@functools.lru_cache(maxsize=4)  # few, for the text of a pickle may be of MOST_NAMES
def _name_text(path: Path, _state: State) -> bytes:
    """Read the text of a file in one state of it; what is raised is not remembered."""
    if path.suffix == ".safetensors":
        return read_header(path).text.encode()
    if path.suffix == ".json":  # an index of shards
        return read_small(path)
    with open_regular(path) as file:
        return _pickle_text(file)


def _pickle_text(file: BinaryIO) -> bytes:
    """Return the pickle of what torch saved, of one that is no archive its beginning."""
    if not is_archive(file):
        file.seek(0)
        return file.read(MOST_NAMES)
    with opened_archive(file) as archive:
        inside = next((name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"), None)
        if inside is None:
            return b""
        with archive.open(inside) as pickle:
            return pickle.read(MOST_NAMES)
