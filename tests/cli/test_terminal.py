"""What a terminal and a pipe get: progress, colours, no hostile name, and silence where nobody reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import ENVIRONMENT, ESC, command_line, posix, run, write_adapter


@posix
def test_an_interrupt_that_python_ignores_is_raised_again() -> None:
    program = (
        "import sys, time\nfrom petlpack_cli import app, main\nclass Ends:\n    def __del__(self):\n"
        "        raise KeyboardInterrupt\ndef wait(**_):\n    Ends()\n"
        "    while True:\n        time.sleep(0.01)\n"
        "app.cli.main = wait\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@posix
@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["list", "-q"], ["codecs"], ["verify"]])
def test_a_closed_pipe_is_silent(arguments: list[str], place: Path) -> None:
    given: list[str | Path] = [place / "p"] if arguments[0] != "codecs" else []
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command_line(*arguments, *given), env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def terminal(*arguments: str | Path, **env: str) -> str:
    """Run in a terminal of 80 columns; returns what it shows, stdout and stderr together."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command_line(*arguments),
        env={**ENVIRONMENT, "TERM": "xterm-256color", **env},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            octets = os.read(master, 65536)
        except OSError:
            break
        if not octets:
            break
        shown += octets
    os.close(master)
    process.wait(60)
    return shown.decode()


COLOR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


@posix
def test_a_terminal_gets_progress_and_quiet_does_not(place: Path, pack: Path) -> None:
    given: list[str | Path] = ["verify", pack, "--base", place / "base"]
    assert "━" in terminal(*given)
    assert COLOR.search(terminal(*given))
    assert not COLOR.search(terminal(*given, NO_COLOR="1"))
    assert "━" not in terminal(*given, "--quiet")
    assert "gc" in terminal("remove", pack, "sst2")
    assert "gc" not in terminal("remove", pack, "rte", "-q")


@posix
def test_hostile_names_reach_neither_terminal_nor_pipe(place: Path, tmp_path: Path) -> None:
    hostile = Path(shutil.copytree(place / "sst2", tmp_path / f"{ESC}run"))
    (hostile / f"{ESC}[link=evil]notes.txt").write_bytes(b"x")
    (hostile / "config.json").write_text(json.dumps({"_name_or_path": f"{ESC}[red]base\u202e"}), encoding="utf-8")
    adapter = write_adapter(tmp_path / "adapter", f"[red]{ESC}lo\nra")
    pack, base = tmp_path / f"{ESC}p", place / "base"
    results = [
        run("encode", hostile, adapter, hostile / "nothing", "--base", base, "--pack", pack),
        run("encode", hostile, "--task", "sst2", "--base", base, "--pack", pack),
        run("encode", hostile, "--task", f"{ESC}x", "--base", base, "--pack", pack),
        run("list", pack, "--long"),
        run("stats", pack),
        run("show", pack, "sst2"),
        run("show", pack, "adapter"),
        run("show", pack, f"{ESC}x"),
        run("decode", pack, "sst2", tmp_path / f"{ESC}out"),
        run("decode", pack, "sst2", tmp_path / f"{ESC}out", "--base", base),
        run("verify", pack, "sst2", "--base", base, "--against", f"{ESC}x"),
        run("remove", pack, f"{ESC}x"),
        run(f"{ESC}x"),
        run("list", f"--{ESC}x"),
    ]
    for result in results:
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
        assert "internal error" not in result.output
    assert "[red]" in results[6].stdout  # nor is it taken for rich's markup
    (pack / "tasks" / f"{ESC}evil.petl.safetensors").write_bytes(b"x")
    listed = run("list", pack).stdout
    assert "evil" not in listed  # no encoder gave that name, so it is no task
    assert "\x1b" not in listed
