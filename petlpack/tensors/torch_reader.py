"""What torch saved, run by torch's weights-only reader, after it was looked at what that would cost."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from petlpack.errors import RefusedError, RunError, printable
from petlpack.tensors.content import is_archive
from petlpack.tensors.pickle_programs import Program, Room, check_programs
from petlpack.tensors.pinned import open_regular
from petlpack.tensors.torch_archive import Archive


class NotPlacedError(Exception):
    """Torch does not say where in the file the elements of a tensor are: it has to read them."""


def check_cost(file: BinaryIO, path: Path, archive: Archive | None) -> None:
    """Raise RunError where running what a file has pickled would take more than the file explains, or it has none."""
    torch = _torch(path)
    try:
        with _quiet():
            if archive is None:
                check_programs(file)
            else:
                room = Room(file.seek(0, os.SEEK_END), len(archive.rows))
                file.seek(0)
                Program(io.BytesIO(torch._C.PyTorchFileReader(file).get_record("data.pkl")), room)
    except RefusedError as error:
        raise RunError(
            f"'{printable(str(path))}' is no file as torch saves one: {error}",
            hint="save the state dict again, preferably as safetensors",
            code=error.code,
        ) from error
    except (ValueError, RuntimeError) as error:
        raise _refused(path, error) from error


def _torch(path: Path) -> Any:
    """Return the module torch; raises RunError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise RunError(
            f"'{printable(str(path))}' is a pickled state dict, but torch is not installed",
            hint="pip install 'petlpack[torch]' torch==2.13.0, or save the run as safetensors",
        ) from error
    return torch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what is told to those who write pickles: of protocols, storages and escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(file: BinaryIO, path: Path, device: str) -> object:
    """Read what torch saved by torch's weights-only reader, which runs no code from the file.

    On the device `meta` no elements are read; what cannot be read so is NotPlacedError.
    """
    torch = _torch(path)
    file.seek(0)
    try:
        with _quiet():
            return torch.load(file, map_location=device, weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # on bytes that are no pickle, torch's reader fails in every way there is
        if device == "meta":
            raise NotPlacedError from error
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> RunError:
    """Return what to raise in the place of what torch's reader says."""
    cut = is_cut(path)
    what = "truncated" if cut else f"not a plain state dict: {printable(_reason(error))}"
    return RunError(
        f"'{printable(str(path))}' is {what}",
        hint="copy the file again, or use another checkpoint"
        if cut
        else "a pickle can run code, so only tensors are loaded from it: load it where you trust it, and save the "
        "state dict as safetensors",
    )


def is_cut(path: Path) -> bool:
    """Tell whether a file begins as the archives do that torch saves, and does not end as one; reads no pickle."""
    try:
        with open_regular(path) as file:
            return file.read(2) == b"PK" and not is_archive(file)
    except OSError:
        return False


_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
"""How torch says which class a pickle asks for."""


def _reason(error: Exception) -> str:
    """Return the first line of what torch says, without its advice to read a pickle that may carry code."""
    text = str(error)
    if "weights_only" in text or "Weights only" in text:
        found = _OBJECT.search(text)
        return "it contains objects other than tensors" + (f" ({found[1]})" if found else "")
    if "PytorchStreamReader" in text:  # which goes on with what its own developers should do
        return "its archive is damaged"
    return next(iter(text.strip().splitlines()), "") or type(error).__name__
