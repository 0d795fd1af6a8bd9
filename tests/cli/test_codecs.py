"""`petlpack codecs`, which needs no pack: what becomes of output that cannot be written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import ENVIRONMENT, command_line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["codecs"], ["codecs", "--json"], ["codecs", "-q"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_an_error(arguments: list[str], unbuffered: str) -> None:
    env = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command_line(*arguments), env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No space left on device: 'standard output'\nHint: ")
    assert done.stderr.count("\n") == 2
