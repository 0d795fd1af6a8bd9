"""What runs would become: offers with their bytes and losses, by run, and the best of each together as one pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from petlpack.errors import PetlpackError, problem_of


@dataclass(frozen=True)
class Offer:
    """One way to encode a run: what it costs and loses, and the command; or why it is refused.

    `nbytes` are those of the tasks' own files, `shared` those of the parts that they need, by sha256.
    """

    codec: str
    options: tuple[str, ...]
    command: tuple[str, ...]
    refused: PetlpackError | None = None
    nbytes: int = 0
    shared: Mapping[str, int] = field(default_factory=dict)
    exact: bool = False
    loss: str = ""
    density: float | None = None
    """Share of the base's weights that differ, where only so many changes are kept."""
    error: float | None = None
    """The largest absolute difference of a weight from the run's, where changes are lost."""
    error_bytes: int = 0
    """How far `nbytes` may be from the truth, 19 times of 20: 0 where everything was measured."""
    sampled_share: float = 1.0
    """Share of the stored weights that was measured."""
    auto: bool = False
    """Whether `--codec auto` takes this one."""

    @property
    def label(self) -> str:
        """The codec with its options, for people."""
        return " ".join(self.options[1:])

    @property
    def shared_bytes(self) -> int:
        """Bytes of the shared parts, which other tasks may need, too."""
        return sum(self.shared.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of the tasks and of what they share."""
        return self.nbytes + self.shared_bytes

    def to_json(self, run: RunPlan) -> dict[str, Any]:
        """Return the offer for a run; the figures of one that is refused are null."""
        measured = {
            "bytes": self.nbytes,
            "shared_bytes": self.shared_bytes,
            "total_bytes": self.total_bytes,
            "error_bytes": self.error_bytes,
            "sampled_share": self.sampled_share,
            "ratio": round(run.source_bytes / self.total_bytes, 4) if self.total_bytes else None,
            "exact": self.exact,
            "loss": {"text": self.loss, "density": self.density, "error": self.error},
        }
        return {
            **{"codec": self.codec, "options": list(self.options), "auto": self.auto, "best": self is run.best},
            **(measured if self.refused is None else dict.fromkeys(measured)),
            "refused": None if self.refused is None else problem_of(self.refused).to_json(),
            "command": list(self.command),
        }


@dataclass(frozen=True)
class RunPlan:
    """What each codec that applies would make of one run, the cheapest in all first, those refused last.

    `source_bytes` are those of the run's weight files, `directory_bytes` those of everything in its directory.
    """

    path: str
    layout: str
    method: str
    tasks: int
    source_bytes: int
    directory_bytes: int
    offers: tuple[Offer, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> Offer | None:
        """What `encode` takes by itself; where it takes nothing the cheapest that is exact, None without any."""
        exact = [offer for offer in self.offers if offer.refused is None and offer.exact]
        return next((offer for offer in exact if offer.auto), exact[0] if exact else None)

    def to_json(self) -> dict[str, Any]:
        """Return the run with its offers."""
        return {
            "run": self.path,
            "layout": self.layout,
            "method": self.method,
            "tasks": self.tasks,
            "source_bytes": self.source_bytes,
            "directory_bytes": self.directory_bytes,
            "offers": [offer.to_json(self) for offer in self.offers],
        }


@dataclass(frozen=True)
class PackPlan:
    """The best offer of every run together, as a pack. Its `nbytes` are the sum of its parts, pack.json among them.

    `commands` make it: one, where the runs take the same options.
    """

    runs: int
    tasks: int
    nbytes: int
    error_bytes: int
    own_bytes: int
    shared_bytes: int
    other_bytes: int
    source_bytes: int
    directory_bytes: int
    commands: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the pack as it would be."""
        return {
            "runs": self.runs,
            "tasks": self.tasks,
            "bytes": self.nbytes,
            "error_bytes": self.error_bytes,
            "own_bytes": self.own_bytes,
            "shared_bytes": self.shared_bytes,
            "other_bytes": self.other_bytes,
            "bytes_per_task": round(self.nbytes / self.tasks),
            "source_bytes": self.source_bytes,
            "directory_bytes": self.directory_bytes,
            "commands": [list(words) for words in self.commands],
        }


@dataclass(frozen=True)
class FailedPlan:
    """A run that cannot be planned, and why."""

    path: str
    error: PetlpackError | OSError


@dataclass(frozen=True)
class Plans:
    """What `plan` found of each run, and of all of them as one pack; None where no run can be in it."""

    runs: tuple[RunPlan, ...]
    pack: PackPlan | None
    failed: tuple[FailedPlan, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack plan --json` prints."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "pack": None if self.pack is None else self.pack.to_json(),
            "warnings": [{"run": run.path, "message": text} for run in self.runs for text in run.warnings],
            "failed": [{"run": failed.path, **problem_of(failed.error).to_json()} for failed in self.failed],
        }
