"""Which spans of files are equal: samples first, and what no sample tells apart is read whole."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from petlpack.errors import Problem, problem_at
from petlpack.parallel import Progress, ordered_map

PAGE = 4096
"""Bytes of a sample: what a disk and its cache read at least."""

SAMPLES = (1, 8)
"""Pages compared before anything is read whole. Of 200 fine-tunes the first tells nearly all tensors apart; where few
rows of a matrix were trained, eight do. Tensors as small as their samples are then compared already."""

CHUNK = 1 << 18
"""Bytes read at a time where all are: what stays in a processor's cache until it is digested."""

BATCH = 1 << 26
"""Bytes of one file that a thread digests before the next one may have a part."""


@dataclass(frozen=True)
class Span:
    """Bytes of a file to be compared with others like them: a tensor, or the file itself."""

    path: Path
    start: int
    nbytes: int
    like: Hashable = None
    """What else has to agree: dtype and shape."""


def equal_spans(
    spans: Sequence[Span], unreadable: dict[str, Problem], jobs: int, progress: Progress | None
) -> list[list[int]]:
    """Return the spans that are equal, as lists of two or more indices; equal is proved, never probable.

    A file that cannot be read equals nothing, and is added to `unreadable` with the reason.
    """
    groups = _split(range(len(spans)), lambda i: (spans[i].nbytes, spans[i].like))
    proved: list[list[int]] = []
    for pages in (*SAMPLES, 0):
        digests: dict[int, bytes] = {}
        waiting = sorted(i for group in groups for i in group)
        done, total = 0, sum(_read_bytes(spans[i], pages) for i in waiting)
        read = partial(_digests, spans, pages, unreadable)
        for batch, of_batch in ordered_map(read, _batches(spans, waiting, pages), jobs):
            digests |= of_batch
            done += sum(_read_bytes(spans[i], pages) for i in batch)
            if progress is not None:
                progress(done, total)
        groups, told_apart = [], [part for group in groups for part in _split(group, digests.get)]
        for group in told_apart:
            (proved if _is_whole(spans[group[0]], pages) else groups).append(group)
    return proved


def _split(indices: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Split indices by a key, without what has no key or no equal."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i in indices:
        groups[key(i)].append(i)
    return [group for value, group in groups.items() if len(group) > 1 and value is not None]


def _batches(spans: Sequence[Span], indices: Iterable[int], pages: int) -> list[list[int]]:
    """Split ordered indices into what one thread reads of one file; the spans of a file follow each other."""
    batches: list[list[int]] = []
    path, room = None, 0
    for i in indices:
        if spans[i].path != path or room <= 0:
            batches.append([])
            path, room = spans[i].path, BATCH
        batches[-1].append(i)
        room -= _read_bytes(spans[i], pages)
    return batches


def _digests(
    spans: Sequence[Span], pages: int, unreadable: dict[str, Problem], batch: list[int]
) -> tuple[list[int], dict[int, bytes]]:
    """Return a batch, and the digests of those of its spans that could be read; all of them are of one file."""
    path, digests = spans[batch[0]].path, {}
    buffer = memoryview(bytearray(CHUNK))
    try:
        with FileIO(path) as file:
            for i in batch:
                digests[i] = _digest(file, spans[i], pages, buffer)
    except OSError as error:
        unreadable[str(path)] = problem_at(error)
    return batch, digests


def _digest(file: FileIO, span: Span, pages: int, buffer: memoryview) -> bytes:
    """Return the sha256 of a span's samples; raises OSError where the file became shorter."""
    digest = hashlib.sha256()
    for start, count in _samples(span, pages):
        file.seek(span.start + start)
        while count:
            got = file.readinto(buffer[: min(count, CHUNK)])
            if not got:
                raise OSError("became shorter while it was read")
            digest.update(buffer[:got])
            count -= got
    return digest.digest()


def _samples(span: Span, pages: int) -> list[tuple[int, int]]:
    """Return (start, bytes) of samples: the middle page, or several from the first to the last, or all there is."""
    if _is_whole(span, pages):
        return [(0, span.nbytes)]
    room = span.nbytes - PAGE
    return [(room // 2 if pages == 1 else i * room // (pages - 1), PAGE) for i in range(pages)]


def _is_whole(span: Span, pages: int) -> bool:
    """Tell whether samples of so many pages are all of a span; no pages stand for all of them."""
    return not pages or span.nbytes <= pages * PAGE


def _read_bytes(span: Span, pages: int) -> int:
    return span.nbytes if _is_whole(span, pages) else pages * PAGE
