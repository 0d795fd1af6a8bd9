"""Runs commands, each in a process of its own with little memory and little time; reads lines of JSON, writes others.

    {"arguments": ["show", "bomb.pack", "bomb", "--json"], "memory": 134217728, "seconds": 1}
    {"exit": 4, "code": "size-limit", "said": "", "odd": [], "seconds": 0.1}

All are forked from one process that has loaded what commands load, whose memory and time do not count. What is no
command of the command line is one of CALLS. `odd` is what nobody may see: warnings, and characters that drive a
terminal.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import sys
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


LONGEST = 60
"""Seconds after which a command hangs that waits for a pipe."""


def main() -> None:
    """Run each command that is told, until there is none; modules that are told as arguments are loaded, too."""
    for module in (*LOADED, *sys.argv[1:]):
        importlib.import_module(module)
    for line in sys.stdin:
        wanted = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            found = _run(wanted)
            os.write(write, json.dumps(found).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:  # noqa: PTH123 - a descriptor
            said = pipe.read()
        _, status, used = os.wait4(child, 0)
        seconds = used.ru_utime + used.ru_stime
        found = json.loads(said) if said else {"exit": -os.waitstatus_to_exitcode(status), "code": "killed", "said": ""}
        print(json.dumps({"odd": [], **found, "seconds": seconds}), flush=True)


def _run(wanted: dict[str, Any]) -> dict[str, Any]:
    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + wanted["memory"],) * 2)
    signal.alarm(LONGEST)
    resource.setrlimit(resource.RLIMIT_CPU, (wanted["seconds"], wanted["seconds"] + 1))
    call, *arguments = wanted["arguments"]
    out, told = io.StringIO(), io.StringIO()
    code, called = 0, None
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
    ):
        warnings.simplefilter("always")
        try:
            if call in CALLS:
                called = CALLS[call](*arguments)
            else:
                _command(wanted["arguments"])
        except SystemExit as end:
            code = int(end.code or 0)
    if called is not None:
        return {"exit": called[0], "code": called[1], "said": called[2][:2000], "odd": _odd(warned, called[2])}
    as_json = "--json" in wanted["arguments"]
    try:
        codes = list(_codes(json.loads(out.getvalue()))) if as_json else []
    except ValueError:
        codes = ["unreadable"]
    said = str(codes[:1]) if as_json else told.getvalue()
    odd = _odd(warned, out.getvalue() + told.getvalue())
    return {"exit": code, "code": codes[0] if codes else None, "said": said[:2000], "odd": odd}


def _command(arguments: list[str]) -> None:
    from petlpack_cli.app import cli

    cli.main(arguments)


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


def _codes(found: Any) -> Iterator[str]:
    """Yield the codes of all errors in what a command prints."""
    if isinstance(found, dict) and {"type", "code", "message"} <= found.keys():
        yield found["code"]
    for item in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _codes(item)


if __name__ == "__main__":
    main()
