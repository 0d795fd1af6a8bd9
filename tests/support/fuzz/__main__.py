"""Run a target under atheris: `python -m tests.support.fuzz TARGET SCRATCH [options of libFuzzer]`.

Only the library's own modules are instrumented. What the target found ends the run, and lies in SCRATCH.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import resource
import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["petlpack"]):
    import petlpack

    for module in pkgutil.walk_packages(petlpack.__path__, "petlpack."):
        if not module.name.startswith(("petlpack.methods", "petlpack.analyze.p")):  # torch's, and matplotlib's
            importlib.import_module(module.name)
    from tests.support.fuzz.guard import guarded
    from tests.support.fuzz.targets import TARGETS

ROOM = 1 << 30
"""Bytes of memory that a target may take beyond what is loaded."""


def main(name: str, scratch: Path, *options: str) -> None:
    """Fuzz one target until it has run as often as the options say, or has found something."""
    corpus, place = scratch / "corpus", scratch / "place"
    for directory in (corpus, place):
        directory.mkdir(parents=True, exist_ok=True)
    target = TARGETS[name](place)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    warnings.simplefilter("error")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return target.mutate(data, rng, lambda part: atheris.Mutate(part, max(most, len(part))))[:most]

    argv = [sys.argv[0], *options, f"-artifact_prefix={scratch}/found-", str(corpus)]
    atheris.Setup(argv, guarded(target.attack, place), custom_mutator=mutate)
    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
