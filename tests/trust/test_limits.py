"""Bounds behind other bounds: each refuses by itself, before anything is read or built that it is there to spare."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petlpack import coding, container
from petlpack.container import EncodedSection, Manifest
from petlpack.container.file import MAX_MANIFEST, _header_text
from petlpack.errors import DamageError, LimitError, RunError
from petlpack.sections.parts import MOST_TENSORS, _parse_slots, check_shared
from petlpack.sections.shared import read_shared_file, read_text_file, write_shared
from petlpack.store import SUFFIX, Store
from petlpack.store.disk import read_regular
from petlpack.tensors import torch_archive
from petlpack.tensors.checkpoint import open_checkpoint
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.pinned import open_regular, pin_of
from petlpack.tensors.safetensors_file import MOST_VALUES, MalformedError, parse_header
from tests.support.bombs import BombPack
from tests.support.hostile_pickles import GOOD, zipped
from tests.support.places import Place

NAMED = "f" * 64
"""What a part is called that decodes to something else."""


def _code(caught: Any) -> str:
    return str(caught.value.code)


# Parts


def test_a_part_of_tensors_is_bounded_before_it_is_decoded(tmp_path: Path) -> None:
    pack = BombPack(tmp_path / "pack")
    sha256 = pack.part([("F32", [1 << 12], 0)])
    with pytest.raises(LimitError, match="would take 16,384 bytes"):
        check_shared(Store(pack.path), sha256, 1000)
    check_shared(Store(pack.path), sha256, 1 << 14)


def test_a_part_of_tensors_decodes_to_its_name(tmp_path: Path) -> None:
    pack = BombPack(tmp_path / "pack")
    pack.part([("F32", [8], 0)], named=NAMED)
    with pytest.raises(DamageError, match="decodes to") as caught:
        check_shared(Store(pack.path), NAMED)
    assert _code(caught) == "decoded-digest"


def test_a_part_has_so_many_tensors(tmp_path: Path) -> None:
    rows = [["F32", [1], 0]] * MOST_TENSORS
    assert len(_parse_slots(rows, tmp_path)) == MOST_TENSORS
    with pytest.raises(DamageError) as caught:
        _parse_slots([*rows, rows[0]], tmp_path)
    assert _code(caught) == "part-limit"


def test_what_is_no_part_of_bytes_is_told_as_that(place: Place) -> None:
    with pytest.raises(DamageError, match="is not a shared part of bytes") as caught:
        read_shared_file(place.pack / "tasks" / f"one{SUFFIX}", NAMED)
    assert _code(caught) == "file-kind"


def test_a_text_has_few_values_for_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(write_shared(b"[" * 500_000))
    with pytest.raises(DamageError) as caught:
        read_text_file(tmp_path / "part", hashlib.sha256(b"[" * 500_000).hexdigest(), 1 << 25)
    assert _code(caught) == "json-values"


# Containers


def test_sections_are_few_for_their_bytes(tmp_path: Path) -> None:
    names = [f"section.{number}" for number in range(40_000)]
    with (tmp_path / "file").open("w+b") as file:
        sections = (EncodedSection(name, "raw", "U8", 0, b"") for name in names)
        container.write(file, names, 1 << 20, sections, lambda rows: Manifest("task", "plain", rows, (NAMED,), NAMED))
    with pytest.raises(DamageError) as caught:
        container.read(tmp_path / "file")
    assert _code(caught) == "section-crowd"


def test_a_packed_manifest_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    text = _header_text([], MAX_MANIFEST + 1, NAMED)
    text += " " * (-len(text) % 8)
    with (tmp_path / "file").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text.encode())
        file.truncate(8 + len(text) + MAX_MANIFEST + 1)
    with pytest.raises(DamageError) as caught:
        container.read(tmp_path / "file")
    assert _code(caught) == "size-limit"


def test_a_coder_gives_as_many_elements_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        def decode(self, data: bytes, array: coding.Array) -> Any:
            return np.zeros(array.count - 1, array.dtype.bits)

    monkeypatch.setattr(coding, "coder", lambda coder_id: Short())
    with pytest.raises(DamageError, match="decodes to 7 elements, expected 8"):
        coding.decode("short", b"", coding.Array(DTYPES["U8"], 8, 8), "section")


# Weight files


def _safetensors(path: Path, header: str) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    return path


def test_the_values_of_a_header_are_counted_before_it_is_parsed(tmp_path: Path) -> None:
    row = {"dtype": "F32", "shape": [0] * (MOST_VALUES + 1), "data_offsets": [0, 0]}
    file = _safetensors(tmp_path / "model.safetensors", json.dumps({"a": row}))
    with pytest.raises(RunError) as caught:
        open_checkpoint(file)
    assert _code(caught) == "json-limit"


def test_a_shape_that_no_array_has_is_refused_though_it_is_empty() -> None:
    text = '{"a":{"dtype":"F32","shape":[2305843009213693952,0],"data_offsets":[0,0]}}'
    with pytest.raises(MalformedError, match="too large for an array") as caught:
        parse_header(text.encode())
    assert _code(caught) == "header-fields"


def _deflated(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write what torch saves, compressed as it never does."""
    torch.save(tensors, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in plain.namelist():
            file.writestr(name, plain.read(name))
    return path


def test_records_are_no_more_than_the_file_that_holds_them(tmp_path: Path) -> None:
    file = _deflated(tmp_path / "pytorch_model.bin", {"a": torch.zeros(1 << 20)})
    with pytest.raises(RunError, match=r"its records are .* more than the .* of the file") as caught:
        open_checkpoint(file)
    assert _code(caught) == "archive-limit"


def test_an_archive_has_so_many_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(4), "b": torch.zeros(4)}, file)
    monkeypatch.setattr(torch_archive, "MOST_RECORDS", 2)
    with pytest.raises(RunError, match="records, at most 2 are read") as caught:
        open_checkpoint(file)
    assert _code(caught) == "archive-limit"


