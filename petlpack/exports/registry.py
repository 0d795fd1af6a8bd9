"""The table of exports: what `decode` can write a task as."""

from __future__ import annotations

import importlib

from petlpack.errors import UsageError
from petlpack.errors.arguments import shown
from petlpack.exports.export import Export

EXPORTS = {
    "run": "petlpack.exports.run:RunExport",
    "safetensors": "petlpack.exports.safetensors:SafetensorsExport",
    "peft": "petlpack.exports.peft:PeftExport",
    "adapterhub": "petlpack.exports.adapterhub:AdapterhubExport",
}


def export(export_id: str) -> Export:
    """Return the export of an id; raises UsageError for an id that is not in the table."""
    if not isinstance(export_id, str) or export_id not in EXPORTS:
        raise UsageError(f"unknown layout {shown(export_id)} to decode to", hint=f"choose one of {', '.join(EXPORTS)}")
    module, _, name = EXPORTS[export_id].partition(":")
    loaded: Export = getattr(importlib.import_module(module), name)()
    return loaded
