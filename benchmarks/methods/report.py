"""Tables and figures of docs/experiment.md, and the README's table, from results.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import TASKS
from rows import Row, all_rows

DOCS = Path(__file__).parents[2] / "docs"
PAGE, README = DOCS / "experiment.md", DOCS.parent / "README.md"
SCORES, AMORTISED = DOCS / "experiment-scores.svg", DOCS / "experiment-amortised.svg"
BEGIN, END = "<!-- {} -->", "<!-- end -->"


@dataclass(frozen=True)
class Line:
    """One line of the table: what was measured of a row."""

    row: Row
    seeds: dict[int, dict[str, dict[str, Any]]]
    """Records by seed and task."""
    bytes: list[dict[str, Any]]
    """What the pack of each seed weighs."""
    rate: float

    def accuracy(self, task: str | None = None) -> list[float]:
        """Return the accuracy of each seed: of a task, or the mean of all, in percent."""
        names = TASKS if task is None else (task,)
        return [100 * statistics.fmean(records[name]["accuracy"] for name in names) for records in self.seeds.values()]

    @property
    def mean(self) -> float:
        """Mean accuracy over tasks and seeds, in percent."""
        return statistics.fmean(self.accuracy())

    @property
    def spread(self) -> float:
        """Half the distance between the best and the worst seed."""
        return (max(self.accuracy()) - min(self.accuracy())) / 2

    @property
    def trained(self) -> float:
        """Mean numbers that train for a task, its head with them; of a run of all tasks a fifth."""
        records = [record for tasks in self.seeds.values() for record in tasks.values()]
        return statistics.fmean(record["trained"] for record in records) / (len(TASKS) if self.row.multi else 1)

    def part(self, name: str) -> float:
        """Mean bytes of one part of a task in the pack: method, head, rest or share."""
        return statistics.fmean(task[name] for pack in self.bytes for task in pack["tasks"].values())

    @property
    def takes(self) -> float:
        """Mean bytes that a task takes in the pack of five, with its share of what they share."""
        return sum(self.part(name) for name in ("method", "head", "rest", "share"))

    @property
    def shared(self) -> float:
        """Mean bytes of the parts that several tasks of a pack use."""
        return self.part("share") * len(TASKS)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record."""
        return [record for tasks in self.seeds.values() for record in tasks.values()]


def lines(results: dict[str, Any]) -> list[Line]:
    """Return the lines whose runs and packs are all there, in the order of the rows."""
    found = []
    for row in all_rows():
        runs = [one for one in results["runs"] if one["row"] == row.id]
        seeds: dict[int, dict[str, dict[str, Any]]] = {}
        for run in runs:
            seeds.setdefault(run["seed"], {}).update({record["task"]: record for record in run["scores"]})
        seeds = {seed: tasks for seed, tasks in sorted(seeds.items()) if len(tasks) == len(TASKS)}
        packs = [one for one in results["bytes"] if one["row"] == row.id and one["seed"] in seeds]
        if seeds and len(packs) == len(seeds):
            found.append(Line(row, seeds, packs, runs[0]["rate"]))
    return found


def report(results: dict[str, Any]) -> None:
    """Write the tables into the pages, between their marks, and draw the figures."""
    from figures import draw_amortised, draw_scores

    found = lines(results)
    _write_between_marks(PAGE, sections(results, found))
    _write_between_marks(README, {"experiment": headline(found)})
    if not found:
        return
    draw_scores(SCORES, found)
    draw_amortised(AMORTISED, found)


def _write_between_marks(page: Path, contents: dict[str, str]) -> None:
    text = page.read_text(encoding="utf-8")
    for name, content in contents.items():
        head, begin, rest = text.partition(BEGIN.format(name))
        if not begin:
            raise SystemExit(f"{page} has no mark '{BEGIN.format(name)}'")
        text = f"{head}{begin}\n\n{content}\n{END}{rest.partition(END)[2]}"
    page.write_text(text, encoding="utf-8")


HEADLINE = ("full", "adapter", "lora", "propetl-adapter-all", "adamix-adapter", "diff-structured-0.5", "pha")
"""The rows of the README's table: whole, two adapters, one of each method."""


def headline(found: Sequence[Line]) -> str:
    """Return the README's table: what a task takes, and what it scores before and after decoding."""
    rows = []
    for line in (line for line in found if line.row.id in HEADLINE):
        same = all(record["accuracy"] == record["decoded"] and record["same_logits"] for record in line.records)
        share = f"{100 * line.takes / line.bytes[0]['dense']:.2g} %"
        rows.append([line.row.title, f"{line.takes:,.0f}", share, f"{line.mean:.1f} %", "equal" if same else "differs"])
    return _table(["", "bytes a task", "of a whole model", "test accuracy", "after decoding"], rows)


