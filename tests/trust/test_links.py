"""Links and special files, wherever a file or a directory is expected: nothing waits, and nothing is touched elsewhere.

A pack whose own directories or lock are links is refused by name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import petlpack
from petlpack import DamageError
from petlpack.store import PACK_JSON
from tests.support.command_line import posix
from tests.support.confined import Runner
from tests.support.odd_files import KINDS, PRECIOUS, replace
from tests.support.places import Place
from tests.support.tally import Tally

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


def _part(place: Place) -> Path:
    return place.part("one", "template")


IN_PACK: dict[str, Callable[[Place], Path]] = {
    "pack": lambda place: place.pack,
    **{name: (lambda place, name=name: place.pack / name) for name in ("pack.json", "tasks", "shared")},  # type: ignore[misc]
    **{name: (lambda place, name=name: place.pack / name) for name in (".lock", ".released", "inventory.json")},  # type: ignore[misc]
    "task": lambda place: place.pack / "tasks" / "one.petl.safetensors",
    "part": _part,
    "leftover": lambda place: place.pack / "tasks" / f".tmp-{'0' * 32}-1",
    "owner": lambda place: place.pack / f".tmp-{'0' * 32}.lock",
    "draft": lambda place: place.pack / ".tmp-locked-1",
}
OF_RUN: dict[str, Callable[[Place], Path]] = {
    "run": lambda place: place.run,
    "base": lambda place: place.base,
    "out": lambda place: place.root / "out",
    **{
        name: (lambda place, name=name: place.run / name)  # type: ignore[misc]
        for name in ("model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "notes.txt")
    },
    "index": lambda place: place.run / "model.safetensors.index.json",
    "pickled": lambda place: place.run / "pytorch_model.bin",
    "adapter": lambda place: place.run / "adapter_config.json",
    "weights of the base": lambda place: place.base / "model.safetensors",
    "config of the base": lambda place: place.base / "config.json",
}
"""Every place in which a command looks for a file, by what stands there."""


def _commands(place: Place, name: str) -> Iterator[list[str]]:
    """Yield what people do where such a file stands."""
    pack, run, base = str(place.pack), str(place.run), str(place.base)
    encode = ["encode", run, "--pack", pack, "--base", base, "--task", "one", "--replace", "--jobs", "1"]
    decode = ["decode", pack, "one", str(place.root / "out"), "--base", base, "--jobs", "1"]
    if name in IN_PACK:
        yield from (["list", pack], ["list", pack, "--long"], ["show", pack, "one"], ["stats", pack])
        yield from (["verify", pack, "--jobs", "1"], ["gc", pack], ["gc", pack, "--all"], ["seal", pack])
        yield ["remove", pack, "one"]
    else:
        yield from (["survey", run, "--jobs", "1"], ["plan", run, "--base", base, "--jobs", "1"])
    yield from (encode, decode)


def _outside(place: Place) -> dict[str, tuple[int, int, int]]:
    """Return what stands beside the rest, and all that is neither pack nor output."""
    own = (place.pack, place.root / "out")
    paths = [path for path in place.root.rglob("*") if not {*own} & {path, *path.parents}]
    states = {path.relative_to(place.root).as_posix(): path.lstat() for path in paths}
    return {name: (one.st_mode, one.st_size, one.st_mtime_ns) for name, one in states.items()}


@pytest.mark.trust(24)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*IN_PACK, *OF_RUN])
def test_what_is_no_file_is_told_and_nothing_else_is_touched(
    name: str, kind: str, pristine: Path, tmp_path: Path, runner: Runner, tally: Tally
) -> None:
    for number in range(len(list(_commands(Place(tmp_path, tmp_path, tmp_path, tmp_path), name)))):
        root = tmp_path / f"{number}"
        shutil.copytree(pristine, root)
        place = Place(root, root / "pack", root / "base", root / "run")
        beside = place.bad("beside")
        (beside / "precious").write_bytes(PRECIOUS)
        replace({**IN_PACK, **OF_RUN}[name](place), kind, beside)
        before = _outside(place)
        arguments = [*_commands(place, name)][number]
        runner.check(root, [*arguments, "--json"], seconds=3)
        assert _outside(place) == before, arguments
        assert (beside / "precious").read_bytes() == PRECIOUS
        shutil.rmtree(root)
    tally("links and special files", 1)


ESCAPES = (
    *("../beside/w.safetensors", "/etc/hostname", "..", ".", "a/../../beside/w.safetensors", "beside"),
    *("C:\\w", "w\0", "\ud800"),
)
"""Names that an index has for the file of a tensor, and that lead out of the run, or nowhere."""


@pytest.mark.parametrize("name", ESCAPES)
def test_an_index_leads_nowhere_else(name: str, place: Place, runner: Runner, tally: Tally) -> None:
    """Not by a name, and not by a link that its own name leads to: what is outside comes into no pack."""
    beside = place.bad("beside")
    shutil.copyfile(place.run / "model.safetensors", beside / "w.safetensors")
    (place.run / "beside").symlink_to(beside, target_is_directory=True)
    (place.run / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"w": name}}
    (place.run / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    pack = place.root / "new"
    found = runner.check(place.root, ["encode", str(place.run), "--pack", str(pack), "--json"], seconds=3)
    assert found["exit"] == 1, found
    assert not pack.exists()
    tally("links and special files", 1)
