"""Asks for commands to be run in processes that have little memory and little time (command_runner.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.machine import slowness

SECONDS = 1.0
"""Of the processor of a usual machine that a command may take of what a stranger wrote."""

ENDS = frozenset({*range(8)})
"""Exit codes that say what is wrong, or that nothing is."""

NEVER = frozenset({"killed", "internal", "memory", "raised", "unreadable"})
"""Codes of what no pack may lead to: no limit was needed to end it, and every error is one of ours."""

_LONGEST = 60
"""Seconds after which a command hangs that waits for a pipe."""

_TRIES = 3
"""A processor that others use takes longer for the same, up to twice: what is too slow is so each time."""


class Runner:
    """Runs commands, one after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, files: Path, arguments: Sequence[str]) -> dict[str, Any]:
        """Run a command on files, with memory of twice their bytes and 128 MB; returns the least time of three."""
        size = sum(file.lstat().st_size for file in files.rglob("*") if file.is_file() and not file.is_symlink())
        wanted = {"arguments": [*arguments], "memory": 2 * size + (128 << 20), "seconds": 2 * _TRIES, "alarm": _LONGEST}
        found: dict[str, Any] = {}
        seconds: list[float] = []
        while len(seconds) < _TRIES and (not seconds or seconds[-1] > SECONDS):
            found = self._ask(wanted)
            seconds.append(found["seconds"])
        return {**found, "seconds": min(seconds)}

    def _ask(self, wanted: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(wanted), file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def check(self, files: Path, arguments: Sequence[str], *, seconds: float = SECONDS) -> dict[str, Any]:
        """Run a command and check that it ends at once, as one that succeeds, or with an error of ours."""
        found = self.run(files, arguments)
        assert found["exit"] in ENDS, (arguments, found)
        assert found["code"] not in NEVER, (arguments, found)
        assert "internal error" not in found["said"], (arguments, found)
        assert not found["odd"], (arguments, found)
        assert found["seconds"] <= seconds or found["seconds"] <= seconds * slowness(), (arguments, found)
        return found


@contextmanager
def confined(*modules: str) -> Iterator[Runner]:
    """Lend what runs commands; these modules are loaded before any of them begins."""
    command = [sys.executable, "-m", "tests.support.command_runner", *modules]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Runner(process)
        assert process.stdin is not None
        process.stdin.close()
