"""The score that a run states of itself, in the small JSON files that training scripts leave; reads no pickle.

Trainer's scripts write `eval_results.json` and its like; a Trainer that only saved checkpoints keeps its evaluations in
trainer_state.json. What these files say may be anything, so nothing in them is an error: there is a score or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from petlpack.errors import RunError
from petlpack.layouts.checkpoints import places
from petlpack.records.facts import Score
from petlpack.tensors.foreign_json import read_value

RESULTS = (
    *("eval_results.json", "all_results.json", "test_results.json", "predict_results.json"),
    *("results.json", "result.json", "metrics.json"),
)
"""Files of scores in the order in which they are asked: Trainer's, then those of scripts without it."""

METRICS: Mapping[str, str] = {
    "matthews_correlation": "matthews_correlation",
    "matthews_corrcoef": "matthews_correlation",
    "mcc": "matthews_correlation",
    "f1": "f1",
    "overall_f1": "f1",
    "f1_macro": "f1",
    "macro_f1": "f1",
    "f1_micro": "f1",
    "micro_f1": "f1",
    "f1_multiclass": "f1",
    "accuracy": "accuracy",
    "overall_accuracy": "accuracy",
    "acc": "accuracy",
    "pearson": "pearson",
    "pearsonr": "pearson",
    "pearson_corrcoef": "pearson",
    "spearmanr": "spearmanr",
    "spearman": "spearmanr",
    "spearman_corrcoef": "spearmanr",
    "rougel": "rougeL",
    "rougelsum": "rougeLsum",
    "rouge2": "rouge2",
    "rouge1": "rouge1",
    "bleu": "bleu",
    "sacrebleu": "bleu",
    "score": "score",
    "exact_match": "exact_match",
    "exact": "exact_match",
    "em": "exact_match",
    "meteor": "meteor",
    "map": "map",
    "mrr": "mrr",
    "ndcg": "ndcg",
    "combined_score": "combined_score",
}
"""What scripts call each metric, in lower case, and its one name here; the first of this order is the primary one.

A loss, a runtime, a rate or an epoch is no score: what is not in this table never is. `score` is what sacrebleu and
bertscore scripts call theirs.
"""

SPLITS = ("eval_", "test_", "predict_", "validation_", "val_", "dev_", "")
"""What stands in front of a metric's name, the split that counts first; `train_` is none of them."""

LARGEST = 1e6
"""No metric of the table is larger; what is, is no score."""


def stated_score(run: Path) -> Score | None:
    """Return the score that a run states of itself, or else of its best checkpoint; None where it states none."""
    return next(filter(None, map(_score_in, _places(run))), None)


def _places(run: Path) -> Iterator[Path]:
    """Yield the run, then its best checkpoint."""
    if not run.is_dir():
        return
    yield run
    try:
        yield from places(run)[1:2]
    except (RunError, OSError):  # a trainer_state.json that names no checkpoint, for it cannot be read
        return


def _score_in(place: Path) -> Score | None:
    score = next(filter(None, (primary(_table(place / name)) for name in RESULTS)), None)
    return score or _trainer_score(_table(place / "trainer_state.json"))


def _table(path: Path) -> Mapping[str, object]:
    """Return the JSON object of a file; empty where it is none."""
    try:
        table = read_value(path) if path.is_file() else {}
    except (ValueError, RecursionError, OSError):
        return {}
    return table if isinstance(table, dict) else {}


def primary(table: Mapping[str, object]) -> Score | None:
    """Return the first metric of the table's order that some results hold, for the first split; None without one.

    A name may have a task's in it (`eval_rte_accuracy`, `rte_test_accuracy`): it counts where it is the only one.
    """
    named = {key.lower().replace("-", "_").replace("/", "_"): key for key in table}
    for spelled, metric in METRICS.items() if named else ():
        whole = [named[split + spelled] for split in SPLITS if split + spelled in named]
        parts = [key for name, key in named.items() if name.endswith(f"_{spelled}") and _is_of_task(name, spelled)]
        for key in whole or (parts if len(parts) == 1 else ()):
            value = _number(table[key])
            if value is not None:
                return Score(metric, value)
    return None


def _is_of_task(name: str, spelled: str) -> bool:
    """Tell whether what stands before a metric is a split and a task, and not the name of another metric."""
    before = name.removesuffix(f"_{spelled}").split("_")
    splits = {split.rstrip("_") for split in SPLITS} - {""}
    return "train" not in before and (before[0] in splits or before[-1] in splits)


def _trainer_score(state: Mapping[str, object]) -> Score | None:
    """Return the score of the evaluation that trainer_state.json calls the best, else that of the last one."""
    history = state.get("log_history")
    rows = [_evaluated(row) for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    best = _number(state.get("best_metric"))
    if best is not None:
        named = state.get("metric_for_best_model")
        if isinstance(named, str) and (score := primary({named: best})):
            return score
        for row in rows:  # the evaluation that made it the best says the metric's name
            same = {key: value for key, value in row.items() if _number(value) == best}
            if same and (score := primary(same) or primary(row)):
                return score
    return next(filter(None, map(primary, reversed(rows))), None)


def _evaluated(row: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key.startswith("eval_")}


def _number(value: object) -> float | None:
    """Return a number that can be a score; None for a truth value, NaN, an infinity, anything huge or no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST <= value <= LARGEST:
        return None
    return float(value)
