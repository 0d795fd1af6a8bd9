"""`plan`: its figures are those of real files, its commands make them, a sample says how far it may be off."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner, Result

import petlpack
from petlpack.analyze import planning, sampling
from petlpack.analyze.sampling import Estimate, estimate, sample_of
from petlpack.codecs import plain, sparse, ulp
from petlpack.codecs.base import Way
from petlpack.codecs.registry import CODECS, codec
from petlpack.layouts.registry import settings
from petlpack.modules import Dense, Module
from petlpack_cli.app import cli
from tests.support import method_runs
from tests.support.command_line import SCHEMAS, table
from tests.support.small_runs import (
    DENSE_CODECS,
    METHOD_SETTINGS,
    make_base,
    make_pair,
    nudged,
    weights,
    write_methods,
    write_run,
)

ROOT = Path(__file__).parents[2]

TRIES = [
    planning._Try(codec(one), way) for one in DENSE_CODECS for way in codec(one).takes[Dense] if way.setting is None
]
DENSE = {" ".join(one.options[1:]): one for one in TRIES}
"""What is offered of a full fine-tune, by its label, in the order of the codecs."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


@pytest.fixture
def methods(place: Path) -> Path:
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


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def offers_of(one: petlpack.RunPlan) -> dict[str, petlpack.Offer]:
    return {offer.label: offer for offer in one.offers}


def reason(offer: petlpack.Offer) -> str:
    assert offer.refused is not None
    return offer.refused.message


# What is offered


def test_every_codec_that_takes_a_module_is_tried() -> None:
    for codec_id in CODECS:
        for kind, ways in codec(codec_id).takes.items():
            assert ways[0] == Way(lost=ways[0].lost)  # what `auto` does is measured
            assert len(set(ways)) == len(ways)
            assert all(settings()[way.setting].flag for way in ways if way.setting is not None)
            assert kind in get_args(Module)
    assert {kind for codec_id in CODECS for kind in codec(codec_id).takes} == set(get_args(Module))


def test_a_full_fine_tune_is_offered_cheapest_first(place: Path) -> None:
    one = petlpack.plan(["little"], "base").runs[0]
    assert sorted(offers_of(one)) == sorted(DENSE)
    totals = [offer.total_bytes for offer in one.offers]
    assert totals == sorted(totals)
    assert (one.path, one.layout, one.method, one.tasks) == ("little", "transformers", "full fine-tune", 1)
    assert one.source_bytes == (place / "little" / "model.safetensors").stat().st_size
    assert one.directory_bytes == size_of(place / "little")
    inexact = {offer.label for offer in one.offers if not offer.exact}
    assert inexact == {"sparse --density 0.05", "sparse --density 0.005"}
    assert all(offer.sampled_share == 1 and offer.error_bytes == 0 for offer in one.offers)


@pytest.mark.parametrize("name", ["much", "little"])
def test_what_is_lost_is_what_the_task_states(place: Path, name: str) -> None:
    offer = offers_of(petlpack.plan([name], "base").runs[0])["sparse --density 0.005"]
    petlpack.encode(name, "p", "base", density=0.005)
    facts = petlpack.open("p")[name].manifest.facts
    assert (offer.exact, offer.density, offer.error) == (False, facts["density"], max(facts["error"].values()))
    assert offer.loss == f"up to {offer.error:g} a weight"


def test_a_density_that_keeps_every_change_loses_nothing(place: Path) -> None:
    offer = offers_of(petlpack.plan(["little"], "base").runs[0])["sparse --density 0.05"]
    assert (offer.exact, offer.error, offer.loss) == (False, 0.0, "nothing")


def test_sparse_is_refused_with_the_share_of_weights_that_changed(place: Path) -> None:
    offers = offers_of(petlpack.plan(["much"], "base").runs[0])
    tuned, base = make_pair(3)
    pairs = [(tuned[f"bert.{name}"].bits(), tensor.bits()) for name, tensor in base.items()]
    share = sum(int((a != b).sum()) for a, b in pairs) / sum(b.size for _, b in pairs)
    assert (
        reason(offers["sparse"]) == f"{100 * share:.1f} % of the weights differ from the base, and `sparse` is for few"
    )
    sampled = offers_of(petlpack.plan(["much"], "base", sample=0.5).runs[0])
    assert reason(sampled["sparse"]) == reason(offers["sparse"])


