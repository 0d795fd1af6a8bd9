"""The upkeep of a pack: what `verify` finds in it, and what `remove` and `gc` free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.pack import Checked, Pack


@dataclass(frozen=True)
class Findings:
    """What `verify` found of a pack, or of one task of it, all together."""

    pack: str
    checked: tuple[Checked, ...]

    @property
    def damaged(self) -> int:
        """How many parts are damaged; tasks that need another base than was given are not."""
        return sum(finding.damaged for finding in self.checked)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack verify --json` prints."""
        checked = [finding.to_json() for finding in self.checked]
        return {"pack": self.pack, "checked": checked, "damaged": self.damaged}


@dataclass(frozen=True)
class Removed:
    """The tasks that were removed from a pack, with their bytes."""

    pack: str
    tasks: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.tasks.values())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack remove --json` prints."""
        removed = [{"name": name, "bytes": nbytes} for name, nbytes in self.tasks.items()]
        return {"pack": self.pack, "removed": removed, "bytes": self.nbytes}


@dataclass(frozen=True)
class Garbage:
    """The files of a pack that nothing needs, with their bytes; `dry_run` where they are still there."""

    pack: str
    dry_run: bool
    files: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack gc --json` prints."""
        files = [{"file": name, "bytes": nbytes} for name, nbytes in self.files.items()]
        return {"pack": self.pack, "dry_run": self.dry_run, "files": files, "bytes": self.nbytes}


def remove(pack: str | Path | Pack, tasks: Sequence[str]) -> Removed:
    """Remove tasks from a pack; raises TaskError, and removes none, where one of the names is not in it."""
    opened = pack if isinstance(pack, Pack) else Pack(pack)
    names = list(dict.fromkeys(tasks))
    for name in names:
        opened.store.find_task(name)
    return Removed(str(opened.path), {name: opened.remove(name) for name in names})


def gc(pack: str | Path | Pack, *, dry_run: bool = False) -> Garbage:
    """Delete what no task needs, as `Pack.gc`, or tell only what that is."""
    opened = pack if isinstance(pack, Pack) else Pack(pack)
    freed = opened.gc(dry_run=dry_run)
    return Garbage(
        str(opened.path), dry_run, {path.relative_to(opened.path).as_posix(): nbytes for path, nbytes in freed}
    )
