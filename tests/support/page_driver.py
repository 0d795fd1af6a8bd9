"""Opens pages in a real browser, sees all that they ask for and complain of, and reads what they show."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCHEMES = ("light", "dark")
PATIENCE = 120_000
"""Milliseconds until what does not come is an error: other tests run at the same time, and some days are busy."""
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}


def find_browser() -> str:
    """Return Chromium's program: PETLPACK_CHROMIUM, or one on the path; skips where there is none.

    PETLPACK_CHROMIUM=required fails there instead.
    """
    said = os.environ.get("PETLPACK_CHROMIUM")
    if said not in (None, "", "required"):
        return said
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and said == "required":
        pytest.fail(f"PETLPACK_CHROMIUM=required, and there is none of {', '.join(NAMES)}")
    if found is None:
        pytest.skip("no Chromium: install one, or set PETLPACK_CHROMIUM to its program")
    return found


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Lend a browser."""
    program = find_browser()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield running
        finally:
            running.close()


@dataclass
class Opened:
    """A page that is open: `page` drives it, `asked` are the addresses that it asked for, `complaints` its errors."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        """Return the text of the one element that is meant, its spaces as plain ones."""
        return self.page.locator(selector).inner_text().replace("\N{NO-BREAK SPACE}", " ")

    def figures(self) -> dict[str, str]:
        """Return the key figures by name."""
        names, values = (self.page.locator(where).all_inner_texts() for where in ("#figures dt", "#figures dt + dd"))
        return dict(zip(names, values, strict=True))

    def rows(self, section: str) -> list[list[str]]:
        """Return the texts of the body of a section's table."""
        rows: list[list[str]] = self.page.evaluate(
            "id => [...document.querySelectorAll(`#${id} tbody tr`)].map(r => [...r.cells].map(c => c.textContent))",
            section,
        )
        return rows

    def names(self, section: str = "tasks") -> list[str]:
        """Return the first cell of every row of a section's table."""
        return [row[0] for row in self.rows(section)]

    def sums(self, section: str = "tasks") -> list[str]:
        """Return the texts of the sums under a section's table."""
        return self.page.locator(f"#{section} tfoot tr > *").all_inner_texts()

    def heads(self, section: str = "tasks") -> list[str]:
        """Return the names of a table's columns."""
        return self.page.locator(f"#{section} thead button").all_inner_texts()

    def cells(self) -> dict[str, int]:
        """Return name and bytes of the cells of the map."""
        cells: list[tuple[str, int]] = self.page.evaluate(
            "[...document.querySelectorAll('.cell')].map(c => [c.dataset.name, Number(c.dataset.bytes)])"
        )
        assert len(dict(cells)) == len(cells)
        return dict(cells)

    def cell(self, name: str) -> Any:
        """Return a cell of the map."""
        return self.page.locator(f'.cell[data-name="{name}"]')

    def trail(self) -> list[str]:
        """Return the names on the way to what the map shows."""
        return [text.rpartition(", ")[0] for text in self.page.locator("#trail > *").all_inner_texts()]

    def focused(self) -> str | None:
        """Return the name of the cell that has the focus."""
        name: str | None = self.page.evaluate("document.activeElement.dataset.name ?? null")
        return name


@contextlib.contextmanager
def opened(running: Browser, path: Path, **context: Any) -> Iterator[Opened]:
    """Open a page; when the block ends, it must have asked for nothing but itself and complained of nothing."""
    place = running.new_context(**{"viewport": DESKTOP, **context})
    place.set_default_timeout(PATIENCE)
    shown = Opened(place.new_page())

    def answer(route: Route) -> None:
        shown.asked.append(route.request.url)
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            route.abort()

    place.route("**/*", answer)

    def dismiss(dialog: Dialog) -> None:
        shown.complaints.append(dialog.message)
        dialog.dismiss()

    shown.page.on("console", lambda message: shown.complaints.append(message.text))
    shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    shown.page.on("dialog", dismiss)
    try:
        shown.page.goto(path.as_uri())
        shown.page.locator(".cell").first.wait_for()
        yield shown
        assert shown.complaints == []
        assert shown.asked == [path.as_uri()]
    finally:
        place.close()
