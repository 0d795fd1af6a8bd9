"""Whatever a file, a directory, a tensor or a task is called: refused, and nothing written, or back bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import petlpack
from petlpack import Encoded, PetlpackError, RunError
from petlpack.records.template import Template
from petlpack.tensors.file_names import check_apart, is_file_name, not_everywhere
from tests.support import spec_reader
from tests.support.small_runs import weights, write_safetensors

WEIGHTS = {"a.weight": weights("F32", (2, 3), 1), "b.weight": weights("F32", (3,), 2)}

LEGAL = {
    "no-break space": "m\u00a0x",
    "narrow space": "m\u202fx",
    "soft hyphen": "m\u00adx",
    "joiner": "m\u200dx",
    "ideographic space": "\u3000x",
    "new emoji": "m\U0001fae9",
    "turned": "m\u202ex",
    "isolated": "m\u2066x",
    "line separator": "m\u2028x",
    "private": "m\ue000",
    "no character": "m\uffff",
    "leading space": " m",
    "a device of Windows": "con",
    "a question": "m?*x",
    "combined": "m\u0301x",
}
ILLEGAL = {
    "colon": "m:x",
    "backslash": "a\\b",
    "line feed": "m\nx",
    "escape": "m\x1bx",
    "next line": "m\x85x",
    "C1": "m\x9bx",
    "delete": "m\x7fx",
    "no UTF-8": "m\udce9x",
}
PLACES = {
    "weights": "{}.safetensors",
    "component": "v_{}.safetensors",
    "directory": "{}/head.safetensors",
    "kept": "{}.txt",
    "kept directory": "{}/notes.txt",
}
"""Where a name can be in a run."""

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")


def write(root: Path, place: str, name: str) -> Path:
    """Write a run with something that is called so."""
    run = root / "run"
    path = run / PLACES[place].format(name)
    path.parent.mkdir(parents=True)
    if place != "weights":
        write_safetensors(run / "model.safetensors", WEIGHTS)
    if path.suffix == ".txt":
        path.write_bytes(b"notes")
    else:
        write_safetensors(root / "w", {f"{place}.c": weights("F16", (3,), 3)}).rename(path)
    return run


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def encode(run: Path, task: str | None = "t") -> Encoded:
    (encoded,) = petlpack.encode(run, run.parent / "pack", codec="plain", task=task, jobs=1)
    return encoded


def back(run: Path, encoded: Encoded) -> None:
    """Check that all of a run comes back, by the library and by the second reader, or is told to be left out."""
    pack = run.parent / "pack"
    for checked in petlpack.verify(pack):
        assert checked.error is None
    task = petlpack.open(pack)[encoded.name]
    expected, left = files_of(run), {row.file for row in encoded.left_out}
    assert files_of(task.decode(run.parent / "out", jobs=1).path) == {
        name: content for name, content in expected.items() if name not in left
    }
    tensors = {name: bits.tobytes() for name, _, bits in task.load().read_all(jobs=1)}
    assert {name: data for name, (_, _, data) in spec_reader.read_task(pack, encoded.name, {}).items()} == tensors


def refused(run: Path, error: PetlpackError) -> None:
    """Check that an error is told well, and that there is no pack."""
    assert error.exit_code in (1, 2)
    assert error.message.isprintable()
    assert error.hint
    assert not (run.parent / "pack").exists()


def outcome(run: Path, task: str | None = "t") -> PetlpackError | None:
    """Encode a run, and check that it is refused or comes back."""
    try:
        encoded = encode(run, task)
    except PetlpackError as error:
        refused(run, error)
        return error
    back(run, encoded)
    return None


@posix
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", LEGAL)
def test_a_legal_name_comes_back(case: str, place: str, tmp_path: Path) -> None:
    run = write(tmp_path, place, LEGAL[case])
    encoded = encode(run)
    assert encoded.left_out == ()
    back(run, encoded)


@posix
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", ILLEGAL)
def test_an_illegal_name_is_refused_or_left_out_and_told(case: str, place: str, tmp_path: Path) -> None:
    try:
        run = write(tmp_path, place, ILLEGAL[case])
    except OSError:
        pytest.skip("this file system has no such name")
    error = outcome(run)
    if place == "weights":
        assert isinstance(error, RunError)
        assert error.code == "file-name"
    else:
        assert error is None
        shutil.rmtree(run.parent / "pack")
        encoded = encode(run)
        assert [row.why for row in encoded.left_out] == ["a file name that is not valid on every system"]
        assert any("names that are not valid on every system" in text for text in encoded.warnings)


# Names that are one file elsewhere


@posix
@pytest.mark.parametrize(
    "names", [("README.md", "readme.md"), ("a/Notes.txt", "A/notes.txt"), ("a.txt", "A.TXT/b.txt")]
)
def test_names_that_clash_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    run = write(tmp_path, "kept", "x")
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(name.encode())
    if len(files_of(run)) != 4:
        pytest.skip("this file system has one file for both")
    with pytest.raises(RunError, match="cannot come back everywhere") as caught:
        encode(run)
    assert caught.value.code == "file-clash"
    refused(run, caught.value)
    (encoded,) = petlpack.encode(run, tmp_path / "pack", codec="plain", task="t", drop=names[0])
    back(run, encoded)


@posix
def test_names_that_only_some_systems_have_are_told(tmp_path: Path) -> None:
    run = write(tmp_path, "kept", "con")
    for name in ("\u00e4.txt", "\u00c4.txt", "e\u0301.txt", "\u00e9.txt", "fine.txt", "a..b.txt"):
        (run / name).write_bytes(b"x")
    encoded = encode(run)
    assert encoded.warnings == (
        "not every system can hold files called con.txt, e\u0301.txt, \u00c4.txt, \u00e4.txt, \u00e9.txt: "
        "decode it where they can be",
    )
    back(run, encoded)


@given(st.lists(st.text("aAbB/.", min_size=1, max_size=5), max_size=6, unique=True))
def test_what_is_kept_apart_is_apart_where_case_is_ignored(names: list[str]) -> None:
    names = [name for name in names if is_file_name(name)]
    lower = [name.lower() for name in names]
    clash = len(set(lower)) < len(lower) or any(a.startswith(f"{b}/") for a in lower for b in lower)
    try:
        check_apart(names)
    except ValueError:
        assert clash
    else:
        assert not clash


def test_a_part_of_a_name_has_at_most_255_bytes() -> None:
    assert is_file_name("a" * 255 + "/" + "\u00e9" * 127)
    assert not is_file_name("\u00e9" * 128)
    assert not_everywhere(["a./b", "ok", "aux.json", "x/con", "console"]) == ["a./b", "aux.json", "x/con"]


# The compare step reads what was written, by the door that every reader takes


@posix
def test_what_no_check_of_the_writer_sees_the_compare_step_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(tmp_path, "weights", "m\nx")
    monkeypatch.setattr("petlpack.encoding.describe._check_files", lambda _: None)
    with pytest.raises(PetlpackError, match="as written does not decode to the run") as caught:
        encode(run)
    assert caught.value.code == "file-name"
    refused(run, caught.value)


def test_a_template_that_is_too_large_for_a_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write(tmp_path, "kept", "x")
    monkeypatch.setattr("petlpack.decoding.templates.MAX_TEMPLATE", 100)
    with pytest.raises(PetlpackError, match="expected at most 100") as caught:
        encode(run)
    assert caught.value.code == "size-limit"
    refused(run, caught.value)


def test_a_template_whose_text_says_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write(tmp_path, "kept", "x")
    written = Template.to_json
    monkeypatch.setattr(Template, "to_json", lambda self, name=None: written(self, name) + b" ")
    with pytest.raises(PetlpackError, match="not canonical JSON") as caught:
        encode(run)
    assert caught.value.code == "template-canonical"
    refused(run, caught.value)


# Any names

ODD = [
    *(c for name in (*LEGAL.values(), *ILLEGAL.values()) for c in name),
    *"aAbB/._- {}",
    "\ufeff",
    "\u0130",
    "\u1e9e",
]
NAMES = st.lists(st.sampled_from(ODD) | st.characters(), min_size=1, max_size=8).map("".join)


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Path]:
    """A directory for the runs of one test, each in a new one below."""
    return (tmp_path / f"{i}" for i in range(100_000))


def can_be(path: Path) -> bool:
    """Tell whether this system has such a path."""
    try:
        path.parent.mkdir(parents=True)
        path.touch()
    except (OSError, ValueError):
        return False
    return True


@posix
@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=50)
@given(name=NAMES)
def test_any_name_of_a_file_is_refused_or_comes_back(place: str, name: str, rooms: Iterator[Path]) -> None:
    room = next(rooms)
    assume(not name.startswith("/") and ".." not in name.split("/"))
    assume(can_be(room / "try" / PLACES[place].format(name)))
    shutil.rmtree(room)
    outcome(write(room, place, name))


@settings(max_examples=50)
@given(name=NAMES)
def test_any_name_of_a_tensor_is_refused_or_comes_back(name: str, rooms: Iterator[Path]) -> None:
    assume(name.isascii() or name.encode("utf-8", "replace").decode() == name)
    run = next(rooms) / "run"
    write_safetensors(run / "model.safetensors", {**WEIGHTS, name: weights("F32", (2,), 3)})
    assert outcome(run) is None


@settings(max_examples=50)
@given(name=NAMES)
def test_any_name_of_a_task_is_refused_or_comes_back(name: str, rooms: Iterator[Path]) -> None:
    run = next(rooms) / "run"
    write_safetensors(run / "model.safetensors", WEIGHTS)
    outcome(run, name)
