"""What attacks have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.confined import Runner, confined


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """Lend what runs commands in processes with little memory and little time."""
    if sys.platform != "linux":
        pytest.skip("limits of memory and time are Linux's here")
    with confined("torch", "petlpack.codecs.ulp", "petlpack.codecs.sparse", "petlpack.exports.peft") as lent:
        yield lent