def sections(results: dict[str, Any], found: Sequence[Line]) -> dict[str, str]:
    """Return what the command writes into the page, by the name of its mark."""
    by_id = {line.row.id: line for line in found}
    checks = [line for line in found if line.row.check]
    rows = [line for line in found if not line.row.check]
    whole = [line for line in rows if line.row.examples is None]
    few = [line for line in rows if line.row.examples is not None]
    return {
        "versions": _versions(results) + _missing(found),
        "scores": _scores(whole, by_id),
        "bytes": _bytes(whole, by_id),
        "few": _scores(few, by_id) + "\n" + _bytes(few, by_id),
        "exact": _exact(found),
        "claims": _claims(by_id),
        "pruning": _pruning([line for line in found if line.row.density is not None]),
        "checks": _checks(checks, by_id),
        "rates": _rates(results, found),
    }


def _versions(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    machine = results["machine"]
    seeds = sorted({run["seed"] for run in results["runs"]})
    checks = {row.id for row in all_rows() if row.check}
    jobs = [*results["searches"], *results["runs"]]
    took = [
        _took([one for one in jobs if one["row"] not in checks], results["wall_seconds"]),
        _took([one for one in jobs if one["row"] in checks], results.get("check_wall_seconds", 0.0)),
    ]
    return (
        f"`{results['command']}`, seeds {', '.join(map(str, seeds))}; {versions}, Python {machine['python']}; "
        f"{machine['device']}, {machine['cores']} cores; {took[0]}. With `--checks`: {took[1]}.\n"
    )


def _took(jobs: Sequence[dict[str, Any]], seconds: float) -> str:
    alone = sum(one["seconds"] for one in jobs)
    return f"{len(jobs)} jobs of together {alone / 3600:.1f} hours, by the clock {seconds / 3600:.1f}"


def _missing(found: Sequence[Line]) -> str:
    """Say what the tables lack: rows that were not trained with all their seeds on all tasks."""
    seeds = {line.row.id: len(line.seeds) for line in found}
    lacking = [
        f"{row.title} ({done} of {row.seeds})" for row in all_rows() if (done := seeds.get(row.id, 0)) < row.seeds
    ]
    return f"\n**Not measured yet,** or not with all seeds: {'; '.join(lacking)}.\n" if lacking else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    cells = [head, ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _scores(found: Sequence[Line], by_id: dict[str, Line]) -> str:
    full = by_id.get("full")
    rows = []
    for line in found:
        tasks = [f"{statistics.fmean(line.accuracy(task)):.1f}" for task in TASKS]
        against = "" if full is None else f"{line.mean - full.mean:+.1f}"
        spread = f" ± {line.spread:.1f}" if len(line.seeds) > 1 else ""
        rows.append([line.row.title, *tasks, f"**{line.mean:.1f}**{spread}", against])
    return _table(["row", *TASKS, "mean", "against full"], rows)


def _checks(found: Sequence[Line], by_id: dict[str, Line]) -> str:
    rows = []
    for line in found:
        usual = by_id.get(line.row.id.rpartition("-")[0])
        if usual is None or not set(line.seeds) <= set(usual.seeds):
            continue
        as_above = Line(usual.row, {seed: usual.seeds[seed] for seed in line.seeds}, usual.bytes, usual.rate).mean
        tasks = [f"{statistics.fmean(line.accuracy(task)):.1f}" for task in TASKS]
        seeds = ", ".join(map(str, line.seeds))
        rows.append(
            [line.row.title, seeds, *tasks, f"**{line.mean:.1f}**", f"{as_above:.1f}", f"{line.mean - as_above:+.1f}"]
        )
    return _table(["row", "seeds", *TASKS, "mean", "as above", "gain"], rows)


def _pruning(found: Sequence[Line]) -> str:
    measured = [line for line in found if all("pruned" in record for record in line.records)]
    rows = []
    for line in measured:
        stages = [
            100 * statistics.fmean(record[key] for record in line.records)
            for key in ("open", "gated", "pruned", "accuracy")
        ]
        rows.append([line.row.title, *(f"{stage:.1f}" for stage in stages)])
    head = ["row", "gates open, %", "accuracy with gates", "right after pruning", "at the end"]
    return _table(head, rows) if rows else "These rows are older than what they would say here.\n"


def _bytes(found: Sequence[Line], by_id: dict[str, Line]) -> str:
    full = by_id.get("full")
    rows = []
    for line in found:
        parts = [f"{line.part(name):,.0f}" for name in ("method", "head", "rest", "share")]
        ratio = "" if full is None else f"{100 * line.takes / full.takes:.2f} %"
        whole = f"{100 * line.takes / line.bytes[0]['dense']:.3f} %"
        rows.append([line.row.title, f"{line.trained:,.0f}", *parts, f"**{line.takes:,.0f}**", ratio, whole])
    head = ["row", "trained numbers", "method", "head", "rest", "share of shared", "bytes a task"]
    return _table([*head, "of a packed full fine-tune", "of a whole model"], rows)


def _exact(found: Sequence[Line]) -> str:
    records = [record for line in found for record in line.records]
    scores = sum(record["accuracy"] == record["decoded"] for record in records)
    logits = sum(record["same_logits"] for record in records)
    return (
        f"{len(records)} tasks were trained, scored, encoded, decoded, loaded into a fresh model and scored again: "
        f"{scores} have the same score to the last digit, {logits} the same bits in every logit of every test row.\n"
    )


def _rates(results: dict[str, Any], found: Sequence[Line]) -> str:
    rows = []
    for line in found:
        if line.row.check:
            continue
        tried = sorted((one["rate"], one["dev"]) for one in results["searches"] if one["row"] == line.row.id)
        shown = ", ".join(
            f"{'**' if rate == line.rate else ''}{rate:g}{'**' if rate == line.rate else ''} {100 * dev:.1f}"
            for rate, dev in tried
        )
        rows.append([line.row.title, shown])
    return _table(["row", "rate and mean accuracy on held-out train rows"], rows)


CLAIMS = (
    ("PROPETL: a tenth of the adapters' storage, without loss", "propetl-adapter", "adapter"),
    ("the same, all tasks in one run", "propetl-adapter-all", "adapter"),
    ("PROPETL LoRA", "propetl-lora", "lora"),
    ("the same, all tasks in one run", "propetl-lora-all", "lora"),
    ("AdaMix: better than one adapter of its size", "adamix-adapter", "adamix-adapter-one"),
    ("the same, as many updates of each expert", "adamix-adapter", "adamix-adapter-one-updates"),
    ("the same, in more steps of four", "adamix-adapter-updates", "adamix-adapter-one"),
    ("the same, with dropout, weight decay, best step", "adamix-adapter-recipe", "adamix-adapter-one-recipe"),
    ("AdaMix: better than one LoRA of its size", "adamix-lora", "adamix-lora-one"),
    ("the same, as many updates of each expert", "adamix-lora", "adamix-lora-one-updates"),
    ("diff pruning: 0.5 % of the weights are as good as all", "diff-structured-0.5", "full"),
    ("the same without groups", "diff-0.5", "full"),
    ("0.1 %, structured", "diff-structured-0.1", "full"),
    ("0.1 % without groups", "diff-0.1", "full"),
    ("diff pruning: groups are better than none", "diff-structured-0.5", "diff-0.5"),
    ("the same at 0.1 %", "diff-structured-0.1", "diff-0.1"),
    ("PHA: better than adapters at 100 examples a task", "pha-100", "adapter-100"),
    ("the same at 500", "pha-500", "adapter-500"),
    ("PHA, all examples", "pha", "adapter"),
)
"""What the papers claim: the claim, the row it is of, the row it is against."""


def _claims(by_id: dict[str, Line]) -> str:
    rows = []
    for claim, one, other in CLAIMS:
        if one in by_id and other in by_id:
            ours, theirs = by_id[one], by_id[other]
            pairs = [a - b for a, b in zip(ours.accuracy(), theirs.accuracy(), strict=False)]
            wins = sum(
                statistics.fmean(ours.accuracy(task)) > statistics.fmean(theirs.accuracy(task)) for task in TASKS
            )
            seeds = ", ".join(f"{pair:+.1f}" for pair in pairs)
            ratio = (ours.takes - ours.part("head")) / (theirs.takes - theirs.part("head"))
            against = f"{ours.row.title} / {theirs.row.title}"
            rows.append(
                [
                    claim,
                    against,
                    f"**{statistics.fmean(pairs):+.1f}** ({seeds})",
                    f"{wins} of 5",
                    f"{100 * ratio:.1f} %",
                ]
            )
    return _table(["claim", "rows", "difference in points (by seed)", "tasks ahead", "bytes without heads"], rows)
