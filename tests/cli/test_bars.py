"""Bars of a table: where the terminal is narrow they shrink together, so that their lengths still compare."""

from __future__ import annotations

import pytest

from petlpack_cli.output.sizes import bar
from petlpack_cli.output.text import table_lines

VALUES = (100.0, 50.0, 10.0, 0.1, 0.0)


def bars(width: int, blocks: bool = True) -> list[str]:
    """Return the bars of a table whose names take 20 columns."""
    drawn = [bar(value, 100, 6) for value in VALUES]
    drawn = drawn if blocks else ["#" * len(text) for text in drawn]
    lines = list(table_lines({"Name": "name", "": "bar"}, [("x" * 20, text) for text in drawn], None, width))[2:]
    return [line[22:] for line in lines if line[20:22] == "  " or len(line) == 20]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, ["██████", "███", "▋", "▏", ""]),
        (28, ["██████", "███", "▋", "▏", ""]),
        (26, ["████", "██", "▍", "▏", ""]),
        (24, ["██", "█", "▏", "▏", ""]),
        (23, ["█", "▌", "▏", "▏", ""]),
    ],
)
def test_bars_shrink_together(width: int, expected: list[str]) -> None:
    assert bars(width) == expected


def test_bars_without_blocks_shrink_as_well() -> None:
    assert bars(28, blocks=False) == ["######", "###", "#", "#", ""]
    assert bars(24, blocks=False) == ["##", "#", "#", "#", ""]
