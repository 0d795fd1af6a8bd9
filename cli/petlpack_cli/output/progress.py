"""Bars on stderr for people who wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from petlpack import printable

Item = TypeVar("Item")


class NoProgress:
    """Shows nothing."""

    def each(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """Yield the items, and count them."""
        yield from items

    def bytes(self, name: str) -> Callable[[int, int], None] | None:
        """Return a callback for (bytes done, bytes in all) of one task."""
        return None


class Progress(NoProgress):
    """One bar for the items, if there are several, and one for the bytes of the item at hand."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        name = TextColumn(
            "{task.description}", markup=False, table_column=Column(max_width=40, no_wrap=True, overflow="ellipsis")
        )
        self._bars = Bars(
            name,
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, markup=False, emoji=False, highlight=False),
            transient=True,
        )
        self._bytes = self._bars.add_task("", visible=False)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    def each(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """Yield the items; the bar is drawn where there is more than one."""
        bar = self._bars.add_task(f"all {total:,}", total=total, visible=total > 1)
        for item in items:
            yield item
            self._bars.advance(bar)

    def bytes(self, name: str) -> Callable[[int, int], None]:
        """Start the bar of one task anew, and return the callback that moves it."""
        self._bars.reset(self._bytes, description=printable(name), total=None, visible=True)

        def move(done: int, total: int) -> None:
            self._bars.update(self._bytes, completed=done, total=total)

        return move
