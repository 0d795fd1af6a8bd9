"""Tensors to the sections of a file; `read.py` is its inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from petlpack import coding, container
from petlpack.codecs.codec import Codec
from petlpack.codecs.units import Section, Unit
from petlpack.coding.array import Level
from petlpack.container import EncodedSection, Manifest, SectionRow
from petlpack.parallel import Progress, ordered_map
from petlpack.sections.predict import Predictions, joined
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import Tensor

ManifestOf = Callable[[tuple[SectionRow, ...]], Manifest]
"""Makes a file's manifest of the rows of its sections."""


class DeclinedError(Exception):
    """A codec declined a unit: it is not for this run, for a reason that people can read."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class SectionWriter:
    """Encodes the units of files by one codec, on several threads."""

    codec: Codec
    level: Level
    jobs: int
    progress: Progress | None = None

    def encode(
        self,
        units: Sequence[Unit],
        tensors: Mapping[str, Tensor],
        predictions: Predictions,
        *,
        may_decline: bool = False,
    ) -> Iterator[list[EncodedSection]]:
        """Yield the sections of each unit in turn; where it `may_decline`, raises DeclinedError."""
        total, done = sum(unit.size * unit.dtype.itemsize for unit in units), 0

        def encode_unit(unit: Unit) -> list[EncodedSection]:
            elements, prediction = read_unit(unit, tensors), predictions.of(unit)
            reason = self.codec.declines(unit, elements, prediction) if may_decline else None
            if reason is not None:
                raise DeclinedError(reason)
            sections = self.codec.encode(unit, elements, prediction)
            return [self._encode_section(section) for section in sections]

        for unit, sections in zip(units, ordered_map(encode_unit, units, self.jobs), strict=True):
            yield sections
            done += unit.size * unit.dtype.itemsize
            if self.progress is not None:
                self.progress(done, total)

    def _encode_section(self, section: Section) -> EncodedSection:
        coder_id, data = coding.encode(section.bits, section.array, section.coders, self.level)
        return EncodedSection(section.name, coder_id, section.array.dtype.name, section.array.count, data)


def read_unit(unit: Unit, tensors: Mapping[str, Tensor]) -> Bits:
    """Return the flat elements of a unit."""
    return joined([tensors[piece.slot.name].read_flat(piece.start, piece.stop) for piece in unit.pieces])


def write_file(
    file: BinaryIO, codec: Codec, units: Sequence[Unit], sections: Iterator[EncodedSection], manifest_of: ManifestOf
) -> None:
    """Write a whole file from the sections of its units, in their order."""
    names = [name for unit in units for name in codec.sections(unit)]
    limit = sum(unit.size * (unit.dtype.itemsize + 1) for unit in units) + 1024 * (1 + len(names))
    container.write(file, names, limit, sections, manifest_of)
