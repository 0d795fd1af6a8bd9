"""Whole runs: from files to a pack and back bit for bit; the same bytes every time; refused with any other base."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import petlpack
from petlpack import container
from petlpack.coding.array import Level
from petlpack.errors import BaseError, RunError
from petlpack.layouts.options import Options
from petlpack.layouts.registry import read_run
from petlpack.tensors import tensor as tensor_module
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor
from tests.support.method_runs import Shape, write_propetl_t5
from tests.support.small_runs import (
    DENSE_CODECS,
    METHOD_CODECS,
    make_base,
    make_pair,
    nudged,
    random_tensor,
    weights,
    write_methods,
    write_pair,
    write_run,
    write_safetensors,
)

LEVELS: tuple[Level, ...] = ("fast", "small")
Tensors = dict[str, Tensor]


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_comes_back(run: Path, pack: Path, base: Path | None, name: str, read_seed: int = 0) -> petlpack.Task:
    """Check by every door that a task is its run: the decoded directory, the state dict, ranges of single tensors."""
    opened = petlpack.Base(base) if base is not None else None
    task = petlpack.open(pack)[name]
    decoded = task.decode(pack.parent / f"out-{name}", opened)
    assert (decoded.path, decoded.notes) == (pack.parent / f"out-{name}", ())
    assert files_of(decoded.path) == files_of(run)
    (read,) = read_run(run)
    source = read.module.tensors
    state = task.state_dict(opened)
    assert state.keys() == source.keys()
    loaded, rng = task.load(opened), np.random.default_rng(read_seed)
    assert loaded.keys() == source.keys()
    for tensor_name, tensor in source.items():
        expected = tensor.torch()
        assert (state[tensor_name].dtype, state[tensor_name].shape) == (expected.dtype, expected.shape)
        assert Tensor.of(tensor.bits(), tensor.dtype).sha256() == torch_sha256(state[tensor_name])
        lazy = loaded[tensor_name]
        assert (lazy.dtype, lazy.shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(lazy.bits(), tensor.bits())
        for _ in range(3):
            start, stop = sorted(int(n) for n in rng.integers(0, tensor.size + 1, 2))
            assert np.array_equal(lazy.read_flat(start, stop), tensor.bits().reshape(-1)[start:stop])
    checked = list(petlpack.verify(pack, opened))
    assert [found.error for found in checked] == [None] * len(checked)
    assert {found.name for found in checked} == {*petlpack.open(pack), *petlpack.open(pack).store.shared_names()}
    assert next(petlpack.verify(pack, opened, task=name, against=run)).depth == "compared"
    return task


def torch_sha256(value: object) -> str:
    import torch

    assert isinstance(value, torch.Tensor)
    return hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


# Any run against any base


@dataclass(frozen=True)
class Drawn:
    """One drawn run: its tensors, its base's, and how it is to be encoded."""

    tuned: Tensors
    base: Tensors
    level: Level
    jobs: int


SHAPES: list[tuple[int, ...]] = [(), (0,), (0, 5), (5, 0), (1,), (7,), (3, 5), (64, 9), (2, 3, 1, 5), (130,), (4, 1)]
RELATIONS = (
    "same",
    "few",
    "no base",
    "other shape",
    "tied",
    "fewer rows",
    "more rows",
    "other dtype",
    "near",
    "unlike",
)
SPARSE_RELATIONS = ("same", "few", "few", "few", "no base", "other shape", "tied", "fewer rows", "near")
PREFIXES = (("", ""), ("bert.", ""), ("", "model."), ("module.bert.", "_orig_mod."))
FLOATS = [name for name, dtype in DTYPES.items() if dtype.kind == "float"]


def related(relation: str, base: Tensor, seed: int) -> Tensor | None:
    """Return a fine-tune's tensor that stands to its base's in the way named, or None where that cannot be."""
    if relation == "same" or relation == "no base":
        return base
    if relation == "near":
        return nudged(base, seed)
    if relation == "few":
        return nudged(base, seed, 0.05)
    if relation == "unlike":
        return random_tensor(base.dtype.name, base.shape, seed)
    if relation in ("fewer rows", "more rows"):  # the base has fewer, or more
        if len(base.shape) < 2:
            return None
        rows = base.shape[0] + 3 if relation == "fewer rows" else max(0, base.shape[0] - 2)
        bits = random_tensor(base.dtype.name, (rows, *base.shape[1:]), seed).bits()
        shared = min(rows, base.shape[0])
        bits[:shared] = nudged(base, seed, seed % 2 or 0.05).bits()[:shared]
        return Tensor.of(bits, base.dtype)
    if relation == "other dtype":
        if base.dtype.kind != "float":
            return random_tensor("I16", base.shape, seed)
        target = DTYPES[FLOATS[seed % len(FLOATS)]]
        return nudged(Tensor.of(cast_bits(base.bits(), base.dtype, target), target), seed, 0.2)
    if relation == "other shape":
        return weights(base.dtype.name, (*base.shape, 2), seed)
    return base


