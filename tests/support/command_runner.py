"""Runs commands, each in a process of its own that may be limited, killed or traced, as lines of JSON say.

    {"arguments": ["show", "bomb.pack", "bomb", "--json"], "memory": 134217728, "seconds": 1}
    {"exit": 4, "code": "size-limit", "codes": ["size-limit"], "said": "", "out": "{...}", "odd": [], "seconds": 0.1}

All are forked from one process that has loaded what commands load, and the modules that its arguments name; its memory
and time do not count. What is no command of the command line is one of CALLS. `odd` is what nobody may see: warnings,
and characters that drive a terminal. Besides:

    "file": 4096          no file grows beyond so many bytes: a write there is short, and the next one fails
    "alarm": 60           a command that takes longer is killed, and told as such
    "kill": 0.02          the process is killed so many seconds after its start
    "strace": ["-e", ...] strace follows the command from its first call on, with these options
    "here": true          run in this process, so that those that are forked later need to import nothing
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

LOADED = (
    *("petlpack.checking", "petlpack.analyze.details", "petlpack.analyze.listing", "petlpack.analyze.stats"),
    *("petlpack.codecs.plain", "petlpack.codecs.mask", "petlpack.codecs.merge", "petlpack.codecs.hyper"),
    *("petlpack.exports.run", "petlpack.exports.safetensors", "petlpack.coding.numbers", "petlpack.coding.planes"),
    *("petlpack_cli.show", "petlpack_cli.decode", "petlpack_cli.verify", "petlpack_cli.list", "petlpack_cli.stats"),
)
ROOM = 1 << 22
"""Bytes for what a command says: it passes through memory, since every system call of the command may be made fail."""
RAISED = 99
"""The exit code that stands for an exception that left the command line."""
PR_SET_PTRACER, ANY = 0x59616D61, -1


def main() -> None:
    """Run each command that is told, until there is none."""
    for module in (*LOADED, *sys.argv[1:]):
        importlib.import_module(module)
    for line in sys.stdin:
        wanted = json.loads(line)
        print(json.dumps(_run(wanted["arguments"]) if wanted.get("here") else _forked(wanted)), flush=True)


def _forked(wanted: dict[str, Any]) -> dict[str, Any]:
    room = mmap.mmap(-1, ROOM)
    wait, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        _be_child(wanted, room, wait)
    os.close(wait)
    with _traced(child, wanted.get("strace")):
        os.close(go)
        if "kill" in wanted:
            time.sleep(wanted["kill"])
            os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
    said = room[:].rstrip(b"\0")
    found = {
        "exit": -os.waitstatus_to_exitcode(status),
        "code": "killed",
        "codes": [],
        "said": "",
        "out": "",
        "odd": [],
    }
    return {**(json.loads(said) if said else found), "seconds": used.ru_utime + used.ru_stime}


def _be_child(wanted: dict[str, Any], room: mmap.mmap, wait: int) -> None:
    """Run a command in the process that was forked for it, once the other one lets it go."""
    try:
        _limit(wanted)
        if "strace" in wanted:
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
        poll = select.poll()  # which is no call on files, so that those are counted from the command's first on
        poll.register(wait, select.POLLIN)
        poll.poll()
        ran = _run(wanted["arguments"])
        resource.setrlimit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1:] * 2)
        found = json.dumps(ran)
        room[: len(found)] = found.encode()
    finally:
        os._exit(0)


def _limit(wanted: dict[str, Any]) -> None:
    signal.alarm(wanted.get("alarm", 0))
    if "memory" in wanted:
        size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + wanted["memory"], resource.getrlimit(resource.RLIMIT_AS)[1]))
    if "seconds" in wanted:
        resource.setrlimit(resource.RLIMIT_CPU, (wanted["seconds"], wanted["seconds"] + 1))
    if "file" in wanted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["file"],) * 2)


@contextlib.contextmanager
def _traced(child: int, options: list[str] | None) -> Iterator[None]:
    """Have strace follow a process while the block runs."""
    if options is None:
        yield
        return
    command = ["strace", "-f", "-p", str(child), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            os.kill(child, signal.SIGKILL)
            raise RuntimeError(said)
        yield
        strace.stderr.read()


def _run(arguments: list[str]) -> dict[str, Any]:
    out, told = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
    ):
        warnings.simplefilter("always")
        call, *rest = arguments
        exit_code, code, said = CALLS[call](*rest) if call in CALLS else (_command(arguments), None, "")
    as_json = "--json" in arguments
    codes = [code] if code else _codes_in(out.getvalue()) if as_json else []
    said += f"{codes[:1]}{told.getvalue()}" if as_json else told.getvalue()
    return {
        **{"exit": exit_code, "code": codes[0] if codes else None, "codes": codes, "said": said[:2000]},
        **{"out": out.getvalue()[: ROOM // 2], "odd": _odd(warned, said + out.getvalue())},
    }


def _command(arguments: list[str]) -> int:
    """Run a command, and return its exit code, or RAISED."""
    from petlpack_cli.app import cli

    try:
        cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return RAISED
    return 0


def _load(pack: str, task: str, base: str | None = None) -> tuple[int, str | None, str]:
    """Read every tensor of a task by the library; returns what the command line returns, "raised" for a raw error."""
    import petlpack

    try:
        for _, tensor in petlpack.open(pack)[task].load(base).items():
            tensor.bits()
    except petlpack.PetlpackError as error:
        return error.exit_code, error.code, error.message
    except Exception as error:  # what nobody may see
        return 1, "raised", f"{type(error).__name__}: {error}"
    return 0, None, ""


def _pickles(directory: str) -> tuple[int, str | None, str]:
    """Read every file in a directory as what torch saved; tells those whose code ran, and raw errors."""
    from petlpack.errors import RunError
    from petlpack.tensors.pickled import holds_more, read_state_dict
    from tests.support.hostile_pickles import canary_sang

    wrong, read = [], 0
    for path in sorted(Path(directory).iterdir()):
        try:
            state = read_state_dict(path)
            for tensor in state.tensors.values():
                tensor.bits()
            read += 1
        except RunError:
            pass
        except BaseException as error:  # what nobody may see
            wrong.append(f"{path.name}: {type(error).__name__}: {str(error)[:200]}")
        try:
            holds_more(path)
        except BaseException as error:  # what nobody may see
            wrong.append(f"{path.name}: more: {type(error).__name__}: {str(error)[:200]}")
        if canary_sang():
            wrong.append(f"{path.name}: its code ran")
            break
    return (1, "raised", "; ".join(wrong)) if wrong else (0, None, str(read))


CALLS: Mapping[str, Callable[..., tuple[int, str | None, str]]] = {"load": _load, "pickles": _pickles}
"""What is called in the library, by a name that no command has."""


def _odd(warned: list[warnings.WarningMessage], text: str) -> list[str]:
    """Return the warnings, and the characters in what was told that a terminal does not show as they are."""
    raw = {character for character in text if not character.isprintable() and character != "\n"}
    return [*(str(one.message)[:200] for one in warned), *sorted(map(ascii, raw))][:5]


def _codes_in(text: str) -> list[str]:
    try:
        return list(_codes(json.loads(text)))
    except ValueError:
        return ["unreadable"]


def _codes(found: Any) -> Iterator[str]:
    """Yield the codes of all errors in what a command prints."""
    if isinstance(found, dict) and {"type", "code", "message"} <= found.keys():
        yield found["code"]
    for item in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _codes(item)


if __name__ == "__main__":
    main()
