"""A pack whose own directories or lock are links: refused by name, and nothing is touched where they lead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import petlpack
from petlpack import DamageError
from petlpack.store import PACK_JSON
from tests.support.command_line import posix
from tests.support.places import Place

pytestmark = posix

CALLS: dict[str, Callable[[Place, Path], object]] = {
    "open": lambda place, pack: petlpack.open(pack),
    "encode": lambda place, pack: place.encode(place.run)(pack),
    "gc": lambda place, pack: petlpack.gc(pack),
    "gc of everything": lambda place, pack: petlpack.gc(pack, everything=True),
    "remove": lambda place, pack: petlpack.remove(pack, "one"),
    "seal": lambda place, pack: petlpack.seal(pack),
    "stats": lambda place, pack: petlpack.stats(pack),
    "list": lambda place, pack: petlpack.listing(pack),
    "verify": lambda place, pack: list(petlpack.verify(pack)),
}


def _links(place: Place, name: str, target: Path) -> Path:
    """Make a pack of its own, with one of its directories a link into the other pack."""
    pack = place.bad("linked")
    (pack / "pack.json").write_bytes(PACK_JSON)
    for directory in {"tasks", "shared"} - {name}:
        (pack / directory).mkdir()
    (pack / name).symlink_to(target, target_is_directory=True)
    return pack


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["tasks", "shared"])
def test_a_directory_that_is_a_link_is_refused(place: Place, call: str, name: str) -> None:
    pack = _links(place, name, place.pack / name)
    error = place.refused(lambda _: CALLS[call](place, pack), DamageError, f"linked/{name}", "is a link")
    assert error.code == "pack-directory"


@pytest.mark.parametrize("kind", ["dangling", "to itself", "a file", "a pipe"])
def test_what_else_is_no_directory_is_refused(place: Place, kind: str) -> None:
    pack = _links(place, "tasks", place.root / "nowhere")
    if kind != "dangling":
        (pack / "tasks").unlink()
    if kind == "to itself":
        (pack / "tasks").symlink_to("tasks")
    elif kind == "a file":
        (pack / "tasks").write_bytes(b"")
    elif kind == "a pipe":
        os.mkfifo(pack / "tasks")
    error = place.refused(lambda _: place.encode(place.run)(pack), DamageError, "linked/tasks")
    assert error.code == "pack-directory"
    assert not (place.root / "nowhere").exists()


@pytest.mark.parametrize("moment", ["scratch", "put"])
def test_a_link_that_is_laid_meanwhile_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    pack = place.bad("fresh")
    shutil.copytree(place.pack, pack, dirs_exist_ok=True)
    real = getattr(petlpack.store.Store, moment)

    def lay(store: petlpack.store.Store, *args: object, **more: object) -> object:
        if not (pack / "shared").is_symlink():
            shutil.rmtree(pack / "shared")
            (pack / "shared").symlink_to(place.pack / "shared")
        return real(store, *args, **more)

    monkeypatch.setattr(petlpack.store.Store, moment, lay)
    assert place.refused(lambda _: place.encode(place.run)(pack), DamageError, "fresh/shared").code == "pack-directory"


def test_scratch_is_made_nowhere_else(place: Place) -> None:
    pack = place.bad("fresh")
    shutil.copytree(place.pack, pack, dirs_exist_ok=True)
    store = petlpack.store.Store(pack)
    elsewhere = place.bad("elsewhere")
    shutil.rmtree(pack / "tasks")
    (pack / "tasks").symlink_to(elsewhere)
    with pytest.raises(DamageError, match="is a link"), store.scratch() as path:
        path.write_bytes(b"")
    assert list(elsewhere.iterdir()) == []


def test_what_a_link_in_a_pack_leads_to_is_none_of_its_files(place: Place) -> None:
    elsewhere = place.bad("elsewhere")
    (elsewhere / "large").write_bytes(bytes(5000))
    (place.pack / "folder").symlink_to(elsewhere)
    (place.pack / "file").symlink_to(elsewhere / "large")
    found = {name: size for name, size in petlpack.store.Store(place.pack).files() if name.startswith("f")}
    assert found.keys() == {"folder", "file"}
    assert all(size < 5000 for size in found.values())


def test_a_journal_that_is_a_link_says_nothing(place: Place) -> None:
    parts = petlpack.open(place.pack).shared_names()
    (place.root / "journal").write_text("".join(f"{part}\n" for part in parts))
    (place.pack / ".released").unlink(missing_ok=True)
    (place.pack / ".released").symlink_to(place.root / "journal")
    for task in (place.pack / "tasks").iterdir():
        task.rename(place.root / task.name)  # a pack that was copied in part
    assert petlpack.gc(place.pack).files == {}
    assert petlpack.open(place.pack).shared_names() == parts


@pytest.mark.parametrize("kind", ["symbolic", "hard", "directory"])
def test_a_lock_that_is_another_file_is_refused_and_that_stays(place: Place, kind: str) -> None:
    precious = place.root / "precious"
    precious.write_bytes(b"precious")
    lock = place.pack / ".lock"
    lock.unlink(missing_ok=True)
    if kind == "symbolic":
        lock.symlink_to(precious)
    elif kind == "hard":
        lock.hardlink_to(precious)
    else:
        lock.mkdir()
    for call in ("encode", "gc", "remove", "seal"):
        assert place.refused(lambda pack: CALLS[call](place, pack), DamageError, ".lock").code == "pack-lock"  # noqa: B023
    assert precious.read_bytes() == b"precious"


def test_a_pipe_as_mark_is_refused_without_waiting(place: Place) -> None:
    pack = place.bad("piped")
    os.mkfifo(pack / "pack.json")
    place.refused(lambda _: petlpack.open(pack), petlpack.UnknownFormatError, "pack.json")


def test_files_that_are_links_are_read(place: Place) -> None:
    """As the Hub's cache keeps them: the directories are the pack's, and what is in them stands elsewhere."""
    cached = place.root / "cached"
    for path in place.pack.rglob("*"):
        if path.is_file() and path.name != ".lock":
            target = cached / path.relative_to(place.pack)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    assert all(found.error is None for found in petlpack.verify(cached, place.base))
    petlpack.seal(cached)
    assert all(found.error is None for found in petlpack.verify(cached, place.base))
