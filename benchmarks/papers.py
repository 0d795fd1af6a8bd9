"""The four methods at their papers' sizes: made-up weights in the real layouts, packed, decoded, compared, counted."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the generators of runs are the tests'

import petlpack  # noqa: E402
from petlpack.analyze.audit import audit  # noqa: E402
from petlpack.analyze.figures import Figures, entropy  # noqa: E402
from tests.support import method_formulas as formulas  # noqa: E402
from tests.support import method_runs as runs  # noqa: E402

GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")
WORDS = {"adapter": "Adapter", "lora": "LoRA", "prefix": "Prefix"}
T5_SETTINGS = {"combine": "or", "activation": "gelu_new"}


class Report(Protocol):
    """Where figures go."""

    def table(self, head: Any, rows: Any) -> None:
        """Print a table."""

    def bar(self, what: str, measured: float, bound: float, *, at_most: bool = True, unit: str = "") -> None:
        """Note a bar."""


def methods(report: Report, trained: Path) -> None:
    """Pack a run of each method at the size of its paper; seed 0, random weights, masks of random scores."""
    del trained
    rows: list[tuple[str, ...]] = []
    for part in (_propetl_roberta, _propetl_t5, _adamix, _diff_pruning, _pha):
        with tempfile.TemporaryDirectory() as directory:
            part(report, Path(directory), rows)
    report.table(
        (
            "run",
            "as the code wrote it",
            "method bytes",
            "head bytes",
            "papers' count",
            "stored floats",
            "bits a mask entry",
        ),
        rows,
    )


def _figures(task: petlpack.Task) -> Figures:
    return audit(task.store.path, task.name).row.figures


def _row(name: str, source: int, method: int, tasks: list[petlpack.Task]) -> tuple[str, ...]:
    figures = _figures(tasks[0])
    head = sum(size for task in tasks for section, size in task.payload.items() if section.startswith("head."))
    bits = "-" if figures.bits_per_entry is None else f"{figures.bits_per_entry:.4f}"
    return (
        name,
        f"{source:,}",
        f"{method:,}",
        f"{head:,}",
        f"{figures.paper_bytes:,}",
        f"{figures.stored_parameters:,}",
        bits,
    )


def _encode(
    run: Path, pack: Path, base: Path | None = None, settings: Mapping[str, str] | None = None, **options: Any
) -> list[petlpack.Task]:
    done = petlpack.encode(run, pack, base, settings=settings, **options)
    return [petlpack.open(pack)[task.name] for task in done]


def _bytes(tasks: list[petlpack.Task], head: bool = False) -> int:
    """Return the bytes of some tasks' files without their heads, and of the shared parts of tensors, each once."""
    parts = {sha256 for task in tasks for sha256 in task.manifest.shared[1:]}
    shared = sum(task.store.shared_path(sha256).stat().st_size for task in tasks[:1] for sha256 in parts)
    heads = sum(size for task in tasks for name, size in task.payload.items() if name.startswith("head."))
    return shared + sum(task.nbytes for task in tasks) - (0 if head else heads)


def _check_rebuilt(task: petlpack.Task, expected: Callable[[str], np.ndarray[Any, Any]]) -> None:
    """Compare every rebuilt tensor with a formula of the tests, bit for bit."""
    rebuilt = task.rebuild()
    assert rebuilt is not None
    for name, tensor in rebuilt.tensors.items():
        assert np.array_equal(tensor.numpy(), expected(name)), name


def _propetl_roberta(report: Report, directory: Path, rows: list[tuple[str, ...]]) -> None:
    shape = runs.ROBERTA_BASE
    unshared = 4 * shape.layers * formulas.adapter_floats(shape.width, shape.bottleneck)
    for kind, keep in (("adapter", 0.5), ("lora", 0.1), ("prefix", 0.1)):
        written = runs.write_propetl_roberta(directory / kind, "sst2", shape, kind=kind, keep=keep)
        tasks = _encode(written.path, directory / "pack", settings={"bake": str(kind == "prefix").lower()})
        figures = _figures(tasks[0])
        method = _bytes(tasks)
        rows.append(_row(f"PROPETL {kind}, RoBERTa-base, k {keep}", _size(written.path), method, tasks))
        bound = figures.mask_entries * entropy(keep) / 8
        if kind == "adapter":
            report.bar("ProAdapter RoBERTa-base, method bytes", method, 550_000, unit=" B")
            report.bar("ProAdapter RoBERTa-base / unshared adapters", method / unshared, 0.115)
            report.bar("ProAdapter, papers' bytes over 544,000", figures.paper_bytes / 544_000, 1.0)
        else:
            report.bar(f"Pro{WORDS[kind]}, mask bytes / (1.02 x 69,200)", figures.mask_bytes / (1.02 * 69_200), 1)
            report.bar(
                f"Pro{WORDS[kind]}, papers' mask bytes / ours",
                figures.mask_entries / 8 / figures.mask_bytes,
                2.08,
                at_most=False,
            )
        report.bar(f"Pro{WORDS[kind]}, mask bytes / n H(k)", figures.mask_bytes / bound, 1.02)
        shutil.rmtree(directory / kind)


