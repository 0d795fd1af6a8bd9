"""Write the whole packs in `formats/packs/` anew, from the runs of `tools/pack_runs.py`; needs torch for `bin`.

    python -m tools.write_packs            those that are missing
    python -m tools.write_packs --all      all of them: only while a version of the format is not yet out
    python -m tools.write_packs NAME...    these

Once a version is out its packs are golden: every later one decodes them, so they are never written again. The bad
copies in `formats/vectors/whole-pack.jsonl` say what is changed by what it means, and hold for packs written anew.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import petlpack
from petlpack.decoding.task import Task
from petlpack.tensors.tensor import as_bytes
from tools.pack_runs import PLANS, Plan
from tools.packs import told
from tools.vectors import pack_file_of

MOST = 20_000
"""Bytes that a file of `formats/packs/` may have, and a tenth."""


@contextlib.contextmanager
def working_in(place: Path) -> Iterator[None]:
    """Work in a directory: a template says by which path the base was opened."""
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


def made(name: str, plan: Plan) -> dict[str, Any]:
    """Return the vector of a whole pack."""
    with tempfile.TemporaryDirectory() as scratch, working_in(Path(scratch)):
        plan.write(Path())
        base = Path("base") if plan.has_base else None
        for run in plan.runs:
            petlpack.encode(run, pack="pack", base=base, jobs=1, **plan.options)
        if plan.sealed:
            petlpack.seal("pack")
        vector: dict[str, Any] = {"id": f"whole-{name}", "kind": "whole pack", "why": plan.about}
        vector["pack"] = {file: told(data) for file, data in sorted(_files(Path("pack")))}
        if base:
            vector["base"] = {file: told(data) for file, data in sorted(_files(base))}
        vector["tasks"] = {task.name: expected(task, base) for task in petlpack.open("pack").values()}
        return vector


def _files(place: Path) -> Iterator[tuple[str, bytes]]:
    for path in place.rglob("*"):
        if path.is_file() and path.name != ".lock":
            yield path.relative_to(place).as_posix(), path.read_bytes()


def expected(task: Task, base: Path | None) -> dict[str, Any]:
    """Return what a task decodes to: sha256 and content of each file, weight files as safetensors."""
    tensors = {name: as_bytes(bits) for name, _, bits in task.load(base).read_all(jobs=1)}
    files = {
        file: header.head_bytes() + b"".join(bytes(tensors[name]) for name in header.tensors)
        for file, header in task.template.headers.items()
    }
    files |= {file: task.read_file(file) for file in task.template.files}
    return {
        file: {"sha256": hashlib.sha256(data).hexdigest(), "content": told(data)}
        for file, data in sorted(files.items())
    }


def shown(vector: Mapping[str, Any]) -> str:
    """Return the text of a file of `formats/packs/`: a line for each line of hex."""
    return json.dumps(vector, indent=1, ensure_ascii=True) + "\n"


def main() -> int:
    """Write packs; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a pack to write anew")
    parser.add_argument("--all", action="store_true", help="write all of them anew")
    options = parser.parse_args()
    if not PLANS.keys() >= set(options.names):
        parser.error(f"the packs are {', '.join(PLANS)}")
    for name, plan in PLANS.items():
        file = pack_file_of(name)
        if options.all or name in options.names or not (file.exists() or options.names):
            text = shown(made(name, plan))
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
            print(f"{file.name}: {len(text):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
