"""Mutants of what bounds the cost of foreign files (tools/mutants.py)."""

from __future__ import annotations

BOMBS = ("tests/trust/test_bombs.py",)
FORMATS = ("tests/formats/test_formats.py", "tests/formats/test_packs.py", "tests/formats/test_streams.py")
ODD = ("tests/trust/test_odd_runs.py",)
LIMITS_SHOWN = ("tests/trust/test_limits.py",)
TENSORS = ("tests/tensors/test_tensors.py",)

TASK = "petlpack/decoding/task.py"
PARTS = "petlpack/sections/parts.py"
FILE = "petlpack/container/file.py"
ZSTD = "petlpack/coding/zstd.py"
SMALL = "petlpack/tensors/foreign_json.py"
STRICT = "petlpack/tensors/strict_json.py"
VIEWS = "petlpack/records/views.py"
ARCHIVE = "petlpack/tensors/torch_archive.py"
HEADER = "petlpack/tensors/safetensors_file.py"
READ = "petlpack/sections/read.py"
CHECKPOINT = "petlpack/tensors/checkpoint.py"

_OF_PARTS = "        self._allowance(base).check(sum(slot.nbytes for part in parts.values() for slot in part.slots))\n"
_OF_RULE = "        self._allowance().check(rebuilt_bytes(self.template.rule, rebuilt, tensors))\n"
_OF_FILE = "        self._allowance(kept=self._bytes_of([sha256])).check(size, free=FREE_FILE)\n"

Row = tuple[str, str, str]

