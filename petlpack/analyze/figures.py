"""What papers count, beside the true bytes: parameters, mask entries, shares of the base (docs/accounting.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from petlpack.analyze.reading import Opened, PartBytes
from petlpack.tensors.dtypes import DTYPES


@dataclass(frozen=True)
class Figures:
    """Counts of one task in the manner of papers, the head apart. None where it does not apply or is not known."""

    trained_parameters: int | None
    """What training updated: all experts, prototype and mask scores, generator and retriever."""
    stored_parameters: int
    """Numbers that are stored for the method, its shared parts included: every tensor once, masks and head apart."""
    own_parameters: int
    """Those of them that stand in the task's own file."""
    head_parameters: int
    base_parameters: int | None
    paper_bytes: int
    """The stored numbers at their width and one bit for each mask entry: what papers report."""
    percent_of_base: float | None
    """`stored_parameters`, and mask entries as 32nd parts of one, over the base's parameters, in percent."""
    mask_entries: int
    mask_bytes: int
    bits_per_entry: float | None
    density: float | None
    """Share of the entries that the masks keep; of a sparse difference, share of the weights that changed."""
    entropy_bits: float | None
    """Bits an entry that a random mask of this density needs: H(density)."""


def figures_of(opened: Opened, parts: Sequence[PartBytes]) -> Figures:
    """Count one task, which uses these shared parts of tensors; decodes no weights."""
    counts, template = opened.kind.counts, opened.kind.template
    facts = opened.facts.figures
    base = template.base_parameters or facts.get("base")
    numbers, own_numbers, nbytes = counts.numbers, counts.own, counts.nbytes
    density = _ratio(facts.get("kept"), counts.entries)
    if opened.kind.picks:
        values = [row for row in opened.sections if row.role == "base"]
        numbers = own_numbers = sum(row.count for row in values)
        nbytes = sum(row.count * DTYPES[row.dtype].itemsize for row in values)
        density = _ratio(numbers, counts.from_base)
    masks = [row for row in opened.sections if row.role == "mask"]
    masks += [row for part in parts for row in part.sections if row.role == "mask"]
    mask_bytes = sum(row.nbytes for row in masks)
    return Figures(
        trained_parameters=facts.get("trained"),
        stored_parameters=numbers,
        own_parameters=own_numbers,
        head_parameters=counts.head,
        base_parameters=base,
        paper_bytes=nbytes + (counts.entries + 7) // 8,
        percent_of_base=100 * (numbers + counts.entries / 32) / base if base else None,
        mask_entries=counts.entries,
        mask_bytes=mask_bytes,
        bits_per_entry=8 * mask_bytes / counts.entries if counts.entries else None,
        density=density,
        entropy_bits=None if density is None else entropy(density),
    )


def entropy(share: float) -> float:
    """Return H(share) in bits: what one entry of a random mask of this density takes at least."""
    return 0.0 if not 0 < share < 1 else -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def _ratio(part: int | None, whole: int) -> float | None:
    return part / whole if part is not None and whole else None