METHODS: dict[str, tuple[dict[str, Any], set[str], str]] = {
    "mask": ({"settings": METHOD_SETTINGS}, {"mask"}, "nothing"),
    "prefix": ({}, {"mask", "mask --set bake=true"}, "nothing"),
    "merge": ({}, {"merge", "merge --set keep_experts=true"}, "all but the average"),
    "random": ({}, {"auto", "plain --set keep_experts=true"}, "nothing"),
    "hyper": ({"base": "t5"}, {"hyper", "hyper --set keep_retriever=true"}, "the retriever"),
    "adapter": ({}, {"plain"}, "nothing"),
}
"""Arguments, offers, and what the best one loses."""


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_offered_with_what_they_may_keep(methods: Path, name: str) -> None:
    arguments, labels, lost = METHODS[name]
    one = petlpack.plan([name], **arguments).runs[0]
    named = {label.split()[0] for label in labels}
    assert {label for label in offers_of(one) if label.split()[0] in named} == labels
    assert one.best is not None
    assert (one.best.loss, one.best.exact) == (lost, True)
    assert one.tasks == (2 if name in ("mask", "hyper") else 1)
    if name == "prefix":
        baked = offers_of(one)["mask --set bake=true"]
        assert (baked.exact, baked.loss) == (False, "the network; one rounding")
    if name == "random":
        assert "inference level 1" in reason(offers_of(one)["auto"])
        assert "keep_experts=true" in one.best.command


# The figures are those of real files


def commands_of(methods: Path, name: str) -> list[str | Path]:
    """Return the arguments of `plan` for a run of the place."""
    said = [word for key, value in METHOD_SETTINGS.items() for word in ("--set", f"{key}={value}")]
    base = {"hyper": "t5", "much": "base", "little": "base", "none": "base"}.get(name)
    return [name, *(said if name == "mask" else []), *(["--base", base] if base else [])]


@pytest.mark.parametrize("name", ["much", "little", "none", *METHODS])
def test_each_command_makes_the_bytes_that_were_told(methods: Path, name: str) -> None:
    code, answer = run_json("plan", *commands_of(methods, name))
    assert code == 0
    (one,) = answer["runs"]
    measured = [offer for offer in one["offers"] if offer["refused"] is None]
    assert measured
    for number, offer in enumerate(measured):
        words = shlex.split(shlex.join(offer["command"]))
        assert words[:3] == ["petlpack", "encode", name]
        done = run(*words[1:], "--pack", f"p{number}")
        assert done.exit_code == 0, done.stderr
        tasks = size_of(methods / f"p{number}" / "tasks")
        assert (tasks, size_of(methods / f"p{number}" / "shared")) == (offer["bytes"], offer["shared_bytes"])
        assert offer["total_bytes"] == offer["bytes"] + offer["shared_bytes"]
        assert offer["ratio"] == round(one["source_bytes"] / offer["total_bytes"], 4)
        assert all(task.exact == offer["exact"] for task in petlpack.open(f"p{number}").values())


@pytest.mark.parametrize("name", ["much", "little", "none", "mask", "prefix", "merge", "hyper", "adapter"])
def test_the_best_is_what_encode_takes_by_itself(methods: Path, name: str) -> None:
    given = commands_of(methods, name)
    answer = run_json("plan", *given)[1]
    tasks = run_json("encode", *given, "--pack", "auto")[1]["tasks"]
    (best,) = (offer for offer in answer["runs"][0]["offers"] if offer["best"])
    assert best["auto"]
    assert best["bytes"] == sum(task["bytes"] for task in tasks)
    assert {best["codec"]} == {task["codec"] for task in tasks}
    assert answer["pack"]["bytes"] == size_of(methods / "auto")


