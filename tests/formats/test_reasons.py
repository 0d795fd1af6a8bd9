"""The codes of refusals: the table in `formats/reasons.md` is what the library raises, and each is shown once."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import petlpack
from petlpack import coding, container, errors
from petlpack.errors import BaseError, PetlpackError, RunError
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import DTYPES
from tests.support.bombs import BombPack
from tests.support.golden import ALL, BY_ID, ERRORS
from tests.support.small_runs import write_pair
from tools.rules import not_in_bytes
from tools.vectors import FORMATS, ROOT
from tools.write_vectors import write_pack

LIBRARY = Path(petlpack.__file__).parent
PAGE = (FORMATS / "reasons.md").read_text(encoding="utf-8")
REASONS = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([a-z]+ \([0-9]\)) \| .+ \|$", PAGE, re.MULTILINE))
CLASSES = {"error": "error (1)"} | {name: f"{name} ({exit_code})" for name, (_, exit_code) in ERRORS.items()}
DEFAULTS = {
    (one.default_code, one.exit_code, one.__name__)
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, PetlpackError)
}


def codes_in(value: ast.expr) -> Iterator[str]:
    """Yield the codes that an expression may be: a text, one of two, or what `reason` falls back on."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from codes_in(value.body)
        yield from codes_in(value.orelse)
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "reason":
        yield from codes_in(value.args[1])


def raised_codes() -> set[str]:
    """Return every code that stands in the library."""
    found: set[str] = set()
    for file in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            given = isinstance(node, ast.keyword) and node.arg == "code"
            named = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["code"]
            if isinstance(node, ast.keyword | ast.Assign) and (given or named):
                found.update(codes_in(node.value))
    return found


def test_the_table_has_the_codes_that_the_library_raises() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE)
    assert len(rows) == len(set(rows)), "a code stands twice"
    assert raised_codes() - {code for code, *_ in DEFAULTS} == set(REASONS)
    assert set(REASONS.values()) <= set(CLASSES.values())


def test_the_table_has_the_codes_of_the_classes() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([0-9]) \| `([A-Za-z]+)` \|$", PAGE, re.MULTILINE)
    assert {(code, int(exit_code), name) for code, exit_code, name in rows} == DEFAULTS
    assert PetlpackError("oh").own_code is None


def test_every_bad_vector_has_a_code_of_the_class_of_its_error() -> None:
    for vector in ALL:
        if vector.bad:
            assert REASONS[vector["code"]] == CLASSES[vector.get("error") or "damage"], vector.id


def test_every_code_is_shown_by_a_vector_or_here() -> None:
    assert set(REASONS) == {vector["code"] for vector in ALL if vector.bad} | set(SHOWN)
    assert set(SHOWN) == not_in_bytes()


def test_every_rule_has_a_vector_and_a_test_of_the_writer() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tools.rules", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_first_page_names_codes_of_the_table() -> None:
    page = (FORMATS / "README.md").read_text(encoding="utf-8")
    section = page.partition("## Who checks what\n")[2].partition("\n## ")[0]
    named = {code for row in section.splitlines() for code in re.findall(r"`([a-z0-9-]+)`", row.rpartition(" | ")[2])}
    assert named == set(REASONS) - set(SHOWN) - {"task-name"}


# What no vector can show: it is about places, bases and files that change


