"""What is planned: runs that differ from a base much, little and not at all, an adapter, a run of every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import petlpack
from petlpack.analyze import planning
from petlpack.codecs.registry import codec
from petlpack.rules.modules import Dense
from petlpack_cli.app import cli
from tests.support import method_runs
from tests.support.small_runs import (
    DENSE_CODECS,
    METHOD_SETTINGS,
    make_base,
    make_pair,
    weights,
    write_methods,
    write_run,
)

TRIES = [planning._Try(codec(one), way) for one in DENSE_CODECS for way in codec(one).takes[Dense]]
DENSE = {" ".join(one.options[1:]): one for one in TRIES}
"""What is offered of a full fine-tune, by its label, in the order of the codecs."""


def planned_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory to work in, with a base, runs that differ from it much, little and not at all, an adapter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    write_run(tmp_path / "base", make_base())
    for name, share in (("much", 1.0), ("little", 0.02), ("none", 0.0)):
        write_run(tmp_path / name, make_pair(3, share=share)[0], files={"notes.txt": b"not of the weights"})
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/base"}).encode()
    tensors = {"base_model.model.layer.0.lora_A.weight": weights("F32", (4, 16), 1)}
    write_run(tmp_path / "adapter", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    return tmp_path


def with_methods(place: Path) -> Path:
    """Return the directory with runs of every method, too."""
    write_methods(place)
    method_runs.write_propetl_roberta(place / "prefix", "sst2", kind="prefix")
    method_runs.write_adamix(place / "random", experts=2, inference_level=1)
    return place


def run(*arguments: str | Path, **env: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", **env}).invoke(cli, [str(argument) for argument in arguments])


def run_json(*arguments: str | Path) -> tuple[int, Any]:
    result = run(*arguments, "--json")
    assert (result.stderr, result.stdout.count("\n")) == ("", 1)
    return result.exit_code, json.loads(result.stdout)


def offers_of(one: petlpack.RunPlan) -> dict[str, petlpack.Offer]:
    return {offer.label: offer for offer in one.offers}


METHODS: dict[str, tuple[dict[str, Any], set[str], str]] = {
    "mask": ({"settings": METHOD_SETTINGS}, {"mask"}, "nothing"),
    "prefix": ({}, {"mask", "mask --set bake=true"}, "nothing"),
    "merge": ({}, {"merge", "merge --set keep_experts=true"}, "all but the average"),
    "random": ({}, {"auto", "plain --set keep_experts=true"}, "nothing"),
    "hyper": ({"base": "t5"}, {"hyper", "hyper --set keep_retriever=true"}, "the retriever"),
    "adapter": ({}, {"plain"}, "nothing"),
}
"""Arguments, offers, and what the best one loses."""


def commands_of(methods: Path, name: str) -> list[str | Path]:
    """Return the arguments of `plan` for a run of the place."""
    said = [word for key, value in METHOD_SETTINGS.items() for word in ("--set", f"{key}={value}")]
    base = {"hyper": "t5", "much": "base", "little": "base", "none": "base"}.get(name)
    return [name, *(said if name == "mask" else []), *(["--base", base] if base else [])]
