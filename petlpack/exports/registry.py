"""The table of exports: what `decode` can write a task as."""

from __future__ import annotations

import importlib

from petlpack.errors import UsageError
from petlpack.errors.arguments import shown
from petlpack.exports.export import Export

RUN = "run"
"""The run as it was, which is what a task is written as where nothing else is asked for."""

EXPORTS = {
    RUN: "petlpack.exports.run:RunExport",
    "safetensors": "petlpack.exports.safetensors:SafetensorsExport",
    "portable": "petlpack.exports.portable:PortableExport",
    "peft": "petlpack.exports.peft:PeftExport",
    "adapterhub": "petlpack.exports.adapterhub:AdapterhubExport",
}


def known_exports() -> tuple[str, ...]:
    """Return the ids of what a task can be decoded to, the run as it was first."""
    return tuple(EXPORTS)


def export(export_id: str) -> Export:
    """Return the export of an id; raises UsageError for an id that is not in the table."""
    if not isinstance(export_id, str) or export_id not in EXPORTS:
        raise UsageError(f"unknown layout {shown(export_id)} to decode to", hint=f"choose one of {', '.join(EXPORTS)}")
    module, _, name = EXPORTS[export_id].partition(":")
    loaded: Export = getattr(importlib.import_module(module), name)()
    return loaded
