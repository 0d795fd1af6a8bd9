"""Bases that are not the one: one bit, one row, one name or one file is another, and no task decodes against them.

What is refused is told from what is right anyway by the digests in the pack: a base that differs in nothing that the
task needs gives the same bits.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petlpack
from petlpack.codecs.registry import CODECS, codec
from petlpack.errors import BaseError, UsageError
from petlpack.exports.registry import known_exports
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.safetensors_file import write_safetensors
from petlpack.tensors.tensor import Tensor
from tests.support.method_runs import write_base
from tests.support.places import snapshot
from tests.support.sampling import Sample
from tests.support.small_runs import (
    DENSE_CODECS,
    METHOD_CODECS,
    TINY,
    make_base,
    nudged,
    weights,
    write_methods,
    write_run,
)
from tests.support.tally import Tally

Tensors = dict[str, Tensor]

CAST = {"F64": "F32", "F32": "BF16", "F16": "F8_E5M2"}
"""Dtypes whose numbers lose their lower half in another of the same exponent, or nearly so."""


@dataclass(frozen=True)
class Subject:
    """A task that stands on a base, or is bound to one: what it decodes to, and what of the base it needs."""

    pack: Path
    task: str
    base: Tensors
    truth: Mapping[str, bytes]
    """Its tensors by name."""
    needed: frozenset[str]
    exports: tuple[str, ...]
    """What it can be written as."""
    without: Mapping[str, Mapping[str, bytes]]
    """The files of those exports for which it needs no base."""


# Tasks


def dense_base() -> Tensors:
    """Return a base that has zeros, NaNs, a square matrix, tied weights and numbers of several types."""
    base = make_base(layers=1, width=8, words=12)
    base["encoder.half.weight"] = weights("BF16", (8, 8), 7)
    base["encoder.ids"] = weights("I64", (1, 8), 8)
    for name, tensor in list(base.items()):
        if tensor.dtype.kind == "float":
            bits = tensor.bits().copy()
            bits.reshape(-1)[1:3] = 0, _nan(tensor)
            base[name] = Tensor.of(bits, tensor.dtype)
    base["lm_head.weight"] = base["embeddings.word_embeddings.weight"]
    return base


def _nan(tensor: Tensor) -> int:
    """Return the bits of a NaN with a payload."""
    return int(_infinity(tensor) | 1 << (tensor.dtype.mantissa - 1) | 1)


def _infinity(tensor: Tensor) -> int:
    return ((1 << tensor.dtype.exponent) - 1) << tensor.dtype.mantissa


def write_dense(place: Path, codec_id: str) -> tuple[Path, Tensors, dict[str, Any]]:
    """Write a fine-tune of a twentieth of the weights, some tensors unchanged."""
    base = dense_base()
    ids = ("encoder.ids", "lm_head.weight")
    tuned = {name: t if name in ids else nudged(t, i, 0.05) for i, (name, t) in enumerate(base.items())}
    tuned["lm_head.weight"] = tuned["embeddings.word_embeddings.weight"]
    return write_run(place / "run", tuned), base, {"codec": codec_id}


def write_lora(place: Path, name: str) -> tuple[Path, Tensors, dict[str, Any]]:
    """Write an adapter of the queries, bound to its base."""
    base, layer = dense_base(), "base_model.model.encoder.layer.0.attention.self.query"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
    tensors = {f"{layer}.lora_A.weight": weights("F32", (2, 8), 1), f"{layer}.lora_B.weight": weights("F32", (8, 2), 2)}
    run = write_run(place / "run", tensors, None, weights_file="adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return run, base, {}


def write_method(place: Path, codec_id: str) -> tuple[Path, Tensors, dict[str, Any]]:
    """Write the run of a method, and a base that it stands on or is bound to."""
    run, options = write_methods(place)[codec_id]
    family = json.loads((run / "config.json").read_text(encoding="utf-8"))["model_type"]
    base = place / "t5"
    if family != "t5":
        base = write_base(place / family, TINY, family=family).path
    return run, read(base), options


def read(base: Path) -> Tensors:
    return {name: Tensor.of(tensor.bits(), tensor.dtype) for name, tensor in Base(base).tensors.items()}


WRITERS: dict[str, Callable[[Path, str], tuple[Path, Tensors, dict[str, Any]]]] = {
    **{codec_id: write_dense for codec_id in DENSE_CODECS if codec(codec_id).uses_base},
    **dict.fromkeys(METHOD_CODECS, write_method),
    "an adapter": write_lora,
}


@pytest.fixture(scope="module", params=WRITERS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    place = tmp_path_factory.mktemp("subject")
    run, base, options = WRITERS[request.param](place, request.param)
    right = write(place / "right", base)
    name = petlpack.encode(run, place / "pack", task="task", **options | {"base": right})[0].name
    task = petlpack.open(place / "pack")[name]
    template = task.template
    views = [slot.base for i, slot in enumerate(task.sources.slots) if slot.base and i not in task.sources.aliases]
    needed = {ref.name for view in views for ref in view.refs}
    needed |= set(template.adapts.tensors) if template.adapts else set()
    assert needed, "it is bound to no base"
    truth = {tensor: bits.tobytes() for tensor, _, bits in task.load(right).read_all()}
    exports = [one for one in known_exports() if _written(task, place / one, right, one) is not None]
    without = {one: _written(task, place / f"{one} alone", None, one) for one in exports}
    alone = {one: files for one, files in without.items() if files is not None}
    return Subject(place / "pack", name, base, truth, frozenset(needed), tuple(exports), alone)


def _written(task: Any, out: Path, base: Path | None, export: str) -> dict[str, bytes] | None:
    """Return the files of an export, or None where there can be none."""
    try:
        task.decode(out, base, to=export)
    except (UsageError, BaseError):
        return None
    return snapshot(out)


def write(place: Path, base: Tensors) -> Path:
    """Write a base as one file."""
    place.mkdir(parents=True)
    write_safetensors(place / "model.safetensors", base, {"format": "pt"})
    return place


# What is wrong with a base


def odd_bases(base: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Yield bases in which something is another."""
    for name, tensor in base.items():
        for what, odd in odd_tensors(tensor):
            yield f"{name}: {what}", {**base, name: odd}
        yield f"{name} missing", {other: t for other, t in base.items() if other != name}
        yield f"{name} renamed", {other + "_" * (other == name): t for other, t in base.items()}
    for one, two in itertools.combinations(base, 2):
        if (base[one].dtype, base[one].shape) == (base[two].dtype, base[two].shape):
            yield f"{one} and {two} exchanged", {**base, one: base[two], two: base[one]}
            yield f"{one} in both", {**base, two: base[one]}
    yield "another revision", {name: nudged(tensor, i) for i, (name, tensor) in enumerate(base.items())}
    yield "of equal shapes", {name: weights(t.dtype.name, t.shape, 50 + i) for i, (name, t) in enumerate(base.items())}
    yield "narrowed", {name: narrowed(tensor) for name, tensor in base.items()}
    yield "with a prefix", {f"model.{name}": tensor for name, tensor in base.items()}
    yield "with a tensor more", {**base, "one.more": next(iter(base.values()))}
    yield "in another order", dict(reversed(base.items()))


