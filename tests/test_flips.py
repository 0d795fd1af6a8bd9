"""Every bit of every file of a small pack flipped, every length cut, bytes appended: nothing is ever silently wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import petlpack
from petlpack import Base, DamageError, UnknownFormatError
from petlpack.codecs.registry import CODECS
from petlpack.loading import read_shared
from petlpack.store import SUFFIX
from tests.conftest import make_pair, weights, write_run

REFUSED = (DamageError, UnknownFormatError)
SAMPLE = 101
"""After every so many flips the rest of the pack is read too; odd and no divisor of 8, so that all bits take part."""


@dataclass(frozen=True)
class Small:
    """A pack with one task a codec and one adapter, the base, and what every task decodes to."""

    path: Path
    base: Base
    state: dict[str, dict[str, bytes]]
    needs: dict[str, set[str]]
    """For every task the parts that it needs: its own name, the sha256 of its template and kept files."""

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
            return lambda: read_shared(petlpack.open(self.path).store, part)
        return lambda: self.read_task(part)

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


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    directory = tmp_path_factory.mktemp("flips")
    # a tenth of the weights changed suits every codec that takes a full fine-tune
    tuned, pretrained = make_pair(1, share=0.1, layers=1, width=4, words=8)
    run, base_dir = write_run(directory / "run", tuned), write_run(directory / "base", pretrained)
    lora = {f"base_model.model.query.lora_{part}.weight": weights("BF16", (4, 2), i) for i, part in enumerate("AB")}
    head = {"base_model.model.classifier.weight": weights("F32", (2, 4), 9)}
    adapter = write_run(directory / "adapter", {**lora, **head}, None, weights_file="adapter_model.safetensors")
    config = '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["classifier"], "bias": "none"}'
    (adapter / "adapter_config.json").write_text(config, encoding="utf-8")
    pack, base = directory / "pack", Base(base_dir)
    for codec in CODECS:
        petlpack.encode(run, pack, base, codec=codec, task=codec)
    petlpack.encode(adapter, pack, task="adapter")
    opened = petlpack.open(pack)
    needs = {name: {name, task.manifest.shared[0], *task.template.files.values()} for name, task in opened.items()}
    packed = Small(pack, base, {}, needs)
    packed.state.update({name: packed.read_task(name) for name in opened})
    return packed


def test_the_small_pack_is_small_clean_and_has_every_codec(small: Small) -> None:
    assert {task.codec for task in petlpack.open(small.path).values()} == set(CODECS)
    nbytes = sum(path.stat().st_size for path in small.files())
    assert nbytes <= 8192
    assert not [checked for checked in petlpack.verify(small.path, small.base) if checked.error is not None]
    print(f"{nbytes} bytes in {len(small.files())} files")


def test_every_flipped_bit_is_refused_and_nothing_else_suffers(small: Small) -> None:
    flips, wrong, looked = 0, [], 0
    for path in small.files():
        content, read = path.read_bytes(), small.reader(path)
        with path.open("r+b", buffering=0) as file:
            for bit in range(8 * len(content)):
                offset = bit // 8
                file.seek(offset)
                file.write(bytes([content[offset] ^ 1 << bit % 8]))
                try:
                    read()
                    wrong.append((path.name, bit))
                except REFUSED:
                    pass
                flips += 1
                if flips % SAMPLE == 0:
                    small.check_the_rest(path)
                    looked += 1
                file.seek(offset)
                file.write(content[offset : offset + 1])
        assert path.read_bytes() == content
    print(
        f"{flips:,} flips, {len(wrong)} silently wrong; the rest of the pack was right {looked:,} times of {looked:,}"
    )
    assert wrong == []
    assert flips >= 32_768


def test_every_shorter_and_longer_file_is_refused(small: Small) -> None:
    cut, grown, wrong = 0, 0, []
    for path in small.files():
        content, read = path.read_bytes(), small.reader(path)
        for what, changed in _resized(content):
            if path.name == "pack.json" and changed.strip() == content.strip():
                continue  # the mark is JSON: a newline at its end says nothing
            path.write_bytes(changed)
            try:
                read()
                wrong.append((path.name, what))
            except REFUSED:
                pass
            cut += len(changed) < len(content)
            grown += len(changed) > len(content)
        small.check_the_rest(path)
        path.write_bytes(content)
    print(f"{cut:,} cuts and {grown:,} longer files, {len(wrong)} silently wrong")
    assert wrong == []
    assert cut > 4000
    assert grown > 1000


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
