"""What a layout reader is: it knows its runs, reads them, and says by names alone which files of them it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from petlpack.layouts.checkpoints import places
from petlpack.layouts.options import Options, Setting
from petlpack.layouts.run import Run
from petlpack.tensors.checkpoint import find_weights
from petlpack.tensors.kinds import WEIGHTS, is_checkpoint

TRAINER_FILES = {"training_args.bin", "trainer_state.json", "all_results.json", "eval_results.json"}
"""What Trainer writes beside weights, by name."""


@dataclass(frozen=True)
class Names:
    """The names in a directory: those of its files, and of the files in each of its folders."""

    files: frozenset[str]
    folders: Mapping[str, frozenset[str]]

    @property
    def show_weights(self) -> bool:
        """Whether a file is called like weights, or a folder like a checkpoint of Trainer."""
        weights = any(Path(name).suffix in WEIGHTS for name in self.files - TRAINER_FILES)
        return weights or any(is_checkpoint(name) for name in self.folders)


class Layout(ABC):
    """One way in which runs stand on disk."""

    id: ClassVar[str]
    method: ClassVar[str]
    """How its runs were trained, in a word."""
    settings: ClassVar[tuple[Setting, ...]] = ()
    """What a caller may have to say of its runs."""
    components: ClassVar[bool] = False
    """Whether weight files beside those that it reads are weights, too, and not bytes."""
    base_keys: ClassVar[tuple[tuple[str, str], ...]] = (("config.json", "_name_or_path"),)
    """Where its runs may name their base: small JSON files, and the keys in them; the first that says it counts."""
    loads_base: ClassVar[bool] = False
    """Whether what loads its runs takes the base's tensors from the base, also where the run has them, too."""

    def may_be(self, names: Names) -> bool:
        """Tell by names alone whether a directory may be a run, by default any: `survey` asks `detect` of no others."""
        return True

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

    def method_of(self, weights: Path) -> str:
        """Return how a run was trained, as far as small files beside its weights and a header of these say."""
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
