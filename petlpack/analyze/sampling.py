"""What a codec would make of a large full fine-tune, from a sample of its units, and how far that may be off."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.codecs.codec import Codec
from petlpack.codecs.units import Unit
from petlpack.coding.array import Level
from petlpack.container.file import MOST_HELD, EncodedSection
from petlpack.encoding.check import check_modules
from petlpack.encoding.cut import check_suits, cut
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import Prepared, prepare
from petlpack.encoding.write import task_manifest
from petlpack.layouts.run import Run
from petlpack.parallel import Progress
from petlpack.records.canonical import canonical_json
from petlpack.sections.shared import write_shared
from petlpack.sections.write import SectionWriter, write_file
from petlpack.tensors.base import Base

LEAST = 8
"""Units that a sample has at least: fewer say too little of how much units differ."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of all units from some of them: 19 times of 20 the truth is within `error_bytes`."""

    nbytes: int
    error_bytes: int
    share: float


def sample_of(sizes: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose units by number, at least LEAST: one at random of every so many, and all that are small.

    Every k-th would do where units differ without order; but what differs with a period of k it would not see. The last
    unit of each family is small: it says little of the others, and costs little.
    """
    large = _large(sizes)
    count = max(LEAST, math.ceil(share * len(large)))
    if count >= len(large):
        return list(range(len(sizes)))
    random = Random(seed)
    bounds = [i * len(large) // count for i in range(count + 1)]
    taken = {large[start + int(random.random() * (stop - start))] for start, stop in itertools.pairwise(bounds)}
    return sorted(taken | (set(range(len(sizes))) - set(large)))


def estimate(sizes: Sequence[int], measured: Mapping[int, int]) -> Estimate:
    """Estimate the bytes of all units from those of a sample: bytes an element, interpolated between measured units.

    `sizes` are the units' elements, `measured` bytes by number. The variance of a unit is that of successive
    differences (Wolter, "Introduction to Variance Estimation", 2007, section 8.2): units follow one another by kind, so
    what differs slowly along them is no error. It counts for each unit that was left out, and for each that was
    measured as often as it stands for another.
    """
    if len(measured) == len(sizes):
        return Estimate(sum(measured.values()), 0, 1.0)
    taken = np.array([i for i in _large(sizes) if i in measured])
    left = np.array([i for i in range(len(sizes)) if i not in measured])
    rates = np.array([measured[i] / sizes[i] for i in taken])
    missing = np.array([float(sizes[i]) for i in left])
    stands_for = _stands_for(taken, left, missing)
    variance = float((np.diff(rates) ** 2).mean()) / 2 * float(missing @ missing + stands_for @ stands_for)
    return Estimate(
        nbytes=round(sum(measured.values()) + float(rates @ stands_for)),
        error_bytes=math.ceil(quantile(2 * (len(taken) - 1) / 3) * math.sqrt(variance)),
        share=sum(sizes[i] for i in measured) / sum(sizes),
    )


def _stands_for(taken: NDArray[np.int64], left: NDArray[np.int64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return of how many elements that were left out each measured unit tells: of more, the nearer it is."""
    after = np.searchsorted(taken, left)
    before, after = np.maximum(after - 1, 0), np.minimum(after, len(taken) - 1)
    share = (left - taken[before]) / np.maximum(taken[after] - taken[before], 1)
    share = np.where(before == after, 0.0, share)
    elements = np.zeros(len(taken))
    np.add.at(elements, before, (1 - share) * sizes)
    np.add.at(elements, after, share * sizes)
    return elements


def _large(sizes: Sequence[int]) -> list[int]:
    return [i for i, size in enumerate(sizes) if 2 * size >= max(sizes)]


def quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5; from 4 on three terms err by 0.2 %).

    Successive differences of n values have two thirds of n - 1 degrees of freedom: each value is in two of them.
    """
    z = 1.959964
    first, second = z**3 + z, 5 * z**5 + 16 * z**3 + 3 * z
    third = 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + first / (4 * freedom) + second / (96 * freedom**2) + third / (384 * freedom**3)


class Sampler:
    """Estimates what codecs make of one full fine-tune. What equals the base is known from all of it."""

    def __init__(self, run: Run, share: float, jobs: int, options: Mapping[str, str | bool]) -> None:
        """Sample this share of the units; `options` are what the run was read with, as a manifest keeps them."""
        self._run, self._share, self._jobs, self._options = run, share, jobs, options
        self._digests = Digests(jobs)
        self._prepared: dict[tuple[bool, bytes], Prepared] = {}

    def measure(self, codec: Codec, level: Level, base: Base | None, progress: Progress | None) -> dict[str, Any]:
        """Return the figures of an offer; raises RunError where the codec does not suit the run."""
        prepared = self._prepare(codec, base)
        described, units = prepared.described, cut(prepared, codec)
        check_suits(prepared, codec, units, self._jobs)
        sizes = [unit.size for unit in units.units]
        chosen = sample_of(sizes, self._share, seed=int(described.sums.sha256[:16], 16))
        writer = SectionWriter(codec, level, self._jobs, progress)
        encoded = list(writer.encode([units.units[i] for i in chosen], prepared.matched.tensors, units.predictions))
        counts = [sum(len(section.data) for section in sections) for sections in encoded]
        estimated = estimate(sizes, dict(zip(chosen, counts, strict=True)))
        measured = {section.name: section for sections in encoded for section in sections}
        return {
            "nbytes": estimated.nbytes + _header_bytes(codec, units.units, prepared, measured),
            "error_bytes": estimated.error_bytes,
            "sampled_share": estimated.share,
            "exact": self._run.exact,
            "shared": {sha256: len(write_shared(content)) for sha256, content in described.contents.items()},
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was told of the run with its base, once something was measured."""
        return tuple(text for prepared in self._prepared.values() for text in prepared.warnings)

    def _prepare(self, codec: Codec, base: Base | None) -> Prepared:
        """Make the run ready for a codec, as `encode` does: once for all codecs of one rule."""
        rule = codec.rule_of(self._run.module)
        known = (codec.uses_base, canonical_json(rule))
        if known not in self._prepared:
            prepared = prepare(self._run, base, self._digests, rule=rule, against=codec.uses_base)
            check_modules(prepared, codec)
            self._prepared[known] = prepared.noting(self._options)
        return self._prepared[known]


