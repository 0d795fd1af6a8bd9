"""Every bit of every file of a small pack flipped, every length cut, bytes appended: nothing is ever silently wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import petlpack
from petlpack import Base, DamageError, UnknownFormatError, container
from petlpack.codecs.registry import CODECS
from petlpack.sections.parts import check_shared
from petlpack.store import SUFFIX
from tests.support.sampling import Sample
from tests.support.small_runs import DENSE_CODECS, METHOD_CODECS, make_pair, weights, write_methods, write_run
from tests.support.tally import Tally

REFUSED = (DamageError, UnknownFormatError)
REST = 101
"""After every so many flips the rest of the pack is read too; odd and no divisor of 8, so that all bits take part."""


@dataclass(frozen=True)
class Small:
    """A pack, the base of its tasks, and what every task decodes to."""

    path: Path
    base: Base
    state: dict[str, dict[str, bytes]]
    needs: dict[str, set[str]]
    """For every task the parts that it needs: itself, its template, tensors, its base's table, kept files."""
    decoding: dict[str, set[str]]
    """For every task the shared parts without which its tensors cannot be decoded: all but the kept files."""

    def files(self) -> list[Path]:
        """Every file with at least one bit."""
        return sorted(path for path in self.path.rglob("*") if path.is_file() and path.stat().st_size)

    def read_task(self, name: str) -> dict[str, bytes]:
        """Decode one task from nothing but its files."""
        tensors = petlpack.open(self.path)[name].load(self.base).read_all(jobs=1)
        return {tensor: bits.tobytes() for tensor, _, bits in tensors}

    def part(self, path: Path) -> str:
        """The name by which `verify` calls a file: task name or sha256."""
        return path.name.removesuffix(SUFFIX)

    def reader(self, path: Path) -> Callable[[], object]:
        """What reads all of one file."""
        part = self.part(path)
        if path.name == "pack.json":
            return lambda: petlpack.open(self.path)
        if path.parent.name == "shared":
            return lambda: check_shared(petlpack.open(self.path).store, part)
        return lambda: self.read_task(part)

    def readers(self, path: Path) -> list[Callable[[], object]]:
        """Every way to notice damage to one file: it is read itself, and so is a task that cannot do without it."""
        dependents = [name for name in sorted(self.state) if self.part(path) in self.decoding[name]]
        return [self.reader(path), *(partial(self.read_task, name) for name in dependents[:1])]

    def check_the_rest(self, path: Path) -> None:
        """Check that tasks which do not need this file decode, and that `verify` names it and its dependents only."""
        part = self.part(path)
        if part == "pack.json":
            with pytest.raises(REFUSED):
                list(petlpack.verify(self.path, self.base))
            return
        for name in self.state:
            if part not in self.needs[name]:
                assert self.read_task(name) == self.state[name]
        found = list(petlpack.verify(self.path, self.base, jobs=1))
        dependents = {name for name, parts in self.needs.items() if part in parts}
        assert {checked.name for checked in found if checked.error is not None} == {part} | dependents
        assert {checked.name for checked in found} == set().union(*self.needs.values())


def packed(path: Path, base: Base) -> Small:
    """Look at a whole pack."""
    needs, decoding = {}, {}
    for name, task in petlpack.open(path).items():
        table = task.template.base_table
        decoding[name] = {*task.manifest.shared, *([table] if table else [])}
        needs[name] = {name, *decoding[name], *task.template.files.values()}
        assert set(task.parts) == needs[name] - {name}
    small = Small(path, base, {}, needs, decoding)
    small.state.update({name: small.read_task(name) for name in needs})
    return small


def pack_of_dense_runs(directory: Path) -> Small:
    """Return a pack with one task for each codec of full fine-tunes and one adapter."""
    # a tenth of the weights changed suits every codec that takes a full fine-tune
    tuned, pretrained = make_pair(1, share=0.1, layers=1, width=4, words=8)
    run, base_dir = write_run(directory / "run", tuned), write_run(directory / "base", pretrained)
    lora = {f"base_model.model.query.lora_{part}.weight": weights("BF16", (4, 2), i) for i, part in enumerate("AB")}
    head = {"base_model.model.classifier.weight": weights("F32", (2, 4), 9)}
    adapter = write_run(directory / "adapter", {**lora, **head}, None, weights_file="adapter_model.safetensors")
    config = '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["classifier"], "bias": "none"}'
    (adapter / "adapter_config.json").write_text(config, encoding="utf-8")
    pack, base = directory / "pack", Base(base_dir)
    for codec in DENSE_CODECS:
        petlpack.encode(run, pack, base, codec=codec, task=codec)
    petlpack.encode(adapter, pack, task="adapter")
    return packed(pack, base)


