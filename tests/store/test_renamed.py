"""Files of a pack that somebody renamed or put there: named, never deleted, and nor is what a task among them needs."""

from __future__ import annotations

from pathlib import Path

import pytest

import petlpack
from petlpack import DamageError, UnknownFormatError
from petlpack.store import PACK_JSON, SUFFIX, Store, is_own
from tests.support.command_line import run, run_json
from tests.support.places import Place

RENAMED = ["devel diff", "con", "a:b", ".hidden", "\u00fcbung", "a" * 129, ""]


@pytest.mark.parametrize("name", RENAMED)
def test_gc_keeps_what_a_renamed_task_needs(place: Place, name: str) -> None:
    odd = place.pack / "tasks" / f"{name}{SUFFIX}"
    try:
        (place.pack / "tasks" / f"two{SUFFIX}").rename(odd)
    except OSError:
        pytest.skip("this file system has no such name")
    assert petlpack.open(place.pack).gc() == []
    assert petlpack.open(place.pack).foreign() == [f"tasks/{odd.name}"]
    odd.rename(place.pack / "tasks" / f"back{SUFFIX}")
    assert len(list(petlpack.open(place.pack)["back"].load(place.base).read_all())) > 0
    place.check_others()


def test_gc_deletes_nothing_while_a_renamed_task_cannot_be_read(place: Place) -> None:
    task = place.pack / "tasks" / f"two{SUFFIX}"
    odd = task.with_name(f"two (1){SUFFIX}")
    odd.write_bytes(task.read_bytes()[:-1])
    task.unlink()
    with pytest.raises(DamageError, match=r"two \(1\)"):
        petlpack.open(place.pack).gc()


def test_what_macos_puts_beside_a_file_is_no_task(place: Place) -> None:
    (place.pack / "tasks" / f"._one{SUFFIX}").write_bytes(b"\0\5\x16\7")
    petlpack.open(place.pack).remove("two")
    assert [path.parent.name for path, _ in petlpack.open(place.pack).gc()] == ["shared"]


def test_gc_deletes_no_file_among_the_parts_that_is_none(place: Place) -> None:
    for name in ("notes", "A" * 64, "0" * 63):
        (place.pack / "shared" / f"{name}{SUFFIX}").write_bytes(b"x")
    before = place.snapshot()
    assert petlpack.open(place.pack).gc() == []
    assert place.snapshot() == before
    assert len(petlpack.open(place.pack).foreign()) == 3


def test_list_and_verify_name_what_is_no_part_of_a_pack(place: Place) -> None:
    (place.pack / "tasks" / f"two{SUFFIX}").rename(place.pack / "tasks" / f"two \u202e!{SUFFIX}")
    (place.pack / "notes.txt").write_bytes(b"x")
    (place.pack / "old").mkdir()
    (place.pack / "old" / f"one{SUFFIX}").write_bytes(b"x")
    for command in (("list",), ("verify", "--base", place.base)):
        result = run(command[0], place.pack, *command[1:])
        assert result.exit_code == 0
        assert f"Warning: 'tasks/two \\u202e!{SUFFIX}' is no task under this name: rename it" in result.stderr
        assert f"Warning: not part of the pack: 'notes.txt', 'old/one{SUFFIX}'" in result.stderr
        code, answer = run_json(command[0], place.pack, *command[1:])
        assert code == 0
        assert answer["foreign"] == ["notes.txt", f"old/one{SUFFIX}", f"tasks/two \u202e!{SUFFIX}"]


def test_a_whole_pack_is_its_own(place: Place) -> None:
    assert petlpack.open(place.pack).foreign() == []
    assert is_own("tasks/.tmp-1")
    assert not is_own("elsewhere/.tmp-1")


MARKS = {
    "a key twice": b'{"format": "petlpack", "version": 2, "version": 1}',
    "a key too many": b'{"format": "petlpack", "version": 1, "codec": 1}',
    "a mark of byte order": b"\xef\xbb\xbf" + PACK_JSON,
    "UTF-16": PACK_JSON.decode().encode("utf-16"),
}


@pytest.mark.parametrize("case", MARKS)
def test_a_mark_is_read_in_one_way_only(case: str, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_bytes(MARKS[case])
    with pytest.raises(UnknownFormatError) as caught:
        Store(tmp_path)
    assert caught.value.code == "pack-json"