LIMITS: dict[tuple[str, tuple[str, ...]], tuple[Row, ...]] = {
    (TASK, (*LIMITS_SHOWN, *BOMBS)): (
        ("bound on tensors", "        self._allowance(base).check(*tensor_bytes(self.sources, base))\n", ""),
        ("bound on parts of tensors", _OF_PARTS, ""),
        ("bound on what a rule makes", _OF_RULE, ""),
        ("bound on a kept file", _OF_FILE, ""),
        (
            "bound on all kept files",
            "        self._allowance(kept=kept).check(wanted)\n",
            "        pass\n",
        ),
        (
            "bound on a file that takes a name",
            "read_shared(self.store, sha256, MAX_NAMED)",
            "read_shared(self.store, sha256)",
        ),
    ),
    ("petlpack/sections/allowance.py", ("tests/trust/test_bombs.py::test_a_caller_may_allow_more_or_less",)): (
        ("what a caller allows", "most = explained if self.said is None else self.said", "most = explained"),
    ),
    (PARTS, (*LIMITS_SHOWN, *BOMBS)): (
        ("bound on a part of bytes", ".check(size_of_shared(store, sha256), free=FREE_FILE)\n", "\n"),
        ("bound on a part of tensors", ".check(size, size)\n", "\n"),
        ("number of a part's tensors", "    if isinstance(rows, list) and len(rows) > MOST_TENSORS:", "    if False:"),
    ),
    ("petlpack/sections/shared.py", (*LIMITS_SHOWN, *BOMBS, *FORMATS)): (
        ("bytes of a part", "    if row.count > most:", "    if False:"),
        ("bytes of a text by those that it takes", "min(most, most_text(packed))", "most"),
        ("values of a text by the bytes that it takes", "        check_marks(text, packed)\n", "        pass\n"),
    ),
    (FILE, (*LIMITS_SHOWN, *FORMATS, *BOMBS)): (
        ("number of sections by their bytes", "        if sections > most:", "        if False:"),
        ("bytes of a packed manifest", "    if entry.stop - entry.start > MAX_MANIFEST:", "    if False:"),
        ("bytes of a manifest", "    if size > most:", "    if False:"),
        ("values of a manifest", "    check_marks(text, len(packed))\n", ""),
    ),
    ("petlpack/container/manifest.py", FORMATS): (
        ("parts of a task", "    if len(parts) > MOST_PARTS:", "    if False:"),
    ),
    (READ, FORMATS): (
        ("elements that sections can hold", "    if elements > sections * MOST_ELEMENTS:", "    if False:"),
        ("sections that a unit needs", "        if expected != list(self._rows):", "        if False:"),
        (
            "elements of a section",
            "            if section.dtype != dtype.name or section.count not in counts:",
            "            if False:",
        ),
    ),
    ("petlpack/coding/__init__.py", (*LIMITS_SHOWN, *FORMATS)): (
        (
            "elements that were decoded",
            "    if len(bits) != array.count or bits.dtype != array.dtype.bits:",
            "    if False:",
        ),
    ),
    (ZSTD, FORMATS): (
        ("window of a frame", "    if not one_segment and _window(data[5:6]) > MOST_WINDOW:", "    if False:"),
        ("size that a frame states", "    if head.content_size != size:", "    if False:"),
        (
            "bytes behind an empty frame",
            "            if stream.decompress(data) or not stream.eof or stream.unused_data:",
            "            if False:",
        ),
    ),
    (SMALL, (*LIMITS_SHOWN, *ODD)): (
        ("bytes of a JSON file", "    if pin.state.nbytes > MOST_BYTES:", "    if False:"),
        ("values of a JSON file", "    if values > most:", "    if False:"),
        ("depth of a JSON file", "    if depth > MOST_DEEP:", "    if False:"),
    ),
    (HEADER, (*LIMITS_SHOWN, *TENSORS)): (
        ("bytes of a header", "    if length > min(MAX_HEADER, size - 8):", "    if False:"),
        ("values of a header", "        check_values(text, most_values)\n", "        pass\n"),
        ("dimensions of a tensor", "    if len(shape) > MAX_RANK:", "    if False:"),
        ("elements of a tensor", "    if not is_shape(shape, width_of(dtype)):", "    if False:"),
    ),
    (STRICT, FORMATS): (
        ("depth of a text", "    if not left:\n", "    if False:\n"),
        ("bits of an integer", "    if not -_BEYOND < number < _BEYOND:", "    if False:"),
        ("marks of a text", "    if marks > most:", "    if False:"),
        ("keys that stand twice", "    if len(table) != len(pairs):", "    if False:"),
    ),
    (VIEWS, FORMATS): (
        ("depth of a view", "    if deep == 0:", "    if False:"),
        ("tensors of a view", "    if len(view.refs) > MOST_NAMES:", "    if False:"),
        ("growth of a view", "    if math.prod(view.shape) > MOST_TIMES * named:", "    if False:"),
    ),
    ("petlpack/records/template.py", (*FORMATS, *BOMBS)): (
        ("growth by the task's name", "    if grown > most:", "    if False:"),
    ),
    (ARCHIVE, (*LIMITS_SHOWN, *ODD)): (
        ("bytes of an archive's records", "    if whole > pin.state.nbytes:", "    if False:"),
        (
            "place of an archive's directory",
            '    if end[0] != b"PK\\5\\6" or end[7] or start + nbytes != behind:',
            "    if False:",
        ),
        ("number of an archive's records", "    if len(rows) > MOST_RECORDS:", "    if False:"),
        ("bytes of an archive's pickle", "    if pickled > most:", "    if False:"),
        (
            "tensors inside their record",
            "        if tensor.numel() and (last + 1) * tensor.element_size() > row.file_size:",
            "        if False:",
        ),
    ),
    ("petlpack/tensors/pickled.py", (*LIMITS_SHOWN, *ODD)): (
        ("pickles that overlap", "    if whole <= _MOST_EXPANDED < read - _MOST_VIEWED * nbytes:", "    if False:"),
        ("pickles that repeat their elements", "    if whole > _MOST_EXPANDED:", "    if False:"),
    ),
    ("petlpack/tensors/pickle_programs.py", ("tests/tensors/test_pickle_programs.py",)): (
        ("codes of a pickle's texts", "            if given.code not in", "            if False and given.code not in"),
        ("functions of a pickle called by others", "        if item.name.endswith(_DIRECTLY):", "        if False:"),
        ("length of a pickle's texts", "Item(1 + len(text), argument", "Item(1, argument"),
        ("arrays of a pickle", "            made.size += given.largest\n", ""),
        (
            "storages of a pickle",
            " * min(storages, self.storages) +",
            " * storages +",
        ),
    ),
    ("petlpack/tensors/torch_reader.py", ODD): (
        (
            "pickles that run code",
            "map_location=device, weights_only=True)",
            "map_location=device, weights_only=False)",
        ),
    ),
    (CHECKPOINT, (*LIMITS_SHOWN, *ODD)): (
        ("characters of a name", "    if len(longest) > _LONGEST_NAME:", "    if False:"),
        ("tensors without an element", "    if empty > MOST_EMPTY:", "    if False:"),
    ),
    ("petlpack/store/disk.py", (*LIMITS_SHOWN, "tests/trust/test_checks.py")): (
        ("bytes of a small file of the pack", "    if len(text) > most:", "    if False:"),
    ),
}
"""By file and tests: (what is taken away, the text, what stands there instead)."""