@st.composite
def drawn_runs(draw: st.DrawFn, relations: tuple[str, ...] = RELATIONS) -> Drawn:
    prefix, base_prefix = draw(st.sampled_from(PREFIXES))
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(sorted(DTYPES)), st.sampled_from(SHAPES), st.sampled_from(relations)),
            min_size=1,
            max_size=7,
        )
    )
    seed = draw(st.integers(0, 2**16))
    random = draw(st.booleans())
    # one weight that both have, so that the names can be matched at all
    base = {f"{base_prefix}encoder.anchor.weight": weights("F32", (3, 4), seed)}
    tuned = {f"{prefix}encoder.anchor.weight": nudged(weights("F32", (3, 4), seed), seed, 0.1)}
    for i, (dtype, shape, relation) in enumerate(rows):
        make = random_tensor if random else weights
        source = make(dtype, shape, seed + i)
        made = related(relation, source, seed + i)
        if made is None:
            continue
        name = (
            f"encoder.layer.{i}.{'weight' if i % 2 and shape != (0,) else 'bias'}"  # a weight of [0] was not gathered
        )
        tuned[prefix + name] = made
        if relation == "tied":
            tuned[f"{prefix}decoder.{i}.tied"] = made
        if relation not in ("no base", "tied"):
            base[base_prefix + name] = source
    if draw(st.booleans()):
        tuned["classifier.weight"] = weights("F32", (3, 4), seed + 99)
    return Drawn(tuned, base, draw(st.sampled_from(LEVELS)), draw(st.sampled_from([1, 2])))


@pytest.mark.parametrize("codec", ["auto", *DENSE_CODECS])
def test_any_run_comes_back_bit_for_bit(codec: str) -> None:
    suited = declined = 0

    @settings(max_examples=80)
    @given(drawn_runs(SPARSE_RELATIONS if codec == "sparse" else RELATIONS))
    def check(drawn: Drawn) -> None:
        nonlocal suited, declined
        with tempfile.TemporaryDirectory() as place:
            directory = Path(place)
            run = write_run(directory / "run", drawn.tuned)
            base = write_run(directory / "base", drawn.base)
            given_base = None if codec == "plain" else base
            try:
                (done,) = petlpack.encode(
                    run, directory / "pack", given_base, codec=codec, level=drawn.level, jobs=drawn.jobs
                )
            except RunError:
                assert codec == "sparse"  # which declines runs of which it would take too much
                assert not (directory / "pack").exists()
                declined += 1
                return
            suited += 1
            assert done.exact
            assert done.codec == codec or codec == "auto"
            task = assert_comes_back(run, directory / "pack", given_base, "run", len(drawn.tuned))
            assert done.nbytes == task.nbytes == (directory / "pack/tasks/run.petl.safetensors").stat().st_size

    check()
    assert suited >= 20
    assert bool(declined) == (codec == "sparse")


