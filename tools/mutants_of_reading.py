"""Mutants of readers and of the compare step: digests, bases, files that change, what is no file (tools/mutants.py)."""

from __future__ import annotations

FLIPS = ("tests/trust/test_flips.py",)
DAMAGE = ("tests/decoding/test_damage.py",)
FORMATS = ("tests/formats/test_formats.py", "tests/formats/test_packs.py")
PINNED = ("tests/trust/test_pinned.py",)
TOLD = ("tests/trust/test_told.py",)
RUNS = ("tests/layouts/test_bad_runs.py",)
RULES = ("tests/encoding/test_rules.py",)
TENSORS = ("tests/tensors/test_tensors.py",)
CHECKS = ("tests/trust/test_checks.py",)
BASES = ("tests/encoding/test_bases.py",)
VERIFY = ("tests/cli/test_verify.py",)

FILE = "petlpack/container/file.py"
MANIFEST = "petlpack/container/manifest.py"
TASK = "petlpack/decoding/task.py"
SHARED = "petlpack/sections/shared.py"
PARTS = "petlpack/sections/parts.py"
BASE = "petlpack/tensors/base.py"
OF_TASK = "petlpack/decoding/bases.py"
PIN = "petlpack/tensors/pinned.py"
PICKLED = "petlpack/tensors/pickled.py"
HEADER = "petlpack/tensors/safetensors_file.py"
ENCODE = "petlpack/encoding/encode.py"
WRITE = "petlpack/encoding/write.py"
CHECKING = "petlpack/checking/__init__.py"
AGAINST = "petlpack/checking/against.py"
CHECKPOINT = "petlpack/tensors/checkpoint.py"
TEMPLATE = "petlpack/records/template.py"
TABLE = "petlpack/records/base_table.py"

_OF = "        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)\n"
_READ = """        self._compare(State.of(os.fstat(file.fileno())))
        file.seek(start)
"""
_BEHIND = """        self._compare(State.of(os.fstat(file.fileno())))
        if len(octets) != nbytes:
"""
_STREAMED = "            task.load(self._base).check(jobs=self._jobs)\n"
_SECOND = "        _refuse_special(path, status.st_mode)\n"

Row = tuple[str, str, str]

