"""`--to run`: the run as it was, weight files bit for bit and kept files byte for byte."""

from __future__ import annotations

from pathlib import Path

from petlpack.exports.export import Export, Exportable, Reading, write_files
from petlpack.exports.weights import check_torch, write_weights


class RunExport(Export):
    """The run's own layout."""

    id = "run"
    restores = True

    def is_already(self, task: Exportable) -> bool:
        """Return True: a run is itself."""
        return True

    def write(self, task: Exportable, directory: Path, reading: Reading) -> list[str]:
        """Write the run's files; return what its encoder noted, and which files can run code."""
        check_torch(task.template.headers)
        notes = write_files(task, directory, task.template.files, code=reading.code)
        tensors = task.load(reading.base)
        stream = tensors.stream(jobs=reading.jobs, progress=reading.progress)
        write_weights(directory, task.template.headers, stream, task.template.ties(tensors.sources.aliases))
        return [*([task.facts.note] if task.facts.note else []), *notes]
