"""Runs that are well-formed files of odd content: each comes back, or is refused by one error of the tree, cheaply."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import petlpack
from petlpack.errors import BaseError, PetlpackError, RunError
from tests.support.machine import slowness
from tests.support.small_runs import write_pair

Build = Callable[[Path], object]

ONE = {"encoder.weight": np.ones((2, 2), np.float32)}


def header(**rows: tuple[str, list[int], int]) -> Build:
    """Write a safetensors file of these rows: dtype, shape, bytes."""

    def build(run: Path) -> None:
        table, start = {}, 0
        for name, (dtype, shape, nbytes) in rows.items():
            table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + nbytes]}
            start += nbytes
        text = json.dumps(table).encode()
        (run / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(start))

    return build


def header_text(text: bytes) -> Build:
    return lambda run: (run / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def beside(name: str, text: str, size: int | None = None) -> Build:
    """Write a model, and a file beside it that is as long as `size` says."""

    def build(run: Path) -> None:
        save_file(ONE, run / "model.safetensors")
        (run / name).write_text(text, encoding="utf-8")
        if size is not None:
            os.truncate(run / name, size)

    return build


def lora(config: str) -> Build:
    def build(run: Path) -> None:
        (run / "adapter_config.json").write_text(config, encoding="utf-8")
        save_file({"base_model.model.q.lora_A.weight": ONE["encoder.weight"]}, run / "adapter_model.safetensors")

    return build


def saved(content: Callable[[], Any]) -> Build:
    return lambda run: torch.save(content(), run / "pytorch_model.bin")


def experts(*numbers: str) -> Build:
    """Write AdaMix's experts by these numbers."""

    def build(run: Path) -> None:
        names = [f"m.layer.0.experts_lora_{side}.{number}" for number in numbers for side in "AB"]
        state = {name: torch.zeros(2, 2) for name in names}
        scores = {"m.layer.0.lora_expert_score_weight": torch.zeros(len(numbers))}
        torch.save({"model_state_dict": state | scores}, run / "model.final.pt")

    return build


def deflated(run: Path) -> None:
    """Write an archive whose pickle is 300 times as long as the file."""
    with zipfile.ZipFile(run / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02]" + b"]a" * 5_000_000 + b".")


def long_pickle(run: Path) -> None:
    with zipfile.ZipFile(run / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02]" + b"]a" * 5_000_000 + b".")


def zip_name(run: Path) -> None:
    """Write an archive with a name that says that it is UTF-8, and is not."""
    torch.save(ONE["encoder.weight"].tolist(), run / "pytorch_model.bin")
    archive = bytearray((run / "pytorch_model.bin").read_bytes().replace(b"version", b"ver\xff\xfeon"))
    place = archive.find(b"PK\x01\x02")
    while place >= 0:
        archive[place + 9] |= 8
        place = archive.find(b"PK\x01\x02", place + 4)
    (run / "pytorch_model.bin").write_bytes(archive)


def links(run: Path) -> None:
    save_file(ONE, run / "model.safetensors")
    for name, target in (("itself", "itself"), ("a", "b"), ("b", "a"), ("up", ".."), ("here", ".")):
        (run / name).symlink_to(target)


def link_of_config(run: Path) -> None:
    save_file(ONE, run / "model.safetensors")
    (run / "config.json").symlink_to("config.json")


def no_utf8(run: Path) -> None:
    save_file(ONE, run / "model.safetensors")
    for name in (b"x\xff.txt", b"w\xfe.safetensors"):
        Path(os.fsdecode(os.path.join(os.fsencode(run), name))).write_bytes(b"x")  # noqa: PTH118


