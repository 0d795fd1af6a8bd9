"""Files of accounting: whole or not at all, links followed, and nothing destroyed that is no report."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from petlpack.analyze.output import new_file, refuse_suffix
from petlpack.errors import UsageError
from petlpack.store import Store

posix = pytest.mark.skipif(os.name == "nt", reason="links, permissions and pipes of POSIX")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return Store.create(tmp_path / "d.pack").path


def write(path: Path, pack: Path | str, text: str = "new") -> None:
    with new_file(path, str(pack)) as temporary:
        assert temporary.parent == path.resolve().parent
        temporary.write_text(text)


def tree(place: Path) -> dict[str, str | None]:
    """Return every path below a place, with the text of files."""
    return {
        path.relative_to(place).as_posix(): path.read_text() if path.is_file() else None for path in place.rglob("*")
    }


def test_a_file_is_made_and_replaced(tmp_path: Path, pack: Path) -> None:
    write(tmp_path / "a", pack)
    assert (tmp_path / "a").read_text() == "new"
    write(tmp_path / "a", pack, "newer")
    assert (tmp_path / "a").read_text() == "newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "d.pack"]


def test_a_path_is_meant_from_where_one_is(tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pack)
    write(Path("../a"), ".")
    assert (tmp_path / "a").read_text() == "new"
    with pytest.raises(UsageError, match=r"'a' is inside the pack '\.'"):
        write(Path("a"), ".")


@pytest.mark.parametrize("name", ["pack.json", "a.html", "tasks/a.html", "shared/../a.html", "../d.pack/a", "new/a"])
def test_a_place_in_the_pack_is_refused(pack: Path, name: str) -> None:
    for place in ("tasks", "shared"):
        (pack / place).mkdir(exist_ok=True)
    before = tree(pack)
    with pytest.raises(UsageError, match=f"'{pack / name}' is inside the pack '{pack}'") as caught:
        write(pack / name, pack)
    assert caught.value.hint
    assert tree(pack) == before


@posix
def test_no_link_leads_into_the_pack(tmp_path: Path, pack: Path) -> None:
    before = tree(pack)
    (tmp_path / "file").symlink_to(pack / "pack.json")
    (tmp_path / "new").symlink_to(pack / "new.html")
    (tmp_path / "other").symlink_to(pack)
    for path, named in (
        *((tmp_path / "file", pack), (tmp_path / "new", pack), (tmp_path / "other" / "a", pack)),
        *((pack / "a", tmp_path / "other"), (tmp_path / "other" / "pack.json", tmp_path / "other")),
    ):
        with pytest.raises(UsageError, match="inside the pack"):
            write(path, named)
    assert tree(pack) == before
    assert (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("path", ["", ".", "..", "directory"])
def test_a_directory_is_refused(tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "directory").mkdir()
    monkeypatch.chdir(tmp_path / "directory")
    with pytest.raises(UsageError, match=f"'{Path(path) if path != 'directory' else tmp_path / path}' is a directory"):
        write(tmp_path / path if path == "directory" else Path(path), pack)
    assert not [*(tmp_path / "directory").iterdir()]


@posix
def test_what_is_no_regular_file_is_refused(tmp_path: Path, pack: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/null")):
        with pytest.raises(UsageError, match=f"'{path}' is not a regular file") as caught:
            write(path, pack)
        assert caught.value.hint
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are Linux's")
def test_the_standard_output_is_refused(pack: Path) -> None:
    reading, writing = os.pipe()
    gone = os.open(pack.parent / "gone", os.O_CREAT | os.O_WRONLY)
    (pack.parent / "gone").unlink()
    try:
        for descriptor in (writing, gone):
            with pytest.raises(UsageError, match="is not a regular file"):
                write(Path(f"/dev/fd/{descriptor}"), pack)
    finally:
        for descriptor in (reading, writing, gone):
            os.close(descriptor)
    assert [path.name for path in pack.parent.iterdir()] == ["d.pack"]


@posix
def test_a_link_stays_a_link(tmp_path: Path, pack: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(Path("elsewhere") / name)
    (tmp_path / "elsewhere" / "old").write_text("old")
    (tmp_path / "twice").symlink_to("old")
    for name in ("new", "old", "twice"):
        write(tmp_path / name, pack, name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == name
    assert tree(tmp_path / "elsewhere") == {"new": "new", "old": "twice"}


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_permissions_stay(tmp_path: Path, pack: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    with new_file(path, str(pack)) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (mode, "new")


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_that_new_files_have(tmp_path: Path, pack: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "a", pack)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize(
    ("name", "why"),
    {"missing/a": "no directory '.*missing'", "file/a": "'.*file' is a file", "file/b/a": "file' is"}.items(),
)
def test_a_parent_that_is_no_directory_is_named(tmp_path: Path, pack: Path, name: str, why: str) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UsageError, match=f"{name}' cannot be created: .*{why}") as caught:
        write(tmp_path / name, pack)
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.pack", "file"]


@pytest.mark.parametrize("name", ["x" * 300])
def test_errors_of_the_system_name_the_path(tmp_path: Path, pack: Path, name: str) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
        write(tmp_path / name, pack)
    assert caught.value.filename == str(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.pack", "file"]


@posix
def test_a_link_to_itself_is_an_error_of_the_system(tmp_path: Path, pack: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        write(tmp_path / "loop", pack)
    assert caught.value.filename == str(tmp_path / "loop")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space", "other"), ValueError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_all_as_it_was(tmp_path: Path, pack: Path, error: BaseException, old: str | None) -> None:
    path = tmp_path / "a"
    if old is not None:
        path.write_text(old)
    before = tree(tmp_path)

    def fail() -> None:
        with new_file(path, str(pack)) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    if isinstance(caught.value, OSError):
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert tree(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk that is always there is Linux's")
def test_a_full_disk_is_named_by_the_path(tmp_path: Path, pack: Path) -> None:
    def fill() -> None:
        with new_file(tmp_path / "a", str(pack)) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("new")

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["d.pack"]


@pytest.mark.parametrize("pack", ["", "no such pack", "x" * 5000, "\udcff"])
def test_a_pack_that_is_nowhere_has_no_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(tmp_path / "a", pack)
    assert (tmp_path / "a").read_text() == "new"


def test_a_name_is_told_so_that_it_drives_no_terminal(tmp_path: Path, pack: Path) -> None:
    (tmp_path / "\x1b[31m").mkdir()
    with pytest.raises(UsageError) as caught:
        write(tmp_path / "\x1b[31m", pack)
    assert r"\x1b[31m' is a directory" in str(caught.value)
    with pytest.raises(UsageError, match=r"'a\\x1b\.x'") as caught:
        refuse_suffix(Path("a\x1b.x"), (".svg", ".png"), "a plot")
    assert caught.value.hint == "give a file name that ends in .svg or .png"
    refuse_suffix(Path("a.SVG"), (".svg", ".png"), "a plot")
