"""What a caller says of the files beside a run's weights: which to keep, which to drop, how large they may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from pathlib import PurePosixPath

from petlpack.errors import UsageError, printable
from petlpack.store import MAX_SHARED

MAX_FILE = 64 << 20
"""Bytes up to which a file comes along by default: tokenizers are smaller, what is larger is mostly weights."""


@dataclass(frozen=True)
class Selection:
    """Globs of files to keep and to drop, and the bytes above which a file is left out that no glob keeps.

    A glob is matched with a file's path below the run, with that below the directory whose weights count, with the
    directories above it, and with its name, if the glob does not begin with `/`. A file that both match is kept. Raises
    UsageError for a size that is none.
    """

    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    max_file: int = MAX_FILE
    used: set[str] = field(default_factory=set, compare=False)
    """Globs that matched a file."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_file <= MAX_SHARED:
            raise UsageError(
                f"max_file must be from 0 to {MAX_SHARED:,} bytes, got {self.max_file:,}",
                hint="a file that is larger cannot be kept as it is; weights are encoded where they are a run's",
            )

    @classmethod
    def of(cls, drop: str | Sequence[str], keep: str | Sequence[str], max_file: int) -> Selection:
        """Return what a caller says, who may give one glob by itself."""
        return cls(_each(drop), _each(keep), max_file)

    @property
    def words(self) -> tuple[str, ...]:
        """What says the same on the command line."""
        globs = [("--drop", glob) for glob in self.drop] + [("--keep", glob) for glob in self.keep]
        size = ("--max-file", str(self.max_file)) if self.max_file != MAX_FILE else ()
        return (*(f"{option}={glob}" for option, glob in globs), *size)

    @classmethod
    def just(cls, names: Iterable[str]) -> Selection:
        """Return what keeps these files of a run, called as they come back, whatever they are and however large."""
        return cls(keep=tuple(f"/{escape(name)}" for name in names), max_file=MAX_SHARED)

    def keeps(self, *names: PurePosixPath) -> bool:
        """Tell whether a glob keeps a file that has these paths."""
        return self._match(self.keep, names)

    def drops(self, *names: PurePosixPath) -> bool:
        """Tell whether a glob drops a file that has these paths."""
        return self._match(self.drop, names)

    def may_keep_in(self, *folders: PurePosixPath, linked: bool) -> bool:
        """Tell whether a glob may keep something in a directory that has these paths; one that is a link is named."""
        starts = tuple(f"{text}/" for folder in folders for text in (str(folder), escape(str(folder))))
        inside = (glob.lstrip("/").startswith(starts) or not (linked or glob.startswith("/")) for glob in self.keep)
        return any(inside) or self._match(self.keep, folders)

    def unused(self) -> tuple[str, ...]:
        """Return a warning for each glob that matched nothing."""
        given = [("--drop", glob) for glob in self.drop] + [("--keep", glob) for glob in self.keep]
        return tuple(
            f"{option} {printable(glob)} matches no file of this run" for option, glob in given if glob not in self.used
        )

    def _match(self, globs: Iterable[str], names: Sequence[PurePosixPath]) -> bool:
        paths = {str(place) for name in names for place in (name, *name.parents)}
        each = {glob: paths if glob.startswith("/") else paths | {name.name for name in names} for glob in globs}
        matching = {glob for glob, texts in each.items() if any(fnmatchcase(text, glob.strip("/")) for text in texts)}
        self.used.update(matching)
        return bool(matching)


def _each(globs: str | Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)
