"""What `petlpack.plan` promises: figures of real files, commands that make them, and how far a sample may be off."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np
import pytest

import petlpack
from petlpack.analyze import planning, sampling
from petlpack.analyze.sampling import Estimate, estimate, sample_of
from petlpack.codecs import plain, sparse, ulp
from petlpack.codecs.codec import Way
from petlpack.codecs.registry import CODECS, codec
from petlpack.rules.modules import Module
from petlpack.tensors.tensor import Tensor
from tests.support.plans import DENSE, METHODS, commands_of, offers_of, planned_place, run, run_json, with_methods
from tests.support.small_runs import make_base, make_pair, nudged, weights, write_run


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def reason(offer: petlpack.Offer) -> str:
    assert offer.refused is not None
    return offer.refused.message


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return planned_place(tmp_path, monkeypatch)


@pytest.fixture
def methods(place: Path) -> Path:
    return with_methods(place)


# What is offered


def test_every_codec_that_takes_a_module_is_tried() -> None:
    for codec_id in CODECS:
        for kind, ways in codec(codec_id).takes.items():
            assert ways[0] == Way()  # what `auto` does is measured
            assert len(set(ways)) == len(ways)
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
    assert inexact == {"sparse --density 0.005"}  # the other keeps every change
    assert all(offer.sampled_share == 1 and offer.error_bytes == 0 for offer in one.offers)


@pytest.mark.parametrize("name", ["much", "little"])
def test_what_is_lost_is_what_the_task_states(place: Path, name: str) -> None:
    offer = offers_of(petlpack.plan([name], "base").runs[0])["sparse --density 0.005"]
    petlpack.encode(name, "p", "base", density=0.005)
    facts = petlpack.open("p")[name].facts
    assert (offer.exact, offer.density, offer.error) == (False, facts.density, facts.error)
    assert offer.loss == f"up to {offer.error:g} a weight"


def test_a_density_that_keeps_every_change_loses_nothing(place: Path) -> None:
    offer = offers_of(petlpack.plan(["little"], "base").runs[0])["sparse --density 0.05"]
    assert (offer.exact, offer.error, offer.loss) == (True, 0.0, "nothing")


def test_a_density_that_loses_signs_of_zeros_says_so(place: Path) -> None:
    tuned, base = make_pair(3, share=0.02)
    name = next(name for name in tuned if name.endswith("query.weight"))
    of_base = name.removeprefix("bert.")
    bits, near = tuned[name].bits().copy(), base[of_base].bits().copy()
    bits[0], near[0] = 1 << 31, 0
    write_run(place / "base", {**base, of_base: Tensor.of(near, base[of_base].dtype)})
    write_run(place / "zeros", {**tuned, name: Tensor.of(bits, tuned[name].dtype)})
    offer = offers_of(petlpack.plan(["zeros"], "base").runs[0])["sparse --density 0.05"]
    assert (offer.exact, offer.error, offer.loss) == (False, 0.0, "signs of zeros")


def test_sparse_is_refused_with_the_share_of_weights_that_changed(place: Path) -> None:
    offers = offers_of(petlpack.plan(["much"], "base").runs[0])
    tuned, base = make_pair(3)
    pairs = [(tuned[f"bert.{name}"].bits(), tensor.bits()) for name, tensor in base.items()]
    pairs = [(a, b) for a, b in pairs if (a != b).any()]
    total = sum(b.size for _, b in pairs)
    share = sum(int((a != b).sum()) for a, b in pairs) / total
    why = f"{100 * share:.1f} % of {total:,} weights differ from the base, which is more than 25 %"
    assert reason(offers["sparse"]) == f"codec 'sparse' does not suit 'much': {why}"
    refused = run("encode", "much", "--base", "base", "--codec", "sparse")
    assert reason(offers["sparse"]) in refused.stderr
    sampled = offers_of(petlpack.plan(["much"], "base", sample=0.5).runs[0])
    assert reason(sampled["sparse"]) == reason(offers["sparse"])


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
    write_run(
        place / "twin", make_pair(4)[0], files={"notes.txt": b"not of the weights"}
    )  # shares template and table with the others
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
        config = json.dumps({"model_type": "bert", "_name_or_path": str(place / "base")})
        (place / name / "config.json").write_text(config, encoding="utf-8")
    opened: list[Path] = []
    original = petlpack.Base.__init__

    def open_base(self: petlpack.Base, path: str | Path, **options: bool) -> None:
        opened.append(Path(path))
        original(self, path, **options)

    monkeypatch.setattr(petlpack.Base, "__init__", open_base)
    plans = petlpack.plan(["much", "little"])
    assert opened == [place / "base"]
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


@pytest.mark.exhaustive(3)
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
            assert "cannot be measured on a sample" in reason(offer)
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


def test_another_model_as_base_shows_in_the_numbers(place: Path) -> None:
    write_run(place / "stranger", make_base(seed=7))
    own, other = (offers_of(petlpack.plan("little", base).runs[0]) for base in ("base", "stranger"))
    assert 3 * own["ulp"].nbytes < own["plain"].nbytes
    assert other["ulp"].nbytes > 0.8 * other["plain"].nbytes


def test_no_runs_are_no_plan(place: Path) -> None:
    assert petlpack.plan([]) == petlpack.Plans((), None, ())


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
