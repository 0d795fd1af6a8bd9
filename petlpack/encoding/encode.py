"""From a run to a pack: the first straight line.

run directory -> layout reader -> module -> match, prune, share, describe (prepare.py) -> codec -> sections -> coders ->
container -> decoded again and compared (write.py) -> store, the shared parts first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from petlpack.coding.array import Level
from petlpack.decoding.needs import needs_of, remembering
from petlpack.encoding.bases import choose_base
from petlpack.encoding.request import Request
from petlpack.encoding.write import TaskWriter, Written
from petlpack.errors import PetlpackError, RunError, printable, problem_of
from petlpack.errors.arguments import Place, path_of
from petlpack.errors.foreign import errors_of_run
from petlpack.layouts.registry import options_of, read_run
from petlpack.layouts.run import LeftOut, Run
from petlpack.layouts.selection import MAX_FILE, Selection
from petlpack.parallel import Progress, count_jobs
from petlpack.records.template_parts import Origin
from petlpack.sections.parts import unreadable
from petlpack.store import Store, check_task_name, legal_task_name
from petlpack.tensors.base import Base, Bases
from petlpack.tensors.hub_cache import cached_name
from petlpack.tensors.pinned import Watched, watching


@dataclass(frozen=True)
class Encoded:
    """What `encode` did: the task, its bytes, the shared parts it uses (sha256 -> bytes), what was left out."""

    name: str
    method: str
    layout: str
    codec: str
    exact: bool
    nbytes: int
    source_bytes: int
    seconds: float
    shared: dict[str, int]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    base: Origin | None = None
    """The base that it was encoded against, or that an adapter is bound to."""


def encode(
    run_dir: str | Path,
    pack: Place,
    base: Bases | None = None,
    *,
    task: str | None = None,
    codec: str = "auto",
    level: Level = "small",
    settings: Mapping[str, str | bool] | None = None,
    density: float | None = None,
    drop: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    max_file: int = MAX_FILE,
    replace: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[Encoded]:
    """Encode the tasks of one run into a pack, which is made if there is none; most runs hold one task.

    `base` is the pretrained checkpoint (directory, weights file or `Base`), several of them or a directory of models,
    of which the one that the run fits is taken, by default the directory that the run's own config names by an absolute
    path. `task` is the task's name, by default the directory's; several tasks are called `<task>.<theirs>`.
    `codec` "auto" keeps the codec whose task file is smallest. `settings` say what the run's directory does not (its
    combine rule, activation, ...), and what to keep of it: `keep_experts` and `keep_retriever` what averaging and
    inference drop, `bake` a produced prefix in the place of the network that makes it. `density` keeps only that share
    of the changes of a full fine-tune, the largest ones. `drop` and `keep` are globs of files beside the weights, which
    come along unless they are known not to be needed, or larger than `max_file` bytes. Raises RunError, BaseError,
    UsageError, or TaskError (name taken and not `replace`), and then leaves the pack as it was.
    """
    started = time.perf_counter()
    threads, run_dir = count_jobs(jobs), path_of("run_dir", run_dir)
    name = check_task_name(task) if task is not None else default_name(run_dir)
    request = Request(codec, level, density, options_of(settings, Selection.of(drop, keep, max_file)))
    with errors_of_run(run_dir), watching() as files:
        runs = read_run(run_dir, request.options)
        named = dict(zip(_names(name, runs), runs, strict=True))
        chosen = choose_base(runs[0], base, request, threads)
        with Store.creating(pack) as store, contextlib.ExitStack() as scratch:
            for task_name in named:  # before anything is encoded; the commit asks again
                store.refuse_taken(task_name, replace=replace)
            writer = TaskWriter(store, scratch, chosen.base, request, threads, progress)
            written = [writer.write(task_name, run) for task_name, run in named.items()]
            _check_unchanged(chosen.base, files)
            _commit(store, writer, written, replace=replace)
            seconds = (time.perf_counter() - started) / len(written)
            told = (*(() if task is not None else _name_told(name, Path(run_dir))), *chosen.warnings, *store.told)
            return [_encoded(task_file, store, seconds, told) for task_file in written]


def _check_unchanged(base: Base | None, files: Watched) -> None:
    """Raise BaseError or RunError where a file of them is no longer the one that was digested and coded."""
    if base is not None:
        base.check_unchanged()
    files.check()


def _commit(store: Store, writer: TaskWriter, written: Sequence[Written], *, replace: bool) -> None:
    """Put all tasks of a run into the pack or none: what may refuse one is asked before the first goes in.

    Where the system fails between two of them, PetlpackError says which are in the pack.
    """
    for task_file in written if len(written) > 1 else ():  # of one, `put` asks: each time lists all tasks of the pack
        store.refuse_taken(task_file.name, replace=replace)
    contents = {sha256 for task_file in written for sha256 in task_file.shared if sha256 not in writer.parts}
    damaged = writer.damaged | unreadable(store, contents)
    needs = remembering(needs_of(store))
    for number, task_file in enumerate(written):
        with _telling(written[:number]):
            task_file.shared.make(store, damaged)
            store.put(task_file.name, task_file.path, task_file.shared, damaged, replace=replace, needs=needs)
        damaged -= task_file.shared.keys()  # written again, once


@contextlib.contextmanager
def _telling(committed: Sequence[Written]) -> Iterator[None]:
    """Say in what fails which tasks of the run are in the pack already."""
    try:
        yield
    except (PetlpackError, OSError) as error:
        if not committed:
            raise
        names = ", ".join(f"'{task_file.name}'" for task_file in committed)
        raise PetlpackError(
            f"of the run's tasks {names} {'is' if len(committed) == 1 else 'are'} in the pack, but no other: "
            f"{problem_of(error).message}",
            hint="encode it again with --replace (in Python: replace=True), once what is said is mended",
        ) from error


def default_name(run_dir: Path) -> str:
    """Return the task's name where none is given: a legal one, made of what the run is called."""
    return legal_task_name(_called(run_dir))