def odd_tensors(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that are another one by a little."""
    bits, dtype = tensor.bits(), tensor.dtype
    for what, at, mask in (("first", 0, 1), ("middle", tensor.size // 2, 1), ("last", -1, 1 << (dtype.width - 1))):
        yield f"one bit of its {what} element", Tensor.of(flipped(bits, at, mask), dtype)
    yield "one ulp", Tensor.of(moved(bits, tensor.size // 3), dtype)
    yield "other bytes of its dtype", Tensor(DTYPES["U8"], (tensor.nbytes,), _flat(bits.reshape(-1).view(np.uint8)))
    if len(tensor.shape) == 2:
        yield "transposed", Tensor.of(np.ascontiguousarray(bits.T), dtype)
        yield "transposed in its shape", Tensor.of(np.ascontiguousarray(bits.T).reshape(bits.shape), dtype)
        yield "a row more", Tensor.of(np.concatenate([bits, bits[:1]]), dtype)
        yield "64 rows more", Tensor.of(np.concatenate([bits, np.zeros((64, bits.shape[1]), bits.dtype)]), dtype)
        yield "a row less", Tensor.of(bits[:-1].copy(), dtype)
        yield "rows turned round", Tensor.of(bits[::-1].copy(), dtype)
    else:
        yield "a dimension more", Tensor.of(bits.reshape(1, *bits.shape), dtype)
    if dtype.name in CAST:
        yield "narrowed", narrowed(tensor)
        yield "narrowed and back", Tensor.of(bits >> _half(tensor) << _half(tensor), dtype)
    if dtype.kind == "float":
        yield from odd_floats(tensor)


def odd_floats(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors whose numbers are equal, or no numbers either, and whose bits are not."""
    bits, sign = tensor.bits(), 1 << (tensor.dtype.width - 1)
    zeros = np.flatnonzero(bits.reshape(-1) == 0)
    nans = np.flatnonzero((bits.reshape(-1) & bits.dtype.type(sign - 1)) > _infinity(tensor))
    if zeros.size:
        yield "-0.0 for 0.0", Tensor.of(flipped(bits, zeros[0], sign), tensor.dtype)
    if nans.size:
        yield "another NaN", Tensor.of(flipped(bits, nans[0], 2), tensor.dtype)
        yield "a negative NaN", Tensor.of(flipped(bits, nans[0], sign), tensor.dtype)


def _half(tensor: Tensor) -> Any:
    return tensor.bits().dtype.type(tensor.dtype.width // 2)


def narrowed(tensor: Tensor) -> Tensor:
    """Return the upper halves of numbers, where a dtype has these; else the tensor."""
    known = DTYPES.get(CAST.get(tensor.dtype.name, ""))
    return tensor if known is None else Tensor.of((tensor.bits() >> _half(tensor)).astype(known.bits), known)


def flipped(bits: Bits, at: Any, mask: int) -> Bits:
    changed = bits.copy()
    changed.reshape(-1)[at] ^= bits.dtype.type(mask)
    return changed


def moved(bits: Bits, at: int) -> Bits:
    changed = bits.copy()
    changed.reshape(-1)[at] += bits.dtype.type(1)
    return changed


def _flat(bits: Bits) -> Callable[[int, int], Bits]:
    return lambda start, stop: bits[start:stop]


def differing(base: Tensors, odd: Tensors) -> set[str]:
    """Return the names of the base's tensors that another one has not, or has otherwise."""
    return {name for name, tensor in base.items() if name not in odd or told(odd[name]) != told(tensor)}


def told(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return tensor.dtype.name, tuple(tensor.shape), tensor.bits().tobytes()


# Attacks


@pytest.mark.trust(40)
def test_a_wrong_base_decodes_nothing(subject: Subject, tmp_path: Path, sample: Sample, tally: Tally) -> None:
    refused = 0
    for number, (what, tensors) in enumerate(sample(odd_bases(subject.base))):
        place = write(tmp_path / str(number), tensors)
        wrong = differing(subject.base, tensors) & subject.needed
        export = subject.exports[number % len(subject.exports)]
        if wrong:
            check_refused(subject, place, wrong, what, export)
            refused += 1
        else:
            check_right(subject, place, what)
        shutil.rmtree(place)
    assert refused
    tally("wrong bases", refused)


def check_refused(subject: Subject, base: Path, wrong: set[str], what: str, export: str) -> None:
    """Check that nothing but right bits comes out, and that the tensor is named; of an adapter, the base."""
    task, out = petlpack.open(subject.pack)[subject.task], base.parent / "out"
    before = snapshot(subject.pack)
    for to in {export, known_exports()[0]}:
        if task.template.needs_base and to in subject.without:  # made of what the pack holds alone
            task.decode(out, base, to=to)
            assert snapshot(out) == subject.without[to], (what, to)
            shutil.rmtree(out)
            continue
        with pytest.raises(BaseError) as caught:
            task.decode(out, base, to=to)
        error = caught.value
        names = wrong if task.template.needs_base else {str(base)}
        assert error.exit_code == 5, what
        assert error.hint, what
        assert any(name in error.message for name in names), (what, error.message)
        assert str(base) in error.message, what
        assert not out.exists(), what
    found = list(petlpack.verify(subject.pack, base, task=subject.task))
    assert [type(one.error) for one in found] == [BaseError], what
    assert not found[0].damaged, what
    read_tensors(subject, base, what)
    assert snapshot(subject.pack) == before, what


def read_tensors(subject: Subject, base: Path, what: str) -> None:
    """Check that each tensor, asked for alone, is right or refused."""
    try:
        tensors = petlpack.open(subject.pack)[subject.task].load(base)
    except BaseError:
        return
    refused = 0
    for name in tensors:
        try:
            assert tensors[name].bits().tobytes() == subject.truth[name], (what, name)
        except BaseError:
            refused += 1
    assert refused, what


def check_right(subject: Subject, base: Path, what: str) -> None:
    """Check that a base in which only what the task does not need is another gives every bit."""
    tensors = petlpack.open(subject.pack)[subject.task].load(base)
    assert {name: bits.tobytes() for name, _, bits in tensors.read_all()} == subject.truth, what


def test_a_wrong_base_among_several_is_not_taken(subject: Subject, tmp_path: Path, tally: Tally) -> None:
    name = min(subject.needed)
    wrong = [
        write(tmp_path / "all" / what[:1] / str(i), {**subject.base, name: odd})
        for i, (what, odd) in enumerate(odd_tensors(subject.base[name]))
    ]
    task = petlpack.open(subject.pack)[subject.task]
    for given in (wrong, [Base(place) for place in wrong]):
        with pytest.raises(BaseError) as caught:
            task.decode(tmp_path / "out", given)
        assert caught.value.code == "base-fits-none"
    right = write(tmp_path / "right", subject.base)
    found = task.load([*wrong, right])
    assert {tensor: bits.tobytes() for tensor, _, bits in found.read_all()} == subject.truth
    tally("wrong bases", 1)


# Files


def shards(place: Path, base: Tensors, second: Tensors) -> Path:
    """Write a base as two shards, of which the second holds the tensors of another one."""
    place.mkdir()
    names = list(base)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in files.items():
        held = base if file == "a.safetensors" else second
        write_safetensors(place / file, {name: held[name] for name in inside}, {"format": "pt"})
    table = {name: file for file, inside in files.items() for name in inside}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}), encoding="utf-8")
    return place