def file_unreadable(place: Path, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write_pack(BY_ID["plain-lora"], place)
    patch.setattr("petlpack.checking.check_shared", fail)
    for found in petlpack.verify(place):
        assert found.error is not None
        raise found.error


def file_replaced(place: Path, patch: pytest.MonkeyPatch) -> None:
    write_pack(BY_ID["plain-lora"], place / "a")
    write_pack(BY_ID["mask-two-layers"], place / "b")
    first, second = (place / pack / "tasks" / "task.petl.safetensors" for pack in "ab")
    opened = container.read(first)
    second.replace(first)
    opened.open_sections()


def section_crowd(place: Path, patch: pytest.MonkeyPatch) -> None:
    made = BombPack(place / "p")
    made.task(sections=[container.EncodedSection(f"tensors.{i}", "raw", "F32", 0, b"") for i in range(20_000)])
    petlpack.details(petlpack.open(place / "p")["bomb"])


def file_link(place: Path, patch: pytest.MonkeyPatch) -> None:
    write_pack(BY_ID["plain-lora"], place)
    task = place / "tasks" / "task.petl.safetensors"
    task.rename(place / "elsewhere")
    task.symlink_to(place / "elsewhere")
    raise petlpack.stats(place).inventory.damaged["task"]


def file_special(place: Path, patch: pytest.MonkeyPatch) -> None:
    os.mkfifo(place / "task.petl.safetensors")
    container.read(place / "task.petl.safetensors")


def file_changed(place: Path, patch: pytest.MonkeyPatch) -> None:
    run, base = write_pair(place)
    petlpack.encode(run, place / "p", base, task="task")
    kept = Base(base)
    os.utime(base / "model.safetensors", ns=(0, 0))
    petlpack.open(place / "p")["task"].load(kept)


def json_limit(place: Path, patch: pytest.MonkeyPatch) -> None:
    run, base = write_pair(place)
    (run / "config.json").write_text('{"a": ' + "[" * 300 + "]" * 300 + "}")
    petlpack.encode(run, place / "p", base, task="task")


def archive_limit(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / "run").mkdir()
    torch.save({"weight": torch.zeros(1).expand(1 << 30)}, place / "run" / "pytorch_model.bin")
    petlpack.encode(place / "run", place / "p", codec="plain")


def base_is_run(place: Path, patch: pytest.MonkeyPatch) -> None:
    run, _ = write_pair(place)
    petlpack.encode(run, place / "p", run)


def base_fits_none(place: Path, patch: pytest.MonkeyPatch) -> None:
    run, base = write_pair(place)
    other, _ = write_pair(place / "other", seed=1)
    petlpack.encode(run, place / "p", base, task="task")
    petlpack.open(place / "p")["task"].load([other, run])


def section_decode(place: Path, patch: pytest.MonkeyPatch) -> None:
    class Toy:
        def decode(self, data: bytes, array: coding.Array) -> None:
            raise ValueError("oh")

    patch.setattr("petlpack.coding.coder", lambda _: Toy())
    coding.decode("toy", b"", coding.Array(DTYPES["U8"], 1, 1), "s")


def run_differs(place: Path, patch: pytest.MonkeyPatch) -> None:
    run, base = write_pair(place)
    other, _ = write_pair(place / "other", seed=1)
    petlpack.encode(run, pack=place / "p", base=base, task="task")
    for found in petlpack.verify(place / "p", base, task="task", against=other):
        assert found.error is not None
        raise found.error


def pack_directory(place: Path, patch: pytest.MonkeyPatch) -> None:
    write_pack(BY_ID["plain-lora"], place)
    (place / "shared").rename(place / "elsewhere")
    (place / "shared").symlink_to(place / "elsewhere")
    petlpack.open(place)


def pack_lock(place: Path, patch: pytest.MonkeyPatch) -> None:
    write_pack(BY_ID["plain-lora"], place)
    (place / "victim").write_bytes(b"precious")
    (place / ".lock").symlink_to(place / "victim")
    petlpack.open(place).remove("task")


def lock_unsupported(place: Path, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    write_pack(BY_ID["plain-lora"], place)
    patch.setattr("filelock.FileLock.acquire", fail)
    petlpack.open(place).remove("task")


def _sealed(place: Path) -> Path:
    write_pack(BY_ID["plain-lora"], place)
    petlpack.seal(place)
    return place / "tasks" / "task.petl.safetensors"


def _raise_of_seal(place: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("petlpack.checking.seal._PATIENCE", 0.0)
    for found in petlpack.verify(place):
        if found.error is not None:
            raise found.error


def sealed_missing(place: Path, patch: pytest.MonkeyPatch) -> None:
    _sealed(place).unlink()
    _raise_of_seal(place, patch)


def sealed_changed(place: Path, patch: pytest.MonkeyPatch) -> None:
    _sealed(place)
    (place / "pack.json").write_bytes(b'{"format":"petlpack","version":1}')
    _raise_of_seal(place, patch)


def sealed_foreign(place: Path, patch: pytest.MonkeyPatch) -> None:
    task = _sealed(place)
    task.with_name("other.petl.safetensors").write_bytes(task.read_bytes())
    _raise_of_seal(place, patch)


def sealed_stale(place: Path, patch: pytest.MonkeyPatch) -> None:
    _sealed(place)
    text = (place / "inventory.json").read_text()
    (place / "inventory.json").write_text(text.replace('"stale":false', '"stale":true'))
    _raise_of_seal(place, patch)


SHOWN: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        *(file_unreadable, file_replaced, file_special, file_changed, file_link, section_crowd),
        *(json_limit, archive_limit),
        *(base_is_run, base_fits_none, section_decode, run_differs),
        *(pack_directory, pack_lock, lock_unsupported),
        *(sealed_missing, sealed_changed, sealed_foreign, sealed_stale),
    )
}


@pytest.mark.parametrize("code", [pytest.param(code, marks=pytest.mark.rule(code)) for code in SHOWN])
def test_shown(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PetlpackError) as caught:
        SHOWN[code](tmp_path, monkeypatch)
    assert caught.value.code == code
    assert REASONS[code].endswith(f"({caught.value.exit_code})")


# What an error that stands for another keeps


def test_a_base_or_a_run_that_breaks_a_rule_has_the_code_of_the_rule(tmp_path: Path) -> None:
    run, _ = write_pair(tmp_path)
    (run / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(BaseError) as base:
        Base(run)
    with pytest.raises(RunError) as encoded:
        petlpack.encode(run, pack=tmp_path / "p", codec="plain")
    assert (base.value.code, encoded.value.code) == ("header-json", "header-json")
    with pytest.raises(BaseError) as missing:
        Base(tmp_path / "nowhere")
    assert missing.value.code == "base-missing"
