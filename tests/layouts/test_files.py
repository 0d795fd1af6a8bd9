"""Which files of a run come along: everything that is not known to be something else, whatever links lead to it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import pkgutil
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import hub

import petlpack
from petlpack import DamageError, RunError, UsageError
from petlpack.layouts.selection import MAX_FILE, Selection
from petlpack.store import MAX_SHARED
from petlpack.tensors.kinds import LEAVES
from tests.support.command_line import posix
from tests.support.small_runs import make_base, make_pair, weights, write_run


def put(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def model(directory: Path, files: dict[str, bytes] | None = None, seed: int = 1) -> Path:
    return write_run(directory, make_pair(seed, layers=1)[0], files=files)


def encode(run: Path, place: Path, **options: Any) -> petlpack.Encoded:
    (encoded,) = petlpack.encode(run, place / "pack", task="run", codec="plain", replace=True, jobs=1, **options)
    return encoded


def kept(place: Path) -> dict[str, bytes]:
    """What came along of a run that is in the pack, by the names under which it comes back."""
    task = petlpack.open(place / "pack")["run"]
    return {name: task.read_file(name) for name in task.template.files}


def reasons(encoded: petlpack.Encoded) -> dict[str, str]:
    return {left.file: left.why for left in encoded.left_out}


# What the library may save


def _tokenizer_classes() -> Iterator[type]:
    for package in pkgutil.iter_modules(transformers.models.__path__):
        found = importlib.import_module(f"transformers.models.{package.name}")
        for module in pkgutil.iter_modules(found.__path__):
            if not module.name.startswith("tokenization_"):
                continue
            with contextlib.suppress(ImportError, NameError):  # it needs a library that is not here
                loaded = importlib.import_module(f"{found.__name__}.{module.name}")
                yield from (value for value in vars(loaded).values() if isinstance(value, type))


def _saved_names() -> set[str]:
    """Every file name that Transformers says of its tokenizers, processors and configs; those of weights left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = list(_tokenizer_classes())
    tables = [getattr(cls, "vocab_files_names", None) for cls in classes]
    names = {name for table in tables if isinstance(table, dict) for name in table.values() if isinstance(name, str)}
    constants = {**vars(transformers.utils), **vars(hub), **vars(transformers.tokenization_utils_base)}
    names |= {value for key, value in constants.items() if key.endswith(("_NAME", "_FILE")) and isinstance(value, str)}
    loaded_as_weights = (".safetensors", ".bin", ".h5", ".msgpack", ".index.json")
    return {name for name in names if "." in name and "/" not in name and not name.endswith(loaded_as_weights)}


def test_every_file_that_transformers_may_save_comes_along(tmp_path: Path) -> None:
    names = _saved_names()
    assert len(names) > 30
    assert {"spm.model", "prophetnet.tokenizer", "word_shape.json", "processor_config.json"} <= names
    files = {name: f"this is {name}".encode() for name in names - {"config.json"}}
    assert "adapter_config.json" in files
    files["adapter_config.json"] = b'{"not": "of an adapter"}'
    for folder in ("", "qformer_tokenizer/", "decoder/tokenizer/"):
        put(model(tmp_path / "run"), {f"{folder}{name}": content for name, content in files.items()})
    assert encode(tmp_path / "run", tmp_path).left_out == ()
    assert kept(tmp_path).keys() >= {f"{folder}{name}" for folder in ("", "qformer_tokenizer/") for name in files}


# Indexes of shards


