"""What is wrong is refused: by a message that names it, with the right exit code, and with nothing written."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import petlpack
from petlpack import (
    Base,
    BaseError,
    DamageError,
    PetlpackError,
    RunError,
    TaskError,
    UnknownFormatError,
    UsageError,
)
from petlpack.sections.shared import write_shared
from petlpack.store import SUFFIX
from tests.support.method_runs import write_propetl_t5
from tests.support.sampling import Sample
from tests.support.small_runs import (
    METHOD_SETTINGS,
    TINY,
    make_pair,
    patch_system,
    weights,
    write_methods,
    write_pair,
    write_run,
    write_safetensors,
)

EXIT = {
    PetlpackError: 1,
    RunError: 1,
    UsageError: 2,
    TaskError: 1,
    DamageError: 4,
    BaseError: 5,
    UnknownFormatError: 7,
}
SMALL: dict[str, Any] = {"layers": 1, "width": 4, "words": 8}
Call = Callable[[Path], object]
"""What is tried on a pack."""


@dataclass(frozen=True)
class Place:
    """A pack with the tasks `one` and `two`, their runs, the base, and room for bad things."""

    root: Path
    pack: Path
    base: Path
    run: Path

    def bad(self, name: str = "bad") -> Path:
        """A new directory."""
        path = self.root / name
        path.mkdir(parents=True)
        return path

    def encode(self, run: Path, **changes: Any) -> Call:
        """What encodes a run as task `bad`."""
        changes = {"base": self.base, "task": "bad", **changes}
        return lambda pack: petlpack.encode(run, pack, **changes)

    def snapshot(self, pack: Path | None = None) -> dict[str, tuple[bytes, int] | None]:
        """Every directory and every file of the pack with its bytes and time."""
        found: dict[str, tuple[bytes, int] | None] = {}
        for path in (pack or self.pack).rglob("*"):
            time = 0 if path.name == ".lock" else path.stat().st_mtime_ns  # filelock before 4 opens it anew
            found[path.relative_to(self.root).as_posix()] = (path.read_bytes(), time) if path.is_file() else None
        return found

    def check_others(self) -> None:
        """Check that the earlier tasks decode."""
        for checked in petlpack.verify(self.pack, self.base):
            assert checked.error is None

    def refused(self, call: Call, error: type[PetlpackError], *words: str) -> PetlpackError:
        """Check that a call is refused by the right error, well told, and leaves every file of the pack alone."""
        before = self.snapshot()
        with pytest.raises(PetlpackError) as caught:
            call(self.pack)
        assert type(caught.value) is error, caught.value
        assert caught.value.exit_code == EXIT[error]
        for word in words:
            assert word in caught.value.message
        assert caught.value.message.isprintable()
        assert caught.value.hint, f"no hint: {caught.value.message}"
        assert self.snapshot() == before
        self.check_others()
        return caught.value


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    run, base = write_pair(root, 1, **SMALL)
    petlpack.encode(run, root / "pack", base, task="one")
    second = write_run(root / "second", make_pair(2, labels=3, share=0.1, **SMALL)[0])
    petlpack.encode(second, root / "pack", base, task="two")
    return root


@pytest.fixture
def place(pristine: Path, tmp_path: Path) -> Place:
    root = tmp_path / "place"
    shutil.copytree(pristine, root)
    return Place(root, root / "pack", root / "base", root / "run")


# Runs that are none


def _nothing(place: Place) -> Path:
    return place.root / "bad"


def _with_files(**files: str) -> Callable[[Place], Path]:
    def build(place: Place) -> Path:
        path = place.bad()
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return path

    return build


def _text_file(place: Place) -> Path:
    (place.bad() / "notes.txt").write_text("hello", encoding="utf-8")
    return place.root / "bad" / "notes.txt"


NO_RUNS: dict[str, tuple[Callable[[Place], Path], tuple[str, ...]]] = {
    "nothing there": (_nothing, ("no run at", "bad")),
    "a text file": (_text_file, ("notes.txt", "is not a run")),
    "an empty directory": (lambda place: place.bad(), ("bad", "is empty")),
    "something else": (_with_files(notes__txt="x", train__py="y"), ("is not a run directory", "notes.txt, train.py")),
    "a config alone": (_with_files(config__json="{}"), ("is not a run directory", "config.json")),
    "an adapter's config alone": (
        _with_files(adapter_config__json='{"peft_type": "LORA"}'),
        ("adapter_config.json", "no adapter_model.safetensors"),
    ),
    "an adapter's config that is no JSON": (_with_files(adapter_config__json="{"), ("adapter_config.json", "JSON")),
    "an adapter's config that is a list": (_with_files(adapter_config__json="[]"), ("adapter_config.json", "object")),
}


@pytest.mark.parametrize("case", NO_RUNS)
def test_what_is_no_run_is_refused(place: Place, case: str) -> None:
    build, words = NO_RUNS[case]
    run = build(place)
    place.refused(place.encode(run), RunError, *words)
    assert not (place.root / "new").exists()
    with pytest.raises(RunError):
        place.encode(run)(place.root / "new")
    assert not (place.root / "new").exists()


# Safetensors headers


def _safetensors(header: object, data: bytes = b"", text: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(text)) + text + data


def _row(start: int, stop: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


TWO = {"a": _row(0, 8), "b": _row(8, 16)}
HEADERS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is 0 bytes"),
    "seven bytes": (b"\0" * 7, "is 7 bytes"),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", "declares a header of 1,000 bytes"),
    "header of 2^63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "declares a header of"),
    "header cut": (_safetensors(TWO, bytes(16))[:40], "declares a header of"),
    "data cut": (_safetensors(TWO, bytes(15)), "its header needs"),
    "trailing byte": (_safetensors(TWO, bytes(17)), "its header needs"),
    "not JSON": (_safetensors(None, text=b"{{"), "not JSON"),
    "not UTF-8": (_safetensors(None, text=b'{"\xff": 1}'), "not JSON"),
    "a list": (_safetensors([]), "not a JSON object"),
    "nested too deep": (_safetensors(None, text=b"[" * 100_000), "not JSON"),
    "key twice": (_safetensors(None, bytes(8), b'{"a":%s,"a":%s}' % ((json.dumps(_row(0, 8)).encode(),) * 2)), "'a'"),
    "NaN": (_safetensors(None, text=b'{"__metadata__": NaN}'), "NaN"),
    "metadata of numbers": (_safetensors({"__metadata__": {"a": 1}}), "__metadata__"),
    "overlap": (
        _safetensors({"a": _row(0, 8), "b": _row(4, 12)}, bytes(12)),
        "'b' at byte 4, expected 8",
    ),
    "hole": (_safetensors({"a": _row(0, 8), "b": _row(12, 20)}, bytes(20)), "'b' at byte 12, expected 8"),
    "start behind zero": (_safetensors({"a": _row(8, 16)}, bytes(16)), "'a' at byte 8"),
    "shape too large": (_safetensors({"a": _row(0, 8, (3,))}, bytes(8)), "shape [3] of F32 does not take 8 bytes"),
    "shape of 2^62 squared": (_safetensors({"a": _row(0, 8, (2**62, 2**62))}, bytes(8)), "does not take 8 bytes"),
    "negative size": (_safetensors({"a": _row(0, 8, (-2,))}, bytes(8)), "list of non-negative integers"),
    "float size": (_safetensors({"a": {**_row(0, 8), "shape": [2.0]}}, bytes(8)), "list of non-negative integers"),
    "true as size": (_safetensors({"a": {**_row(0, 4), "shape": [True]}}, bytes(4)), "list of non-negative integers"),
    "offsets reversed": (_safetensors({"a": _row(8, 0)}, bytes(8)), "data_offsets"),
    "three offsets": (_safetensors({"a": {**_row(0, 8), "data_offsets": [0, 8, 8]}}, bytes(8)), "data_offsets"),
    "dtype a number": (_safetensors({"a": {**_row(0, 8), "dtype": 4}}, bytes(8)), "dtype"),
    "further field": (_safetensors({"a": {**_row(0, 8), "more": 1}}, bytes(8)), "fields must be"),
    "lone surrogate": (_safetensors(None, bytes(8), b'{"\\ud800":%s}' % json.dumps(_row(0, 8)).encode()), "\\ud800"),
    "control characters": (_safetensors({"\x1b[31m\n": {**_row(0, 8), "dtype": 4}}, bytes(8)), "\\x1b[31m\\n"),
}


@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors", "bare.safetensors"])
@pytest.mark.parametrize("case", HEADERS)
def test_a_damaged_header_is_refused(place: Place, case: str, file: str) -> None:
    content, words = HEADERS[case]
    run = place.bad()
    (run / file).write_bytes(content)
    if file.startswith("adapter"):
        (run / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    place.refused(place.encode(run if file != "bare.safetensors" else run / file), RunError, words, file)


def test_weights_without_tensors_are_refused(place: Place) -> None:
    (place.bad() / "model.safetensors").write_bytes(_safetensors({}))
    place.refused(place.encode(place.root / "bad"), RunError, "without tensors")


@pytest.mark.exhaustive(7)
def test_every_flipped_header_bit_is_refused_or_comes_back_as_it_is(place: Place, sample: Sample) -> None:
    tensors = {"encoder.a.weight": weights("F32", (2, 3)), "encoder.b.bias": weights("BF16", (3,))}
    run = write_run(place.bad(), tensors, None)
    path = run / "model.safetensors"
    whole = path.read_bytes()
    counts = {"refused": 0, "as it is": 0}
    for bit in sample(range(8 * len(whole))):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            petlpack.encode(run, place.pack, codec="plain", task="bad", replace=True, jobs=1)
        except PetlpackError as error:
            assert type(error) is RunError  # noqa: PT017 - most flips are refused, and which is not the question
            counts["refused"] += 1
            continue
        petlpack.open(place.pack)["bad"].decode(place.root / "out", jobs=1)
        assert (place.root / "out" / "model.safetensors").read_bytes() == flipped
        shutil.rmtree(place.root / "out")
        counts["as it is"] += 1
    print(f"{8 * len(whole) // sample.step} flips: {counts}")
    assert counts["refused"] > 500 // sample.step
    assert counts["as it is"] > 8 * 30 // sample.step  # every flip of data at least


# Shards


def _shards(place: Place, weight_map: object = None, text: str | None = None) -> Path:
    """A run of two shards, with an index to replace."""
    run = place.bad()
    first, second = {"a.weight": weights("F32", (2, 2))}, {"b.weight": weights("F32", (2, 2), 1)}
    write_safetensors(run / "model-1.safetensors", first)
    write_safetensors(run / "model-2.safetensors", second)
    if weight_map is None:
        weight_map = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}) if text is None else text
    (run / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return run


def _missing_shard(place: Place) -> Path:
    run = _shards(place)
    (run / "model-2.safetensors").unlink()
    return run


def _shard_under_two_names(place: Place) -> Path:
    run = _shards(place)
    shutil.copyfile(run / "model-1.safetensors", run / "model-2.safetensors")
    return run


def _cut_shard(place: Place) -> Path:
    run = _shards(place)
    (run / "model-2.safetensors").write_bytes((run / "model-2.safetensors").read_bytes()[:-1])
    return run


def _named(shard: str) -> Callable[[Place], Path]:
    return lambda place: _shards(place, {"a.weight": "model-1.safetensors", "b.weight": shard})


SHARDS: dict[str, tuple[Callable[[Place], Path], str]] = {
    "missing": (_missing_shard, "lists shard 'model-2.safetensors', but the file is missing"),
    "one tensor in two": (_shard_under_two_names, "tensor 'a.weight' is in two shards"),
    "cut": (_cut_shard, "model-2.safetensors"),
    "tensor in none": (
        lambda place: _shards(place, {"a.weight": "model-1.safetensors", "c.weight": "model-2.safetensors"}),
        "lists tensor 'c.weight', but no shard has it",
    ),
    "above": (_named("../base/model.safetensors"), "'../base/model.safetensors', which is not a plain file name"),
    "absolute": (_named("/etc/passwd"), "'/etc/passwd', which is not a plain file name"),
    "below": (_named("sub/model.safetensors"), "which is not a plain file name"),
    "backslash": (_named("..\\base\\model.safetensors"), "which is not a plain file name"),
    "drive": (_named("C:model.safetensors"), "C:model.safetensors"),
    "dots": (_named(".."), "which is not a plain file name"),
    "empty name": (_named(""), "lists shard ''"),
    "NUL": (_named("model-2.safetensors\0"), "\\x00"),
    "newline": (_named("model-2\n.safetensors"), "\\n"),
    "escape": (_named("\x1b[2J"), "\\x1b[2J"),
    "surrogate": (_named("\ud800"), "\\ud800"),
    "hidden": (_named(".model.safetensors"), "which is not a plain file name"),
    "number": (lambda place: _shards(place, {"a.weight": 1}), "weight_map"),
    "list": (lambda place: _shards(place, ["model-1.safetensors"]), "weight_map"),
    "no map": (lambda place: _shards(place, text="{}"), "is not a valid shard index"),
    "no JSON": (lambda place: _shards(place, text="{"), "is not a valid shard index"),
    "empty map": (lambda place: _shards(place, {}), "tensor"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_bad_shards_are_refused(place: Place, case: str) -> None:
    build, words = SHARDS[case]
    place.refused(place.encode(build(place), codec="plain"), RunError, words, "bad")


# Pickles


class _Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


def _payloads(target: Path) -> dict[str, Any]:
    """Pickles that write a file when they are loaded by a careless reader."""
    code = f"open({str(target)!r}, 'w').close()"
    return {
        "os.system": _Runs(os.system, f"touch {target}"),
        "eval": _Runs(eval, code),
        "exec": _Runs(exec, code),
        "getattr": _Runs(getattr, _Runs(__import__, "os"), "mkdir"),
        "subprocess": _Runs(subprocess.check_call, ["touch", str(target)]),
        "Path.touch": _Runs(Path.touch, target),
        "inside a state dict": {"a.weight": torch.zeros(2), "b.weight": _Runs(eval, code)},
        "torch.load": _Runs(torch.load, str(target)),
    }


PICKLES = list(_payloads(Path("x")))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "adapter_model.bin", "pytorch_model-1.bin"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("case", PICKLES)
def test_code_in_a_pickle_never_runs(place: Place, case: str, kind: str, file: str) -> None:
    run, target = place.bad(), place.root / "written by the pickle"
    payload = _payloads(target)[case]
    if kind == "bare":
        (run / file).write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, run / file, _use_new_zipfile_serialization=kind == "zip")
    if file.startswith("adapter"):
        (run / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    if file == "pytorch_model-1.bin":
        index = {"weight_map": {"a.weight": file}}
        (run / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    place.refused(place.encode(run), RunError, file)
    assert not target.exists()


NO_STATE_DICTS: dict[str, Any] = {
    "empty": b"",
    "one byte": b"\x80",
    "stop": b".",
    "mark": b"(.",
    "pop of nothing": b"0.",
    "memo that is not there": b"\x80\x02h\x07.",
    "empty zip": b"PK\x05\x06" + bytes(18),
    "text": b"hello",
    "nulls": bytes(1000),
    "list": [torch.zeros(2)],
    "a tensor": torch.zeros(2),
    "nested": {"model": {"a.weight": torch.zeros(2)}},
    "step": {"a.weight": torch.zeros(2), "step": 7},
    "numbers as names": {1: torch.zeros(2)},
    "complex": {"a.weight": torch.zeros(2, dtype=torch.complex64)},
    "sparse": {"a.weight": torch.eye(3).to_sparse()},
    "meta": {"a.weight": torch.zeros(2, device="meta")},
    "no tensors": {},
}


@pytest.mark.parametrize("case", NO_STATE_DICTS)
def test_a_pickle_that_is_no_state_dict_is_refused(place: Place, case: str) -> None:
    content, path = NO_STATE_DICTS[case], place.bad() / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    place.refused(place.encode(place.root / "bad", codec="plain"), RunError, "bad")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_cut_pickle_is_refused(place: Place, kind: str) -> None:
    path = place.bad() / "pytorch_model.bin"
    torch.save({"a.weight": torch.zeros(2, 2)}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        place.refused(place.encode(place.root / "bad", codec="plain"), RunError, "pytorch_model.bin")


# Bases


def _renamed(place: Place) -> Path:
    return write_run(place.bad("other"), {f"x{i}.y{i}": weights("F32", (2, i + 1)) for i in range(3)})


def _reshaped(place: Place) -> Path:
    return write_run(place.bad("other"), make_pair(0, layers=1, width=6, words=8)[1])


def _cut_base(place: Place) -> Path:
    path = place.bad("other") / "model.safetensors"
    path.write_bytes((place.base / "model.safetensors").read_bytes()[:-1])
    return path.parent


def _pickled_base(place: Place) -> Path:
    torch.save({"a": _Runs(os.system, "touch x")}, place.bad("other") / "pytorch_model.bin")
    return place.root / "other"


BASES: dict[str, tuple[Callable[[Place], Path | None], tuple[str, ...]]] = {
    "none given": (lambda place: None, ("no base was given",)),
    "nothing there": (lambda place: place.root / "other", ("no base at", "other")),
    "empty": (lambda place: place.bad("other"), ("no base at", "other")),
    "cut": (_cut_base, ("model.safetensors", "its header needs")),
    "code": (_pickled_base, ("pytorch_model.bin",)),
    "other names": (_renamed, ("the run and the base have no tensor name in common",)),
    "other shapes": (_reshaped, ("in the run and", "in the base")),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_cannot_be_is_refused_at_encoding(place: Place, case: str) -> None:
    build, words = BASES[case]
    base = build(place)
    place.refused(place.encode(place.run, base=base), BaseError, *words)
    with pytest.raises(BaseError):
        place.encode(place.run, base=base)(place.root / "new")
    assert not (place.root / "new").exists(), "a pack was made for nothing"


def test_a_base_that_is_another_is_refused_at_loading(place: Place) -> None:
    task, path = petlpack.open(place.pack)["one"], place.base / "model.safetensors"
    whole, names = path.read_bytes(), sorted(Base(place.base).tensors)
    start = 8 + int.from_bytes(whole[:8], "little")
    for bit in range(8 * start, 8 * len(whole), 37):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(BaseError, match="has sha256") as caught:
            task.decode(place.root / "out", place.base, jobs=1)
        assert any(f"'{name}'" in caught.value.message for name in names)
        assert (caught.value.exit_code, bool(caught.value.hint)) == (5, True)
        assert not (place.root / "out").exists()
    path.write_bytes(whole)
    tensors = make_pair(0, **SMALL)[1]
    changed = {
        "has no tensor": {name: tensor for name, tensor in tensors.items() if "LayerNorm" not in name},
        "the task needs F32 [4]": {**tensors, names[0]: weights("F32", (5,))},
        "is F16": {**tensors, names[0]: weights("F16", (4,))},
    }
    for i, (words, others) in enumerate(changed.items()):
        other = write_run(place.bad(f"other-{i}"), others)
        with pytest.raises(BaseError) as caught:
            task.state_dict(other)
        assert words in caught.value.message
    for missing in (None, place.root / "nowhere"):
        place.refused(functools.partial(_load_one, missing), BaseError)
    place.check_others()


def _load_one(base: Path | None, pack: Path) -> object:
    return petlpack.open(pack)["one"].state_dict(base)


@pytest.mark.parametrize("named", ["\ud800", "a\0b", "x" * 5000, "/", "", "org/model", "\x1b[2J"])
def test_what_a_config_calls_its_base_is_never_trusted(place: Place, named: str) -> None:
    tuned, _ = make_pair(3, **SMALL)
    run = write_run(place.bad(), tuned, {"model_type": "bert", "_name_or_path": named})
    place.refused(place.encode(run, base=None), BaseError)
    petlpack.encode(run, place.pack, place.base, task="named")
    with pytest.raises(BaseError) as caught:
        petlpack.open(place.pack)["named"].state_dict()
    assert caught.value.message.isprintable()


# Names and options


BAD_NAMES = [
    *("", ".", "..", "../x", "a/b", "a\\b", "/etc/x", ".hidden", "a\0b", "a\nb", "a\n", "\x1b[31mred", "a b", "ä"),
    *("con", "CON", "nul.txt", "aux.a.b", "prn", "com1", "LPT9.x", "a:b", "a*", "a" * 129, "\ud800", "a\u202eb"),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=[f"{i}" for i in range(len(BAD_NAMES))])
def test_names_that_are_no_file_names_are_refused(place: Place, name: str) -> None:
    place.refused(place.encode(place.run, task=name), UsageError, "invalid task name")
    assert name not in petlpack.open(place.pack)
    place.refused(lambda pack: petlpack.open(pack)[name], UsageError, "invalid task name")
    place.refused(lambda pack: petlpack.open(pack).remove(name), UsageError, "invalid task name")


@pytest.mark.parametrize("name", ["a" * 128, "-a", "_", "1.5", "a..b", "console", "com10", "Qwen-2.5_sst2.v1"])
def test_names_that_are_file_names_are_taken(place: Place, name: str) -> None:
    petlpack.encode(place.run, place.pack, place.base, task=name)
    assert name in petlpack.open(place.pack)
    assert petlpack.open(place.pack)[name].decode(place.root / "out", place.base).path.is_dir()


def test_a_directory_whose_name_is_no_task_name_needs_one(place: Place) -> None:
    place.run.rename(place.root / "my run")
    place.refused(place.encode(place.root / "my run", task=None), UsageError, "invalid task name 'my run'")


TAKEN: dict[str, tuple[dict[str, Any], type[PetlpackError], str]] = {
    "same": ({"task": "one"}, TaskError, "already has task 'one'"),
    "twin": ({"task": "ONE"}, TaskError, "already has task 'one'"),
    "twin replaced": ({"task": "One", "replace": True}, TaskError, "already has task 'one'"),
    "codec": ({"codec": "zip"}, UsageError, "unknown codec 'zip'"),
    "codec with escape": ({"codec": "\x1b"}, UsageError, "unknown codec"),
    "level": ({"level": "best"}, UsageError, "unknown level 'best'"),
    "codec that does not suit": ({"codec": "sparse"}, RunError, "codec 'sparse' does not suit"),
    **{
        f"codec {codec}": ({"codec": codec}, UsageError, f"codec '{codec}' does not take")
        for codec in ("mask", "merge", "hyper")
    },
    **{
        f"density {share}": ({"density": share}, UsageError, "density must be in")
        for share in (0, 1, -1, 2, float("nan"))
    },
    "density by ulp": ({"density": 0.5, "codec": "ulp"}, UsageError, "codec ulp"),
    "density by plain": ({"density": 0.5, "codec": "plain"}, UsageError, "codec plain"),
    "unknown setting": ({"settings": {"\x1b": "1"}}, UsageError, "unknown setting '\\x1b'"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_makes_no_sense_is_refused(place: Place, case: str) -> None:
    changes, error, words = TAKEN[case]
    place.refused(place.encode(place.run, **changes), error, words)
    if error is not TaskError:
        with pytest.raises(error):
            place.encode(place.run, **changes)(place.root / "new")
        assert not (place.root / "new").exists(), "a pack was made for nothing"


# Runs of several tasks


@dataclass(frozen=True)
class Methods:
    """Runs of the codecs mask, hyper and merge, and room for packs of them."""

    root: Path
    runs: dict[str, tuple[Path, dict[str, Any]]]

    @property
    def base(self) -> Path:
        """The base of the run of codec hyper."""
        return self.root / "t5"

    def pack(self, name: str = "pack") -> Path:
        """A new pack of all."""
        for run in self.runs:
            self.encode(run, self.root / name)
        return self.root / name

    def encode(self, run: str, pack: Path, **changes: Any) -> list[petlpack.Encoded]:
        """Encode one of the runs on one thread."""
        directory, options = self.runs[run]
        return petlpack.encode(directory, pack, **{"jobs": 1, **options, **changes})

    def wrong(self, pack: Path) -> set[str]:
        """The names of the tasks and parts that are not as they were written."""
        return {found.name for found in petlpack.verify(pack, self.base) if found.error is not None}

    def state(self, pack: Path) -> dict[str, Any]:
        """What every task decodes to."""
        return {name: task.state_dict(self.base) for name, task in petlpack.open(pack).items()}


@pytest.fixture
def methods(tmp_path: Path) -> Methods:
    root = tmp_path / "methods"
    return Methods(root, write_methods(root))


def snapshot(pack: Path) -> dict[str, bytes]:
    """Every file of a pack but the lock."""
    return {
        path.relative_to(pack).as_posix(): path.read_bytes()
        for path in pack.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_tasks_of_one_run_are_encoded_all_or_none_where_a_name_is_taken(methods: Methods, place: Place) -> None:
    for taken in ("mask.a", "mask.b", "MASK.b"):
        pack = place.root / taken
        petlpack.encode(place.run, pack, place.base, task=taken)
        before = snapshot(pack)
        with pytest.raises(TaskError, match=f"already has task '{taken}'") as caught:
            methods.encode("mask", pack)
        assert caught.value.hint
        assert snapshot(pack) == before


def test_tasks_of_one_run_are_replaced_all_or_none_where_a_twin_is_in_the_way(methods: Methods, place: Place) -> None:
    pack = place.root / "twin"
    petlpack.encode(place.run, pack, place.base, task="mask.B")
    before = snapshot(pack)
    with pytest.raises(TaskError, match=r"already has task 'mask\.B'"):
        methods.encode("mask", pack, replace=True)
    assert snapshot(pack) == before, "the tasks before the twin were put into the pack"


@pytest.mark.parametrize("replace", [False, True])
def test_twins_in_one_run_are_refused_before_anything_is_written(
    replace: bool, methods: Methods, tmp_path: Path
) -> None:
    write_propetl_t5(tmp_path / "run", ["Sst2", "sst2"], TINY)
    with pytest.raises((TaskError, UsageError, RunError), match=r"(?i)sst2"):
        petlpack.encode(tmp_path / "run", tmp_path / "pack", settings=METHOD_SETTINGS, replace=replace)
    assert not (tmp_path / "pack").exists() or list(petlpack.open(tmp_path / "pack")) == []
    pack = methods.pack()
    before = snapshot(pack)
    with pytest.raises((TaskError, UsageError, RunError), match=r"(?i)sst2"):
        petlpack.encode(tmp_path / "run", pack, settings=METHOD_SETTINGS, replace=replace)
    assert snapshot(pack) == before


def test_a_task_that_is_called_as_a_run_of_several_is_not_in_its_way(methods: Methods, place: Place) -> None:
    petlpack.encode(place.run, place.pack, place.base, task="mask")
    assert [done.name for done in methods.encode("mask", place.pack)] == ["mask.a", "mask.b"]
    assert {"mask", "mask.a", "mask.b"} <= petlpack.open(place.pack).keys()


@pytest.mark.parametrize("task", ["a b", "\x1b[31m", "ä", "a/b", "../../x", "C:\\x", "a\u202eb", "a\0b", " ", "-"])
def test_what_no_task_name_can_hold_becomes_a_hyphen(task: str, methods: Methods, tmp_path: Path) -> None:
    write_propetl_t5(tmp_path / "run", ["fine", task], TINY)
    pack = methods.pack()
    state = methods.state(pack)
    done = petlpack.encode(tmp_path / "run", pack, settings=METHOD_SETTINGS)
    assert [one.name for one in done] == ["run.fine", "run." + re.sub("[^A-Za-z0-9._-]", "-", task)]
    opened = petlpack.open(pack)
    assert opened[done[1].name].manifest.facts["task"] == task
    assert opened.keys() == {*state, *(one.name for one in done)}
    assert methods.wrong(pack) == set()
    for one in done:
        (found,) = petlpack.verify(pack, task=one.name, against=tmp_path / "run")
        assert (found.error, found.depth) == (None, "compared")
        assert opened[one.name].decode(tmp_path / one.name).path.is_dir()


@pytest.mark.parametrize("tasks", [["fine", "x" * 130], ["a b", "a-b"], ["a b", "A?B"], ["Sst2", "sst2"]])
def test_tasks_of_a_run_that_cannot_be_told_apart_by_name_are_refused(
    tasks: list[str], methods: Methods, tmp_path: Path
) -> None:
    write_propetl_t5(tmp_path / "run", tasks, TINY)
    pack = methods.pack()
    before = snapshot(pack)
    for replace in (False, True):
        with pytest.raises((UsageError, RunError)) as caught:
            petlpack.encode(tmp_path / "run", pack, settings=METHOD_SETTINGS, replace=replace)
        assert caught.value.message.isprintable()
        assert snapshot(pack) == before
    assert caught.value.hint


PARTS = ("template", "tensors", "table", "kept file")


@pytest.mark.parametrize("how", ["missing", "zeros", "half", "another part", "other tensors"])
@pytest.mark.parametrize("what", PARTS)
def test_a_damaged_part_of_any_kind_is_told_and_mended_by_encoding_again(methods: Methods, what: str, how: str) -> None:
    pack = methods.pack()
    state = methods.state(pack)
    task, masked = petlpack.open(pack)["hyper.a"], petlpack.open(pack)["mask.a"]
    template, tensors = task.manifest.shared
    table, kept = task.template.base_table, task.template.files["config.json"]
    assert table is not None
    sha256 = dict(zip(PARTS, (template, tensors, table, kept), strict=True))[what]
    assert sorted(task.parts) == sorted([template, tensors, table, kept])
    part = task.store.shared_path(sha256)
    content = {
        "zeros": bytes(part.stat().st_size),
        "half": part.read_bytes()[: part.stat().st_size // 2],
        "another part": write_shared(b"other content" * 50),
        "other tensors": task.store.shared_path(masked.manifest.shared[1]).read_bytes(),
    }
    part.unlink()
    if how != "missing":
        part.write_bytes(content[how])
    opened = petlpack.open(pack)
    with pytest.raises(DamageError, match=sha256) as caught:
        opened["hyper.a"].decode(methods.root / "out", methods.base)
    assert caught.value.exit_code == 4
    assert not (methods.root / "out").exists()
    assert methods.wrong(pack) - {sha256} == {"hyper.a", "hyper.b"}
    assert (sha256 in methods.wrong(pack)) == (how != "missing")
    for name in ("mask.a", "mask.b", "merge"):
        assert _same(opened[name].state_dict(), state[name])
    before = snapshot(pack)
    if what == "template":
        with pytest.raises(DamageError, match=sha256):
            opened.gc()
        assert snapshot(pack) == before
    methods.encode("hyper", pack, replace=True)
    assert methods.wrong(pack) == set()
    assert methods.state(pack).keys() == state.keys()
    assert all(_same(found, state[name]) for name, found in methods.state(pack).items())


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *itertools.product(
            ["mask.a", "mask.b", "hyper.a", "hyper.b", "merge"],
            ["half", "zeros", "no manifest", "text", "a shared part"],
        ),
        *((name, "zeroed section") for name in ("mask.a", "hyper.a", "merge")),  # mask.b has none
    ],
)
def test_a_damaged_task_of_a_method_is_told_and_its_siblings_load(methods: Methods, name: str, case: str) -> None:
    pack = methods.pack()
    state = methods.state(pack)
    path = pack / "tasks" / f"{name}{SUFFIX}"
    path.write_bytes(DAMAGES[case](path))
    assert methods.wrong(pack) == {name}
    for other, task in ((other, petlpack.open(pack)[other]) for other in state if other != name):
        assert _same(task.state_dict(methods.base), state[other])
    with pytest.raises(DamageError):
        petlpack.open(pack).gc() if case != "zeroed section" else petlpack.open(pack)[name].state_dict(methods.base)


def test_a_part_of_tensors_is_collected_with_its_last_task(methods: Methods) -> None:
    pack = methods.pack()
    opened = petlpack.open(pack)
    parts = set(opened["mask.a"].parts)
    assert parts == set(opened["mask.b"].parts)
    opened.remove("mask.a")
    assert opened.gc() == []
    opened.remove("mask.b")
    assert {path.name.removesuffix(SUFFIX) for path, _ in opened.gc()} == parts
    assert methods.wrong(pack) == set()


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("run", ["mask", "hyper"])
def test_an_interruption_among_several_tasks_leaves_each_whole_or_out(
    methods: Methods, run: str, sample: Sample
) -> None:
    whole = methods.state(methods.pack("whole"))
    first = methods.root / "first"
    methods.encode("merge", first)
    seen: set[tuple[str, ...]] = set()
    for nth in sample(itertools.count(1)):
        pack = Path(shutil.copytree(first, methods.root / "copy"))
        interrupts = Interrupts(nth)
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (io, "open")):
                patch_system(patch, module, name, interrupts.hook(getattr(module, name)))
            with contextlib.suppress(KeyboardInterrupt):
                methods.encode(run, pack, progress=interrupts.progress)
        assert not list(pack.rglob(".tmp-*"))
        assert methods.wrong(pack) == set()
        found = methods.state(pack)
        seen.add(tuple(found))
        assert "merge" in found
        assert all(_same(state, whole[name]) for name, state in found.items())
        methods.encode(run, pack, replace=True)  # nothing is in its way
        assert methods.state(pack).keys() == {"merge", f"{run}.a", f"{run}.b"}
        shutil.rmtree(pack)
        if interrupts.calls < nth:
            break
    print(f"{nth - 1} interruptions leave {sorted(seen)}")
    assert nth > 30
    assert {("merge",), tuple(sorted(["merge", f"{run}.a", f"{run}.b"]))} <= seen


def test_missing_tasks_are_told_by_name(place: Place) -> None:
    pack = petlpack.open(place.pack)
    calls: list[Call] = [
        lambda path: petlpack.open(path)["three"],
        lambda path: petlpack.open(path).remove("three"),
        lambda path: list(petlpack.verify(path, task="three")),
    ]
    for call in calls:
        assert isinstance(place.refused(call, TaskError, "no task 'three'"), KeyError)
    assert pack.get("three") is None


def test_decoding_never_writes_over_anything(place: Place) -> None:
    out = place.bad("out")
    (out / "precious").write_text("mine", encoding="utf-8")
    task = petlpack.open(place.pack)["one"]
    for target in (out, out / "precious"):
        place.refused(functools.partial(_decode_to, task, target, place), UsageError, "already exists")
    assert [path.name for path in out.iterdir()] == ["precious"]
    assert (out / "precious").read_text(encoding="utf-8") == "mine"


def _decode_to(task: petlpack.Task, target: Path, place: Place, pack: Path) -> object:
    return task.decode(target, place.base)


# Packs that are none


PACKS: dict[str, tuple[dict[str, bytes], type[PetlpackError], str]] = {
    "something else": ({"model.safetensors": b"x"}, UsageError, "is neither a pack nor empty: it contains 'model.saf"),
    "hidden things": ({".git": b"x"}, UsageError, "it contains '.git'"),
    "foreign mark": ({"pack.json": b'{"packs": [1]}'}, UnknownFormatError, "is not the pack.json of a pack"),
    "broken mark": ({"pack.json": b"{"}, UnknownFormatError, "is not the pack.json of a pack"),
    "newer": ({"pack.json": b'{"format": "petlpack", "version": 2}'}, UnknownFormatError, "has format version 2"),
}


@pytest.mark.parametrize("case", PACKS)
def test_a_directory_that_is_no_pack_is_left_alone(place: Place, case: str) -> None:
    files, error, words = PACKS[case]
    other = place.bad("other")
    for name, content in files.items():
        (other / name).write_bytes(content)
    before = place.snapshot(other)
    place.refused(lambda _: place.encode(place.run)(other), error, words, "other")
    opening = error if "pack.json" in files else UsageError
    place.refused(lambda _: petlpack.open(other), opening, "other")
    assert place.snapshot(other) == before


def test_a_file_is_no_pack(place: Place) -> None:
    place.refused(lambda _: petlpack.open(place.run / "config.json"), UsageError, "config.json")
    place.refused(lambda _: place.encode(place.run)(place.run / "config.json"), UsageError, "config.json")


# Sharded training states


def _foreign(name: str, inside: str = "") -> Callable[[Place], Path]:
    def build(place: Place) -> Path:
        run = place.bad()
        target = run / inside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"shard")
        return run

    return build


FOREIGN: dict[str, tuple[Callable[[Place], Path], str]] = {
    "FSDP in a checkpoint": (_foreign("pytorch_model_fsdp_0/__0_0.distcp", "checkpoint-5"), "FSDP"),
    "FSDP": (_foreign("pytorch_model_fsdp_0/__0_0.distcp"), "FSDP"),
    "DeepSpeed in a checkpoint": (_foreign("latest", "checkpoint-5"), "DeepSpeed"),
    "DeepSpeed steps in a checkpoint": (
        _foreign("global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "checkpoint-5"),
        "DeepSpeed",
    ),
    "DeepSpeed steps": (_foreign("global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt"), "DeepSpeed"),
    "DeepSpeed": (_foreign("latest"), "DeepSpeed"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_sharded_training_states_are_refused_by_name(place: Place, case: str) -> None:
    build, words = FOREIGN[case]
    place.refused(place.encode(build(place)), RunError, words)


# Damage


def _offsets(path: Path) -> tuple[dict[str, tuple[int, int]], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    table.pop("__metadata__")
    return {name: tuple(8 + length + at for at in row["data_offsets"]) for name, row in table.items()}, content


def _zeroed(path: Path) -> bytes:
    offsets, content = _offsets(path)
    start, stop = next(iter(offsets.values()))
    return content[:start] + bytes(stop - start) + content[stop:]


def _swapped(path: Path) -> bytes:
    offsets, content = _offsets(path)
    first, second = sorted(offsets.values())[:2]
    return content[: first[0]] + content[slice(*second)] + content[slice(*first)] + content[second[1] :]


def _without_manifest(path: Path) -> bytes:
    offsets, content = _offsets(path)
    return content[: offsets["manifest"][0]]


def _block_of_another(path: Path) -> bytes:
    other = (path.parent / f"two{SUFFIX}").read_bytes()
    content = path.read_bytes()
    middle = len(content) // 2
    return content[:middle] + other[middle : middle + 64] + content[middle + 64 :]


DAMAGES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "half": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "zeros": lambda path: bytes(path.stat().st_size),
    "zeroed section": _zeroed,
    "swapped sections": _swapped,
    "no manifest": _without_manifest,
    "block of another task": _block_of_another,
    "text": lambda path: b"this is not the file you are looking for",
    "a shared part": lambda path: write_shared(b"x" * 200),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_task_is_told_and_the_others_load(place: Place, case: str) -> None:
    path = place.pack / "tasks" / f"one{SUFFIX}"
    damaged, whole = DAMAGES[case](path), path.read_bytes()
    assert damaged != whole
    path.write_bytes(damaged)
    before = place.snapshot()
    pack = petlpack.open(place.pack)
    with pytest.raises(DamageError, match=r"one\.petl\.safetensors") as caught:
        pack["one"].decode(place.root / "out", place.base)
    assert (caught.value.exit_code, caught.value.message.isprintable()) == (4, True)
    assert not (place.root / "out").exists()
    assert pack["two"].state_dict(place.base)
    wrong = [checked for checked in petlpack.verify(pack, place.base) if checked.error is not None]
    assert [(checked.name, type(checked.error)) for checked in wrong] == [("one", DamageError)]
    assert place.snapshot() == before
    petlpack.encode(place.run, place.pack, place.base, task="one", replace=True)
    place.check_others()


def _part(place: Place, task: str, what: str) -> Path:
    opened = petlpack.open(place.pack)[task]
    digest = opened.manifest.shared[0] if what == "template" else opened.template.files["config.json"]
    return place.pack / "shared" / f"{digest}{SUFFIX}"


@pytest.mark.parametrize("how", ["missing", "zeros", "half", "another part"])
@pytest.mark.parametrize("what", ["template", "kept file"])
def test_a_damaged_shared_part_is_told_and_mended_by_encoding_again(place: Place, what: str, how: str) -> None:
    different = write_run(place.bad(), make_pair(4, labels=4, **SMALL)[0], {"model_type": "other"})
    petlpack.encode(different, place.pack, place.base, task="three")
    part = _part(place, "three", what)
    content = {
        "zeros": bytes(part.stat().st_size),
        "half": part.read_bytes()[: part.stat().st_size // 2],
        "another part": write_shared(b"other content" * 50),
    }
    part.unlink()
    if how != "missing":
        part.write_bytes(content[how])
    pack = petlpack.open(place.pack)
    with pytest.raises(DamageError, match=part.name.removesuffix(SUFFIX)) as caught:
        pack["three"].decode(place.root / "out", place.base)
    assert caught.value.exit_code == 4
    assert not (place.root / "out").exists()
    for task in ("one", "two"):
        assert pack[task].state_dict(place.base)
    wrong = {checked.name for checked in petlpack.verify(pack, place.base) if checked.error is not None}
    assert wrong - {part.name.removesuffix(SUFFIX)} == {"three"}
    petlpack.encode(different, place.pack, place.base, task="three", replace=True)
    place.check_others()


@pytest.mark.parametrize("case", ["half", "zeros", "no manifest", "text"])
def test_gc_deletes_nothing_while_a_task_cannot_be_read(place: Place, case: str) -> None:
    petlpack.open(place.pack).remove("two")  # its template is garbage now
    path = place.pack / "tasks" / f"one{SUFFIX}"
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[case](path))
    before = place.snapshot()
    with pytest.raises(DamageError, match=r"one\.petl\.safetensors"):
        petlpack.open(place.pack).gc()
    assert place.snapshot() == before
    path.write_bytes(whole)
    assert len(petlpack.open(place.pack).gc()) == 1
    place.check_others()


def test_gc_deletes_nothing_while_a_template_cannot_be_read(place: Place) -> None:
    part = _part(place, "one", "template")
    part.write_bytes(bytes(part.stat().st_size))
    before = place.snapshot()
    with pytest.raises(DamageError, match=part.name.removesuffix(SUFFIX)):
        petlpack.open(place.pack).gc()
    assert place.snapshot() == before


def test_a_damaged_task_can_be_removed(place: Place) -> None:
    (place.pack / "tasks" / f"one{SUFFIX}").write_bytes(b"")
    petlpack.open(place.pack).remove("one")
    petlpack.open(place.pack).gc()
    assert list(petlpack.open(place.pack)) == ["two"]
    place.check_others()


# One bad run among good ones, interruptions, directories that cannot be written


def test_a_bad_run_does_not_harm_the_good_ones_around_it(place: Place) -> None:
    (place.bad() / "model.safetensors").write_bytes(b"half")
    petlpack.encode(place.run, place.pack, place.base, task="before")
    place.refused(place.encode(place.root / "bad"), RunError, "model.safetensors")
    petlpack.encode(place.run, place.pack, place.base, task="after")
    assert list(petlpack.open(place.pack)) == ["after", "before", "one", "two"]
    place.check_others()


class Interrupts:
    """Raises KeyboardInterrupt at the n-th call of any hook."""

    def __init__(self, nth: int) -> None:
        self.nth, self.calls = nth, 0

    def tick(self) -> None:
        """Count a call."""
        self.calls += 1
        if self.calls == self.nth:
            raise KeyboardInterrupt

    def progress(self, done: int, total: int) -> None:
        """Count a step of the progress."""
        self.tick()

    def hook(self, real: Any) -> Any:
        """Count the calls of a function, interrupted before it does anything."""

        def call(*args: Any, **more: Any) -> Any:
            self.tick()
            return real(*args, **more)

        return call


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("replace", [False, True])
def test_an_interruption_at_any_call_leaves_all_or_nothing(place: Place, replace: bool, sample: Sample) -> None:
    third = write_run(place.bad(), make_pair(5, labels=5, **SMALL)[0])
    task = "two" if replace else "three"
    states: list[Any] = [petlpack.open(place.pack)["two"].state_dict(place.base) if replace else None]
    petlpack.encode(third, place.root / "whole", place.base, task=task)
    states.append(petlpack.open(place.root / "whole")[task].state_dict(place.base))
    outcomes = {"nothing": 0, "all": 0}
    for nth in sample(itertools.count(1)):
        pack = Path(shutil.copytree(place.pack, place.root / "copy"))
        interrupts = Interrupts(nth)
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (io, "open"), (hashlib, "sha256")):
                patch_system(patch, module, name, interrupts.hook(getattr(module, name)))
            with contextlib.suppress(KeyboardInterrupt):
                petlpack.encode(
                    third, pack, place.base, task=task, replace=replace, jobs=1, progress=interrupts.progress
                )
        _check_whole(place, pack, task, states, outcomes)
        assert not list(pack.rglob(".tmp-*"))
        shutil.rmtree(pack)
        if interrupts.calls < nth:
            break
    print(f"{sum(outcomes.values())} interruptions: {outcomes}")
    assert nth > 40
    assert min(outcomes.values()) > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupted between open and with
@pytest.mark.exhaustive(11)
def test_an_interruption_at_any_line_leaves_all_or_nothing(place: Place, sample: Sample) -> None:
    third = write_run(place.bad(), make_pair(5, labels=5, **SMALL)[0])
    petlpack.encode(third, place.root / "whole", place.base, task="three")
    states = [None, petlpack.open(place.root / "whole")["three"].state_dict(place.base)]
    outcomes = {"nothing": 0, "all": 0}
    base = Base(place.base)
    traced = ("petlpack/store/__init__.py", "petlpack/encoding/encode.py", "petlpack/encoding/write.py")
    for nth in sample(itertools.count(1, 2)):
        pack = Path(shutil.copytree(place.pack, place.root / "copy"))
        lines = Interrupts(nth)

        def trace(frame: FrameType, event: str, arg: Any, lines: Interrupts = lines) -> Any:
            if not frame.f_code.co_filename.replace("\\", "/").endswith(traced):
                return None
            if event == "line":
                lines.tick()
            return trace

        before = sys.gettrace()
        with contextlib.suppress(KeyboardInterrupt):
            sys.settrace(trace)
            try:
                petlpack.encode(third, pack, base, task="three", codec="ulp", jobs=1)
            finally:
                sys.settrace(before)
        _check_whole(place, pack, "three", states, outcomes)
        shutil.rmtree(pack)
        if lines.calls < nth:
            break
    print(f"{sum(outcomes.values())} interruptions: {outcomes}")
    assert min(outcomes.values()) > 0


def _check_whole(place: Place, pack: Path, task: str, states: list[Any], outcomes: dict[str, int]) -> None:
    """Check that the pack is clean, and the task is one of two: as before, or as it should become."""
    for checked in petlpack.verify(pack, place.base, jobs=1):
        assert checked.error is None
    opened = petlpack.open(pack)
    state = opened[task].state_dict(place.base) if task in opened else None
    became = _same(state, states[1])
    assert became or _same(state, states[0])
    outcomes["all" if became else "nothing"] += 1
    petlpack.encode(place.run, pack, place.base, task="next", codec="ulp", jobs=1)  # nothing is in its way


def _same(state: Any, other: Any) -> bool:
    if state is None or other is None:
        return state is other
    return state.keys() == other.keys() and all(bool(torch.equal(state[name], other[name])) for name in state)


@pytest.fixture
def read_only(place: Place, tmp_path: Path) -> Iterator[Path]:
    """A pack that cannot be written: by its mode, or for root on a file system mounted so."""
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        directories = [place.pack, *(path for path in place.pack.rglob("*") if path.is_dir())]
        for path in directories:
            path.chmod(0o555)
        yield place.pack
        for path in directories:
            path.chmod(0o755)
        return
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("root may write everywhere, and this system mounts no tmpfs")
    try:
        shutil.copytree(place.pack, mount / "pack")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        yield mount / "pack"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_pack_that_cannot_be_written_can_be_read(place: Place, read_only: Path) -> None:
    before = place.snapshot(read_only) if read_only == place.pack else None
    calls: list[Call] = [
        place.encode(place.run),
        place.encode(place.run, task="one", replace=True),
        lambda pack: petlpack.open(pack).remove("one"),
    ]
    for call in calls:
        with pytest.raises((OSError, PetlpackError)) as caught:
            call(read_only)
        assert str(read_only) in str(caught.value)
    for opened in petlpack.open(read_only).values():
        assert opened.state_dict(place.base)
    for checked in petlpack.verify(read_only, place.base):
        assert checked.error is None
    assert before is None or place.snapshot() == before