@pytest.mark.exhaustive(8)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("codec", ["auto", *DENSE_CODECS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_codec_takes_every_dtype_in_every_shape(dtype: str, codec: str, level: Level, tmp_path: Path) -> None:
    base = {f"encoder.{i}.weight": random_tensor(dtype, shape, i) for i, shape in enumerate(SHAPES)}
    tuned = {f"bert.{name}": nudged(tensor, i, 0.1) for i, (name, tensor) in enumerate(base.items())}
    tuned |= {f"classifier.{i}.weight": random_tensor(dtype, shape, 50 + i) for i, shape in enumerate(SHAPES)}
    run, base_dir = write_run(tmp_path / "run", tuned), write_run(tmp_path / "base", base)
    petlpack.encode(run, tmp_path / "pack", base_dir, codec=codec, level=level)
    assert_comes_back(run, tmp_path / "pack", None if codec == "plain" else base_dir, "run")


@pytest.mark.parametrize("codec", ["ulp", "sparse"])
def test_a_run_of_many_units_comes_back_and_single_tensors_are_read_alone(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"petlpack.codecs.{codec}.UNIT", 100)
    monkeypatch.setattr(tensor_module, "PIECE", 64)
    monkeypatch.setattr("petlpack.decoding.tensors.PIECE", 64)
    tuned, base = make_pair(share=0.05)
    base["encoder.rows.weight"] = weights("F32", (3, 250), 7)  # one row is longer than a unit
    tuned["bert.encoder.rows.weight"] = nudged(base["encoder.rows.weight"], 8, 0.05)
    run, base_dir = write_run(tmp_path / "run", tuned), write_run(tmp_path / "base", base)
    petlpack.encode(run, tmp_path / "pack", base_dir, codec=codec, jobs=2)
    task = assert_comes_back(run, tmp_path / "pack", base_dir, "run")
    assert len(task.payload) > 20


# What costs nothing


@pytest.mark.parametrize("codec", ["ulp", "sparse"])
def test_unchanged_tensors_take_no_byte(codec: str, tmp_path: Path) -> None:
    base = make_base()
    run = write_run(tmp_path / "run", {f"bert.{name}": tensor for name, tensor in base.items()})
    base_dir = write_run(tmp_path / "base", base)
    petlpack.encode(run, tmp_path / "pack", base_dir, codec=codec)
    assert assert_comes_back(run, tmp_path / "pack", base_dir, "run").payload == {}


def test_tensors_that_are_the_base_rounded_to_their_dtype_take_no_byte(tmp_path: Path) -> None:
    base = make_base()
    half = {name: Tensor.of(cast_bits(t.bits(), t.dtype, DTYPES["BF16"]), DTYPES["BF16"]) for name, t in base.items()}
    run, base_dir = write_run(tmp_path / "run", half), write_run(tmp_path / "base", base)
    petlpack.encode(run, tmp_path / "pack", base_dir)
    assert assert_comes_back(run, tmp_path / "pack", base_dir, "run").payload == {}


@pytest.mark.parametrize("codec", DENSE_CODECS)
def test_tied_tensors_are_stored_once(codec: str, tmp_path: Path) -> None:
    tuned, base = make_pair(words=500, share=0.2)
    once, base_dir = write_run(tmp_path / "once", tuned), write_run(tmp_path / "base", base)
    tied = tuned | {"cls.predictions.decoder.weight": tuned["bert.embeddings.word_embeddings.weight"]}
    twice = write_run(tmp_path / "twice", tied)
    for run in (once, twice):
        petlpack.encode(run, tmp_path / "pack", base_dir, codec=codec)
    pack_base = None if codec == "plain" else base_dir
    payloads = [assert_comes_back(run, tmp_path / "pack", pack_base, run.name).payload for run in (once, twice)]
    assert sum(payloads[0].values()) == sum(payloads[1].values())


@pytest.mark.parametrize("codec", ["ulp", "sparse"])
@pytest.mark.parametrize("rows", [-10, -1, 1, 3])
def test_only_the_new_rows_of_resized_embeddings_are_stored_whole(codec: str, rows: int, tmp_path: Path) -> None:
    base = make_base(words=200)
    name = "embeddings.word_embeddings.weight"
    bits = base[name].bits()
    new = weights("F32", (max(0, rows), bits.shape[1]), 9).bits()
    tuned = base | {name: Tensor.of(np.concatenate([bits[: 200 + min(0, rows)], new]), DTYPES["F32"])}
    run, base_dir = write_run(tmp_path / "run", tuned), write_run(tmp_path / "base", base)
    petlpack.encode(run, tmp_path / "pack", base_dir, codec=codec)
    payload = assert_comes_back(run, tmp_path / "pack", base_dir, "run").payload
    assert sum(payload.values()) <= new.nbytes + 250  # of 12,800 bytes
    assert any(section.startswith("head.") for section in payload) == (rows > 0)


def test_files_that_loading_needs_come_back_and_the_others_are_named(tmp_path: Path) -> None:
    tuned, base = make_pair()
    kept = {
        "vocab.txt": b"[PAD]\r\n\xff" * 9,
        "tokenizer.json": b"{}" + b" " * 20,
        "modules.json": b'[{"path": ""}, {"path": "1_Pooling"}]',
        "1_Pooling/config.json": b"{" + b" " * 20 + b"}",
    }
    run = write_run(tmp_path / "run", tuned, files={**kept, "training_args.bin": b"pickle", "train.log": b"mine"})
    base_dir = write_run(tmp_path / "base", base)
    (done,) = petlpack.encode(run, tmp_path / "pack", base_dir)
    assert {left.file for left in done.left_out} == {"training_args.bin", "train.log"}
    decoded = files_of(petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out", base_dir).path)
    assert decoded == {name: data for name, data in files_of(run).items() if name in {*kept, *decoded}}
    assert decoded.keys() == {"model.safetensors", "config.json", *kept}


@pytest.mark.parametrize("size", [0, 1, 2, 5, 9, 10, 100, 1000, 70_000])
@pytest.mark.parametrize("content", ["spaces", "random"])
def test_kept_files_of_any_size_come_back(size: int, content: str, tmp_path: Path) -> None:
    kept = b" " * size if content == "spaces" else np.random.default_rng(size).bytes(size)
    run = write_run(tmp_path / "run", make_base(), files={"vocab.txt": kept})
    petlpack.encode(run, tmp_path / "pack", codec="plain")
    assert_comes_back(run, tmp_path / "pack", None, "run")


def test_shards_come_back_as_the_same_shards(tmp_path: Path) -> None:
    tuned, base = make_pair()
    names = list(tuned)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:4], names[4:])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        write_safetensors(tmp_path / "run" / shard, {name: tuned[name] for name in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2)
    (tmp_path / "run/model.safetensors.index.json").write_text(index)
    (tmp_path / "run/config.json").write_text('{"model_type": "bert"}')
    base_dir = write_run(tmp_path / "base", base)
    petlpack.encode(tmp_path / "run", tmp_path / "pack", base_dir)
    assert_comes_back(tmp_path / "run", tmp_path / "pack", base_dir, "run")


# The same bytes


def pack_digests(pack: Path) -> dict[str, str]:
    """Return the sha256 of every file of a pack but its lock."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files_of(pack).items() if name != ".lock"}


@pytest.fixture(scope="module")
def same_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("same"), share=0.1, width=48, words=400, labels=5)


@pytest.fixture(scope="module")
def same_bytes(same_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return the digests of the pack's files for each codec and level: what every other way must give, too."""
    place = tmp_path_factory.mktemp("packs")
    digests = {}
    for codec in DENSE_CODECS:
        for level in LEVELS:
            pack = place / f"{codec}-{level}"
            petlpack.encode(same_run[0], pack, same_run[1], task="a", codec=codec, level=level, jobs=1)
            digests[f"{codec} {level}"] = pack_digests(pack)
    return digests


@pytest.fixture
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into small units, so that threads have something to get in the wrong order."""
    for codec in DENSE_CODECS:
        monkeypatch.setattr(f"petlpack.codecs.{codec}.UNIT", 500, raising=False)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("codec", DENSE_CODECS)
@pytest.mark.usefixtures("many_units")
def test_the_number_of_threads_does_not_change_a_byte(
    codec: str, level: Level, same_run: tuple[Path, Path], tmp_path: Path
) -> None:
    digests = []
    for i, jobs in enumerate((1, 2, 4, 1, 4)):
        pack = tmp_path / str(i)
        petlpack.encode(same_run[0], pack, same_run[1], task="a", codec=codec, level=level, jobs=jobs)
        digests.append(pack_digests(pack))
    assert digests == digests[:1] * 5
    assert len(petlpack.open(tmp_path / "0")["a"].payload) > 10


@pytest.mark.parametrize("codec", DENSE_CODECS)
def test_encoding_twice_gives_the_same_bytes(
    codec: str, same_run: tuple[Path, Path], same_bytes: Mapping[str, dict[str, str]], tmp_path: Path
) -> None:
    for level in LEVELS:
        for _ in range(2):
            petlpack.encode(
                same_run[0], tmp_path / level, same_run[1], task="a", codec=codec, level=level, replace=True
            )
            assert pack_digests(tmp_path / level) == same_bytes[f"{codec} {level}"]


@pytest.mark.parametrize("codec", DENSE_CODECS)
def test_other_tasks_in_the_pack_and_other_places_do_not_change_a_byte(
    codec: str, same_run: tuple[Path, Path], same_bytes: Mapping[str, dict[str, str]], tmp_path: Path
) -> None:
    run, base = write_pair(tmp_path / "other", seed=3, share=0.1)
    petlpack.encode(run, tmp_path / "pack", base, task="other")
    petlpack.encode(run, tmp_path / "pack", base, task="z", codec="plain")
    moved = tmp_path / "a run elsewhere"
    write_run(moved, dict(read_run(same_run[0])[0].module.tensors))
    petlpack.encode(moved, tmp_path / "pack", petlpack.Base(same_run[1]), task="a", codec=codec, level="small")
    found = pack_digests(tmp_path / "pack")
    assert same_bytes[f"{codec} small"].items() <= found.items()
    assert petlpack.open(tmp_path / "pack").keys() == {"a", "other", "z"}


ENCODE = """
import sys, petlpack
run, base, place, codecs = sys.argv[1:]
for name in codecs.split(","):
    codec, level = name.split(" ")
    petlpack.encode(run, f"{place}/{name}", base, task="a", codec=codec, level=level)
"""


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_hash_seed_of_another_process_does_not_change_a_byte(
    seed: str, same_run: tuple[Path, Path], same_bytes: Mapping[str, dict[str, str]], tmp_path: Path
) -> None:
    env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [str(same_run[0]), str(same_run[1]), str(tmp_path), ",".join(same_bytes)]
    subprocess.run([sys.executable, "-c", ENCODE, *arguments], env=env, check=True, timeout=300)
    assert {name: pack_digests(tmp_path / name) for name in same_bytes} == same_bytes


def test_a_decoded_run_encodes_to_the_same_bytes(
    same_run: tuple[Path, Path], same_bytes: Mapping[str, dict[str, str]], tmp_path: Path
) -> None:
    petlpack.encode(same_run[0], tmp_path / "pack", same_run[1], task="a", codec="ulp")
    petlpack.open(tmp_path / "pack")["a"].decode(tmp_path / "again", same_run[1])
    petlpack.encode(tmp_path / "again", tmp_path / "pack 2", same_run[1], task="a", codec="ulp")
    assert pack_digests(tmp_path / "pack 2") == same_bytes["ulp small"]


# Methods: runs of several tasks, shared parts of tensors


SIZES = Shape(layers=3, width=16, bottleneck=8)
"""Large enough for several units, small enough for every combination."""

Runs = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def method_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return write_methods(tmp_path_factory.mktemp("methods"), SIZES)


def test_every_codec_is_tried_on_whole_runs(method_runs: Runs) -> None:
    assert method_runs.keys() == set(METHOD_CODECS)


@pytest.fixture(scope="module")
def method_bytes(method_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return the digests of every pack, encoded with one thread, by "codec level"."""
    digests = {}
    for codec in METHOD_CODECS:
        for level in LEVELS:
            pack = tmp_path_factory.mktemp("digests") / "pack"
            run, options = method_runs[codec]
            done = petlpack.encode(run, pack, level=level, jobs=1, **options)
            assert {one.codec for one in done} == {codec}
            digests[f"{codec} {level}"] = pack_digests(pack)
    return digests


def as_loaded(path: Path) -> object:
    """Return a file's bytes; of a pickled file the tensors' bytes and which of them share memory."""
    import torch

    if path.suffix not in (".bin", ".pt"):
        return path.read_bytes()
    state = torch.load(path, weights_only=True)
    storages = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    tensors = {name: (t.dtype, t.shape, torch_sha256(t.contiguous())) for name, t in state.items()}
    return list(tensors.items()), [storages.index(storage) for storage in storages]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("codec", METHOD_CODECS)
def test_a_task_of_a_method_comes_back_by_every_door(
    codec: str, level: Level, method_runs: Runs, tmp_path: Path
) -> None:
    run, options = method_runs[codec]
    base = petlpack.Base(options["base"]) if "base" in options else None
    done = petlpack.encode(run, tmp_path / "pack", level=level, jobs=2, **options)
    assert all(one.exact for one in done)
    settings = Options(options.get("settings", {}))
    for one, source in zip(done, read_run(run, settings), strict=True):
        task = petlpack.open(tmp_path / "pack")[one.name]
        assert one.nbytes == task.nbytes == (tmp_path / f"pack/tasks/{one.name}.petl.safetensors").stat().st_size
        assert one.shared == {
            sha256: (tmp_path / f"pack/shared/{sha256}.petl.safetensors").stat().st_size for sha256 in task.parts
        }
        loaded, state, rng = task.load(base), task.state_dict(base), np.random.default_rng(1)
        expected = {name: tensor for name, tensor in source.module.tensors.items() if name in loaded}
        assert loaded.keys() == state.keys() == expected.keys()
        assert source.omits_base or expected.keys() == source.module.tensors.keys()
        for name, tensor in expected.items():
            assert Tensor.of(tensor.bits(), tensor.dtype).sha256() == torch_sha256(state[name])
            assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
            for _ in range(3):
                start, stop = sorted(int(n) for n in rng.integers(0, tensor.size + 1, 2))
                assert np.array_equal(loaded[name].read_flat(start, stop), tensor.bits().reshape(-1)[start:stop])
        outs = [task.decode(tmp_path / f"{one.name} {jobs}", base, jobs=jobs).path for jobs in (1, 2)]
        for path in outs[0].rglob("*"):
            assert as_loaded(path) == as_loaded(outs[1] / path.relative_to(outs[0]))
        (weights_file,) = task.template.headers
        import torch

        for name, tensor in torch.load(outs[0] / weights_file, weights_only=True).items():
            assert torch_sha256(tensor.contiguous()) == torch_sha256(state[name])
        assert source.kept.keys() == {"config.json"}  # averaged experts and single tasks have one of their own
        kept = source.kept["config.json"]
        assert (outs[0] / "config.json").read_bytes() == (kept if isinstance(kept, bytes) else kept.read_bytes())
        assert files_of(outs[0]).keys() == {weights_file, "config.json"}
        assert next(petlpack.verify(tmp_path / "pack", base, task=one.name, against=run)).depth == "compared"
    assert [found.error for found in petlpack.verify(tmp_path / "pack", base)] == [None] * (
        len(done) + len(petlpack.open(tmp_path / "pack").store.shared_names())
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("codec", METHOD_CODECS)
def test_the_number_of_threads_does_not_change_a_byte_of_a_method(
    codec: str, level: Level, method_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petlpack.codecs.method.UNIT", 64)
    monkeypatch.setattr("petlpack.codecs.method.MASKS", 512)
    run, options = method_runs[codec]
    digests = []
    for i, jobs in enumerate((1, 2, 4, 1, 4)):
        petlpack.encode(run, tmp_path / str(i), level=level, jobs=jobs, **options)
        digests.append(pack_digests(tmp_path / str(i)))
    assert digests == digests[:1] * 5
    store = petlpack.open(tmp_path / "0").store
    sections = [
        len(container.read(path).manifest.sections)
        for path in (*map(store.task_path, store.task_names()), *map(store.shared_path, store.shared_names()))
    ]
    assert max(sections) > 5
    for found in petlpack.verify(tmp_path / "0", options.get("base")):
        assert (found.error, found.depth) == (None, "bytes" if found.kind == "shared" else "decoded")


@pytest.mark.parametrize("codec", METHOD_CODECS)
def test_encoding_a_method_twice_or_elsewhere_gives_the_same_bytes(
    codec: str, method_runs: Runs, method_bytes: Mapping[str, dict[str, str]], tmp_path: Path
) -> None:
    run, options = method_runs[codec]
    moved = Path(shutil.copytree(run, tmp_path / "a run elsewhere"))
    for level in LEVELS:
        for source in (run, moved, run):
            petlpack.encode(source, tmp_path / level, task=codec, level=level, replace=True, **options)
            assert pack_digests(tmp_path / level) == method_bytes[f"{codec} {level}"]
    for other, (source, changes) in method_runs.items():
        petlpack.encode(source, tmp_path / "all", task=f"z-{other}", **changes)
    petlpack.encode(moved, tmp_path / "all", task=codec, level="small", **options)
    assert method_bytes[f"{codec} small"].items() <= pack_digests(tmp_path / "all").items()


ENCODE_METHODS = """
import sys, json, petlpack
runs, place = json.loads(sys.argv[1]), sys.argv[2]
for codec, (run, options) in runs.items():
    for level in ("fast", "small"):
        petlpack.encode(run, f"{place}/{codec} {level}", level=level, **options)
"""


@pytest.mark.exhaustive(3)
@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_hash_seed_of_another_process_does_not_change_a_byte_of_a_method(
    seed: str, method_runs: Runs, method_bytes: Mapping[str, dict[str, str]], tmp_path: Path
) -> None:
    env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = json.dumps(method_runs, default=str)
    subprocess.run([sys.executable, "-c", ENCODE_METHODS, runs, str(tmp_path)], env=env, check=True, timeout=300)
    assert {name: pack_digests(tmp_path / name) for name in method_bytes} == method_bytes


@pytest.mark.parametrize("name", ["mask", "hyper"])
def test_tasks_of_one_run_share_one_template_and_their_tensors(name: str, method_runs: Runs, tmp_path: Path) -> None:
    run, options = method_runs[name]
    petlpack.encode(run, tmp_path / "pack", **options)
    one, other = petlpack.open(tmp_path / "pack").values()
    assert one.parts == other.parts
    assert one.manifest.shared == other.manifest.shared
    assert {one.manifest.params["name"], other.manifest.params["name"]} == {"a", "b"}
    own = [task.load(options.get("base")) for task in (one, other)]
    shared = {slot.name for slot in one.template.slots if slot.part is not None}
    assert shared
    for tensor in shared:
        assert np.array_equal(own[0][tensor].bits(), own[1][tensor].bits())


@pytest.mark.parametrize("level", LEVELS)
@given(
    tasks=st.lists(st.sampled_from(["a", "b", "sst2", "rte", "copa-1", "x.y"]), min_size=1, max_size=4, unique=True),
    keep=st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.9, 1.0]),
    overlaps=st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
    extreme=st.booleans(),
    combine=st.sampled_from(["or", "and", "add"]),
    layers=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_any_run_of_masks_comes_back(
    level: Level,
    tasks: list[str],
    keep: float,
    overlaps: tuple[float, float],
    extreme: bool,
    combine: str,
    layers: int,
    seed: int,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        run, pack = Path(place) / "run", Path(place) / "pack"
        shape = Shape(layers=layers, width=8, bottleneck=4)
        layer, task = overlaps
        written = write_propetl_t5(
            run, tasks, shape, seed=seed, keep=keep, extreme=extreme, layer_overlap=layer, task_overlap=task
        )
        said = {"activation": "gelu_new", **({"combine": combine} if extreme else {})}
        petlpack.encode(run, pack, settings=said, level=level, jobs=1)
        expected = {name: array.tobytes() for name, array in written.tensors.items()}
        found: dict[str, bytes] = {}
        names = [f"run.{task}" for task in tasks] if len(tasks) > 1 else ["run"]
        assert sorted(petlpack.open(pack)) == sorted(names)
        for name in names:
            for tensor, _, bits in petlpack.open(pack)[name].load().read_all(jobs=1):
                assert found.setdefault(tensor, bits.tobytes()) == bits.tobytes()
        assert expected.items() <= found.items()
        assert all("layer_" in name for name in found.keys() - expected.keys())  # the first layer's alias


# Another base


@dataclass(frozen=True)
class Packed:
    """A pack with one task for each codec, and its base's tensors and file."""

    pack: Path
    base: Tensors
    base_dir: Path
    data_start: int


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    place = tmp_path_factory.mktemp("wrong-base")
    tuned, base = make_pair(share=0.1)
    tuned["bert.encoder.layer.0.attention.self.query.weight"] = base["encoder.layer.0.attention.self.query.weight"]
    run, base_dir = write_run(place / "run", tuned), write_run(place / "base", base)
    for codec in ("ulp", "sparse"):
        petlpack.encode(run, place / "pack", base_dir, task=codec, codec=codec)
    raw = (base_dir / "model.safetensors").read_bytes()
    return Packed(place / "pack", base, base_dir, 8 + int.from_bytes(raw[:8], "little"))


def raise_finding(pack: Path, base: Path, name: str) -> None:
    """Verify a task against a base and raise what is found; its bytes are sound all the same."""
    (found,) = petlpack.verify(pack, base, task=name)
    assert found.error is not None
    assert found.depth == "bytes"
    raise found.error


def assert_refused(packed: Packed, base: Path, out: Path, *said: str) -> None:
    """Check that every door refuses a base, naming what disagrees, and leaves nothing behind."""
    for task in petlpack.open(packed.pack).values():
        doors: list[Callable[[], object]] = [
            partial(task.decode, out, base),
            partial(task.state_dict, base),
            partial(raise_finding, packed.pack, base, task.name),
        ]
        for door in doors:
            with pytest.raises(BaseError) as caught:
                door()
            assert caught.value.exit_code == 5
            assert all(words in caught.value.message for words in said), caught.value.message
        assert not out.exists()
        assert not list(out.parent.glob(".petlpack-*"))


def flipped_base(packed: Packed, directory: Path, bit: int) -> Path:
    """Write the base with one bit of its data flipped."""
    raw = bytearray((packed.base_dir / "model.safetensors").read_bytes())
    raw[packed.data_start + bit // 8] ^= 1 << bit % 8
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(raw)
    return directory


@pytest.mark.parametrize("part", range(10))
def test_a_base_with_one_bit_flipped_is_refused_with_both_digests(part: int, packed: Packed, tmp_path: Path) -> None:
    bits = 8 * ((packed.base_dir / "model.safetensors").stat().st_size - packed.data_start)
    for i in range(12):  # every place in a word is hit, and every tensor
        bit = ((part * 12 + i) * (bits // 120) // 8 * 8 + (part * 12 + i) * 7) % bits
        base = flipped_base(packed, tmp_path / str(i), bit % bits)
        (name,) = [name for name, tensor in petlpack.Base(base).tensors.items() if differs(tensor, packed.base[name])]
        digests = petlpack.Base(base).sha256(name), packed.base[name].sha256()
        assert digests[0] != digests[1]
        assert_refused(packed, base, tmp_path / "out", f"tensor '{name}' has sha256", *digests)


def differs(one: Tensor, other: Tensor) -> bool:
    return not np.array_equal(one.bits(), other.bits())


def changed(packed: Packed, directory: Path, changes: Mapping[str, Tensor | None]) -> Path:
    """Write the base with tensors replaced, or left out where they are None."""
    tensors = {name: changes.get(name, tensor) for name, tensor in packed.base.items()}
    return write_run(directory, {name: tensor for name, tensor in tensors.items() if tensor is not None})


BASE_NAMES = tuple(make_base())


@pytest.mark.parametrize("name", BASE_NAMES)
@pytest.mark.parametrize("step", [1, -1])
def test_a_base_one_ulp_away_is_refused_with_both_digests(name: str, step: int, packed: Packed, tmp_path: Path) -> None:
    bits = packed.base[name].bits().copy()
    bits.reshape(-1)[bits.size // 2 : bits.size // 2 + 1] += np.uint32(step % 2**32)
    other = Tensor.of(bits, DTYPES["F32"])
    base = changed(packed, tmp_path / "base", {name: other})
    assert_refused(packed, base, tmp_path / "out", f"'{name}'", other.sha256(), packed.base[name].sha256())


@pytest.mark.parametrize("name", BASE_NAMES)
def test_a_base_without_a_tensor_is_refused_by_its_name(name: str, packed: Packed, tmp_path: Path) -> None:
    base = changed(packed, tmp_path / "base", {name: None})
    assert_refused(packed, base, tmp_path / "out", f"has no tensor '{name}', which the task needs")


@pytest.mark.parametrize("dtype", ["BF16", "F64", "F16", "I32"])
def test_a_base_in_another_dtype_is_refused_with_both_dtypes(dtype: str, packed: Packed, tmp_path: Path) -> None:
    name = "encoder.layer.1.intermediate.dense.weight"
    bits = packed.base[name].bits()
    cast = bits if dtype == "I32" else cast_bits(bits, DTYPES["F32"], DTYPES[dtype])
    base = changed(packed, tmp_path / "base", {name: Tensor.of(cast, DTYPES[dtype])})
    assert_refused(packed, base, tmp_path / "out", f"'{name}' is {dtype} [32, 16], the task needs F32 [32, 16]")


@pytest.mark.parametrize("shape", [(16, 32), (31, 16), (33, 16), (512,), (32, 16, 1)])
def test_a_base_in_another_shape_is_refused_with_both_shapes(
    shape: tuple[int, ...], packed: Packed, tmp_path: Path
) -> None:
    name = "encoder.layer.1.intermediate.dense.weight"
    base = changed(packed, tmp_path / "base", {name: weights("F32", shape, 1)})
    assert_refused(packed, base, tmp_path / "out", f"'{name}' is F32 {list(shape)}, the task needs F32 [32, 16]")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encoder.layer.0.attention.self.query.weight", "encoder.layer.1.attention.self.query.weight"),
        ("encoder.layer.0.intermediate.dense.bias", "encoder.layer.1.intermediate.dense.bias"),
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"),
    ],
)
def test_a_base_with_two_tensors_exchanged_is_refused(one: str, other: str, packed: Packed, tmp_path: Path) -> None:
    base = changed(packed, tmp_path / "base", {one: packed.base[other], other: packed.base[one]})
    assert_refused(packed, base, tmp_path / "out", packed.base[one].sha256(), packed.base[other].sha256())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_base_with_two_rows_or_columns_exchanged_is_refused(axis: int, packed: Packed, tmp_path: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    bits = np.roll(packed.base[name].bits(), 1, axis)
    base = changed(packed, tmp_path / "base", {name: Tensor.of(bits, DTYPES["F32"])})
    assert_refused(packed, base, tmp_path / "out", f"'{name}'", packed.base[name].sha256())


def test_another_revision_of_the_base_is_refused(packed: Packed, tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", make_base(seed=1))
    assert_refused(packed, base, tmp_path / "out", "has sha256")


def test_minus_zero_for_zero_is_another_base(tmp_path: Path) -> None:
    zeros = Tensor.of(np.zeros((4, 4), "<u4"), DTYPES["F32"])
    base_dir = write_run(tmp_path / "base", {"encoder.weight": zeros})
    run = write_run(tmp_path / "run", {"encoder.weight": nudged(zeros, 1)})
    petlpack.encode(run, tmp_path / "pack", base_dir)
    minus = write_run(tmp_path / "minus", {"encoder.weight": Tensor.of(zeros.bits() | np.uint32(2**31), DTYPES["F32"])})
    with pytest.raises(BaseError, match=r"tensor 'encoder\.weight' has sha256"):
        petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out", minus)


def test_a_base_that_differs_only_where_no_task_looks_is_the_base(packed: Packed, tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", packed.base | {"pooler.dense.weight": weights("F32", (16, 16), 5)})
    for task in petlpack.open(packed.pack).values():
        assert files_of(task.decode(tmp_path / task.name, base).path) == files_of(packed.base_dir.parent / "run")
