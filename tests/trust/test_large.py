"""Random bits, blocks and ends of a large pack and of its base: nothing is ever silently wrong."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack import Base, BaseError, DamageError, UnknownFormatError, container
from petlpack.store import SUFFIX
from tests.support.method_runs import Shape
from tests.support.sampling import Sample
from tests.support.small_runs import DENSE_CODECS, make_pair, write_methods, write_run
from tests.support.tally import Tally

REFUSED = (DamageError, UnknownFormatError)
FLIPS = 10_250


@dataclass(frozen=True)
class Large:
    """A pack of several codecs, sealed, with its base, and what its tasks decode to."""

    path: Path
    base_dir: Path
    base: Base
    state: dict[str, dict[str, bytes]]
    needs: dict[str, set[str]]

    def files(self) -> list[Path]:
        """Every file with at least one bit."""
        return sorted(path for path in self.path.rglob("*") if path.is_file() and path.stat().st_size)

    def read_task(self, name: str) -> dict[str, bytes]:
        """Decode one task from nothing but its files."""
        tensors = petlpack.open(self.path)[name].load(self.base).read_all(jobs=1)
        return {tensor: bits.tobytes() for tensor, _, bits in tensors}


def refuses(read: Callable[[], object]) -> bool:
    """Tell whether damage is noticed; any other error is one of the test."""
    try:
        read()
    except REFUSED:
        return True
    return False


@pytest.fixture(scope="module")
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Large:
    """Return a pack of more than ten megabytes, or, where not all cases are run, of one."""
    directory, whole = tmp_path_factory.mktemp("large"), request.config.getoption("trust")
    size: dict[str, Any] = (
        {"layers": 4, "width": 256, "words": 2500} if whole else {"layers": 2, "width": 64, "words": 400}
    )
    base_dir, base = directory / "base", None
    for number, codec in enumerate((*DENSE_CODECS, *DENSE_CODECS)):
        tuned, pretrained = make_pair(number, dtype="F32", share=0.2, labels=2 + number, **size)
        base = base or Base(write_run(base_dir, pretrained))
        run = write_run(directory / f"run{number}", tuned, files={"vocab.txt": b"some words\n" * 2000})
        petlpack.encode(run, directory / "pack", base, codec=codec, task=f"{codec}-{number}", jobs=1)
    assert base is not None
    shape = Shape(layers=4, width=64, bottleneck=16, vocab=200, heads=2, positions=16)
    for run, options in write_methods(directory / "methods", shape).values():
        if "base" not in options:
            petlpack.encode(run, directory / "pack", jobs=1, **options)
    needs = {name: {name, *task.parts} for name, task in petlpack.open(directory / "pack").items()}
    large = Large(directory / "pack", base_dir, base, {}, needs)
    large.state.update({name: large.read_task(name) for name in needs})
    petlpack.seal(large.path)
    assert sum(path.stat().st_size for path in large.files()) >= (10_000_000 if whole else 300_000)
    return large


def _read(large: Large, path: Path) -> None:
    """Read all bytes of a file of the pack, and decode nothing that need not be."""
    opened = petlpack.open(large.path)
    if path.name == "inventory.json":
        opened.store.read_seal()
    elif path.parent.name == "tasks":
        opened[path.name.removesuffix(SUFFIX)].check_bytes()
    elif path.name != "pack.json":
        _check_bytes(path)


def _check_bytes(path: Path) -> None:
    opened = container.read(path)
    sections = opened.open_sections()
    for row in opened.manifest.sections:
        sections.read(row)


@contextlib.contextmanager
def _patched(path: Path, offset: int, octets: bytes) -> Iterator[None]:
    """Write over bytes of a file as long as the block runs."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        before = file.read(len(octets))
        file.seek(offset)
        file.write(octets)
        try:
            yield
        finally:
            file.seek(offset)
            file.write(before)


