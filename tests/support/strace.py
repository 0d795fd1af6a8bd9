"""Commands at whose real system calls something goes wrong: what they call, and how strace lets a call fail or kill."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ENVIRONMENT

PATIENCE = 100
"""Seconds until a command that does not end is killed: longer than anybody waits for the lock of a pack."""

UNSEEN = ("newfstatat", "fstat", "stat", "lstat", "statx", "lseek", "ioctl", "fcntl", "getdents64", "readlink")
"""Calls that change nothing that outlives the process: what a kill leaves there, it leaves at the next call, too."""


@dataclass(frozen=True)
class Call:
    """A system call on a file of ours: its name, and which of that name it is in its process, from 1 on."""

    name: str
    number: int


class Runner:
    """A process that runs commands for us (tests/support/command_runner.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, words: Sequence[str], **how: Any) -> dict[str, Any]:
        """Run a command, limited, traced or killed as said; returns its exit code, code of error, texts and time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"arguments": [*words], "alarm": PATIENCE, **how}), file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def record(self, words: Sequence[str], ours: Path) -> list[Call]:
        """Run a command, and return the system calls that it made on files below a directory, in order."""
        log = ours.parent / f"{ours.name}.strace"
        self.run(words, strace=["-y", "-o", str(log)])
        seen: Counter[tuple[str, str]] = Counter()
        calls = []
        for line in log.read_text("utf-8", "replace").splitlines():
            match = re.match(r"(\d+) +([a-z_0-9]+)\(", line)
            if match is None:
                continue
            seen[match[1], match[2]] += 1
            if str(ours) in line:
                calls.append(Call(match[2], seen[match[1], match[2]]))
        assert len({process for process, _ in seen}) == 1, "calls are counted by thread: give --jobs 1"
        log.unlink()
        return calls


def options(call: Call, what: str, *, lasting: bool = False) -> list[str]:
    """Return what strace is told, so that something goes wrong at a call, or from it on: `signal=KILL`, `error=EIO`."""
    when = f"{call.number}{'+' if lasting else ''}"
    return ["-o", "/dev/null", "-e", f"trace={call.name}", "-e", f"inject={call.name}:{what}:when={when}"]


@contextlib.contextmanager
def lending_runner(temporary: Path) -> Iterator[Runner]:
    """Lend a process that runs commands; their temporary files are in a directory of ours."""
    temporary.mkdir(exist_ok=True)
    environment = {**ENVIRONMENT, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.command_runner"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Runner(process)
        assert process.stdin is not None
        process.stdin.close()


def need_strace() -> None:
    """Skip a test where strace is missing, or may not trace; PETLPACK_STRACE=required fails there instead."""
    why = _why_not()
    if why and os.environ.get("PETLPACK_STRACE") == "required":
        pytest.fail(f"PETLPACK_STRACE=required, and {why}")
    if why:
        pytest.skip(why)


@functools.lru_cache
def _why_not() -> str:
    if not sys.platform.startswith("linux"):
        return "strace is of Linux"
    if shutil.which("strace") is None:
        return "there is no strace"
    command = ["strace", "-f", "-o", "/dev/null", "-e", "inject=rmdir:error=EIO", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"strace may not trace: {done.stderr.strip()}" if done.returncode else ""