def test_a_shard_of_another_base_is_refused(subject: Subject, tmp_path: Path, tally: Tally) -> None:
    check_right(subject, shards(tmp_path / "right", subject.base, subject.base), "shards")
    other = {name: nudged(tensor, i) for i, (name, tensor) in enumerate(subject.base.items())}
    both = (subject.base, other), (other, subject.base)
    count = 0
    for number, (first, second) in enumerate(both):
        place = shards(tmp_path / str(number), first, second)
        wrong = differing(subject.base, read(place)) & subject.needed
        if wrong:
            check_refused(subject, place, wrong, "a shard", known_exports()[0])
            count += 1
    assert count
    tally("wrong bases", count)


def test_what_torch_saved_is_refused_for_one_bit(subject: Subject, tmp_path: Path, tally: Tally) -> None:
    torch = pytest.importorskip("torch")
    for what in ("right", *sorted(subject.needed)):
        place = tmp_path / f"bin {what}"
        place.mkdir()
        tensors = dict(subject.base)
        if what in tensors:
            tensors[what] = Tensor.of(flipped(tensors[what].bits(), -1, 1), tensors[what].dtype)
        torch.save({name: tensor.torch() for name, tensor in tensors.items()}, place / "pytorch_model.bin")
        if what == "right":
            check_right(subject, place, what)
        else:
            check_refused(subject, place, {what}, what, known_exports()[0])
            tally("wrong bases", 1)


def test_every_codec_that_stands_on_a_base_is_attacked() -> None:
    assert {codec_id for codec_id in CODECS if codec(codec_id).uses_base} <= set(WRITERS)