ENCODED: dict[str, Build] = {
    "modules to save in a list": lora('{"peft_type": "LORA", "modules_to_save": [["classifier"], 3]}'),
    "a type that is a list": lora('{"peft_type": [{}], "modules_to_save": {"a": 1}}'),
    "a base with half of a character": lora('{"peft_type": "LORA", "base_model_name_or_path": "\\ud800"}'),
    "a base with a zero in it": lora('{"peft_type": "LORA", "base_model_name_or_path": "/a\\u0000b"}'),
    "links to themselves": links,
    "names that are not UTF-8": no_utf8,
    "a large result": beside("eval_results.json", "{", 1 << 31),
    "a large state": beside("trainer_state.json", "{", 1 << 31),
    "a large readme": beside("README.md", "x", 1 << 31),
    "complex numbers that are conjugated": saved(lambda: {"a": torch.tensor([1 + 2j]).conj(), "b": torch.zeros(3)}),
}

REFUSED: dict[str, tuple[Build, str]] = {
    "a shape of 2^61 and 0": (header(a=("F32", [2**61, 0], 0), b=("F32", [2], 8)), "header-fields"),
    "a shape of 0 and 2^61": (header(a=("F64", [0, 2**61], 0), b=("F32", [2], 8)), "header-fields"),
    "a header of brackets": (header_text(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"), "json-limit"),
    "a config of brackets": (beside("config.json", '{"a":[' + "[]," * 2_000_000 + "[]]}"), "json-limit"),
    "a deep config": (beside("config.json", "[" * 1_000_000), "json-limit"),
    "a large config": (beside("config.json", "{", 1 << 31), "json-limit"),
    "20,000 empty tensors": (header(**{f"t{i}": ("F32", [0, 7], 0) for i in range(20_000)}), "json-limit"),
    "100,000 empty tensors": (header(**{f"t{i}": ("F32", [0, 7], 0) for i in range(100_000)}), "json-limit"),
    "20,000 empty tensors of torch": (saved(lambda: {f"t{i}": torch.zeros(0) for i in range(12_000)}), "run"),
    "a name of 200,000 dots": (header(**{"." * 200_000: ("F32", [2], 8)}), "run"),
    "a config that is a link to itself": (link_of_config, "run"),
    "half of a character": (saved(lambda: {"a\ud800": torch.zeros(2)}), "run"),
    "a hundred million experts": (experts("0", "99999999"), "run"),
    "an expert of 5,000 digits": (experts("0", "9" * 5000), "run"),
    "a deflated pickle": (deflated, "archive-limit"),
    "a long pickle": (long_pickle, "archive-limit"),
    "a name of an archive that is not UTF-8": (zip_name, "run"),
    "one element a trillion times": (saved(lambda: {"a": torch.zeros(1).expand(2**40)}), "archive-limit"),
    "a thousand views of one tensor": (
        lambda run: (lambda one: torch.save({f"a{i}": one[i:] for i in range(1000)}, run / "pytorch_model.bin"))(
            torch.zeros(1 << 18)
        ),
        "archive-limit",
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return an empty directory."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("case", ENCODED)
def test_an_odd_run_comes_back(run: Path, case: str) -> None:
    ENCODED[case](run)
    petlpack.encode(run, run.parent / "p", codec="plain", task="task")
    task = petlpack.open(run.parent / "p")["task"]
    assert task.state_dict()
    assert petlpack.details(task)
    task.decode(run.parent / "out")


@pytest.mark.parametrize("case", REFUSED)
def test_an_odd_run_is_refused_by_one_error(run: Path, case: str) -> None:
    build, code = REFUSED[case]
    build(run)
    with pytest.raises(RunError) as caught:
        petlpack.encode(run, run.parent / "p", codec="plain", task="task")
    assert caught.value.code == code
    assert caught.value.hint
    for work in (lambda: petlpack.Base(run), lambda: petlpack.survey([run]), lambda: petlpack.plan(run)):
        with contextlib.suppress(PetlpackError):
            work()


SCRIPT = """
import resource, sys, time
import torch, petlpack
from petlpack.errors import PetlpackError
run, pack, room = sys.argv[1:]
try:  # everything that is imported once
    petlpack.encode(run + "/none", pack, codec="plain")
except PetlpackError:
    pass
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(room), used + int(room)))
before = time.process_time()
try:
    petlpack.encode(run, pack, codec="plain", jobs=1)
except PetlpackError:
    pass
print(time.process_time() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux bounds what a process may take")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_costs_little(run: Path, case: str) -> None:
    REFUSED[case][0](run)
    nbytes = sum(min(file.lstat().st_blocks * 512, file.lstat().st_size) for file in run.iterdir())
    room = 4 * nbytes + (1 << 28)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, run, run.parent / "p", str(room)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5 * slowness()


def test_a_tensor_more_costs_as_much_as_the_one_before(run: Path) -> None:
    """Where each asked how long the header is, a file of 8 MB took 22 seconds."""
    seconds = []
    for count in (8_000, 32_000):
        header(**{f"t{i}": ("U8", [1], 1) for i in range(count)})(run)
        before = time.process_time()
        petlpack.Base(run)
        seconds.append(time.process_time() - before)
    assert seconds[1] < 8 * seconds[0] + 0.2


@pytest.mark.skipif(sys.platform == "win32", reason="a path as long is none there")
def test_deep_directories_end_no_command(run: Path) -> None:
    save_file(ONE, run / "model.safetensors")
    deep(run, 1_500)
    try:
        assert petlpack.survey([run]).problems == 0
        with pytest.raises(RunError, match="too deep"):
            petlpack.encode(run, run.parent / "p", codec="plain")
        assert petlpack.Base(run).tensors
    finally:
        subprocess.run(["rm", "-rf", run], check=True)  # Python's own way ends as deep


def deep(place: Path, count: int) -> None:
    """Make directories in one another, which no path could name at once."""
    here = os.open(place, os.O_RDONLY)
    for _ in range(count):
        os.mkdir("d", dir_fd=here)
        inside = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inside
    os.close(here)


def test_no_memory_is_an_error_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(ONE, run / "model.safetensors")

    class PanicException(BaseException):
        pass

    for raised in (MemoryError(), RecursionError(), PanicException("oh"), UnicodeEncodeError("utf-8", "x", 0, 1, "no")):

        def fail(*_: object, error: BaseException = raised) -> None:
            raise error

        monkeypatch.setattr("petlpack.tensors.checkpoint.read_pinned", fail)
        with pytest.raises(RunError):
            petlpack.encode(run, run.parent / "p", codec="plain")
        with pytest.raises(petlpack.BaseError):
            petlpack.Base(run)


VALUES: list[Any] = [
    *(None, True, -1, 2**63, 10**400, 1.5, float("nan"), "", "x", "\ud800", "a\0b", "../x", "9" * 5000),
    *([], [[]], [["x"]], [None], {}, {"": []}, [2**61, 0], {"x": [{}]}),
]


@pytest.mark.parametrize("key", ["peft_type", "r", "modules_to_save", "base_model_name_or_path", "config", "name"])
def test_whatever_stands_under_a_key_of_an_adapter(run: Path, key: str) -> None:
    for i, value in enumerate(VALUES):
        lora(json.dumps({"peft_type": "LORA", "r": 2, key: value}))(run)
        with contextlib.suppress(RunError, BaseError):
            petlpack.encode(run, run.parent / "p", codec="plain", task=f"t{i}")


@pytest.mark.parametrize("key", ["_name_or_path", "transformers_weights", "diff_pruning", "num_experts", "hidden_act"])
def test_whatever_stands_under_a_key_of_a_model(tmp_path: Path, key: str) -> None:
    model, base = write_pair(tmp_path)
    for i, value in enumerate(VALUES):
        (model / "config.json").write_text(json.dumps({key: value}), encoding="utf-8")
        with contextlib.suppress(RunError, BaseError):
            petlpack.encode(model, tmp_path / "p", base, task=f"t{i}")
