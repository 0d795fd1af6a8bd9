"""What a setting of a run says of itself."""

from __future__ import annotations

import pytest

from petlpack.layouts.options import NOTHING, Setting


@pytest.mark.parametrize(
    ("on_loses", "off_loses", "on", "off"),
    [
        (None, None, "not stated by keep", NOTHING),
        ("the rest", None, "the rest", NOTHING),
        (None, "the rest", NOTHING, "the rest"),
        ("this", "that", "this", "that"),
    ],
)
def test_what_a_flag_loses(on_loses: str | None, off_loses: str | None, on: str, off: str) -> None:
    flag = Setting("keep", "keeps something", flag=True, on_loses=on_loses, off_loses=off_loses)
    assert (flag.lost(on=True), flag.lost(on=False)) == (on, off)
