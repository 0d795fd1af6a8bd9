"""A prepared run as a codec sees it: its units and what predicts them, and whether they suit the codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from petlpack.codecs.codec import Codec
from petlpack.codecs.units import Unit
from petlpack.encoding.prepare import Prepared
from petlpack.errors import RunError, printable
from petlpack.layouts.run import Run
from petlpack.parallel import ordered_map
from petlpack.records.slot import Slot, with_kinds
from petlpack.sections.predict import Predictions
from petlpack.sections.write import read_unit


@dataclass(frozen=True)
class Cut:
    """The units of a run by one codec, and what predicts them."""

    units: list[Unit]
    predictions: Predictions


def cut(prepared: Prepared, codec: Codec) -> Cut:
    """Cut what a run has to store into the units of a codec."""
    kinds = codec.kinds(prepared.described.template.rule)
    slots = shared_slots(prepared, kinds)
    shared = {
        slot: tensor
        for part, part_slots in zip(prepared.parts, slots, strict=True)
        for slot, tensor in zip(part_slots, part.tensors, strict=True)
    }
    predictions = Predictions(prepared.matched.base, shared)
    return Cut(codec.units(with_kinds(prepared.described.sources.stored, kinds), predictions.shared), predictions)


def shared_slots(prepared: Prepared, kinds: Mapping[str, str]) -> list[list[Slot]]:
    """Return the slots of each shared part as the task sees them; one that no file has is nameless."""
    known = {slot.name: slot for slot in with_kinds(prepared.described.template.slots, kinds)}
    return [
        [
            known[like] if name is not None else replace(known[like], name="", part=(number, i))
            for i, (name, like) in enumerate(zip(part.names, part.like, strict=True))
        ]
        for number, part in enumerate(prepared.parts)
    ]


def check_suits(prepared: Prepared, codec: Codec, units: Cut, jobs: int) -> None:
    """Raise RunError where a codec declines a unit of a run; all of them are looked at, and nothing is coded."""
    if type(codec).declines is Codec.declines:
        return

    def declined(unit: Unit) -> str | None:
        return codec.declines(unit, read_unit(unit, prepared.matched.tensors), units.predictions.of(unit))

    reason = next(filter(None, ordered_map(declined, units.units, jobs)), None)
    if reason is not None:
        raise unsuited(prepared.run, codec, reason)


def unsuited(run: Run, codec: Codec, reason: str) -> RunError:
    """Return the error of a run that does not suit a codec, for the reason that the codec gives."""
    prunes = type(run.module) in codec.prunes
    return RunError(
        f"codec '{codec.id}' does not suit '{printable(str(run.path))}': {reason}",
        hint="--density keeps only the largest changes" if prunes else "--codec auto chooses one that suits",
    )