READING: dict[tuple[str, tuple[str, ...]], tuple[Row, ...]] = {
    (FILE, FLIPS): (
        ("checksum of a section", "        if checksum != row.checksum:", "        if False:"),
        ("digest of the manifest", '    if digest != header.metadata.get("manifest_sha256"):', "    if False:"),
    ),
    (FILE, (*FLIPS, *FORMATS)): (
        (
            "header that is the manifest's",
            "            _check_header(header, manifest, packed)\n",
            "            pass\n",
        ),
        (
            "header that is the only one, where it is read as such",
            " or _header_text(sizes[:-1], sizes[-1][1], digest[1]).ljust(length) != text:",
            ":",
        ),
        ("size of a file with a canonical header", "    if 8 + length + start != size or _header", "    if _header"),
    ),
    (FILE, FORMATS): (
        (
            "header that is canonical",
            "    if header.text != canonical.ljust(len(header.text)) or len(header.text) % 8:",
            "    if False:",
        ),
        ("sections of header and manifest", '    if set(header.entries) != {*names, "manifest"}:', "    if False:"),
        ("format of a file", '    if header.metadata.get("format") != "petlpack":', "    if False:"),
        ("version of a file", '    if header.metadata.get("version") != str(VERSION):', "    if False:"),
    ),
    (FILE, TOLD): (
        (
            "file that was replaced after its manifest was read",
            "        if self._read_at(0, len(head)) != head:",
            "        if False:",
        ),
    ),
    (MANIFEST, FORMATS): (
        ("text of the manifest", "    if not canonical:\n", "    if False:\n"),
        (
            "version of the manifest",
            'if isinstance(table.get("version"), bool) or table.get("version") != VERSION:',
            "if False:",
        ),
        ("kind of the manifest", '        _one_of(table["kind"], _KINDS)\n', "        pass\n"),
    ),
    (HEADER, FORMATS): (("size of a file", "    if header.file_size != size:", "    if False:"),),
    (HEADER, TENSORS): (
        ("tensors that follow each other", "        if entry.start != end:", "        if False:"),
        (
            "bytes of a tensor",
            "    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != stop - start:",
            "    if False:",
        ),
    ),
    (SHARED, (*FORMATS, *DAMAGE)): (("digest of a part of bytes", "    if decoded != sha256:", "    if False:"),),
    (SHARED, CHECKS): (
        (
            "compare step of a part of bytes",
            '    if coding.decode(coder_id, data, array, "content").tobytes() != content:',
            "    if False:",
        ),
    ),
    (PARTS, (*FORMATS, *DAMAGE)): (
        ("digest of a part of tensors", "        if decoded != self.sha256:", "        if False:"),
        (
            "name of a part of tensors",
            '*("shared", (), sha256, {"tensors"}, {}),',
            '*("shared", (), manifest.decoded, {"tensors"}, {}),',
        ),
    ),
    ("petlpack/decoding/tensors.py", FORMATS): (
        ("sums of the whole", "        if found != said:", "        if False:"),
        (
            "digest of the whole, where all is checked",
            "self._stream((_CHECKSUM, _DIGEST), ",
            "self._stream((_CHECKSUM,), ",
        ),
        (
            "digests of the base, where all is checked",
            "            needed(self._base).check_digest(ref)\n",
            "            pass\n",
        ),
    ),
    (TASK, FORMATS): (
        ("kind of a task", '        if self.manifest.kind != "task" or not self.manifest.shared:', "        if False:"),
    ),
    (TASK, TOLD): (
        (
            "task that was replaced and collected",
            "                if self._container.state == before.state:",
            "                if True:",
        ),
    ),
    (TASK, (*CHECKS, *BASES)): (
        ("base that an adapter adapts", "            if opened is not None and check_base:", "            if False:"),
    ),
    (TEMPLATE, FORMATS): (("text of a template", "        if canonical != text:", "        if False:"),),
    (TABLE, FORMATS): (("text of a base's table", " or canonical != text or base_table_json(table) != text:", ":"),),
    (BASE, (*DAMAGE, *FORMATS, *CHECKS)): (
        (
            "checksum of the base's tensors",
            "        if self.checksum(ref.name) != ref.sums.checksum:",
            "        if False:",
        ),
        ("digest of the base's tensors", "        if self._sums_of(ref.name) != ref.sums:", "        if False:"),
        (
            "form of the base's tensors",
            "        if (tensor.dtype, tensor.shape) != (ref.dtype, ref.shape):",
            "        if False:",
        ),
    ),
    (OF_TASK, PINNED): (("base that is as it was opened", "        base.check_unchanged()\n", "        pass\n"),),
    (OF_TASK, (*CHECKS, *BASES)): (
        (
            "digests by which one of several bases is told",
            "    return all(base.checksum(ref.name) == ref.sums.checksum for ref, _ in rows)",
            "    return True",
        ),
        (
            "forms by which one of several bases is told",
            "tensor is None or (tensor.dtype, tensor.shape) != (ref.dtype, ref.shape) for ref",
            "tensor is None for ref",
        ),
        ("digest of what an adapter adapts", "    return table_digest(rows) == adapts.sha256", "    return True"),
    ),
    (BASE, PINNED): (
        ("files of a base that are as they were", "            self._files.check()\n", "            pass\n"),
    ),
    (PIN, (*CHECKS, *PINNED)): (
        ("device and inode of a file", _OF, _OF.replace("status.st_dev, status.st_ino", "0, 0")),
        ("size of a file", _OF, _OF.replace("status.st_size", "0")),
        ("time of a file's change", _OF, _OF.replace("status.st_ctime_ns", "0")),
        ("state of a file before it is read", _READ, "        file.seek(start)\n"),
        ("state of a file after it was read", _BEHIND, "        if len(octets) != nbytes:\n"),
        ("check of all that was read", "            pin.check()\n", "            pass\n"),
        ("check of a pin", "        self._compare(now)\n\n    def read(", "\n    def read("),
    ),
    (PIN, (*CHECKS,)): (
        ("time of a file's writing", _OF, _OF.replace("status.st_mtime_ns", "0")),
        ("file that becomes a pipe as it is opened", _SECOND, ""),
        ("opening of a pipe without waiting", ' | getattr(os, "O_NONBLOCK", 0)', ""),
        ("device that is not opened", "    _refuse_special(path, _mode_of(path))\n", ""),
    ),
    (HEADER, CHECKS): (
        ("header that changes as it is read", "    pin.check()\n    return header, pin\n", "    return header, pin\n"),
    ),
    (PICKLED, CHECKS): (
        ("pickle that changes as it is read", "    pin.check()\n    return saved\n", "    return saved\n"),
        ("pickle that changes after it was read", "        pin.check()\n        piece =", "        piece ="),
    ),
    (ENCODE, PINNED): (
        ("files of a run and a base before the commit", "            _check_unchanged(chosen.base, files)\n", ""),
        ("files of a run before the commit", "    files.check()\n", ""),
    ),
    (ENCODE, CHECKS): (
        (
            "kept base before the commit",
            "        base.check_unchanged()\n    files.check()",
            "        pass\n    files.check()",
        ),
    ),
    (ENCODE, DAMAGE): (
        (
            "parts that are damaged are written again",
            "    damaged = writer.damaged | unreadable(store, contents)\n",
            "    damaged = set()\n",
        ),
    ),
    (WRITE, CHECKS): (("compare step of a task", _STREAMED, ""),),
    (CHECKING, (*DAMAGE, *FORMATS)): (
        (
            "parts of a task that verify reads",
            "            check_shared(pack.store, sha256, pack.max_bytes)\n        for",
            "            pass\n        for",
        ),
    ),
    (CHECKING, TOLD): (
        (
            "task that was replaced while verify read it",
            "checked.error is None or state_of(path) == before:",
            "True:",
        ),
    ),
    (CHECKING, (*DAMAGE, *VERIFY)): (
        (
            "parts that verify reads",
            "        settled(path, lambda: check_shared(pack.store, sha256, pack.max_bytes))\n    except",
            "        pass\n    except",
        ),
    ),
    (AGAINST, VERIFY): (
        (
            "tensors of a run that verify compares",
            "        if not np.array_equal(mine.bits(), _bits_of(other, run)):",
            "        if False:",
        ),
    ),
    (CHECKPOINT, (*PINNED, *RUNS)): (
        (
            "shards that lead elsewhere",
            '        if not is_file_name(name) or any(part.startswith(".") for part in PurePosixPath(name).parts):',
            "        if False:",
        ),
    ),
    ("petlpack/tensors/file_names.py", FORMATS): (
        ("names that lead elsewhere", 'part not in ("", ".", "..") and', "True and"),
        ("names that lead elsewhere on Windows", " or _ELSEWHERE.search(name)", ""),
        ("names that are one on some systems", "        if other != name:\n", "        if False:\n"),
        ("files that are directories of others", "            if str(place) in files:\n", "            if False:\n"),
    ),
    (SHARED, ("tests/trust/test_limits.py",)): (
        (
            "kind of a part of bytes",
            '    if not alone or opened.manifest != Manifest("shared", BYTES, rows):',
            "    if False:",
        ),
    ),
    (PARTS, ("tests/trust/test_limits.py",)): (
        ("check of parts of tensors", "        open_part(store, sha256, max_bytes).check()\n", "        pass\n"),
    ),
    (CHECKING, CHECKS): (("bytes that verify reads", "    task.check_bytes()\n", ""),),
    (AGAINST, CHECKS): (
        ("files of a run that verify compares", "        if content != task.read_file(name):", "        if False:"),
        (
            "headers of a run that verify compares",
            "        if packed[name].text != headers[name].text:",
            "        if False:",
        ),
    ),
    (PIN, ("tests/trust/test_limits.py",)): (
        ("bytes that were read", "        if len(octets) != nbytes:", "        if False:"),
    ),
}
"""By file and tests: (what is taken away, the text, what stands there instead)."""
