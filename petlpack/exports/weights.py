"""Tensors to the weight files of a run: safetensors with the headers they had, or pickled state dicts."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from petlpack.errors import UsageError, printable
from petlpack.exports.export import Stream
from petlpack.records.template import PICKLED
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.pickled import AROUND, with_around
from petlpack.tensors.safetensors_file import Header
from petlpack.tensors.tensor import Stored, as_bytes, octets_of

if TYPE_CHECKING:
    import torch


def write_weights(directory: Path, headers: Mapping[str, Header], stream: Stream, ties: Mapping[str, str]) -> None:
    """Write the weight files of a run from its tensors as they are decoded.

    A safetensors file gets its header verbatim; in a pickled one, tensors of equal bits that `ties` name share memory.
    """
    pickled: dict[str, Bits] = {}
    with contextlib.ExitStack() as stack:
        places: dict[str, tuple[BinaryIO, int]] = {}
        for name, header in headers.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in PICKLED:
                continue
            file: BinaryIO = stack.enter_context(path.open("wb"))
            file.write(header.head_bytes())
            file.truncate(header.file_size)
            places |= {name: (file, header.data_start + entry.start) for name, entry in header.tensors.items()}
        for slot, start, bits in stream:
            if slot.name in places:
                file, offset = places[slot.name]
                file.seek(offset + start * slot.dtype.itemsize)
                file.write(as_bytes(bits))
            else:
                pickled.setdefault(slot.name, np.empty(slot.size, slot.dtype.bits))[start : start + len(bits)] = bits
    for name, header in headers.items():
        if (directory / name).suffix in PICKLED:
            _save_pickled(directory / name, header, pickled, ties)


def check_torch(headers: Iterable[str]) -> None:
    """Raise UsageError where a run has pickled weight files and torch, which writes them, is not installed."""
    pickled = [name for name in headers if name.endswith(PICKLED)]
    if pickled and not has_torch():
        raise UsageError(
            f"'{printable(pickled[0])}' is a pickled state dict, but torch is not installed",
            hint="pip install 'petlpack[torch]' torch==2.13.0, or --to safetensors",
        )


def has_torch() -> bool:
    """Tell whether torch is installed, without importing it."""
    return importlib.util.find_spec("torch") is not None


def _save_pickled(path: Path, header: Header, tensors: Mapping[str, Bits], ties: Mapping[str, str]) -> None:
    import torch

    made: dict[tuple[str, Stored], torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for own, entry in header.entries.items():
        name, stored = header.prefix + own, Stored(entry.dtype, entry.shape)
        one = ties.get(name, name)  # no digest covers what a header says of ties: of other bits it is another tensor
        alike = one in tensors and np.array_equal(tensors[one], tensors[name])  # it may be in a file of another kind
        key = one if alike else name, stored
        if key not in made:
            made[key] = stored.of_bytes(octets_of(tensors[name]))
        state[own] = made[key]
    with path.open("wb") as file:  # a path would put the directory's name into the archive
        torch.save(with_around(state, (header.metadata or {}).get(AROUND)), file)