def _called(run_dir: Path) -> str:
    """Return what a run is called: the directory, the file without its suffix, `org--name` in the Hub's cache."""
    if run_dir.is_file():
        return run_dir.stem
    cached = cached_name(run_dir)
    if cached is not None:
        return cached
    return run_dir.name if run_dir.name not in ("", "..") else run_dir.resolve().name


def _name_told(name: str, run_dir: Path) -> tuple[str, ...]:
    """Return a warning where the task's name had to be made of what the run is called."""
    text = _called(run_dir)
    return () if text == name else (f"its task is named '{name}': no task can be called '{printable(text)}'",)


def _names(name: str, runs: Sequence[Run]) -> list[str]:
    """Return the tasks' names; of a run that holds several, each is made legal by the rule for directories."""
    if len(runs) == 1:
        return [name]
    wanted = [f"{name}.{run.task}" for run in runs]
    names = [
        text if legal_task_name(text) == text else legal_task_name(f"{name}.{legal_task_name(run.task)}")
        for text, run in zip(wanted, runs, strict=True)
    ]
    for task_name, run in zip(names, runs, strict=True):
        if [other.lower() for other in names].count(task_name.lower()) > 1:
            raise RunError(
                f"'{printable(str(run.path))}' has several tasks that would be named '{task_name}'",
                hint="encode their directories one by one, each with its own --task",
            )
    return names


def _encoded(written: Written, store: Store, seconds: float, told: tuple[str, ...]) -> Encoded:
    return Encoded(
        name=written.name,
        method=written.run.method,
        layout=written.run.layout,
        codec=written.codec,
        exact=written.exact,
        nbytes=store.task_path(written.name).stat().st_size,
        source_bytes=written.run.weight_bytes,
        seconds=seconds,
        shared={sha256: store.shared_path(sha256).stat().st_size for sha256 in written.shared},
        left_out=written.run.left_out,
        warnings=(*told, *written.warnings),
        base=written.base,
    )