def test_a_group_is_the_pack_that_its_command_makes(place: Path) -> None:
    names = ["much", "little", "none", "adapter"]
    write_run(place / "twin", make_pair(4)[0], files={"notes.txt": b"x"})  # shares template and table with the others
    names.append("twin")
    code, answer = run_json("plan", *names, "--base", "base")
    assert code == 0
    pack = answer["pack"]
    (words,) = pack["commands"]
    assert words == ["petlpack", "encode", *names, "--base", "base"]
    assert run(*words[1:], "--pack", "p").exit_code == 0
    assert pack["bytes"] == size_of(place / "p") == pack["own_bytes"] + pack["shared_bytes"] + pack["other_bytes"]
    assert pack["own_bytes"] == size_of(place / "p" / "tasks")
    assert pack["shared_bytes"] < sum(offer["shared_bytes"] for one in answer["runs"] for offer in one["offers"][:1])
    assert (pack["runs"], pack["tasks"], pack["bytes_per_task"]) == (5, 5, round(pack["bytes"] / 5))
    assert pack["source_bytes"] == sum(one["source_bytes"] for one in answer["runs"])
    assert pack["directory_bytes"] == sum(size_of(place / name) for name in names)


def test_runs_that_need_different_options_get_a_command_each(methods: Path) -> None:
    answer = run_json("plan", "much", "random", "merge")[1]  # without a base, "much" can only be plain
    commands = answer["pack"]["commands"]
    assert [words[2:] for words in commands] == [
        ["much", "--codec", "plain"],
        ["random", "--codec", "plain", "--set", "keep_experts=true"],
        ["merge"],
    ]
    for words in commands:
        assert run(*words[1:], "--pack", "p").exit_code == 0
    assert answer["pack"]["bytes"] == size_of(methods / "p")


