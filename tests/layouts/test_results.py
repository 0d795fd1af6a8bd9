"""The score that a run states of itself: what is taken of real files, and that no hostile one is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petlpack.layouts.results import LARGEST, METRICS, RESULTS, primary, stated_score
from petlpack.records.facts import Score

NOISE = {"eval_loss": 0.3, "eval_runtime": 9.0, "eval_samples_per_second": 88.0, "epoch": 3.0, "eval_samples": 872}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("table", "score"),
    [
        ({"eval_accuracy": 0.93}, Score("accuracy", 0.93)),
        ({"eval_accuracy": 0.93, "eval_f1": 0.9, "eval_combined_score": 0.915}, Score("f1", 0.9)),
        ({"eval_matthews_correlation": 0.61, "eval_accuracy": 0.8}, Score("matthews_correlation", 0.61)),
        ({"eval_pearson": 0.9, "eval_spearmanr": 0.89, "eval_combined_score": 0.895}, Score("pearson", 0.9)),
        ({"eval_accuracy": 0.84, "eval_accuracy_mm": 0.85}, Score("accuracy", 0.84)),
        ({"eval_exact_match": 80, "eval_f1": 88}, Score("f1", 88)),
        ({"predict_rougeL": 31.5, "predict_rouge1": 40, "predict_gen_len": 60}, Score("rougeL", 31.5)),
        ({"test_bleu": 27.1, "test_gen_len": 30}, Score("bleu", 27.1)),
        ({"test_accuracy": 0.7, "eval_accuracy": 0.8, "train_accuracy": 0.99}, Score("accuracy", 0.8)),
        ({"accuracy": 1}, Score("accuracy", 1)),
        ({"eval/accuracy": 0.5}, Score("accuracy", 0.5)),
        ({"rte_test_accuracy": 0.6, "rte_test_loss": 1.2}, Score("accuracy", 0.6)),
        ({"eval_rte_accuracy": 0.6}, Score("accuracy", 0.6)),
        ({"eval_LOC": {"f1": 0.1}, "eval_overall_f1": 0.9}, Score("f1", 0.9)),
        ({"eval_matthews_correlation": -0.1}, Score("matthews_correlation", -0.1)),
        ({"rte_test_accuracy": 0.6, "mnli_test_accuracy": 0.8}, None),  # two tasks: neither is the run's
        ({"train_accuracy": 0.99, "train_loss": 0.1}, None),
        ({}, None),
        ({"eval_f1": None, "eval_accuracy": 0.5}, Score("accuracy", 0.5)),
    ],
)
def test_the_primary_metric(table: dict[str, Any], score: Score | None) -> None:
    assert primary({**NOISE, **table}) == score
    assert primary(dict(reversed({**NOISE, **table}.items()))) == score


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, "1" * 5000, '"0.9"', "true", "null", "[0.9]", "{}"],
)
def test_what_is_no_number_is_no_score(tmp_path: Path, value: str) -> None:
    write(tmp_path / "eval_results.json", f'{{"eval_accuracy": {value}}}')
    write(tmp_path / "trainer_state.json", f'{{"best_metric": {value}, "log_history": [{{"eval_f1": {value}}}]}}')
    assert stated_score(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "[]", "3", '"eval_accuracy"', "\x00", '{"log_history": {}, "best_metric": []}']
)
def test_what_is_no_table_is_no_score(tmp_path: Path, text: str) -> None:
    for name in (*RESULTS, "trainer_state.json"):
        write(tmp_path / name, text)
    write(tmp_path / "checkpoint-5" / "trainer_state.json", text)
    assert stated_score(tmp_path) is None


def test_bytes_that_are_no_text_and_directories_are_no_score(tmp_path: Path) -> None:
    (tmp_path / "eval_results.json").write_bytes(b'{"eval_f1": 0.5, "\xff": 1}')
    (tmp_path / "all_results.json").mkdir()
    assert stated_score(tmp_path) is None
    assert stated_score(tmp_path / "none") is None


@given(
    st.dictionaries(
        st.text(max_size=9) | st.sampled_from([f"eval_{name}" for name in METRICS]), st.floats() | st.text()
    )
)
def test_any_table_gives_a_score_within_bounds_or_none(table: dict[str, Any]) -> None:
    score = primary(table)
    assert score is None or (-LARGEST <= score.value <= LARGEST and score.metric in METRICS.values())


def test_files_are_asked_in_order(tmp_path: Path) -> None:
    for i, name in reversed(list(enumerate(RESULTS))):
        write(tmp_path / name, {"eval_accuracy": i / 10})
        assert stated_score(tmp_path) == Score("accuracy", i / 10)


HISTORY = [
    {"loss": 0.5, "step": 5},
    {"eval_loss": 0.2, "eval_accuracy": 0.9, "step": 5},
    {"eval_loss": 0.4, "eval_accuracy": 0.8, "step": 10},
    {"train_runtime": 3.0, "step": 10},
]


@pytest.mark.parametrize(
    ("best", "score"),
    [
        ({"best_metric": None}, 0.8),
        ({"best_metric": 0.9}, 0.9),
        ({"best_metric": 0.2}, 0.9),  # the smallest loss: what that evaluation reached
        ({"best_metric": 0.7, "metric_for_best_model": "eval_accuracy"}, 0.7),
        ({"best_metric": 0.2, "metric_for_best_model": "eval_loss"}, 0.9),
        ({"best_metric": 77.0}, 0.8),
    ],
)
def test_trainer_state(tmp_path: Path, best: dict[str, Any], score: float) -> None:
    write(tmp_path / "trainer_state.json", {**best, "log_history": HISTORY})
    assert stated_score(tmp_path) == Score("accuracy", score)


def test_the_run_comes_before_its_checkpoints_and_the_best_of_those_counts(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        state: dict[str, Any] = {"log_history": [{"eval_accuracy": step / 1000}]}
        if step == 100:
            state |= {"best_model_checkpoint": "/elsewhere/out/checkpoint-10"}
        write(tmp_path / f"checkpoint-{step}" / "trainer_state.json", state)
    assert stated_score(tmp_path) == Score("accuracy", 0.01)
    write(tmp_path / "checkpoint-10" / "eval_results.json", {"eval_f1": 0.5})
    assert stated_score(tmp_path) == Score("f1", 0.5)
    write(tmp_path / "all_results.json", {"eval_accuracy": 0.4})
    assert stated_score(tmp_path) == Score("accuracy", 0.4)