@pytest.mark.trust(25)
def test_random_flips_in_a_large_pack_are_refused(large: Large, sample: Sample, tally: Tally) -> None:
    rng = random.Random(0)
    files = large.files()
    sizes = [path.stat().st_size for path in files]
    # two flips in three fall anywhere, one in a file that is as likely as any other: small files are hit, too
    wrong, flips = [], 0
    for number in sample(range(FLIPS)):
        path = rng.choices(files, sizes)[0] if number % 3 else rng.choice(files)
        offset, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        octet = _octet(path, offset)
        with _patched(path, offset, bytes([octet ^ bit])):
            wrong += [] if refuses(partial(_read, large, path)) else [(path.name, offset, bit)]
            if flips % 500 == 0 and path.parent.name in ("tasks", "shared"):
                _check_told(large, path)
        flips += 1
    tally("random flips in a large pack", flips)
    assert wrong == []


def _octet(path: Path, offset: int) -> int:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(1)[0]


def _check_told(large: Large, path: Path) -> None:
    """Check that a task which does not need a damaged file decodes, and that `verify` names the file."""
    part = path.name.removesuffix(SUFFIX)
    whole = next(name for name in sorted(large.state) if part not in large.needs[name])
    assert large.read_task(whole) == large.state[whole]
    found = list(petlpack.verify(large.path, large.base, jobs=1))
    named = {checked.name for checked in found if checked.error is not None}
    assert {part, path.relative_to(large.path).as_posix()} <= named


@pytest.mark.trust(25)
def test_blocks_that_are_zeroed_swapped_or_of_others_are_refused(large: Large, sample: Sample, tally: Tally) -> None:
    rng, wrong, done = random.Random(1), [], 0
    files = [path for path in large.files() if path.stat().st_size > 600]
    for number in sample(range(2500)):
        path, other, block = rng.choice(files), rng.choice(files), (512, 4096)[number % 2]
        content, foreign = path.read_bytes(), other.read_bytes()
        start = rng.randrange(max(1, len(content) - block + 1)) // 512 * 512
        size = min(block, len(content) - start)
        ways = [bytes(size), foreign[start : start + size], content[-size:], rng.randbytes(size)]
        octets = ways[number // 2 % len(ways)]
        if not octets or content[start : start + len(octets)] == octets:
            continue
        with _patched(path, start, octets):
            wrong += [] if refuses(partial(_read, large, path)) else [(path.name, start, number)]
            if done % 250 == 0 and path.parent.name in ("tasks", "shared"):
                _check_told(large, path)
        done += 1
    tally("files cut, grown, zeroed, swapped or of others", done)
    assert wrong == []
    assert done > 2000 // sample.step


@pytest.mark.trust(25)
def test_a_large_file_that_is_cut_or_grown_is_refused(large: Large, sample: Sample, tally: Tally) -> None:
    rng, wrong, done = random.Random(2), [], 0
    files = [path for path in large.files() if path.name != "pack.json"]
    for number in sample(range(400)):
        path = rng.choice(files)
        content = path.read_bytes()
        end = rng.randbytes(rng.choice([1, 8, 512, 4096]))
        path.write_bytes(content + end if number % 2 else content[: rng.randrange(len(content))])
        wrong += [] if refuses(partial(_read, large, path)) else [(path.name, number)]
        path.write_bytes(content)
        done += 1
    tally("files cut, grown, zeroed, swapped or of others", done)
    assert wrong == []


@pytest.mark.trust(25)
def test_a_flipped_bit_of_the_base_is_refused_by_name(large: Large, sample: Sample) -> None:
    rng = random.Random(3)
    path = large.base_dir / "model.safetensors"
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    task = next(name for name in sorted(large.state) if petlpack.open(large.path)[name].template.base_table)
    for number in sample(range(100)):
        offset = rng.randrange(start, path.stat().st_size)
        with _patched(path, offset, bytes([_octet(path, offset) ^ 1 << number % 8])):
            name = _tensor_at(path, offset)
            with pytest.raises(BaseError) as caught:
                list(petlpack.open(large.path)[task].load(large.base_dir).read_all(jobs=1))
            assert f"'{name}'" in caught.value.message


def _tensor_at(path: Path, offset: int) -> str:
    """Return the tensor that a byte of a safetensors file is of."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    rows: dict[str, list[int]] = {
        name: row["data_offsets"] for name, row in json.loads(content[8 : 8 + length]).items() if name[0] != "_"
    }
    return next(name for name, (start, stop) in rows.items() if start <= offset - 8 - length < stop)
