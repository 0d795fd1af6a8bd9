"""What is damaged, missing or of another base is told by name, the other tasks load, and nothing is written over."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import petlpack
from petlpack import Base, BaseError, DamageError, PetlpackError, TaskError, UsageError
from petlpack.sections.shared import write_shared
from petlpack.store import SUFFIX
from tests.support.places import DAMAGES, SMALL, Call, Methods, Place, same, snapshot
from tests.support.small_runs import make_pair, weights, write_run

# Damaged tasks and parts


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_task_is_told_and_the_others_load(place: Place, case: str) -> None:
    path = place.pack / "tasks" / f"one{SUFFIX}"
    damaged, whole = DAMAGES[case](path), path.read_bytes()
    assert damaged != whole
    path.write_bytes(damaged)
    before = place.snapshot()
    pack = petlpack.open(place.pack)
    with pytest.raises(DamageError, match=r"one\.petl\.safetensors") as caught:
        pack["one"].decode(place.root / "out", place.base)
    assert (caught.value.exit_code, caught.value.message.isprintable()) == (4, True)
    assert not (place.root / "out").exists()
    assert pack["two"].state_dict(place.base)
    wrong = [checked for checked in petlpack.verify(pack, place.base) if checked.error is not None]
    assert [(checked.name, type(checked.error)) for checked in wrong] == [("one", DamageError)]
    assert place.snapshot() == before
    petlpack.encode(place.run, place.pack, place.base, task="one", replace=True)
    place.check_others()


@pytest.mark.parametrize("how", ["missing", "zeros", "half", "another part"])
@pytest.mark.parametrize("what", ["template", "kept file"])
def test_a_damaged_shared_part_is_told_and_mended_by_encoding_again(place: Place, what: str, how: str) -> None:
    different = write_run(place.bad(), make_pair(4, labels=4, **SMALL)[0], {"model_type": "other"})
    petlpack.encode(different, place.pack, place.base, task="three")
    part = place.part("three", what)
    content = {
        "zeros": bytes(part.stat().st_size),
        "half": part.read_bytes()[: part.stat().st_size // 2],
        "another part": write_shared(b"other content" * 50),
    }
    part.unlink()
    if how != "missing":
        part.write_bytes(content[how])
    pack = petlpack.open(place.pack)
    with pytest.raises(DamageError, match=part.name.removesuffix(SUFFIX)) as caught:
        pack["three"].decode(place.root / "out", place.base)
    assert caught.value.exit_code == 4
    assert not (place.root / "out").exists()
    for task in ("one", "two"):
        assert pack[task].state_dict(place.base)
    wrong = {checked.name for checked in petlpack.verify(pack, place.base) if checked.error is not None}
    assert wrong - {part.name.removesuffix(SUFFIX)} == {"three"}
    petlpack.encode(different, place.pack, place.base, task="three", replace=True)
    place.check_others()


PARTS = ("template", "tensors", "table", "kept file")


@pytest.mark.parametrize("how", ["missing", "zeros", "half", "another part", "other tensors"])
@pytest.mark.parametrize("what", PARTS)
def test_a_damaged_part_of_any_kind_is_told_and_mended_by_encoding_again(methods: Methods, what: str, how: str) -> None:
    pack = methods.pack()
    state = methods.state(pack)
    task, masked = petlpack.open(pack)["hyper.a"], petlpack.open(pack)["mask.a"]
    template, tensors = task.manifest.shared
    table, kept = task.template.base_table, task.template.files["config.json"]
    assert table is not None
    sha256 = dict(zip(PARTS, (template, tensors, table, kept), strict=True))[what]
    assert sorted(task.parts) == sorted([template, tensors, table, kept])
    part = task.store.shared_path(sha256)
    content = {
        "zeros": bytes(part.stat().st_size),
        "half": part.read_bytes()[: part.stat().st_size // 2],
        "another part": write_shared(b"other content" * 50),
        "other tensors": task.store.shared_path(masked.manifest.shared[1]).read_bytes(),
    }
    part.unlink()
    if how != "missing":
        part.write_bytes(content[how])
    opened = petlpack.open(pack)
    with pytest.raises(DamageError, match=sha256) as caught:
        opened["hyper.a"].decode(methods.root / "out", methods.base)
    assert caught.value.exit_code == 4
    assert not (methods.root / "out").exists()
    assert methods.wrong(pack) - {sha256} == {"hyper.a", "hyper.b"}
    assert (sha256 in methods.wrong(pack)) == (how != "missing")
    for name in ("mask.a", "mask.b", "merge"):
        assert same(opened[name].state_dict(), state[name])
    before = snapshot(pack)
    if what == "template":
        with pytest.raises(DamageError, match=sha256):
            opened.gc()
        assert snapshot(pack) == before
    methods.encode("hyper", pack, replace=True)
    assert methods.wrong(pack) == set()
    assert methods.state(pack).keys() == state.keys()
    assert all(same(found, state[name]) for name, found in methods.state(pack).items())


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *itertools.product(
            ["mask.a", "mask.b", "hyper.a", "hyper.b", "merge"],
            ["half", "zeros", "no manifest", "text", "a shared part"],
        ),
        *((name, "zeroed section") for name in ("mask.a", "hyper.a", "merge")),  # mask.b has none
    ],
)
def test_a_damaged_task_of_a_method_is_told_and_its_siblings_load(methods: Methods, name: str, case: str) -> None:
    pack = methods.pack()
    state = methods.state(pack)
    path = pack / "tasks" / f"{name}{SUFFIX}"
    path.write_bytes(DAMAGES[case](path))
    assert methods.wrong(pack) == {name}
    for other, task in ((other, petlpack.open(pack)[other]) for other in state if other != name):
        assert same(task.state_dict(methods.base), state[other])
    with pytest.raises(DamageError):
        petlpack.open(pack).gc() if case != "zeroed section" else petlpack.open(pack)[name].state_dict(methods.base)


# Another base, missing tasks, and what is in the way


def test_a_base_that_is_another_is_refused_at_loading(place: Place) -> None:
    task, path = petlpack.open(place.pack)["one"], place.base / "model.safetensors"
    whole, names = path.read_bytes(), sorted(Base(place.base).tensors)
    start = 8 + int.from_bytes(whole[:8], "little")
    for bit in range(8 * start, 8 * len(whole), 37):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(BaseError, match="has sha256") as caught:
            task.decode(place.root / "out", place.base, jobs=1)
        assert any(f"'{name}'" in caught.value.message for name in names)
        assert (caught.value.exit_code, bool(caught.value.hint)) == (5, True)
        assert not (place.root / "out").exists()
    path.write_bytes(whole)
    tensors = make_pair(0, **SMALL)[1]
    changed = {
        "has no tensor": {name: tensor for name, tensor in tensors.items() if "LayerNorm" not in name},
        "the task needs F32 [4]": {**tensors, names[0]: weights("F32", (5,))},
        "is F16": {**tensors, names[0]: weights("F16", (4,))},
    }
    for i, (words, others) in enumerate(changed.items()):
        other = write_run(place.bad(f"other-{i}"), others)
        with pytest.raises(BaseError) as caught:
            task.state_dict(other)
        assert words in caught.value.message
    for missing in (None, place.root / "nowhere"):
        place.refused(functools.partial(_load_one, missing), BaseError)
    place.check_others()


def _load_one(base: Path | None, pack: Path) -> object:
    return petlpack.open(pack)["one"].state_dict(base)


def test_missing_tasks_are_told_by_name(place: Place) -> None:
    pack = petlpack.open(place.pack)
    calls: list[Call] = [
        lambda path: petlpack.open(path)["three"],
        lambda path: petlpack.open(path).remove("three"),
        lambda path: list(petlpack.verify(path, task="three")),
    ]
    for call in calls:
        assert isinstance(place.refused(call, TaskError, "no task 'three'"), KeyError)
    assert pack.get("three") is None


def test_decoding_never_writes_over_anything(place: Place) -> None:
    out = place.bad("out")
    (out / "precious").write_text("mine", encoding="utf-8")
    task = petlpack.open(place.pack)["one"]
    for target in (out, out / "precious"):
        place.refused(functools.partial(_decode_to, task, target, place), UsageError, "already exists")
    assert [path.name for path in out.iterdir()] == ["precious"]
    assert (out / "precious").read_text(encoding="utf-8") == "mine"


def _decode_to(task: petlpack.Task, target: Path, place: Place, pack: Path) -> object:
    return task.decode(target, place.base)


# Packs that cannot be written


@pytest.fixture
def read_only(place: Place, tmp_path: Path) -> Iterator[Path]:
    """A pack that cannot be written: by its mode, or for root on a file system mounted so."""
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        directories = [place.pack, *(path for path in place.pack.rglob("*") if path.is_dir())]
        for path in directories:
            path.chmod(0o555)
        yield place.pack
        for path in directories:
            path.chmod(0o755)
        return
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("root may write everywhere, and this system mounts no tmpfs")
    try:
        shutil.copytree(place.pack, mount / "pack")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        yield mount / "pack"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_pack_that_cannot_be_written_can_be_read(place: Place, read_only: Path) -> None:
    before = place.snapshot(read_only) if read_only == place.pack else None
    calls: list[Call] = [
        place.encode(place.run),
        place.encode(place.run, task="one", replace=True),
        lambda pack: petlpack.open(pack).remove("one"),
    ]
    for call in calls:
        with pytest.raises((OSError, PetlpackError)) as caught:
            call(read_only)
        assert str(read_only) in str(caught.value)
    for opened in petlpack.open(read_only).values():
        assert opened.state_dict(place.base)
    for checked in petlpack.verify(read_only, place.base):
        assert checked.error is None
    assert before is None or place.snapshot() == before
