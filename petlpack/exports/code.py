"""Which kept files can run code where they are loaded or run, told by name and by how they begin."""

from __future__ import annotations

import io
import re
import zipfile
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

    torch's archives are pickles in a zip.
    """
    if PurePosixPath(name).suffix.lower() in _SCRIPTS | _BINARIES | _PICKLES | _LAMBDAS:
        return True
    return content.startswith(b"#!") or _PICKLED.match(content) is not None or _has_pickle(content)


def _has_pickle(content: bytes) -> bool:
    if not content.startswith(b"PK"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(PurePosixPath(name).suffix in _PICKLES | _SCRIPTS for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False
