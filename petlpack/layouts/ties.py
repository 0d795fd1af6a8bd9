"""Which tensors of a pickled weight file are one: torch writes those once, and whoever loads it gets them tied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from petlpack.layouts.run import Run
from petlpack.records.template import PICKLED
from petlpack.tensors.safetensors_file import Header, build_header
from petlpack.tensors.tensor import Tensor


def with_ties(run: Run) -> Run:
    """Return a run in which the headers of pickled files say in their metadata which tensors are one."""
    tensors = run.module.tensors
    headers = {
        file: _tied(header, tensors) if file.endswith(PICKLED) else header for file, header in run.headers.items()
    }
    return replace(run, headers=headers)


def _tied(header: Header, tensors: Mapping[str, Tensor]) -> Header:
    """Return a header that says of each name of a tensor but its first which one that is."""
    first: dict[int, str] = {}
    ties = {}
    for name in header.entries:
        tensor = tensors.get(header.prefix + name)
        one = name if tensor is None else first.setdefault(id(tensor), name)
        if one != name:
            ties[name] = one
    if not ties:
        return header
    rows = {name: (entry.dtype, entry.shape, entry.stop - entry.start) for name, entry in header.entries.items()}
    return replace(build_header(rows, {**header.metadata, **ties}), prefix=header.prefix)
