"""`--to portable`: the run with safetensors files in the place of pickled ones, for readers without torch."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from petlpack.errors import UsageError, printable
from petlpack.exports.export import Export, Exportable, Reading, read_object, write_files
from petlpack.exports.weights import write_weights
from petlpack.records.template import PICKLED
from petlpack.tensors.safetensors_file import Header
from petlpack.tensors.tensor import Stored

_INDEX = ".index.json"


class PortableExport(Export):
    """The run's own layout, without pickled weights: nothing that it writes of them needs torch or can run code."""

    id = "portable"

    def is_already(self, task: Exportable) -> bool:
        """Tell whether the run has no pickled weight file."""
        return not any(name.endswith(PICKLED) for name in task.template.headers)

    def write(self, task: Exportable, directory: Path, reading: Reading) -> list[str]:
        """Write the run's files, with other names where they were pickled; return what is said of them."""
        names = {name: portable_name(name) for name in task.template.headers}
        _check_names(task, names)
        headers = {names[name]: header for name, header in task.template.headers.items()}
        _check_dtypes(headers)
        indexes = {name: portable_name(name) for name in task.template.files if _is_index(name)}
        notes = write_files(task, directory, task.template.files.keys() - indexes.keys(), code=reading.code)
        for name, target in indexes.items():
            _write_index(task, name, directory / target, names)
        stream = task.load(reading.base).stream(jobs=reading.jobs, progress=reading.progress)
        write_weights(directory, headers, stream, {})
        renamed = [f"{printable(name)} is {printable(target)}" for name, target in names.items() if name != target]
        return [*([task.facts.note] if task.facts.note else []), *notes, *renamed]


def portable_name(name: str) -> str:
    """Return what a weight file, or the index of some, is called as safetensors, where Transformers looks for it."""
    index = _INDEX if name.endswith(_INDEX) else ""
    path = PurePosixPath(name.removesuffix(index))
    if path.suffix not in PICKLED:
        return name
    stem = path.stem.removeprefix("pytorch_") if path.stem.startswith("pytorch_model") else path.stem
    return (path.parent / f"{stem}.safetensors{index}").as_posix()


def _is_index(name: str) -> bool:
    return name.endswith(_INDEX) and portable_name(name) != name


def _check_names(task: Exportable, names: dict[str, str]) -> None:
    """Raise UsageError where two files would have one name."""
    indexes = [portable_name(name) for name in task.template.files if _is_index(name)]
    taken = [name for name in task.template.files if not _is_index(name)]
    targets = [*names.values(), *indexes, *taken]
    twice = next((name for name in targets if targets.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two of the run's files would be '{printable(twice)}'",
            hint="`--to run` writes them as they were, `--to safetensors` all weights into one file",
        )


def _check_dtypes(headers: dict[str, Header]) -> None:
    """Raise UsageError where a tensor has a dtype that safetensors files cannot hold."""
    for header in headers.values():
        for name, entry in header.entries.items():
            if Stored(entry.dtype, entry.shape).only_torch:
                raise UsageError(
                    f"tensor '{printable(name)}' is {printable(entry.dtype)}, which safetensors files cannot hold",
                    hint="`--to run` writes the file as torch saves it",
                )


def _write_index(task: Exportable, name: str, path: Path, names: dict[str, str]) -> None:
    """Write an index of shards with the new names of those that were pickled."""
    index = read_object(task, name)
    folder = PurePosixPath(name).parent
    weight_map = index.get("weight_map")
    if isinstance(weight_map, dict):
        moved = {
            key: PurePosixPath(names.get((folder / file).as_posix(), file)).name if isinstance(file, str) else file
            for key, file in weight_map.items()
        }
        index = {**index, "weight_map": moved}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
