"""Mutants of the store: syncs, renames, locks, links, the journal, the seal (tools/mutants.py)."""

from __future__ import annotations

SYNCED = ("tests/trust/test_synced.py",)
POWER = ("tests/trust/test_power.py",)
LINKS = ("tests/trust/test_links.py",)
TOLD = ("tests/trust/test_told.py",)
SEAL = ("tests/trust/test_seal.py",)
PARTIAL = ("tests/trust/test_partial.py",)
BAD = ("tests/store/test_bad_packs.py",)
ALONE = ("tests/trust/test_alone.py",)
NAMES = ("tests/formats/test_formats.py",)

DISK = "petlpack/store/disk.py"
PACK = "petlpack/store/__init__.py"
LOCK = "petlpack/store/lock.py"
PLACES = "petlpack/store/places.py"
SEALS = "petlpack/store/seals.py"
RELEASED = "petlpack/store/released.py"
OUT = "petlpack/decoding/directory.py"
CHECKED = "petlpack/checking/seal.py"

_PUT_DIRECTORIES = "                self._sync_directories()\n                task.replace(target)\n"
_SWEPT = '                with self._done("the garbage is deleted"):\n                    self._sync_directories()\n'
_REPLACING = """        yield temporary
        sync(temporary)
        temporary.replace(path)
"""
_HALF = """            half_written.mkdir()
            yield half_written
            sync_tree(half_written)
            if out.exists():
                out.rmdir()
            half_written.rename(out)
"""
_AT_ONCE = """            out.mkdir(exist_ok=True)
            yield out
            sync_tree(out)
"""
_REFUSED_TWICE = "        with self.locked():\n            self.refuse_taken(name, replace=replace)\n"
_UNDONE = """        if any(name.startswith(TEMPORARY) for name in _names(path)) or _names(path / "tasks"):
            return
"""

Row = tuple[str, str, str]