def _propetl_t5(report: Report, directory: Path, rows: list[tuple[str, ...]]) -> None:
    written = runs.write_propetl_t5(directory / "t5", GLUE, runs.T5_BASE)
    tasks = _encode(written.path, directory / "pack", settings=T5_SETTINGS)
    rows.append(_row("PROPETL, T5-base, 8 tasks, k 0.3", _size(written.path), _bytes(tasks), tasks))
    report.bar("PROPETL T5-base, all 8 tasks", _bytes(tasks), 790_000, unit=" B")
    report.bar("PROPETL T5-base, a further task", max(task.nbytes for task in tasks), 13_000, unit=" B")


def _adamix(report: Report, directory: Path, rows: list[tuple[str, ...]]) -> None:
    for name, family, shape, floats in (
        ("BERT-base", "bert", runs.BERT_BASE, 894_528),
        ("RoBERTa-large", "roberta", runs.ROBERTA_LARGE, 811_392),
    ):
        written = runs.write_adamix(directory / name, shape, family=family)
        tasks = _encode(written.path, directory / "pack")
        figures = _figures(tasks[0])
        rows.append(_row(f"AdaMix, {name}", _size(written.path), _bytes(tasks), tasks))
        report.bar(f"AdaMix {name}, stored floats over {floats:,}", figures.stored_parameters / floats, 1)
        experts = [
            written.tensors[f"{family}.encoder.layer.0.output.ExpertSoup.MoA_A.deepspeed_experts.{e}.weight"]
            for e in range(4)
        ]
        rebuilt = tasks[0].rebuild()
        assert rebuilt is not None
        merged = formulas.merge_experts(experts, np.zeros(4, np.float32))
        same = np.array_equal(rebuilt.tensors[f"{family}.encoder.layer.0.output.down.weight"].numpy(), merged)
        report.bar(f"AdaMix {name}, merged weights that differ from the formula", float(not same), 0)


def _diff_pruning(report: Report, directory: Path, rows: list[tuple[str, ...]]) -> None:
    base = runs.write_base(directory / "base", runs.BERT_LARGE)
    written = runs.write_diff_pruning(directory / "run", base.path, structured=False, info=False)
    del base
    changed = _changed(written.path, directory / "base")
    tasks = _encode(written.path, directory / "pack", directory / "base", codec="sparse")
    rows.append(_row("diff pruning, BERT-large, 0.5 %", _size(written.path), _bytes(tasks), tasks))
    positions = sum(size for name, size in tasks[0].payload.items() if name.endswith(".positions"))
    report.bar("diff pruning BERT-large 0.5 %, file without head", _bytes(tasks) / 1e6, 8.7, unit=" MB")
    report.bar("diff pruning BERT-large 0.5 %, positions / entropy bound", 8 * positions / changed, 1.01)


def _changed(run: Path, base: Path) -> float:
    """Return the bits that the set of changed positions needs at least."""
    from petlpack.tensors.checkpoint import find_weights, open_checkpoint, open_saved

    tuned = open_saved(run / "pytorch_model.bin").tensors
    weights = find_weights(base)
    assert weights is not None
    given = open_checkpoint(weights).tensors
    total = changed = 0
    for name, tensor in given.items():
        other = tuned[f"bert.{name}"].bits()
        total += other.size
        changed += int(np.count_nonzero(other != tensor.bits()))
    return (math.lgamma(total + 1) - math.lgamma(changed + 1) - math.lgamma(total - changed + 1)) / math.log(2)


def _pha(report: Report, directory: Path, rows: list[tuple[str, ...]]) -> None:
    base = runs.write_base(directory / "base", runs.T5_BASE, family="t5")
    written = runs.write_pha(directory / "pha", GLUE, runs.T5_BASE)
    del base
    source = _size(written.path)
    tasks = _encode(written.path, directory / "pack", directory / "base")
    rows.append(_row("PHA, T5-base, 8 tasks", source, _bytes(tasks), tasks))
    report.bar("PHA T5-base, largest task file", max(task.nbytes for task in tasks), 1536, unit=" B")
    parts = {tuple(task.manifest.shared[1:]) for task in tasks}
    report.bar("PHA T5-base, shared parts of 8 tasks", len({sha256 for part in parts for sha256 in part}), 1)
    rebuilt = tasks[3].rebuild(directory / "base")
    assert rebuilt is not None
    expected = formulas.pha_adapter(written.tensors, 3, 5)
    got = rebuilt.tensors["decoder.block.5.layer.2.up.weight"].numpy().astype(np.float64)
    error = float(np.abs(got - expected.up).max() / np.abs(expected.up).max())
    report.bar("PHA, generated weights against float64, largest relative error", error, 1e-6)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