def _shards(run: Path, stem: str, count: int) -> bytes:
    """Write a model in shards, and return their index."""
    tensors = list(make_base(layers=1).items())
    weight_map: dict[str, str] = {}
    for i in range(count):
        part = dict(tensors[i::count])
        file = f"{stem}-{i + 1:05}-of-{count:05}.safetensors"
        write_run(run, part, None, weights_file=file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    put(run, {f"{stem}.safetensors.index.json": index})
    return index


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("stem", ["model", "adapter_model"])
def test_an_index_comes_back_with_its_shards(tmp_path: Path, stem: str, count: int) -> None:
    run = tmp_path / "run"
    index = _shards(run, stem, count)
    put(run, {"adapter_config.json": b'{"peft_type": "LORA"}'} if stem == "adapter_model" else {"config.json": b"{}"})
    assert encode(run, tmp_path).left_out == ()
    assert kept(tmp_path)[f"{stem}.safetensors.index.json"] == index
    out = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out").path
    assert {file.name for file in out.iterdir()} == {file.name for file in run.iterdir()}


def _split(run: Path, files: tuple[str, str]) -> dict[str, Any]:
    """Write a model of two shards of these names with its index, and return the index."""
    tensors = {f"layer.{i}.weight": torch.full((2, 3), float(i)) for i in range(4)}
    weight_map = {name: files[i % 2] for i, name in enumerate(tensors)}
    for file in files:
        shard = {name: tensors[name] for name in tensors if weight_map[name] == file}
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(shard, run / file) if file.endswith(".bin") else save_file(shard, run / file)
    index = {"metadata": {"total_size": 96}, "weight_map": weight_map}
    put(run, {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()})
    return index


def test_shards_in_folders_come_back_in_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _split(run, ("model-1.safetensors", "sub/more/model-1.safetensors"))
    assert encode(run, tmp_path).left_out == ()
    out = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out").path
    for file in ("model-1.safetensors", "sub/more/model-1.safetensors", "model.safetensors.index.json"):
        assert (out / file).read_bytes() == (run / file).read_bytes()


@pytest.mark.parametrize(
    "files",
    [
        ("model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"),
        ("model-00001-of-00002.bin", "sub/model-00002-of-00002.bin"),
    ],
)
def test_an_index_of_pickled_shards_names_what_comes_back(tmp_path: Path, files: tuple[str, str]) -> None:
    run = tmp_path / "run"
    index = _split(run, files)
    assert encode(run, tmp_path).left_out == ()
    out = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out").path
    back = json.loads((out / "model.safetensors.index.json").read_bytes())
    assert back["metadata"] == index["metadata"]
    assert back["weight_map"].keys() == index["weight_map"].keys()
    for name, file in back["weight_map"].items():
        assert name in load_file(out / file)
    (checked,) = petlpack.verify(tmp_path / "pack", against=run, task="run")
    assert (checked.error, checked.notes) == (None, ())


def test_shards_that_would_come_back_as_one_file_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _split(run, ("model-1-of-1.safetensors", "pytorch_model-1-of-1.bin"))
    with pytest.raises(RunError, match=r"two shards that would both come back as 'model-1-of-1\.safetensors'"):
        encode(run, tmp_path)


def test_an_index_of_what_does_not_come_back_is_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _shards(run, "model", 2)
    model(run)
    encoded = encode(run, tmp_path)  # the one file counts, as for Transformers
    assert kept(tmp_path).keys() == {"config.json"}
    assert reasons(encoded)["model.safetensors.index.json"] == "an index of files that are not kept"


def test_the_weights_that_a_config_names_are_the_runs(tmp_path: Path) -> None:
    run = model(tmp_path / "run")
    special = write_run(tmp_path / "other", make_pair(2, layers=1)[0]) / "model.safetensors"
    put(run, {"special.safetensors": special.read_bytes()})
    for named in ("special.safetensors", "../special.safetensors", "gone.safetensors", 7, None):
        put(run, {"config.json": json.dumps({"transformers_weights": named}).encode()})
        encode(run, tmp_path)
        chosen = "special.safetensors" if named == "special.safetensors" else "model.safetensors"
        headers = petlpack.open(tmp_path / "pack")["run"].template.headers
        assert [name for name, header in headers.items() if not header.prefix] == [chosen]


# Links


def test_a_linked_checkpoint_is_a_directory_like_others(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "disk", tmp_path / "run"
    files = {"tokenizer.json": b"t", "1_Pooling/config.json": b"{}", "mine.txt": b"m"}
    model(elsewhere / "ck", files)
    put(elsewhere / "of one more", {"vocab.txt": b"v"})
    (elsewhere / "ck" / "linked.txt").symlink_to(elsewhere / "of one more" / "vocab.txt")
    (elsewhere / "ck" / "extra_tokenizer").symlink_to(elsewhere / "of one more")
    run.mkdir()
    for name in ("checkpoint-30", "checkpoint-20", "latest", "best"):
        (run / name).symlink_to(elsewhere / "ck")
    encoded = encode(run, tmp_path)
    expected = {**files, "linked.txt": b"v", "extra_tokenizer/vocab.txt": b"v"}
    assert kept(tmp_path) == {**expected, "config.json": (elsewhere / "ck" / "config.json").read_bytes()}
    assert reasons(encoded) == {
        "checkpoint-20": "a link to a directory",
        "latest": "a link to a directory",
        "best": "a link to a directory",
    }


def test_a_checkpoint_that_is_a_link_inside_the_run_is_no_second_model(tmp_path: Path) -> None:
    model(tmp_path / "run" / "final")
    (tmp_path / "run" / "checkpoint-9").symlink_to("final")
    encoded = encode(tmp_path / "run", tmp_path)
    assert reasons(encoded) == {"final/model.safetensors": "other weights"}
    assert kept(tmp_path).keys() == {"config.json", "final/config.json"}


def test_links_that_lead_round_or_anywhere_end(tmp_path: Path) -> None:
    run = model(tmp_path / "run")
    put(tmp_path / "data", {f"{i}/rows.csv": b"1" for i in range(9)})
    put(run, {"a/x.txt": b"a", "b/x.txt": b"b", "checkpoint-5/config.json": b"{}"})
    for link, target in {"self": run, "a/up": run / "a", "a/b": run / "b", "b/a": run / "a", "old": run}.items():
        (run / link).symlink_to(target)
    (run / "data").symlink_to(tmp_path / "data")
    (run / "checkpoint-5" / "data").symlink_to(tmp_path / "data")
    (run / "checkpoint-7").symlink_to(run / "a")
    encoded = encode(run, tmp_path)
    assert kept(tmp_path).keys() == {"config.json", "a/x.txt", "b/x.txt", "a/b/x.txt", "b/a/x.txt"}
    assert reasons(encoded)["checkpoint-7"] == "another checkpoint"
    links = {file for file, why in reasons(encoded).items() if why == "a link to a directory"}
    assert links == {"self", "old", "data", "a/up", "a/b/a", "b/a/b", "b/a/up", "checkpoint-5/data"}
    encode(run, tmp_path, keep="data")
    assert {name for name in kept(tmp_path) if name.startswith("data/")} == {f"data/{i}/rows.csv" for i in range(9)}


def test_many_links_to_each_other_are_walked_in_no_time(tmp_path: Path) -> None:
    run = model(tmp_path / "run")
    for i in range(12):
        (run / f"{i}").mkdir()
        for j in range(12):
            (run / f"{i}" / f"to-{j}").symlink_to(run / f"{j}")
    assert len(encode(run, tmp_path).left_out) < 12**4


def test_a_hub_folder_of_links_comes_along_as_what_they_lead_to(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "README.md": b"# A model\n", "modeling_mine.py": b"pass\n"}
    blobs, run = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    content = (model(tmp_path / "real") / "model.safetensors").read_bytes()
    run.mkdir(parents=True)
    for i, (name, data) in enumerate({**files, "model.safetensors": content}.items()):
        put(blobs, {f"{i}": data})
        (run / name).symlink_to(Path("..") / ".." / "blobs" / f"{i}")
    encode(run, tmp_path)
    assert kept(tmp_path) == files


@posix
def test_what_links_bring_from_elsewhere_is_named(tmp_path: Path) -> None:
    """A run of a stranger may link to anything; what the Hub's cache links to is the model's own."""
    run = model(tmp_path / "run", {"own.txt": b"own"})
    put(tmp_path, {"elsewhere/secret": b"secret", "elsewhere/tokenizer/vocab.txt": b"vocab"})
    (run / "vocab.txt").symlink_to(tmp_path / "elsewhere" / "secret")
    (run / "inside.txt").symlink_to("own.txt")
    (run / "tokenizer").symlink_to(tmp_path / "elsewhere" / "tokenizer")
    (warning,) = encode(run, tmp_path).warnings
    assert "outside the run: tokenizer/vocab.txt (" in warning
    assert f"vocab.txt ({(tmp_path / 'elsewhere' / 'secret').resolve()})" in warning
    assert "inside.txt" not in warning
    cached = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    model(cached, {})
    put(tmp_path, {"models--org--name/blobs/1": b"vocab"})
    (cached / "vocab.txt").symlink_to(Path("../../blobs/1"))
    assert encode(cached, tmp_path).warnings == ()


def test_a_link_to_the_weights_under_another_name_is_no_second_model(tmp_path: Path) -> None:
    run = model(tmp_path / "run")
    (run / "copy.safetensors").symlink_to("model.safetensors")
    encoded = encode(run, tmp_path)
    assert reasons(encoded) == {"copy.safetensors": "other weights"}
    assert encoded.warnings == ("left out other weights: copy.safetensors",)


# What the caller says


FILES = {
    "tokenizer.json": b"tok",
    "notes/a.txt": b"a",
    "notes/b.png": b"b",
    "optimizer.pt": b"opt",
    "model.onnx": b"onnx",
    "wandb/run/x.log": b"x",
    "wandb/y": b"y",
    ".git/config": b"git",
    "[odd] name.txt": b"odd",
}
DEFAULT = {"config.json", "tokenizer.json", "notes/a.txt", "notes/b.png", "[odd] name.txt"}


@pytest.mark.parametrize(
    ("drop", "keep", "more", "less"),
    [
        ("*.png", (), set(), {"notes/b.png"}),
        (["notes", "tokenizer*"], (), set(), {"notes/a.txt", "notes/b.png", "tokenizer.json"}),
        ("notes/", "*.txt", set(), {"notes/b.png"}),
        ("/a.txt", (), set(), set()),
        ("/notes/a.txt", (), set(), {"notes/a.txt"}),
        ((), ["optimizer.pt", "*.onnx"], {"optimizer.pt", "model.onnx"}, set()),
        ((), "wandb", {"wandb/run/x.log", "wandb/y"}, set()),
        ((), "/wandb/y", {"wandb/y"}, set()),
        ((), [".git/*"], {".git/config"}, set()),
        ("*", "config.json", set(), DEFAULT - {"config.json"}),
        ("[[]odd*", (), set(), {"[odd] name.txt"}),
    ],
)
def test_globs_choose(tmp_path: Path, drop: Any, keep: Any, more: set[str], less: set[str]) -> None:
    run = model(tmp_path / "run", FILES)
    encoded = encode(run, tmp_path, drop=drop, keep=keep)
    assert kept(tmp_path).keys() == (DEFAULT | more) - less
    assert {left.file for left in encoded.left_out if left.why == "dropped (--drop)"} == less
    unused = tuple(f"--drop {glob} matches no file of this run" for glob in [drop] if glob == "/a.txt")
    assert encoded.warnings == unused


def test_large_files_are_left_out_and_told(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {"small": b"x" * 10, "big head.bin": b"x" * 11, "tokenizer.json": b"x" * 99})
    encoded = encode(run, tmp_path, max_file=10)
    assert kept(tmp_path).keys() == {"config.json", "small", "tokenizer.json"}
    assert encoded.warnings == ("left out files that are larger than --max-file: big head.bin",)
    encode(run, tmp_path, max_file=10, keep="big*")
    assert "big head.bin" in kept(tmp_path)
    for size in (-1, MAX_SHARED + 1):
        with pytest.raises(UsageError, match="max_file must be"):
            encode(run, tmp_path, max_file=size)
    assert 2 * MAX_FILE < MAX_SHARED


def test_a_directory_of_thousands_of_files_is_no_part_of_a_model(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {f"samples/{i}.txt": b"x" for i in range(1001)} | {"few/1.txt": b"x"})
    encoded = encode(run, tmp_path)
    assert kept(tmp_path).keys() == {"config.json", "few/1.txt"}
    assert encoded.warnings == (
        "left out files in directories of more than 1,000: samples/0.txt, samples/1.txt, samples/10.txt, "
        "samples/100.txt, samples/1000.txt, ...",
    )
    encode(run, tmp_path, keep="samples")
    assert len(kept(tmp_path)) == 1003


def test_a_checkpoint_is_never_given_a_file_that_it_has(tmp_path: Path) -> None:
    run, chosen = tmp_path / "run", model(tmp_path / "run" / "checkpoint-3", {"own.txt": b"own", "head": b"a file"})
    put(run, {"own.txt": b"of the root", "config.json": b"{}", "head/x": b"x", "other.txt": b"other"})
    encoded = encode(run, tmp_path, keep=["own.txt", "config.json", "head"])
    own = {file.name: file.read_bytes() for file in chosen.iterdir() if file.name != "model.safetensors"}
    assert kept(tmp_path) == {**own, "other.txt": b"other"}
    assert reasons(encoded) == dict.fromkeys(("own.txt", "config.json", "head/x"), "the checkpoint has its own")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_what_is_no_file_and_what_no_system_can_have_is_no_error(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {"a:b.txt": b"x", "c\nd": b"x", "e\\f": b"x", "ü ñ 日本.txt": b"x", "-rf": b"x"})
    os.mkfifo(run / "pipe")
    (run / "gone.txt").symlink_to("/nonexist")
    encoded = encode(run, tmp_path)
    assert kept(tmp_path).keys() == {"config.json", "ü ñ 日本.txt", "-rf"}
    names = dict.fromkeys(("a:b.txt", "c\nd", "e\\f"), "a file name that is not valid on every system")
    why = {"gone.txt": "a broken link", "pipe": "a pipe, a socket or a device, and no file"}
    assert reasons(encoded) == {**names, **why}
    assert encoded.warnings == (
        "left out files with names that are not valid on every system: a:b.txt, c\\nd, e\\f",
        "left out broken links: gone.txt",
    )


def test_plan_measures_and_shows_what_was_said_of_the_files(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {"notes.txt": bytes(range(256)) * 9, "optimizer.pt": bytes(range(256))})
    said: dict[str, Any] = {"drop": "notes.txt", "keep": ["optimizer.pt"], "max_file": 1000}
    plans = petlpack.plan([run], **said)
    (offer,) = (offer for offer in plans.runs[0].offers if offer.refused is None and "fast" not in offer.label)
    words = ("--drop=notes.txt", "--keep=optimizer.pt", "--max-file", "1000")
    assert offer.command[3:7] == words
    encoded = encode(run, tmp_path, **said)
    assert offer.shared == encoded.shared


def test_survey_leaves_to_the_same_files_what_encode_leaves_out(tmp_path: Path) -> None:
    """One table for both: what survey calls state, log and cache is what does not come along as such."""
    names = ("optimizer.pt", "train.log", "wandb/a.yaml", "runs/b.py", ".git/c", "d.py", "spm.model", "zero_to_fp32.py")
    run = model(tmp_path / "run", {name: b"x" * 2**i for i, name in enumerate(names)})
    encoded = encode(run, tmp_path)
    (row,) = petlpack.survey([run]).runs
    for kind, why in LEAVES.items():
        assert row.bytes[kind] == sum(left.nbytes for left in encoded.left_out if left.why == why) > 0


# Code, and comparing


CODE = {
    "modeling_x.py": b"1 / 0\n",
    "model_head.pkl": pickle.dumps([1], protocol=0),
    "head without a suffix": pickle.dumps({"coef": [0.5]}),
    "2_Dense/run.sh": b"#!/bin/sh\n",
    "script": b"#!/usr/bin/env python\n",
}


@pytest.mark.parametrize("to", ["run", "safetensors"])
def test_decode_names_what_can_run_code_or_leaves_it_out(tmp_path: Path, to: str) -> None:
    run = model(tmp_path / "run", {**CODE, "vocab.txt": b"PK not a zip", "tokenizer.json": b"{}"})
    encode(run, tmp_path)
    task = petlpack.open(tmp_path / "pack")["run"]
    with_code = task.decode(tmp_path / "with", to=to)
    (note,) = with_code.notes
    assert all(name in note for name in CODE)
    assert "vocab" not in note
    assert CODE.keys() < with_code.files.keys()
    without = task.decode(tmp_path / "without", to=to, code=False)
    assert without.files.keys() == with_code.files.keys() - CODE.keys()
    assert "left out code" in without.notes[0]


def test_torchs_archives_are_pickles(tmp_path: Path) -> None:
    import torch

    run = model(tmp_path / "run")
    torch.save({"a": torch.ones(2)}, run / "head.weights")
    torch.save({"a": torch.ones(2)}, run / "old.weights", _use_new_zipfile_serialization=False)
    encode(run, tmp_path)
    decoded = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out", code=False)
    assert decoded.files.keys() == {"config.json", "model.safetensors"}


def _findings(place: Path, run: Path) -> petlpack.Checked:
    (found,) = petlpack.verify(place / "pack", task="run", against=run)
    return found


def test_verify_compares_every_file(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {"notes.txt": b"same", "train.log": b"x", "big": b"x" * 99, "opt/optimizer.pt": b"o"})
    write_run(run / "1_Dense", {"linear.weight": weights("F32", (4, 4))}, {})
    encode(run, tmp_path, drop="big", keep="optimizer.pt")
    found = _findings(tmp_path, run)
    assert (found.error, found.depth) == (None, "compared")
    assert found.notes == ("not in the pack, so not compared: big, train.log",)
    changes = {
        "notes.txt": b"some",
        "config.json": b"{}",
        "opt/optimizer.pt": b"p",
    }
    for name, content in changes.items():
        before = (run / name).read_bytes()
        (run / name).write_bytes(content)
        error = _findings(tmp_path, run).error
        assert isinstance(error, DamageError)
        assert f"'{name}' of task 'run' differs" in error.message
        assert error.code == "run-differs"
        (run / name).write_bytes(before)
    (run / "1_Dense" / "model.safetensors").write_bytes(b"")
    assert "tensor '1_Dense/linear.weight' is in task 'run', but not in" in str(_findings(tmp_path, run).error)
    write_run(run / "1_Dense", {"linear.weight": weights("F32", (4, 4), 1)}, {})
    assert "tensor '1_Dense/linear.weight' of task 'run' differs" in str(_findings(tmp_path, run).error)
    write_run(run / "1_Dense", {"linear.weight": weights("F32", (4, 4))}, {})
    (run / "notes.txt").unlink()
    assert "file 'notes.txt' is in task 'run', but not in" in str(_findings(tmp_path, run).error)


def test_verify_compares_the_headers_of_weight_files(tmp_path: Path) -> None:
    run = model(tmp_path / "run")
    encode(run, tmp_path)
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"format":"pt"', b'"format":"tf"'))
    assert "the header of weight file 'model.safetensors'" in str(_findings(tmp_path, run).error)


def test_globs_are_one_or_several() -> None:
    assert Selection.of("*.png", ["a", "b"], 5) == Selection(("*.png",), ("a", "b"), 5)


def test_what_several_links_lead_to_is_in_memory_once(tmp_path: Path) -> None:
    run = model(tmp_path / "run")
    (run / "notes.bin.txt").write_bytes(bytes(1 << 22))
    for number in range(200):
        (run / f"copy-{number}.txt").symlink_to("notes.bin.txt")
    tracemalloc.start()
    petlpack.encode(run, tmp_path / "pack", codec="plain", jobs=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200 << 20