STORE: dict[tuple[str, tuple[str, ...]], tuple[Row, ...]] = {
    (DISK, POWER): (
        (
            "sync of a file",
            "    descriptor = os.open(path, os.O_RDWR)\n    try:\n        os.fsync(descriptor)",
            "    descriptor = os.open(path, os.O_RDWR)\n    try:\n        pass",
        ),
        (
            "sync of a directory",
            "    try:\n        os.fsync(descriptor)\n    except",
            "    try:\n        pass\n    except",
        ),
        ("sync of the entry above", "        sync(path.absolute().parent)", "        pass"),
        ("sync of what is above directories that are made", "        sync_above(place)", "        pass"),
        ("sync of the files of a tree", "            sync(Path(folder, name))", "            pass"),
        ("sync of the directories of a tree", "        sync(Path(folder))\n", "        pass\n"),
        ("sync before a rename", "        sync(temporary)\n", ""),
        ("sync of the directory behind a rename", "        sync(path.parent)\n    finally", "    finally"),
    ),
    (DISK, SYNCED): (("rename into place", _REPLACING, "        yield path\n        sync(path)\n"),),
    (PACK, POWER): (
        ("sync of a task before its rename", "                sync(task)\n", ""),
        ("sync of the directories before the commit", _PUT_DIRECTORIES, "                task.replace(target)\n"),
        ("sync behind the commit", "                    sync(target.parent)\n", ""),
        ("sync behind a deletion", "                    sync(path.parent)\n", "                    pass\n"),
        (
            "sync of deletions before those of parts",
            "                self._sync_directories()  # no power",
            "                pass  # no power",
        ),
        ("sync of the pack's own directories", "                sync(self.path / name)\n", "                pass\n"),
    ),
    (PACK, SYNCED): (
        ("sync of the pack", "        sync(self.path)\n", ""),
        ("sync of the pack's entry above", "        sync_above(self.path)\n", ""),
        ("sync behind a sweep", _SWEPT, '                with self._done("the garbage is deleted"):\n'),
    ),
    (PACK, (*SYNCED, *ALONE)): (
        (
            "rename of a task into place",
            "                task.replace(target)\n",
            "                target.write_bytes(task.read_bytes())\n",
        ),
    ),
    (PACK, ALONE): (
        (
            "lock of put",
            _REFUSED_TWICE,
            "        with contextlib.nullcontext():\n            self.refuse_taken(name, replace=replace)\n",
        ),
        (
            "lock of remove",
            "        with self.locked():\n            self._bury()\n            path = self.find_task(name)",
            "        with contextlib.nullcontext():\n            self._bury()\n            path = self.find_task(name)",
        ),
        (
            "lock of seal",
            "        with self.locked():\n            self._bury()\n            names =",
            "        with contextlib.nullcontext():\n            self._bury()\n            names =",
        ),
        (
            "lock of whoever enters",
            "            with lock.locked(path, LOCK_TIMEOUT, told):",
            "            with contextlib.nullcontext():",
        ),
        ("second look at a name, under the lock", _REFUSED_TWICE, "        with self.locked():\n"),
    ),
    ("petlpack/pack.py", ALONE): (
        ("lock of gc", "        with self.store.locked():", "        with contextlib.nullcontext():"),
    ),
    (PACK, LINKS): (
        (
            "links refused as a pack is opened",
            "        places.check_mark(self.path)\n        places.refuse_foreign_directories(self.path)\n",
            "        places.check_mark(self.path)\n",
        ),
        (
            "links refused under the lock",
            "            places.refuse_foreign_directories(self.path)\n            yield\n",
            "            yield\n",
        ),
        (
            "links refused before scratch",
            "        places.refuse_foreign_directories(self.path)\n        for name in DIRECTORIES:\n",
            "        for name in DIRECTORIES:\n",
        ),
        ("links that are walked", "entry.is_dir(follow_symlinks=False)", "entry.is_dir()"),
        ("bytes of a link", "entry.stat(follow_symlinks=False)", "entry.stat()"),
    ),
    (DISK, LINKS): (
        (
            "directory told from a link",
            "        status = os.lstat(path)\n    except OSError:",
            "        status = os.stat(path)\n    except OSError:",
        ),
    ),
    (LOCK, LINKS): (
        (
            "lock that is no file",
            "        refuse_odd_lock(path)\n        lock = _lock(path)\n",
            "        lock = _lock(path)\n",
        ),
        ("lock that is a hard link", " or (status.st_nlink > 1 and status.st_size > 0)", ""),
        (
            "lock that is a symbolic link",
            "        status = os.lstat(path)\n    except FileNotFoundError:\n        return\n",
            "        status = os.stat(path)\n    except FileNotFoundError:\n        return\n",
        ),
    ),
    (LOCK, TOLD): (
        (
            "lock that its writer's death leaves told from a living one",
            "            refuse_odd_lock(path)\n            _acquire(lock, 0)\n",
            "            refuse_odd_lock(path)\n",
        ),
        ("sign of life", "            _acquire(lock, 0)\n        yield owner", "            pass\n        yield owner"),
        ("lock by the file system alone", "fallback_to_soft=False", "fallback_to_soft=True"),
    ),
    (LOCK, ALONE): (
        ("lock that is still in its place", "        if _is_the_file(lock, path):", "        if True:"),
        (
            "sign of life that is a link",
            "            refuse_odd_lock(path)\n            _acquire(lock, 0)\n",
            "            _acquire(lock, 0)\n",
        ),
    ),
    (PLACES, TOLD): (("look for other creators before a pack is undone", _UNDONE, ""),),
    (PLACES, ALONE): (("lock of whoever undoes a pack", ", lock.locked(path, 0, []):", ":"),),
    (PLACES, SYNCED): (
        (
            "rename of the mark into place",
            "        with replacing(path / MARK) as temporary:",
            "        with contextlib.nullcontext(path / MARK) as temporary:",
        ),
    ),
    (RELEASED, SYNCED): (
        ("sync of the journal's deletion", "        sync(pack)\n", ""),
        (
            "rename of the journal into place",
            "        with replacing(pack / RELEASED) as temporary:",
            "        with contextlib.nullcontext(pack / RELEASED) as temporary:",
        ),
    ),
    (SEALS, SYNCED): (
        (
            "rename of the seal into place",
            "    with replacing(pack / INVENTORY) as temporary:",
            "    with contextlib.nullcontext(pack / INVENTORY) as temporary:",
        ),
    ),
    (OUT, POWER): (
        ("sync of what is decoded", "            sync_tree(half_written)\n", ""),
        ("sync of the decoded directory's entry", "        sync(out.parent)\n", "        pass\n"),
        ("rename of what is decoded into place", _HALF, _AT_ONCE),
    ),
    (PACK, PARTIAL): (
        ("journal that gc goes by", "(everything or sha256 in released)", "True"),
        (
            "parts that are given up by a removal",
            "            noted = note_if_room(self.path, alone)\n",
            "            noted = True\n",
        ),
        (
            "parts that are given up by a replacement",
            "            change_released(self.path, add={*new, *given_up})\n",
            "            change_released(self.path, add={*new})\n",
        ),
        ("parts that are needed again", "                    change_released(self.path, strike=shared)\n", ""),
    ),
    ("petlpack/store/released.py", PARTIAL): (
        (
            "parts that other tasks need",
            "            alone -= set() if other == path else set(needs(other))\n",
            "            pass\n",
        ),
    ),
    (PACK, (*PARTIAL, *BAD)): (("parts that tasks need", "if sha256 not in needed and (everything", "if (everything"),),
    (PACK, SEAL): (
        (
            "seal kept by put",
            "            with keeping_seal(self.path, [task_file(name), *map(shared_file, new)], self.told):",
            "            with contextlib.nullcontext():",
        ),
        (
            "seal kept by remove",
            "keeping_seal(self.path, [task_file(name)], self.told, frees=True)",
            "contextlib.nullcontext()",
        ),
        (
            "seal kept by gc",
            "keeping_seal(self.path, files, self.told, frees=True) if parts else contextlib",
            "contextlib",
        ),
    ),
    (SEALS, SEAL): (
        (
            "seal that is stale while a writer writes",
            "        write_seal(pack, replace(sealed, stale=True))\n",
            "        pass\n",
        ),
        ("seal that stays stale", "    if sealed is None or sealed.stale:", "    if sealed is None:"),
        (
            "files that lead nowhere are not sealed",
            "        if not os.path.lexists(path):\n            raise\n",
            "        raise\n",
        ),
        ("files that grow are not sealed", "    if nbytes > size:", "    if False:"),
    ),
    (SEALS, NAMES): (
        ("digest of the seal", '    if table["sha256"] != seal.sha256:', "    if False:"),
        ("order of the seal", '    if seal.rows != table["files"]:', "    if False:"),
        ("text of the seal", "    if seal.to_json() != text:", "    if False:"),
        (
            "names of the seal that lead elsewhere",
            '    plain = all(part not in ("", ".", "..") for part in name.split("/")) and "\\0" not in name\n',
            "    plain = True\n",
        ),
    ),
    (CHECKED, SEAL): (
        ("files that no seal names", "    if sealed is None:\n", "    if False:\n"),
        ("files that are missing", "    if found is None:\n", "    if False:\n"),
        ("files that are not as sealed", "    if found != sealed:\n", "    if False:\n"),
        ("stale seal", " _stale(store) if seal.stale else None,", " None,"),
        (
            "second look while somebody writes",
            "            settled = store.read_seal() == seal\n",
            "            settled = True\n",
        ),
    ),
    (PACK, ("tests/store/test_store.py::test_a_name_is_taken_once_whatever_its_case",)): (
        ("names that differ only in case", "stem.lower() == lower)", "stem == name)"),
    ),
    ("petlpack/store/names.py", NAMES): (
        ("names of tasks that lead elsewhere", "_TASK_NAME.fullmatch(name) is not None and", "True and"),
        ("names of devices", " and _RESERVED.fullmatch(name) is None", ""),
    ),
    (RELEASED, LINKS): (("journal that is a link", "path.is_symlink() or not path.is_file()", "not path.is_file()"),),
    (PACK, ("tests/store/test_store.py::test_sweep_deletes_what_nobody_needs_and_only_stale_temporary_files",)): (
        (
            "age of what may be swept",
            "        leftovers = [path for path in drafts if is_older(path, STALE)]",
            "        leftovers = drafts",
        ),
    ),
    (DISK, ("tests/trust/test_checks.py",)): (
        (
            "regular file",
            "    except (SpecialFileError, IsADirectoryError) as error:\n        raise ValueError",
            "    except ZeroDivisionError as error:\n        raise ValueError",
        ),
    ),
}
"""By file and tests: (what is taken away, the text, what stands there instead)."""
