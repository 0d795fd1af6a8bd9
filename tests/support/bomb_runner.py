"""Runs commands, each in a process of its own with little memory and little time; reads lines of JSON, writes others.

    {"arguments": ["show", "bomb.pack", "bomb", "--json"], "memory": 134217728, "seconds": 1}
    {"exit": 4, "code": "size-limit", "said": "", "seconds": 0.1}

All are forked from one process that has loaded what commands load, and the modules that its arguments name; its memory
and time do not count.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOADED = (
    *("petlpack.checking", "petlpack.analyze.details", "petlpack.analyze.listing", "petlpack.analyze.stats"),
    *("petlpack.codecs.plain", "petlpack.codecs.mask", "petlpack.codecs.merge", "petlpack.codecs.hyper"),
    *("petlpack.exports.run", "petlpack.exports.safetensors", "petlpack.coding.numbers", "petlpack.coding.planes"),
    *("petlpack_cli.show", "petlpack_cli.decode", "petlpack_cli.verify", "petlpack_cli.list", "petlpack_cli.stats"),
)


def main() -> None:
    """Run each command that is told, until there is none."""
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
        print(json.dumps({**found, "seconds": seconds}), flush=True)


def _run(wanted: dict[str, Any]) -> dict[str, Any]:
    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + wanted["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (wanted["seconds"], wanted["seconds"] + 1))
    from petlpack_cli.app import cli

    out, told = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        try:
            cli.main(wanted["arguments"])
        except SystemExit as end:
            code = int(end.code or 0)
    try:
        codes = list(_codes(json.loads(out.getvalue())))
    except ValueError:
        codes = ["unreadable"]
    said = told.getvalue() if "--json" not in wanted["arguments"] else str(codes[:1])
    return {"exit": code, "code": codes[0] if codes else None, "said": said[:2000]}


def _codes(found: Any) -> Iterator[str]:
    """Yield the codes of all errors in what a command prints."""
    if isinstance(found, dict) and {"type", "code", "message"} <= found.keys():
        yield found["code"]
    for item in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _codes(item)


if __name__ == "__main__":
    main()