def _header_bytes(
    codec: Codec, units: Sequence[Unit], prepared: Prepared, measured: Mapping[str, EncodedSection]
) -> int:
    """Return the bytes of a task's file without its sections: of one with stand-ins, whose digests differ as theirs.

    Sections that were measured, by name, stand for themselves; the others have the first one's coder, and as many bytes
    an element. The header of a large file does not depend on them, so that one such stand-in is enough.
    """
    usual = next((section.coder for section in measured.values()), "")
    rate = sum(len(section.data) for section in measured.values()) / max(1, sum(s.count for s in measured.values()))
    names = [(name, unit) for unit in units for name in codec.sections(unit)]
    sizes = [len(measured[name].data) if name in measured else max(8, round(rate * unit.size)) for name, unit in names]
    if sum(sizes) > MOST_HELD:
        sizes = [MOST_HELD + 1, *[8] * (len(names) - 1)]
    stand_ins = [
        EncodedSection(
            name,
            measured[name].coder if name in measured else usual,
            unit.dtype.name,
            unit.size,
            i.to_bytes(8, "little")[:size].ljust(size, b"\0"),
        )
        for i, ((name, unit), size) in enumerate(zip(names, sizes, strict=True))
    ]
    file = io.BytesIO()
    write_file(file, codec, units, iter(stand_ins), task_manifest(codec, prepared))
    return len(file.getvalue()) - sum(sizes)
