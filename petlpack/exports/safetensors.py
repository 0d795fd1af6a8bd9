"""`--to safetensors`: one model.safetensors, of the rebuilt modules where the task has a rule."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from petlpack.errors import UsageError, printable
from petlpack.exports.export import Export, Exportable, Reading, write_files
from petlpack.exports.weights import write_weights
from petlpack.rules.modules import Rebuilt
from petlpack.tensors.safetensors_file import build_header, write_safetensors
from petlpack.tensors.tensor import Stored

FILE = "model.safetensors"


class SafetensorsExport(Export):
    """One safetensors file, for whoever reads tensors by name."""

    id = "safetensors"

    def is_already(self, task: Exportable) -> bool:
        """Tell whether the run is one safetensors file and nothing else."""
        weights = list(task.template.headers)
        alone = not task.template.files and len(weights) == 1 and weights[0].endswith(".safetensors")
        return alone and task.template.rule is None

    def write(self, task: Exportable, directory: Path, reading: Reading) -> list[str]:
        """Write the rebuilt modules, or all tensors and the kept files; return which of these can run code."""
        rebuilt = task.rebuild(reading.base)
        if rebuilt is None:
            return _write_tensors(task, directory, reading)
        _write_rebuilt(directory / FILE, rebuilt)
        return []


def _write_tensors(task: Exportable, directory: Path, reading: Reading) -> list[str]:
    """Write all tensors into one file, whatever files they stood in."""
    tensors = task.load(reading.base)
    places = {PurePosixPath(name).parent for name in task.template.headers}
    indexes = [name for name in task.template.files if name.endswith(".index.json")]
    of_shards = {name for name in indexes if PurePosixPath(name).parent in places}
    notes = write_files(task, directory, [*(task.template.files.keys() - of_shards - {FILE})], code=reading.code)
    if FILE in task.template.files:
        notes.append(f"left out the {FILE} that the run has beside its weights: its name is taken")
    entries = task.template.entries
    for name, entry in entries.items():
        if Stored(entry.dtype, entry.shape).only_torch:
            raise UsageError(
                f"tensor '{printable(name)}' is {printable(entry.dtype)}, which safetensors files cannot hold",
                hint="`--to run` writes the file as torch saves it",
            )
    rows = {
        slot.name: (entries[slot.name].dtype, entries[slot.name].shape, slot.nbytes) for slot in tensors.sources.slots
    }
    stream = tensors.stream(jobs=reading.jobs, progress=reading.progress)
    write_weights(directory, {FILE: build_header(rows, {"format": "pt"})}, stream, {})
    return notes


def _write_rebuilt(path: Path, rebuilt: Rebuilt) -> None:
    """Write rebuilt modules and the head; how they are used stands in the metadata."""
    use = json.dumps({"kind": rebuilt.kind, "settings": rebuilt.settings}, sort_keys=True)
    write_safetensors(path, {**rebuilt.tensors, **rebuilt.head}, {"format": "pt", "use": use})
