"""Checks behind other checks: what is written is read again, and a file is the one that it was, in every respect."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import petlpack
from petlpack import coding
from petlpack.codecs.units import Section
from petlpack.encoding.write import TaskWriter
from petlpack.errors import BaseError, PetlpackError, RunError
from petlpack.sections import shared
from petlpack.sections.write import SectionWriter
from petlpack.tensors import safetensors_file, torch_reader
from petlpack.tensors.base import Base
from petlpack.tensors.checkpoint import open_checkpoint
from petlpack.tensors.pinned import SpecialFileError, State, open_descriptor
from tests.support.command_line import posix
from tests.support.places import Place
from tests.support.small_runs import nudged, write_pair, write_run

# What is written is read again


def test_a_task_that_was_written_wrong_is_in_no_pack(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SectionWriter._encode_section

    def encode(writer: SectionWriter, section: Section) -> object:
        bits = section.bits.copy()
        bits[-1] ^= 1
        return real(writer, replace(section, bits=bits))

    monkeypatch.setattr(SectionWriter, "_encode_section", encode)
    error = place.refused(place.encode(place.run), PetlpackError, "'bad'", "as written does not decode")
    assert error.code == "decoded-digest"


def test_a_part_of_bytes_that_was_written_wrong_is_in_no_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    real = coding.encode

    def encode(bits: Any, array: coding.Array, *more: Any) -> Any:
        wrong = bits.copy()
        wrong[-1:] ^= 1
        return real(wrong, array, *more)

    monkeypatch.setattr(coding, "encode", encode)
    with pytest.raises(PetlpackError, match="does not decode to what it holds") as caught:
        shared.write_shared(b"a text that is kept")
    assert caught.value.code == "decoded-digest"


# A file is the one that was opened


@pytest.mark.parametrize("field", ["st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_each_field_of_a_state_tells_another_file(field: str) -> None:
    fields = {"st_dev": 1, "st_ino": 2, "st_size": 3, "st_mtime_ns": 4, "st_ctime_ns": 5}
    other = {**fields, field: 99}
    assert State.of(SimpleNamespace(**fields)) != State.of(SimpleNamespace(**other))  # type: ignore[arg-type]


def _overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))


def test_a_header_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = write_pair(tmp_path)
    file = run / "model.safetensors"
    real = safetensors_file.read_header_of

    def read(*args: Any) -> object:
        header = real(*args)
        _overwrite(file)
        return header

    monkeypatch.setattr(safetensors_file, "read_header_of", read)
    with pytest.raises(RunError, match="changed after it was opened") as caught:
        safetensors_file.read_pinned(file)
    assert caught.value.code == "file-changed"


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_elements_that_change_while_they_are_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run, _ = write_pair(tmp_path)
    file = run / "model.safetensors"
    tensor = next(iter(open_checkpoint(file).tensors.values()))
    real = np.fromfile

    def read(*args: Any) -> object:
        octets = real(*args)
        _overwrite(file)
        return octets

    if moment == "before":
        _overwrite(file)
        monkeypatch.setattr(np, "fromfile", lambda *args: pytest.fail("it was read"))
    else:
        monkeypatch.setattr(np, "fromfile", read)
    with pytest.raises(RunError, match="changed after it was opened"):
        tensor.bits()


def _legacy(tmp_path: Path) -> Path:
    """Write what torch saved before it wrote archives: its elements are read with it, into memory."""
    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.arange(64.0)}, file, _use_new_zipfile_serialization=False)
    return file


def test_a_pickle_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _legacy(tmp_path)
    real = torch_reader.load

    def load(*args: Any) -> object:
        loaded = real(*args)
        _overwrite(file)
        return loaded

    monkeypatch.setattr("petlpack.tensors.pickled.load", load)
    with pytest.raises(RunError, match="changed after it was opened"):
        open_checkpoint(file)


def test_a_pickle_that_changes_after_it_was_read_is_refused(tmp_path: Path) -> None:
    file = _legacy(tmp_path)
    tensor = open_checkpoint(file).tensors["weight"]
    assert tensor.bits().size == 64
    _overwrite(file)
    with pytest.raises(RunError, match="changed after it was opened"):
        tensor.bits()


def test_a_kept_base_that_changes_before_the_commit_leaves_the_pack_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, base = write_pair(tmp_path)
    kept = Base(base)
    real = TaskWriter.write

    def write(*args: Any) -> object:
        written = real(*args)
        _overwrite(base / "model.safetensors")
        return written

    monkeypatch.setattr(TaskWriter, "write", write)
    with pytest.raises(BaseError) as caught:
        petlpack.encode(run, tmp_path / "p", kept, task="task")
    assert caught.value.code == "file-changed"
    assert not (tmp_path / "p" / "tasks" / "task.petl.safetensors").exists()


# What is no file


@posix
def test_a_pipe_is_not_even_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    opened: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda *args: opened.append(args))
        with pytest.raises(SpecialFileError, match="a named pipe"):
            open_descriptor(tmp_path / "pipe")
    assert opened == []


@posix
def test_a_pipe_that_takes_the_place_of_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    was = os.stat(tmp_path / "file")  # noqa: PTH116 - what is put in the place of that call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", lambda path: was)
        ended = _ended(lambda: open_descriptor(tmp_path / "pipe"), tmp_path / "pipe")
    assert ended == "SpecialFileError"


@posix
def test_a_pipe_in_the_place_of_a_mark_is_refused_without_waiting(tmp_path: Path) -> None:
    from petlpack.store.disk import read_regular

    os.mkfifo(tmp_path / "pipe")
    assert _ended(lambda: read_regular(tmp_path / "pipe", 100), tmp_path / "pipe") == "ValueError"


def _ended(call: Callable[[], object], pipe: Path) -> str:
    """Return what a call raised, or how else it ended; one that waits for a pipe is given up, and then let go."""
    ends: list[str] = []

    def work() -> None:
        try:
            call()
            ends.append("no error")
        except Exception as error:
            ends.append(type(error).__name__)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    waiting = thread.is_alive()
    if waiting:
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
        thread.join(10)
    return "it waited" if waiting else ends[0]


# What verify reads


def test_verify_reads_every_byte_of_a_task_whose_base_is_not_at_hand(place: Place) -> None:
    file = place.pack / "tasks" / "one.petl.safetensors"
    opened = petlpack.open(place.pack)["one"]._container
    content = bytearray(file.read_bytes())
    content[opened.header.data_start] ^= 1
    file.write_bytes(content)
    (wrong,) = [found for found in petlpack.verify(place.pack) if found.error is not None]
    assert (wrong.name, wrong.damaged) == ("one", True)
    assert wrong.error is not None
    assert wrong.error.code == "section-digest"


def test_verify_compares_kept_files_and_headers_with_a_run(place: Place) -> None:
    def found() -> list[str]:
        return [
            found.error.message
            for found in petlpack.verify(place.pack, place.base, task="one", against=place.run)
            if found.error is not None
        ]

    assert found() == []
    config, weights = place.run / "config.json", place.run / "model.safetensors"
    kept = config.read_bytes()
    config.write_bytes(kept + b" ")
    assert any("file 'config.json'" in message for message in found())
    config.write_bytes(kept)
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little")
    weights.write_bytes((length + 8).to_bytes(8, "little") + content[8 : 8 + length] + b" " * 8 + content[8 + length :])
    assert any("the header of weight file 'model.safetensors'" in message for message in found())


# A base is the one that it was


def test_a_base_of_the_same_bytes_in_another_form_is_refused(place: Place) -> None:
    """Its digests are those of the base: only shapes tell."""
    tensors = open_checkpoint(place.base / "model.safetensors").tensors
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if len(set(tensor.shape)) > 1)
    turned = replace(tensor, shape=tensor.shape[::-1])
    other = write_run(place.root / "other", {**tensors, name: turned})
    task = petlpack.open(place.pack)["one"]
    with pytest.raises(BaseError, match="the task needs") as caught:
        [tensor.bits() for tensor in task.load(other).values()]
    assert caught.value.code == "base-shape"
    with pytest.raises(BaseError) as caught:
        task.load([other, place.base / ".." / "other"])
    assert caught.value.code == "base-fits-none"


def test_of_several_bases_the_one_with_the_right_bits_is_taken(place: Place) -> None:
    tensors = open_checkpoint(place.base / "model.safetensors").tensors
    other = write_run(place.root / "other", {name: nudged(tensor, 7) for name, tensor in tensors.items()})
    task = petlpack.open(place.pack)["one"]
    want = {name: tensor.bits().tobytes() for name, tensor in task.load(place.base).items()}
    assert {name: tensor.bits().tobytes() for name, tensor in task.load([other, place.base]).items()} == want
