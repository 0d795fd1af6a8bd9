"""What a layout reader is: it knows its runs, reads them, and says by names alone which files of them it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from petlpack.layouts.checkpoints import places
from petlpack.layouts.options import Options, Setting
from petlpack.layouts.run import Run
from petlpack.tensors.checkpoint import find_weights
from petlpack.tensors.kinds import WEIGHTS


class Layout(ABC):
    """One way in which runs stand on disk."""

    id: ClassVar[str]
    method: ClassVar[str]
    """How its runs were trained, in a word."""
    settings: ClassVar[tuple[Setting, ...]] = ()
    """What a caller may have to say of its runs."""
    components: ClassVar[bool] = False
    """Whether weight files beside those that it reads are weights, too, and not bytes."""

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Tell whether a path holds a run of this layout; reads names and small JSON files only."""

    @abstractmethod
    def read(self, path: Path, options: Options) -> Sequence[Run]:
        """Read the tasks of a run; raises RunError that names the file."""

    def choices(self, path: Path) -> Iterator[tuple[Path, list[Path]]]:
        """Yield (directory, its weight files), in the order in which `read` takes the first that is complete.

        Told by names alone: an index of shards stands for them. Nothing is opened.
        """
        if path.is_file():
            yield path, [path]
        for place in places(path):
            if files := self.weights(place):
                yield place, files

    def weights(self, place: Path) -> list[Path]:
        """Return the weight files of one directory: the model's, else all that are called like weights."""
        return model_in(place) or sorted(file for file in place.iterdir() if file.suffix in WEIGHTS)

    def folders(self, path: Path) -> list[Path]:
        """Return the directories of a run's own adapters, where it has several."""
        return []

    def check_complete(self, place: Path, path: Path) -> None:
        """Raise RunError where a directory of a run lacks a small file without which `read` does not take it."""
        return

    def method_of(self, place: Path) -> str:
        """Return how a run was trained, as far as the small files in a directory of it say."""
        return self.method


def first_of(place: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the first file of a directory with one of these names, of numbered ones the highest; at most one."""
    named = (
        file
        for pattern in patterns
        for file in sorted(place.glob(pattern), key=lambda file: (len(file.name), file.name), reverse=True)
    )
    return [file for file in named if file.is_file()][:1]


def model_in(place: Path, stem: str = "model", pickled: str = "pytorch_model") -> list[Path]:
    """Return the weight file that Transformers or PEFT would load, or the index of its shards; at most one."""
    known = find_weights(place, stem, pickled)
    return [] if known is None else [known]
