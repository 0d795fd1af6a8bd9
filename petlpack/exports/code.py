"""Which kept files can run code where they are loaded or run, told by name and by how they begin."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_SCRIPTS = {
    ".py",
    ".pyc",
    ".pyd",
    ".pyx",
    ".ipynb",
    ".sh",
    ".bash",
    ".slurm",
    ".bat",
    ".cmd",
    ".ps1",
    ".js",
    ".r",
    ".jl",
}
_BINARIES = {".so", ".dll", ".dylib", ".exe"}
_PICKLES = {".pkl", ".pickle", ".p", ".joblib", ".dill", ".cloudpickle", ".sav"}
_LAMBDAS = {".keras", ".h5"}
"""Keras' files, whose Lambda layers are code."""
_PICKLED = re.compile(rb"\x80[\x02-\x05]")
"""How a pickle of protocol 2 and later begins; torch's own files of before 1.6 do, too."""


def can_run_code(name: str, content: bytes) -> bool:
    """Tell whether a file is code, or a pickle, which runs code when it is read; whatever the file is called.

    torch's archives are pickles in a zip, in which the names of files stand as they are.
    """
    if PurePosixPath(name).suffix.lower() in _SCRIPTS | _BINARIES | _PICKLES | _LAMBDAS:
        return True
    return content.startswith(b"#!") or _PICKLED.match(content) is not None or _has_code(content)


def _has_code(content: bytes) -> bool:
    """Tell whether a zip has a file in it that is called like code or a pickle; what is no zip has none."""
    return content.startswith(b"PK\x03\x04") and any(name in content for name in (b".pkl", b".pickle", b".py"))
