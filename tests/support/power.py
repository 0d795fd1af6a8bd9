"""Power cuts: what a disk may hold after one, made from what a program did and what it synced."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_runs import patch_system


@dataclass
class Node:
    """A file or a directory: what it held at each moment, and what of that was synced last."""

    is_directory: bool
    contents: list[bytes] = field(default_factory=lambda: [b""])
    """Of a file: what was in it, one after another."""
    names: dict[str, list[Node | None]] = field(default_factory=dict)
    """Of a directory: what stood behind each name, one after another."""
    synced: int = 0
    """Of a file: the content that is on the disk for sure."""
    synced_names: dict[str, int] = field(default_factory=dict)
    """Of a directory: of each name, the entry that is on the disk for sure."""


class PowerLog:
    """Looks at a directory around every call that changes one, and notes what was synced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.top = Node(is_directory=True)
        self._nodes: dict[int, Node] = {root.stat().st_ino: self.top}
        self._files: dict[int, int] = {}
        """Files that are held open, so that no number of theirs is given to another one."""
        self.look()
        self._sync_all(self.top)

    @contextmanager
    def watching(self) -> Iterator[PowerLog]:
        """Look around every call that renames, deletes, makes or syncs, as long as the block runs."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
                patch_system(patch, os, name, self._around(getattr(os, name)))
            patch.setattr(os, "fsync", self._fsync)
            yield self
            self.look()

    def close(self) -> None:
        """Close what was held open."""
        for descriptor in self._files.values():
            os.close(descriptor)

    def look(self) -> None:
        """Note what changed since the last look."""
        self._look_at(self._root, self.top)

    def _around(self, real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            self.look()
            try:
                return real(*args, **more)
            finally:
                self.look()

        return call

    def _fsync(self, descriptor: int) -> None:
        self.look()
        node = self._nodes.get(os.fstat(descriptor).st_ino)
        if node is not None:
            self._sync(node)

    @staticmethod
    def _sync(node: Node) -> None:
        node.synced = len(node.contents) - 1
        node.synced_names = {name: len(entries) - 1 for name, entries in node.names.items()}

    def _sync_all(self, node: Node) -> None:
        self._sync(node)
        for entries in node.names.values():
            if entries[-1] is not None:
                self._sync_all(entries[-1])

    def _look_at(self, place: Path, node: Node) -> None:
        there = {entry.name: entry for entry in os.scandir(place)}
        for name in {*there, *node.names}:
            found = self._node(there[name]) if name in there else None
            entries = node.names.setdefault(name, [None])
            if entries[-1] is not found:
                entries.append(found)
            if found is None:
                continue
            if found.is_directory:
                self._look_at(place / name, found)
            else:
                content = (place / name).read_bytes()
                if found.contents[-1] != content:
                    found.contents.append(content)

    def _node(self, entry: os.DirEntry[str]) -> Node:
        number = entry.inode()
        if number not in self._nodes:
            self._nodes[number] = Node(entry.is_dir())
            self._files[number] = os.open(entry.path, os.O_RDONLY)
        return self._nodes[number]


def freeze(node: Node, copies: dict[int, Node] | None = None) -> Node:
    """Return what is known of a tree at this moment."""
    copies = {} if copies is None else copies
    if id(node) not in copies:
        copies[id(node)] = copy = Node(node.is_directory, [*node.contents], {}, node.synced, {**node.synced_names})
        copy.names = {
            name: [None if entry is None else freeze(entry, copies) for entry in entries]
            for name, entries in node.names.items()
        }
    return copies[id(node)]


def cut(node: Node, place: Path, rng: random.Random, mood: str) -> None:
    """Write to a new directory what the disk may hold of a tree after a power cut.

    `mood` "least" keeps only what was synced, "most" everything, "any" of each name and each file any state from the
    one that was synced on; what of a file was not synced may be zeros, or half of it.
    """
    place.mkdir()
    for name, entries in node.names.items():
        first = node.synced_names.get(name, 0)
        chosen = {"least": first, "most": len(entries) - 1}.get(mood, rng.randrange(first, len(entries)))
        entry = entries[chosen]
        if entry is None:
            continue
        if entry.is_directory:
            cut(entry, place / name, rng, mood)
        else:
            (place / name).write_bytes(_content(entry, rng, mood))


def _content(node: Node, rng: random.Random, mood: str) -> bytes:
    first, last = node.synced, len(node.contents) - 1
    if mood == "most" or first == last:
        return node.contents[last]
    if mood == "least":
        return node.contents[first]
    content = node.contents[rng.randrange(first, last + 1)]
    return rng.choice([content, bytes(len(content)), content[: len(content) // 2], node.contents[first]])