def test_a_base_is_opened_once_and_may_be_the_one_that_a_run_names(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("much", "little"):
        config = json.dumps({"model_type": "bert", "_name_or_path": "base"})
        (place / name / "config.json").write_text(config, encoding="utf-8")
    opened: list[Path] = []
    original = petlpack.Base.__init__

    def open_base(self: petlpack.Base, path: str | Path) -> None:
        opened.append(Path(path))
        original(self, path)

    monkeypatch.setattr(petlpack.Base, "__init__", open_base)
    plans = petlpack.plan(["much", "little"])
    assert opened == [Path("base")]
    assert all(offer.auto for offer in [one.best for one in plans.runs] if offer is not None)
    assert plans.pack is not None
    (words,) = plans.pack.commands
    assert "--base" not in words
    assert run(*words[1:], "--pack", "p").exit_code == 0
    assert plans.pack.nbytes == size_of(place / "p")


def test_a_base_may_be_given_opened(place: Path) -> None:
    plans = petlpack.plan("little", petlpack.Base("base"))
    assert plans == petlpack.plan(["little"], "base", jobs=1)


# Samples


@pytest.fixture
def wide(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place with a pair of 80 units, most weights moved, later layers further; and one with few moved."""
    for module, log2 in ((ulp, 12), (plain, 12), (sparse, 13)):
        monkeypatch.setattr(module, "UNIT", 1 << log2)
    base = {f"layer.{i}.weight": weights("BF16", (64, 64), i) for i in range(80)}
    base |= {f"layer.{i}.bias": weights("BF16", (64,), 500 + i) for i in range(80)}
    tuned = {name: nudged(tensor, i, steps=40 + i) for i, (name, tensor) in enumerate(base.items())}
    tuned["classifier.weight"] = weights("BF16", (3, 64), 999)
    write_run(place / "wide-base", base)
    write_run(place / "wide", tuned)
    few = {name: nudged(tensor, i, 0.02) for i, (name, tensor) in enumerate(base.items())}
    write_run(place / "few", few)
    return place


@pytest.mark.parametrize(("name", "label"), [("wide", "ulp"), ("wide", "plain"), ("few", "sparse"), ("few", "ulp")])
def test_the_truth_is_within_the_stated_error(
    wide: Path, monkeypatch: pytest.MonkeyPatch, name: str, label: str
) -> None:
    base = petlpack.Base("wide-base")
    tries = planning._tries
    monkeypatch.setattr(planning, "_tries", lambda *run: [one for one in tries(*run) if one.options == way_of(label)])
    truth = offers_of(petlpack.plan([name], base).runs[0])[label].nbytes
    inside, widths = 0, []
    for seed in range(20):
        monkeypatch.setattr(sampling, "Random", lambda _, seed=seed: Random(seed))
        offer = offers_of(petlpack.plan([name], base, sample=0.25).runs[0])[label]
        assert 0 < offer.sampled_share < 0.35
        inside += abs(offer.nbytes - truth) <= offer.error_bytes
        widths.append(offer.error_bytes / truth)
    assert inside >= 16
    assert max(widths) < 0.1


def way_of(label: str) -> tuple[str, ...]:
    return ("--codec", *label.split())


def test_a_sample_of_almost_all_is_almost_exact(wide: Path) -> None:
    exact, sampled = (offers_of(petlpack.plan(["wide"], "wide-base", sample=s).runs[0]) for s in (None, 0.999))
    for label in ("ulp", "ulp --level fast", "plain"):
        assert sampled[label].sampled_share == 1
        assert sampled[label].error_bytes == 0
        assert sampled[label].shared == exact[label].shared
        assert abs(sampled[label].nbytes - exact[label].nbytes) <= 0.01 * exact[label].nbytes + 64
        assert sampled[label].auto == exact[label].auto


def test_few_units_are_measured_whole(place: Path) -> None:
    exact, sampled = (petlpack.plan(["little"], "base", sample=share) for share in (None, 0.001))
    assert exact.pack is not None
    assert sampled.pack is not None
    assert sampled.pack.error_bytes == 0
    assert abs(sampled.pack.nbytes - exact.pack.nbytes) < 64
    for offer in sampled.runs[0].offers:
        if offer.density is not None or "--density" in offer.options:
            assert "not measured on a sample" in reason(offer)
        else:
            assert (offer.refused, offer.sampled_share) == (None, 1.0)


def test_methods_are_never_sampled(methods: Path) -> None:
    assert petlpack.plan(["hyper", "merge"], "t5", sample=0.1) == petlpack.plan(["hyper", "merge"], "t5")


def test_a_sample_is_the_same_every_time_and_said_to_be_one(wide: Path) -> None:
    given: list[str | Path] = ["plan", "wide", "--base", "wide-base", "--sample", "0.2"]
    assert run(*given).stdout == run(*given, "--jobs", "1").stdout
    text = run(*given).stdout
    assert "+-" in text
    assert "From a sample of" in text
    assert "(+- " in text.split("would make a pack of")[1]
    answer = run_json(*given)[1]
    best = next(offer for offer in answer["runs"][0]["offers"] if offer["best"])
    assert answer["pack"]["error_bytes"] == best["error_bytes"] > 0


def test_samples_have_at_least_eight_units_and_all_small_ones() -> None:
    sizes = [100] * 50 + [3] + [100] * 50 + [7]
    for seed in range(20):
        chosen = sample_of(sizes, 0.01, seed)
        assert {50, 101} <= set(chosen)
        assert len(chosen) == 10
        assert chosen == sorted(chosen)
    assert len(sample_of(sizes, 0.5, 0)) == 52
    assert sample_of([5, 5, 5], 0.1, 0) == [0, 1, 2]
    assert sample_of([], 0.1, 0) == []


POPULATIONS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "alike": lambda rng, n: rng.normal(2000, 50, n),
    "drifting": lambda rng, n: rng.normal(2000, 50, n) + np.linspace(0, 1000, n),
    "of two kinds": lambda rng, n: rng.normal(2000, 50, n) + 1000 * (np.arange(n) > n * rng.random()),
    "periodic": lambda rng, n: rng.normal(2000, 50, n) + 500 * (np.arange(n) % 2),
}


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", POPULATIONS)
def test_the_error_of_an_estimate_covers_the_truth(kind: str, share: float) -> None:
    inside, widths = 0, []
    for seed in range(200):
        units = [int(nbytes) for nbytes in POPULATIONS[kind](np.random.default_rng(seed), 100)]
        sizes = [1000] * len(units)
        estimated = estimate(sizes, {i: units[i] for i in sample_of(sizes, share, seed)})
        inside += abs(estimated.nbytes - sum(units)) <= estimated.error_bytes
        widths.append(estimated.error_bytes / sum(units))
    assert inside >= 170
    assert np.mean(widths) < (0.15 if share < 0.1 else 0.05)


def test_units_alike_have_no_error() -> None:
    sizes = [100] * 40
    found = {i: 70 for i in sample_of(sizes, 0.25, 1)}
    assert estimate(sizes, found) == Estimate(2800, 0, 0.25)


# What people see


def test_the_tables_are_80_columns_and_commands_are_whole(methods: Path) -> None:
    for name in ("much", "little", "none", *METHODS):
        result = run("plan", *commands_of(methods, name))
        assert (result.exit_code, result.stderr) == (0, "")
        assert max(map(len, result.stdout.splitlines())) <= 80
    text = run("plan", "much", "--base", "base").stdout
    assert "petlpack encode much --base base --codec ulp --level fast\n" in text
    assert "ulp (auto)" in text
    assert "Not sparse: " in text


def test_many_runs_get_a_row_each_and_all_shows_every_offer(place: Path) -> None:
    names = ["much", "little", "none", "adapter"]
    text = run("plan", *names, "--base", "base").stdout
    assert text.count("(auto)") == 4
    assert "--all shows every offer of every run.\n" in text
    assert "4 runs of " in text
    assert text.endswith("\npetlpack encode much little none adapter --base base\n")
    every = run("plan", *names, "--base", "base", "--all").stdout
    plans = petlpack.plan(names, "base")
    offers = {run.path: sum(offer.refused is None for offer in run.offers) for run in plans.runs}
    assert offers["much"] == len(DENSE) - 1  # `sparse` does not take it
    assert every.count("petlpack encode ") == sum(offers.values()) + 1
    assert "--all" not in every
    quiet = run("plan", *names, "--base", "base", "-q")
    assert (quiet.stdout.count("\n"), quiet.stderr) == (4, "")
    assert all(line.startswith("petlpack encode ") for line in quiet.stdout.splitlines())


def test_hostile_paths_stay_one_word(place: Path) -> None:
    name = "-a b';x"
    shutil.copytree(place / "much", place / "sub" / name)
    os.chdir(place / "sub")
    result = run("plan", "--base", "../base", "--", name)
    assert result.exit_code == 2
    assert "cannot be a task's name" in result.stderr
    assert "Hint: rename it" in result.stderr
    shutil.copytree(place / "much", place / "sub dir" / "-x")
    os.chdir(place / "sub dir")
    words = shlex.split(run("plan", "--base", "../base", "-q", "--", "-x").stdout)
    assert words == ["petlpack", "encode", "./-x", "--base", "../base", "--codec", "ulp"]
    os.chdir(place)
    words = shlex.split(run("plan", "sub dir/-x", "--base", "base", "-q").stdout)
    assert run(*words[1:], "--task", "x", "--pack", "p").exit_code == 0


# Bad input


def test_a_full_fine_tune_without_a_base_can_be_plain(place: Path) -> None:
    result = run("plan", "much")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "needs its base, and no base was given" in result.stdout.replace("\n", " ")
    assert result.stdout.count("petlpack encode much --codec plain\n") == 1
    offers = offers_of(petlpack.plan("much").runs[0])
    assert {label for label, offer in offers.items() if isinstance(offer.refused, petlpack.BaseError)} == {
        label for label, one in DENSE.items() if one.codec is not None and one.codec.uses_base
    }
    sampled = offers_of(petlpack.plan("much", sample=0.5).runs[0])
    assert {label for label, offer in sampled.items() if offer.refused is None} == {"plain"}


BAD: dict[str, tuple[list[str], int, str]] = {
    "no run": (["nothing"], 1, "no run at 'nothing'"),
    "an empty directory": (["empty"], 1, "'empty' is empty"),
    "not a base": (["much", "--base", "nothing"], 5, "no base at 'nothing'"),
    "a method without its base": (["hyper"], 5, "needs its base"),
    "a setting is missing": (["mask"], 1, "combine"),
    "a setting that there is not": (["much", "--set", "colour=red"], 2, "no setting 'colour'"),
    "no setting": (["much", "--set", "combine"], 2, "--set wants KEY=VALUE"),
    "two settings": (["much", "--set", "combine=or", "--set", "combine=and"], 2, "--set gives combine two values"),
    "no sample": (["much", "--sample", "0"], 2, "0.0 is not in the range"),
    "all as a sample": (["much", "--sample", "1"], 2, "1.0 is not in the range"),
    "a sample that is no number": (["much", "--sample", "nan"], 2, "a sample of nan"),
    "the base of another method": (["hyper", "--base", "base"], 5, "in the run and [16] in the base"),
    "a name that no task has": (["a name"], 2, "'a name' cannot be a task's name"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_single_run_that_fails_exits_with_its_code(methods: Path, case: str) -> None:
    (methods / "empty").mkdir()
    shutil.copytree("much", "a name")
    arguments, code, message = BAD[case]
    result = run("plan", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Hint: " in result.stderr
    failed, answer = run_json("plan", *arguments)
    assert (failed, set(answer)) == (code, {"schema_version", "error"})
    assert list((methods / "scratch").iterdir()) == []


def test_of_several_runs_those_that_fail_do_not_stop_the_rest(place: Path) -> None:
    shutil.copytree("much", "other/Much")
    names = ["nothing", "much", "much/", "other/Much", "adapter"]
    result = run("plan", *names, "--base", "base")
    assert result.exit_code == 3
    assert "2 runs of " in result.stdout
    assert result.stdout.endswith("\npetlpack encode much adapter --base base\n")
    assert "Error: nothing: no run at 'nothing'\nHint: " in result.stderr
    assert "Error: much: 'much' is given twice\nHint: " in result.stderr
    assert "'other/Much' would be task 'Much', which is taken by 'much'" in result.stderr
    code, answer = run_json("plan", *names, "--base", "base")
    assert code == 3
    assert [row["run"] for row in answer["failed"]] == ["nothing", "much", "other/Much"]
    jsonschema.validate(answer, SCHEMA)
    code, answer = run_json("plan", "nothing", "empty")
    assert (code, answer["runs"], answer["pack"]) == (3, [], None)
    jsonschema.validate(answer, SCHEMA)


def test_another_model_as_base_shows_in_the_numbers(place: Path) -> None:
    write_run(place / "stranger", make_base(seed=7))
    own, other = (offers_of(petlpack.plan("little", base).runs[0]) for base in ("base", "stranger"))
    assert 3 * own["ulp"].nbytes < own["plain"].nbytes
    assert other["ulp"].nbytes > 0.8 * other["plain"].nbytes


def test_settings_that_nothing_depends_on_are_a_warning(place: Path) -> None:
    result = run("plan", "much", "--base", "base", "--set", "combine=or")
    assert result.exit_code == 0
    assert "Warning: much: --set combine: nothing in the run depends on it\n" in result.stderr
    assert "--set combine=or --codec ulp\n" in result.stdout


def test_no_runs_are_no_plan(place: Path) -> None:
    assert petlpack.plan([]) == petlpack.Plans((), None, ())


# Nothing is left behind


def test_nothing_is_written_but_in_a_temporary_directory(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.parent.name != "scratch"}
    assert run("plan", "much", "little", "--base", "base").exit_code == 0
    assert run("plan", "much", "--base", "base", "--sample", "0.3").exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.parent.name != "scratch"}
    assert {path for path in before.keys() ^ after.keys()} == set()
    assert {path for path in before if before[path] != after[path]} <= {place / "scratch"}
    assert list((place / "scratch").iterdir()) == []


def test_a_temporary_directory_that_cannot_be_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "nowhere"))
    result = run("plan", "much", "--base", "base")
    assert result.exit_code == 2
    assert "no temporary directory can be made in" in result.stderr
    assert "Hint: set TMPDIR" in result.stderr
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 1), (KeyboardInterrupt(), 130)]
)
def test_what_goes_wrong_while_writing_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("petlpack.container.write", fail)
    result = run("plan", "much", "--base", "base")
    assert result.exit_code == code
    assert list((place / "scratch").iterdir()) == []
    if code == 1:
        assert "No space left on device: '" in result.stderr
        assert "petlpack-plan-" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing(place: Path, name: str, code: int) -> None:
    base = {f"layer.{i}.weight": weights("F32", (1024, 1024), i) for i in range(8)}
    write_run(place / "big-base", base)
    write_run(place / "big", {name: nudged(tensor, i) for i, (name, tensor) in enumerate(base.items())})
    process = subprocess.Popen(
        [sys.executable, "-m", "petlpack_cli", "plan", "big", "--base", "big-base"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),  # nohup has it ignored
    )
    wait_for(lambda: any((place / "scratch").rglob(".tmp-*")))
    process.send_signal(getattr(signal, name))
    told, complaint = process.communicate(timeout=60)
    assert (process.returncode, told, complaint) == (code, "", "interrupted\n" if name == "SIGINT" else "")
    assert list((place / "scratch").iterdir()) == []
    assert not (place / "pack").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_signals_do_afterwards_what_they_did_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    known = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def look(*_: Any, **__: Any) -> petlpack.Plans:
        seen.extend(map(signal.getsignal, (signal.SIGHUP, signal.SIGTERM)))
        raise RuntimeError

    monkeypatch.setattr(petlpack, "plan", look)
    try:
        assert run("plan", "much").exit_code == 1
        assert signal.getsignal(signal.SIGTERM) == known
        assert seen[0] == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as `nohup` has it
        assert seen[1] != known
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    place: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    (place / "much" / "model.safetensors").rename(place / "much" / file)

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("petlpack.tensors.checkpoint.read_header", refuse)
    monkeypatch.setattr("torch.load", refuse)
    result = run("plan", "much")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: '{Path('much', file)}' cannot be read: Permission denied\n"
        "Hint: you may not read it: look at its permissions\n"
    )


def wait_for(there: Callable[[], bool]) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_progress_is_told_what_is_measured(place: Path) -> None:
    told: list[str] = []
    done: list[tuple[int, int]] = []

    def start(name: str) -> Callable[[int, int], None]:
        told.append(name)
        return lambda now, total: done.append((now, total))

    petlpack.plan(["much"], "base", progress=start)
    assert told == [f"much: {label}" for label in DENSE]
    assert done[-1][0] == done[-1][1] > 0
    petlpack.plan(["much"], "base", sample=0.5, progress=start)
    assert all(now <= total for now, total in done)


# The JSON


PLAN = SCHEMAS["plan"]
OFFERS = PLAN["runs"]["items"]["properties"]["offers"]
SCHEMA = table(schema_version={"const": 1}, **PLAN)


@pytest.mark.parametrize("name", ["much", "little", *METHODS])
def test_the_json_is_of_the_stated_schema(methods: Path, name: str) -> None:
    jsonschema.validate(run_json("plan", *commands_of(methods, name))[1], SCHEMA)


def test_every_field_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split("## `petlpack plan ")[1].split("\n## ")[0]
    nested = [*OFFERS["items"]["properties"], *PLAN["pack"]["anyOf"][0]["properties"], "density", "error"]
    fields = [*PLAN, *PLAN["runs"]["items"]["properties"], *nested]
    assert [field for field in fields if f'"{field}"' not in section] == []
