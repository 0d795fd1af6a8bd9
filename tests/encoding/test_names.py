"""What a task is called where no name is given: by its directory, made legal by one rule, and told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import petlpack
from petlpack import RunError, UsageError
from petlpack.store import check_task_name, legal_task_name
from petlpack.tensors.hub_cache import snapshot_of
from tests.support.places import Place

MADE = {
    "my run": "my-run",
    "My LoRA v1.0 (final)": "My-LoRA-v1.0-final",
    "Qwen2.5-7B__sft==v2": "Qwen2.5-7B__sft-v2",
    "模型-v1": "v1",
    "übung, größe": "ubung-gro-e",
    "run+lora": "run-lora",
    "a - b": "a-b",
    ".hidden": "hidden",
    "-dash": "dash",
    "--task": "task",
    "new\nline": "new-line",
    "ﬁne": "fine",
}


@pytest.mark.parametrize("text", MADE)
def test_a_name_is_made_by_one_rule(text: str) -> None:
    assert legal_task_name(text) == MADE[text]


@pytest.mark.parametrize(
    "text", ["模型", "", "...", "con", "NUL", "aux.v1", "a" * 129, "é" * 200, "\udce9", "a" * 127 + " b"]
)
def test_where_the_rule_leaves_no_name_a_digest_makes_one(text: str) -> None:
    name = check_task_name(legal_task_name(text))
    assert name != legal_task_name(text + "x")
    assert any(len(part) == 8 and set(part) <= set("0123456789abcdef") for part in name.replace(".", "-").split("-"))


def test_long_names_that_begin_alike_stay_apart() -> None:
    one, two = (legal_task_name("a" * 200 + end) for end in "xy")
    assert (len(one), len(two), one == two) == (128, 128, False)


@given(st.text(max_size=200))
def test_any_text_makes_a_legal_name_and_a_legal_one_stays(text: str) -> None:
    name = check_task_name(legal_task_name(text))
    assert not name.startswith("-")
    assert legal_task_name(name) == name


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True))
def test_a_name_that_is_legal_is_not_changed(text: str) -> None:
    try:
        check_task_name(text)
    except UsageError:  # a device of Windows
        return
    assert legal_task_name(text) == text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("text", ["my run", "模型-v1", "a" * 200, ".hidden", "con", "-dash"])
def test_any_directory_can_be_encoded_and_is_told_its_name(place: Place, text: str) -> None:
    place.run.rename(place.root / text)
    (encoded,) = petlpack.encode(place.root / text, place.pack, place.base)
    assert encoded.name == legal_task_name(text)
    assert encoded.warnings == (f"its task is named '{encoded.name}': no task can be called '{text}'",)
    (named,) = petlpack.encode(place.root / text, place.pack, place.base, task="other")
    assert named.warnings == ()
    place.refused(place.encode(place.root / text, task="my run"), UsageError, "invalid task name")


def test_two_names_that_meet_are_told(place: Place) -> None:
    for name in ("my run", "my+run"):
        shutil.copytree(place.run, place.root / name)
    runs = [place.root / "my run", place.root / "my+run"]
    first, second = petlpack.encode_runs(runs, place.pack, place.base)
    assert first.error is None
    assert isinstance(second.error, UsageError)
    assert "would be task 'my-run', which is taken by" in second.error.message
    assert str(runs[0]) in second.error.message
    assert str(runs[1]) in second.error.message


# The Hub's cache


def _cached(place: Place, *revisions: str, main: str | None = None, name: str = "models--org--tuned") -> Path:
    """The run as the Hub's cache holds it: blobs, and snapshots of links to them."""
    folder = place.root / name
    (folder / "blobs").mkdir(parents=True)
    for revision in revisions:
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for i, file in enumerate(sorted(place.run.iterdir())):
            shutil.copyfile(file, folder / "blobs" / f"{i}")
            (snapshot / file.name).symlink_to(Path("../../blobs") / f"{i}")
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main, encoding="utf-8")
    return folder


@pytest.mark.skipif(os.name == "nt", reason="Windows may not make links")
@pytest.mark.parametrize("inside", ["", "snapshots/0f0f"])
@pytest.mark.parametrize(("folder", "name"), {"models--org--tuned": "org--tuned", "models--gpt2": "gpt2"}.items())
def test_a_folder_of_the_hub_s_cache_is_a_run(place: Place, folder: str, name: str, inside: str) -> None:
    run = _cached(place, "0f0f", main="0f0f", name=folder) / inside
    (encoded,) = petlpack.encode(run, place.pack, place.base)
    assert (encoded.name, encoded.warnings) == (name, ())
    (checked,) = petlpack.verify(place.pack, place.base, task=name, against=run)
    assert checked.error is None
    out = petlpack.open(place.pack)[name].decode(place.root / "out", place.base).path
    for file in place.run.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows may not make links")
def test_of_several_snapshots_that_of_main_counts(place: Place) -> None:
    folder = _cached(place, "aaaa", "bbbb", main="aaaa")
    assert snapshot_of(folder) == folder / "snapshots" / "aaaa"
    (folder / "refs" / "main").write_text("gone", encoding="utf-8")
    error = place.refused(place.encode(folder, task=None), RunError, "has 2 snapshots")
    assert error.hint is not None
    assert str(folder / "snapshots" / "bbbb") in error.hint
    shutil.rmtree(folder / "snapshots" / "aaaa")
    assert snapshot_of(folder) == folder / "snapshots" / "bbbb"
    shutil.rmtree(folder / "snapshots" / "bbbb")
    place.refused(place.encode(folder, task=None), RunError, "has no snapshot")


def test_only_a_folder_with_snapshots_is_of_the_cache(place: Place) -> None:
    run = place.root / "models--mine"
    shutil.copytree(place.run, run)
    (encoded,) = petlpack.encode(run, place.pack, place.base)
    assert encoded.name == "models--mine"
