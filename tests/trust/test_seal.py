"""A sealed pack: what is missing, changed or foreign is named, and writing into it keeps the seal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack import DamageError, UsageError
from petlpack.checking import seal as checking_seal
from petlpack.store import SUFFIX, Store
from petlpack.store.seals import file_now, parse_seal
from tests.support import spec_reader
from tests.support.command_line import ENVIRONMENT, posix, run, run_json
from tests.support.places import Place

pytestmark = posix


def codes(place: Place, pack: Path | None = None) -> dict[str, str]:
    """What verify says of the seal, by file."""
    found = petlpack.verify(pack or place.pack, place.base)
    return {one.name: one.error.code for one in found if one.kind == "sealed" and one.error is not None}


def test_a_seal_names_every_file_and_verify_takes_it(place: Place) -> None:
    sealed = petlpack.open(place.pack).seal()
    rows = spec_reader.parse_inventory((place.pack / "inventory.json").read_bytes())
    there = {p.relative_to(place.pack).as_posix(): p.stat().st_size for p in place.pack.rglob("*") if p.is_file()}
    assert {name: size for name, size, _ in rows} == {
        name: size for name, size in there.items() if name not in (".lock", "inventory.json")
    }
    assert (sealed.files, sealed.nbytes) == (len(rows), sum(size for _, size, _ in rows))
    assert codes(place) == {}
    result = run("verify", place.pack, "--base", place.base)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"Seal: sha256 {sealed.sha256}.\n" in result.stdout
    assert run("seal", place.pack, "-q").stdout == f"{sealed.sha256}\n"  # the same files, the same digest


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "task missing": (lambda pack: (pack / f"tasks/one{SUFFIX}").unlink(), {f"tasks/one{SUFFIX}": "sealed-missing"}),
    "part missing": (lambda pack: _a_part(pack).unlink(), {"part": "sealed-missing"}),
    "byte flipped": (lambda pack: _flip(_a_part(pack)), {"part": "sealed-changed"}),
    "foreign file": (lambda pack: (pack / "notes").write_bytes(b"x"), {"notes": "sealed-foreign"}),
    "foreign task": (
        lambda pack: (pack / f"tasks/x{SUFFIX}").write_bytes((pack / f"tasks/one{SUFFIX}").read_bytes()),
        {f"tasks/x{SUFFIX}": "sealed-foreign"},
    ),
    "task renamed": (
        lambda pack: (pack / f"tasks/one{SUFFIX}").rename(pack / f"tasks/x{SUFFIX}"),
        {f"tasks/one{SUFFIX}": "sealed-missing", f"tasks/x{SUFFIX}": "sealed-foreign"},
    ),
    "tasks exchanged": (
        lambda pack: _exchange(pack / f"tasks/one{SUFFIX}", pack / f"tasks/two{SUFFIX}"),
        {f"tasks/one{SUFFIX}": "sealed-changed", f"tasks/two{SUFFIX}": "sealed-changed"},
    ),
    "seal cut": (lambda pack: os.truncate(pack / "inventory.json", 40), {"inventory.json": "inventory-json"}),
    "seal of less": (lambda pack: _forge(pack), {"inventory.json": "inventory-digest"}),
}


def _a_part(pack: Path) -> Path:
    return min((pack / "shared").iterdir())


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _exchange(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def _forge(pack: Path) -> None:
    table = json.loads((pack / "inventory.json").read_bytes())
    table["files"].pop()
    text = json.dumps(table, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    (pack / "inventory.json").write_text(text)


@pytest.mark.parametrize("case", CHANGES)
def test_every_change_of_a_sealed_pack_is_named(place: Place, case: str) -> None:
    petlpack.seal(place.pack)
    part = _a_part(place.pack).relative_to(place.pack).as_posix()
    change, expected = CHANGES[case]
    change(place.pack)
    assert codes(place) == {part if name == "part" else name: code for name, code in expected.items()}
    result = run("verify", place.pack, "--base", place.base)
    assert result.exit_code == 4
    assert "not as sealed" in result.stdout
    assert run_json("verify", place.pack)[0] == 4


WRITES: dict[str, Callable[[Place], object]] = {
    "encode": lambda place: place.encode(place.run)(place.pack),
    "replace": lambda place: petlpack.encode(place.run, place.pack, place.base, task="two", replace=True),
    "remove": lambda place: petlpack.remove(place.pack, "two"),
    "remove and collect": lambda place: (petlpack.remove(place.pack, "two"), petlpack.gc(place.pack)),
    "refused": lambda place: _taken(place),
}


def _taken(place: Place) -> None:
    with pytest.raises(petlpack.TaskError):
        petlpack.encode(place.run, place.pack, place.base, task="one")


@pytest.mark.parametrize("write", WRITES)
def test_writing_keeps_the_seal(place: Place, write: str) -> None:
    before = petlpack.seal(place.pack).sha256
    WRITES[write](place)
    assert codes(place) == {}
    seal = Store(place.pack).read_seal()
    assert seal is not None
    assert not seal.stale
    assert (seal.sha256 == before) == (write == "refused")
    assert petlpack.seal(place.pack).sha256 == seal.sha256


def test_writing_vouches_for_nothing_else(place: Place) -> None:
    petlpack.seal(place.pack)
    _flip(place.pack / f"tasks/one{SUFFIX}")
    petlpack.remove(place.pack, "two")
    assert codes(place) == {f"tasks/one{SUFFIX}": "sealed-changed"}


DYING = """
import os, sys
import petlpack
from petlpack.store import seals
moment, place, pack = sys.argv[1:]
seals.taken = lambda *_: os._exit(7)  # where it would write the seal anew
if moment == "replace":
    petlpack.encode(place + "/run", pack, place + "/base", task="two", replace=True, jobs=1)
