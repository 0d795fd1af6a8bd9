"""What papers count, beside the true bytes: parameters, mask entries, shares of the base (docs/accounting.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from petlpack import container
from petlpack.loading import Task
from petlpack.template import texts_of
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


def figures_of(task: Task) -> Figures:
    """Count one task; decodes no weights."""
    template, facts = task.template, task.manifest.facts
    own, shared = task.plan.stored, [slot for slot in template.slots if slot.part is not None]
    method = [slot for slot in (*own, *shared) if not slot.head and slot.dtype.name != "BOOL"]
    if template.rule is not None:  # of a whole model, only what the method made
        named = set(texts_of(template.rule))
        method = [slot for slot in method if slot.name in named]
    masks = [slot for slot in (*own, *shared) if not slot.head and slot.dtype.name == "BOOL"]
    said = _counts(facts.get("figures"))
    base = template.base_parameters or said.get("base")
    entries = sum(slot.size for slot in masks)
    values = [row for row in task.manifest.sections if row.name.endswith(".values")]
    sparse = task.codec == "sparse"
    stored = sum(row.count for row in values) if sparse else sum(slot.size for slot in method)
    nbytes = sum(row.count * DTYPES[row.dtype].itemsize for row in values) if sparse else sum(s.nbytes for s in method)
    paper = nbytes + (entries + 7) // 8
    mask_bytes = _mask_bytes(task)
    weights = sum(slot.size for slot in template.slots if slot.base is not None)
    density = _ratio(stored, weights) if sparse else _ratio(said.get("kept"), entries)
    return Figures(
        trained_parameters=said.get("trained"),
        stored_parameters=stored,
        own_parameters=stored if sparse else sum(slot.size for slot in method if slot.part is None),
        head_parameters=sum(slot.size for slot in own if slot.head),
        base_parameters=base,
        paper_bytes=paper,
        percent_of_base=100 * (stored + entries / 32) / base if base else None,
        mask_entries=entries,
        mask_bytes=mask_bytes,
        bits_per_entry=8 * mask_bytes / entries if entries else None,
        density=density,
        entropy_bits=None if density is None else entropy(density),
    )


def entropy(share: float) -> float:
    """Return H(share) in bits: what one entry of a random mask of this density takes at least."""
    return 0.0 if not 0 < share < 1 else -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def _mask_bytes(task: Task) -> int:
    """Return the bytes of the sections of masks, those in shared parts included."""
    own = sum(size for name, size in task.payload.items() if name.startswith("masks."))
    for sha256 in task.manifest.shared[1:]:
        opened = container.read(task.store.shared_path(sha256))
        names = [row.name for row in opened.manifest.sections if row.name.startswith("masks.")]
        own += sum(opened.section_bytes(name) for name in names)
    return own


def _counts(said: object) -> dict[str, int]:
    """Return the counts among what a manifest says; it may say anything."""
    rows = said.items() if isinstance(said, dict) else ()
    return {str(name): count for name, count in rows if type(count) is int and 0 <= count < 1 << 62}


def _ratio(part: int | None, whole: int) -> float | None:
    return part / whole if part is not None and whole else None
