"""Print the rules of a reader: what each forbids, the vectors that show it, and the tests that ask it of the writer.

    python -m tools.rules            the table
    python -m tools.rules --check    say what is missing, and exit with 1 if anything is

A rule is a row of formats/reasons.md. A test is marked `rule` with the codes that it is about.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tools.vectors import FORMATS, ROOT, vectors


@dataclass(frozen=True)
class Rule:
    """A row of formats/reasons.md, with the ids of its vectors and of the tests of the writer."""

    code: str
    meaning: str
    vectors: tuple[str, ...]
    tests: tuple[str, ...]
    in_bytes: bool
    """Whether a vector can show it: it is about bytes, and not about places, times or runs."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What the rule has none of."""
        return (*(() if self.vectors or not self.in_bytes else ("vector",)), *(() if self.tests else ("test",)))


def rules() -> list[Rule]:
    """Return every rule, in the order of the page."""
    page = (FORMATS / "reasons.md").read_text(encoding="utf-8")
    shown: dict[str, list[str]] = {}
    for vector in vectors():
        if vector.bad:
            shown.setdefault(vector["code"], []).append(vector.id)
    tests, elsewhere = writer_tests(), not_in_bytes()
    return [
        Rule(code, meaning, tuple(shown.get(code, ())), tuple(tests.get(code, ())), code not in elsewhere)
        for code, meaning in re.findall(r"^\| `([a-z0-9-]+)` \| [a-z]+ \([0-9]\) \| (.+) \|$", page, re.MULTILINE)
    ]


def not_in_bytes() -> set[str]:
    """Return the codes of which the page says that no vector shows them."""
    page = (FORMATS / "reasons.md").read_text(encoding="utf-8")
    section = page.partition("## What no vector shows\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`([a-z0-9-]+)`", section))


class _Collector:
    """Notes the codes that the tests are about, by their marks."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Look at every test that was found."""
        for item in session.items:
            for mark in item.iter_markers("rule"):
                for code in mark.args:
                    self.tests.setdefault(code, []).append(item.nodeid)


def writer_tests() -> dict[str, list[str]]:
    """Return the tests that are marked with a code, by code; raises RuntimeError where they cannot be collected."""
    files = [str(file) for file in (ROOT / "tests").rglob("test_*.py") if "mark.rule(" in file.read_text("utf-8")]
    collector, said = _Collector(), io.StringIO()
    with contextlib.redirect_stdout(said):
        found = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sorted(files)], plugins=[collector])
    if found != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests cannot be collected:\n{said.getvalue()}")
    return collector.tests


def _rows(table: list[Rule]) -> Iterator[str]:
    width = max((len(rule.code) for rule in table), default=0)
    for rule in table:
        yield f"{rule.code:{width}}  {rule.meaning}"
        for what, ids in (("vector", rule.vectors), ("test", rule.tests)):
            others = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            nothing = "none" if what in rule.missing else "none: not in bytes"
            yield f"{'':{width}}    {what:6}  {ids[0] if ids else nothing}{others}"


def main() -> int:
    """Print the table, or what is missing in it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print only the rules that have no vector or no test")
    options = parser.parse_args()
    table = rules()
    missing = [rule for rule in table if rule.missing]
    print("\n".join(_rows(missing if options.check else table)) or "nothing is missing")
    return 1 if options.check and missing else 0


if __name__ == "__main__":
    sys.exit(main())