else:
    petlpack.remove(pack, "two")
"""


@pytest.mark.parametrize("moment", ["replace", "remove"])
def test_a_writer_that_dies_leaves_a_stale_seal(place: Place, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    monkeypatch.setattr("petlpack.checking.seal._PATIENCE", 0.0)
    petlpack.seal(place.pack)
    command = [sys.executable, "-c", DYING, moment, str(place.root), str(place.pack)]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 7
    assert codes(place)["inventory.json"] == "sealed-stale"
    petlpack.encode(place.run, place.pack, place.base, task="next")
    assert codes(place)["inventory.json"] == "sealed-stale"  # nobody knows what it has missed
    petlpack.seal(place.pack)
    assert codes(place) == {}


def test_a_damaged_seal_keeps_writers_out_until_it_is_made_anew(place: Place) -> None:
    (place.pack / "inventory.json").write_bytes(b"{}")
    before = place.snapshot(place.pack / "tasks")
    for write in ("encode", "remove"):
        with pytest.raises(petlpack.UnknownFormatError):
            WRITES[write](place)
    assert place.snapshot(place.pack / "tasks") == before
    petlpack.seal(place.pack)
    assert codes(place) == {}


@pytest.mark.rule("inventory-json", "inventory-fields", "inventory-row", "inventory-digest")
def test_what_is_sealed_is_read_by_both_readers(place: Place) -> None:
    for name in ("z", "\u00e9", "\U0001f600", "a b", 'quo"te', "back\\slash", "new\nline", "\ue000"):
        (place.pack / name).write_bytes(name.encode())
    (place.pack / "deep" / "er").mkdir(parents=True)
    (place.pack / "deep" / "er" / "file").write_bytes(b"")
    petlpack.seal(place.pack)
    text = (place.pack / "inventory.json").read_bytes()
    assert parse_seal(text).rows == spec_reader.parse_inventory(text)
    assert codes(place) == {}


def test_what_cannot_be_sealed_is_told(place: Place) -> None:
    os.mkfifo(place.pack / "pipe")
    (place.pack / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match="link"):
        petlpack.seal(place.pack)
    (place.pack / "link").unlink()
    try:
        Path(os.fsdecode(bytes(place.pack) + b"/\xff")).write_bytes(b"")
    except OSError:
        return
    with pytest.raises(UsageError, match="no Unicode"):
        petlpack.seal(place.pack)
    assert not (place.pack / "inventory.json").exists()


def test_a_pipe_as_seal_is_refused_without_waiting(place: Place) -> None:
    os.mkfifo(place.pack / "inventory.json")
    with pytest.raises(DamageError):
        Store(place.pack).read_seal()


def test_verify_looks_again_where_somebody_writes_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    petlpack.seal(place.pack)
    real, writers = checking_seal._compare, [place.encode(place.run)]

    def compare(*args: Any) -> object:
        while writers:
            writers.pop()(place.pack)
        return real(*args)

    monkeypatch.setattr(checking_seal, "_compare", compare)
    assert codes(place) == {}


def test_a_file_that_grows_while_it_is_sealed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast somebody writes to it, it is read no further than it reached."""
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    real = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        with path.open("ab") as file:
            file.write(bytes(5 << 20))
        return found

    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(UsageError, match="grows while it is read"):
        file_now(path)