def _split(archive: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the records of an archive, its directory, and its end."""
    end = archive.rindex(b"PK\5\6")
    nbytes, start = struct.unpack("<LL", archive[end + 12 : end + 20])
    return archive[:start], archive[start : start + nbytes], archive[end:]


def _moved(directory: bytes, by: int) -> bytes:
    """Return a directory that says of each record that it stands elsewhere."""
    out, at = bytearray(directory), 0
    while at < len(out):
        lengths, (start,) = struct.unpack_from("<3H", out, at + 28), struct.unpack_from("<L", out, at + 42)
        struct.pack_into("<L", out, at + 42, start + by)
        at += 46 + sum(lengths)
    return bytes(out)


def _two_directories() -> dict[str, bytes]:
    """Return archives with a directory where Python looks for it, and another one where torch does."""
    shown, hidden = (
        zipped(("a/data.pkl", GOOD)),
        zipped(("a/data.pkl", b"\x80\x02" + b"]" * 100_000 + b"."), deflated=True),
    )
    records, directory, end = _split(shown)
    others, other, place = _split(hidden)
    front = others + other + records
    lent = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, len(directory), len(front))
    far = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, len(other), len(others))
    here = _moved(directory, len(others + other))
    found = struct.pack("<4sLQL", b"PK\6\7", 0, len(others + other), 1)
    moved = _moved(here, len(far))
    return {
        "before": front + _moved(directory, len(others) - len(records)) + place,
        "in a comment": records + directory + end[:20] + struct.pack("<H", len(shown)) + shown,
        "of large archives": others + other + far + records + moved + lent + found + end,
        "behind it": shown + b"more",
    }


@pytest.mark.parametrize("name", _two_directories())
def test_an_archive_has_one_directory(name: str, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(_two_directories()[name])
    with pytest.raises(RunError, match="right before its end") as caught:
        open_checkpoint(file)
    assert _code(caught) == "archive-limit"


def test_bytes_that_a_file_does_not_have_are_not_made_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with open_regular(tmp_path / "file") as file:
        pin = pin_of(tmp_path / "file", file)
    assert len(pin.read(90, 10)) == 10
    with pytest.raises(RunError, match="11 bytes at 90 are 10"):
        pin.read(90, 11)


def test_a_tensor_that_is_larger_than_its_record_takes_none_of_the_next(tmp_path: Path) -> None:
    file, whole = tmp_path / "pytorch_model.bin", tmp_path / "whole"
    torch.save({"a": torch.arange(64.0), "b": torch.arange(64.0)}, whole)
    with zipfile.ZipFile(whole) as plain, zipfile.ZipFile(file, "w") as short:
        for name in plain.namelist():
            content = plain.read(name)
            short.writestr(name, content[:16] if name.endswith("data/0") else content)
    with pytest.raises(RunError):
        open_checkpoint(file)


def test_a_small_file_of_a_pack_is_read_no_further_than_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    assert read_regular(tmp_path / "file", 4) == b"1234"
    with pytest.raises(ValueError, match="more than 3 bytes"):
        read_regular(tmp_path / "file", 3)