def pack_of_methods(directory: Path) -> Small:
    """Return a pack with a task of each codec of a method, and the parts of tensors that they share."""
    for run, options in write_methods(directory).values():
        petlpack.encode(run, directory / "pack", **options)
    return packed(directory / "pack", Base(directory / "t5"))


PACKS = {"dense": (pack_of_dense_runs, set(DENSE_CODECS)), "methods": (pack_of_methods, set(METHOD_CODECS))}


@pytest.fixture(scope="module", params=PACKS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return PACKS[request.param][0](tmp_path_factory.mktemp("flips"))


def test_the_small_packs_have_every_codec_and_every_kind_of_shared_part(tmp_path: Path) -> None:
    assert set.union(*(codecs for _, codecs in PACKS.values())) == set(CODECS)
    for name, (make, codecs) in PACKS.items():
        (tmp_path / name).mkdir()
        small = make(tmp_path / name)
        assert {task.codec for task in petlpack.open(small.path).values()} == codecs
    store = petlpack.open(small.path).store
    kinds = [container.read(store.shared_path(sha256)).manifest.codec for sha256 in store.shared_names()]
    assert {"mask", "hyper", "bytes"} == set(kinds)
    assert any(task.template.base_table for task in petlpack.open(small.path).values())


def test_the_small_pack_is_small_and_clean(small: Small) -> None:
    nbytes = sum(path.stat().st_size for path in small.files())
    assert nbytes <= 16384
    assert not [checked for checked in petlpack.verify(small.path, small.base) if checked.error is not None]
    print(f"{nbytes} bytes in {len(small.files())} files")


def refuses(read: Callable[[], object]) -> bool:
    """Tell whether damage is noticed; any other error is one of the test."""
    try:
        read()
    except REFUSED:
        return True
    return False


@pytest.mark.exhaustive(31)
def test_every_flipped_bit_is_refused_and_nothing_else_suffers(small: Small, sample: Sample, tally: Tally) -> None:
    flips, wrong = 0, []
    for path in small.files():
        content, readers = path.read_bytes(), small.readers(path)
        with path.open("r+b", buffering=0) as file:
            for bit in sample(range(8 * len(content))):
                offset = bit // 8
                file.seek(offset)
                file.write(bytes([content[offset] ^ 1 << bit % 8]))
                wrong += [(path.name, bit) for read in readers if not refuses(read)]
                flips += 1
                if flips % REST == 0:
                    small.check_the_rest(path)
                file.seek(offset)
                file.write(content[offset : offset + 1])
        assert path.read_bytes() == content
    tally("bits flipped in small packs, one task per codec", flips)
    assert wrong == []
    assert flips >= 32_768 // sample.step


@pytest.mark.exhaustive(11)
def test_every_shorter_and_longer_file_is_refused(small: Small, sample: Sample, tally: Tally) -> None:
    cut, grown, wrong = 0, 0, []
    for path in small.files():
        content, readers = path.read_bytes(), small.readers(path)
        for what, changed in sample(_resized(content)):
            if path.name == "pack.json" and changed.strip() == content.strip():
                continue  # the mark is JSON: a newline at its end says nothing
            path.write_bytes(changed)
            wrong += [(path.name, what) for read in readers if not refuses(read)]
            cut += len(changed) < len(content)
            grown += len(changed) > len(content)
        small.check_the_rest(path)
        path.write_bytes(content)
    tally("files cut, grown, zeroed, swapped or of others", cut + grown)
    assert wrong == []
    assert cut > 4000 // sample.step
    assert grown > 1000 // sample.step


def _resized(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Every length from 0 on, then bytes behind the end: of each kind 1 to 8, and many."""
    for length in range(len(content)):
        yield f"cut to {length}", content[:length]
    rng = random.Random(0)
    for count in (*range(1, 9), 64, 512, 4096):
        for filler in (b"\0", b"\xff", b" ", b"}", content[-1:]):
            yield f"{count} times {filler!r}", content + filler * count
        for _ in range(5):
            yield f"{count} random", content + rng.randbytes(count)
        yield f"its first {count} again", content + content[:count]
    yield "itself again", content + content
