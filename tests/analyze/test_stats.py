"""What a pack costs: every byte accounted for in every table, what the next task costs, what is told of bad input."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import petlpack
from petlpack.analyze.audit import audit
from petlpack.analyze.bounds import choose_bits
from petlpack.analyze.choosing import ordered, selected
from petlpack.analyze.forecast import forecast, parse_counts
from petlpack.analyze.growth import Growth, PartRole, break_even, counts_up_to
from petlpack.analyze.measuring import measure
from petlpack.analyze.stats import growth_of
from petlpack.analyze.tables import KEYS, Table, table_by
from petlpack.store import Store
from petlpack_cli import stats as stats_command
from petlpack_cli.app import cli
from tests.support.command_line import ENVIRONMENT, damage, rewrite
from tests.support.many_tasks import encode_tasks, write_many
from tests.support.small_runs import make_base, make_pair, write_methods, write_pair, write_run


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def on_disk(pack: Path) -> int:
    return sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("base") / "base", make_base())


@pytest.fixture(scope="module")
def mixed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pack of every codec: two full fine-tunes, a sparse one, an adapter, the methods of `write_methods`."""
    place = tmp_path_factory.mktemp("mixed")
    for seed, share in ((1, 1.0), (2, 1.0), (3, 0.01)):
        tuned = make_pair(seed, share=share)[0]
        codec = "sparse" if share < 1 else "ulp"
        petlpack.encode(write_run(place / f"run{seed}", tuned), place / "pack", base, codec=codec)
    for path, options in write_methods(place).values():
        petlpack.encode(path, place / "pack", **options)
    return place / "pack"


@pytest.fixture
def pack(base: Path, tmp_path: Path) -> Path:
    """Return a pack of two full fine-tunes, a and b, to be spoilt."""
    for seed, name in enumerate("ab"):
        petlpack.encode(write_run(tmp_path / name, make_pair(seed)[0]), tmp_path / "pack", base)
    return tmp_path / "pack"


# Every byte


def test_tasks_shares_and_the_rest_are_all_files(mixed: Path) -> None:
    found = petlpack.stats(mixed)
    assert found.disk_bytes == on_disk(mixed)
    totals = sum(row.bytes.total + row.bytes.share for row in found.tasks)
    unused = sum(row.bytes for row in found.shared if not row.tasks)
    assert totals + unused + found.other_bytes == found.disk_bytes
    for row in found.tasks:
        assert row.bytes.total == row.bytes.payload + row.bytes.head + row.bytes.files + row.bytes.header
        assert row.bytes.total - row.bytes.files == Store(mixed).task_path(row.name).stat().st_size
    for part in found.shared:
        assert part.used_by == tuple(sorted(row.name for row in found.tasks if part.sha256 in row.shared))
        assert part.bytes == Store(mixed).shared_path(part.sha256).stat().st_size


def test_the_command_knows_the_keys_of_the_library() -> None:
    assert stats_command.KEYS == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_every_table_adds_up_to_the_disk(key: str, mixed: Path) -> None:
    Store(mixed).path.joinpath("tasks", ".tmp-left").write_bytes(b"x" * 50)
    found = petlpack.stats(mixed)
    table = table_by(key, found)
    sums = table.total()
    told = [value for name, value in sums.items() if name in ("total", "share", "bytes")]
    assert sum(value for value in told if isinstance(value, int)) == on_disk(mixed)
    assert all(row.keys() == table.columns.keys() for row in table.rows)


def test_every_table_adds_up_beside_damage_and_parts_that_nobody_needs(pack: Path) -> None:
    (pack / "shared" / f"{'0' * 64}.petl.safetensors").write_bytes(b"x" * 321)
    Store(pack).task_path("a").write_bytes(b"y" * 123)
    found = petlpack.stats(pack)
    assert list(found.damaged) == ["a"]
    assert found.damaged_bytes == 123
    for key in KEYS:
        sums = table_by(key, found).total()
        told = [value for name, value in sums.items() if name in ("total", "share", "bytes")]
        assert sum(value for value in told if isinstance(value, int)) == on_disk(pack)


def test_tensors_of_shared_parts_have_their_names(mixed: Path) -> None:
    rows = {str(row["tensor"]): row for row in table_by("tensor", petlpack.stats(mixed)).rows}
    task = petlpack.open(mixed)["mask.a"]
    name = next(name for part in task.template.parts for name in part if name is not None)
    nbytes = rows[name]["bytes"]
    assert isinstance(nbytes, int)
    assert nbytes > 0
    assert rows[name]["tasks"] == 2


def test_a_pack_without_tasks(tmp_path: Path) -> None:
    Store.create(tmp_path / "pack")
    found = petlpack.stats(tmp_path / "pack")
    assert (found.tasks, found.amortized, found.marginal_bytes, found.break_even.dense) == ((), (), None, None)
    result = run("stats", tmp_path / "pack")
    assert result.exit_code == 0
    assert result.stdout.endswith("No readable task; the files take 37 B.\n")
    for key in KEYS:
        assert table_by(key, found).total()
    for option in (["--forecast", "10"], ["--plot", str(tmp_path / "x.svg")]):
        assert run("stats", tmp_path / "pack", *option).exit_code == 2
    assert not (tmp_path / "x.svg").exists()


# What tasks are compared with


def test_a_base_is_known_from_tasks_the_option_or_the_encoder(base: Path, tmp_path: Path) -> None:
    adapter = write_methods(tmp_path)["merge"][0]
    petlpack.encode(adapter, tmp_path / "alone")
    petlpack.encode(adapter, tmp_path / "told", base)
    nbytes = sum(tensor.nbytes for tensor in petlpack.Base(base).tensors.values())
    (row,) = petlpack.stats(tmp_path / "alone").tasks
    assert row.dense_bytes is None
    (row,) = petlpack.stats(tmp_path / "alone", base).tasks
    head = 4 * row.figures.head_parameters
    assert row.dense_bytes == nbytes + head
    (row,) = petlpack.stats(tmp_path / "told").tasks
    assert row.dense_bytes == nbytes + head
    petlpack.encode(write_run(tmp_path / "run", make_pair(1)[0]), tmp_path / "alone", base)
    found = petlpack.stats(tmp_path / "alone")  # the base of another task is none of its own
    assert {row.name: row.dense_bytes for row in found.tasks} == {
        "merge": None,
        "run": found.tasks[0].run_bytes,
    }
    assert found.base_bytes is None
    found = petlpack.stats(tmp_path / "alone", base)
    assert found.base_bytes == nbytes
    assert found.lora_bytes == 4 * 8 * (16 + 16) * 2  # two queries of 16 x 16
    assert petlpack.stats(tmp_path / "alone", base, lora_rank=2).lora_bytes == 4 * 2 * (16 + 16) * 2


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_whole_model_is_counted_once_whatever_stands_beside_it(dtype: str, tmp_path: Path) -> None:
    """Of a directory of sentence-transformers, too, and of weights that take half of what the base's take."""
    tuned, _ = make_pair(1, dtype)
    modules = json.dumps([{"path": "", "type": "sentence_transformers.models.Transformer"}]).encode()
    write_run(tmp_path / "base", make_pair(0, "F32")[1])
    write_run(tmp_path / "alone", tuned)
    write_run(tmp_path / "beside", tuned, files={"modules.json": modules})
    found = {}
    for name in ("alone", "beside"):
        petlpack.encode(tmp_path / name, tmp_path / f"{name}.pack", tmp_path / "base", task="a")
        found[name] = petlpack.stats(tmp_path / f"{name}.pack")
    weights = sum(tensor.nbytes for tensor in tuned.values())
    rows = {name: stats.tasks[0] for name, stats in found.items()}
    assert {name: row.layout for name, row in rows.items()} == {
        "alone": "transformers",
        "beside": "sentence-transformers",
    }
    for name, row in rows.items():
        assert (row.whole, row.run_bytes, row.dense_bytes, row.base) == (True, weights, weights, "task")
        assert found[name].dense_bytes == weights
        (told,) = table_by("task", found[name]).rows[:1]
        assert told["dense"] == weights
    assert rows["alone"].bytes.payload == rows["beside"].bytes.payload
    assert rows["alone"].bytes.head == rows["beside"].bytes.head


def test_two_bases_are_counted_each_once(base: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", make_base(1, layers=3))
    petlpack.encode(write_run(tmp_path / "a", make_pair(1)[0]), tmp_path / "pack", base)
    petlpack.encode(write_run(tmp_path / "b", make_base(1, layers=3)), tmp_path / "pack", other)
    found = petlpack.stats(tmp_path / "pack")
    sizes = [sum(t.nbytes for t in petlpack.Base(path).tensors.values()) for path in (base, other)]
    assert found.base_bytes == sum(sizes)
    assert {row.name: row.dense_bytes for row in found.tasks}["b"] == sizes[1]


def test_two_bases_of_one_size_are_two(base: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", make_base(1))
    petlpack.encode(write_run(tmp_path / "a", make_pair(1)[0]), tmp_path / "pack", base)
    petlpack.encode(
        write_run(tmp_path / "b", {**make_base(1), "classifier.weight": make_base(2)["embeddings.LayerNorm.weight"]}),
        tmp_path / "pack",
        other,
    )
    found = petlpack.stats(tmp_path / "pack")
    assert found.base_bytes == 2 * sum(tensor.nbytes for tensor in petlpack.Base(base).tensors.values())


def test_a_base_that_the_encoder_was_told_is_believed_before_the_option(base: Path, tmp_path: Path) -> None:
    adapter = write_methods(tmp_path)["merge"][0]
    other = write_run(tmp_path / "other", make_base(1, layers=5))
    petlpack.encode(adapter, tmp_path / "told", base)
    right, wrong = (petlpack.stats(tmp_path / "told", path) for path in (base, other))
    assert right.tasks[0].dense_bytes == wrong.tasks[0].dense_bytes
    assert right.tasks[0].base == wrong.tasks[0].base == "encoder"
    assert (right.lora_bytes, wrong.lora_bytes) == (4 * 8 * 32 * 2, None)


@pytest.mark.parametrize("base_bytes", [2**50 + 1, 2**61, -1, "1"])
def test_a_base_that_nobody_has_is_not_believed(base_bytes: object, tmp_path: Path) -> None:
    petlpack.encode(write_methods(tmp_path)["merge"][0], tmp_path / "pack")
    facts = petlpack.open(tmp_path / "pack")["merge"].manifest.facts
    rewrite(tmp_path / "pack", "merge", facts={**facts, "figures": {**facts["figures"], "base_bytes": base_bytes}})
    (row,) = petlpack.stats(tmp_path / "pack").tasks
    assert (row.dense_bytes, row.base) == (None, None)


def test_a_run_that_states_its_score_keeps_it(base: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", make_pair(1)[0])
    (path / "eval_results.json").write_text(json.dumps({"eval_loss": 0.5, "eval_accuracy": 0.875, "epoch": 3.0}))
    petlpack.encode(path, tmp_path / "pack", base)
    (row,) = petlpack.stats(tmp_path / "pack").tasks
    assert row.score is not None
    assert (row.score.metric, row.score.value) == ("accuracy", 0.875)
    task = json.loads(run("stats", tmp_path / "pack", "--json").stdout)["tasks"][0]
    assert task["score"] == {"metric": "accuracy", "value": 0.875}


@pytest.mark.parametrize(
    "said", [None, 3, [], ["f1"], ["f1", "x"], ["f1", True], ["f1", 1], [1, "2.0"], {"f1": "1.0"}, ["f1", "1.0", 2]]
)
def test_a_score_that_is_none_is_none(said: object, pack: Path) -> None:
    rewrite(pack, "a", facts={**petlpack.open(pack)["a"].manifest.facts, "score": said})
    row = next(row for row in petlpack.stats(pack).tasks if row.name == "a")
    assert row.score is None


def test_the_error_of_an_inexact_task_is_told(base: Path, tmp_path: Path) -> None:
    petlpack.encode(write_run(tmp_path / "run", make_pair(1)[0]), tmp_path / "pack", base, density=0.01)
    found = petlpack.stats(tmp_path / "pack")
    (row,) = found.tasks
    errors = petlpack.open(tmp_path / "pack")["run"].facts.errors or {}
    assert not row.exact
    assert row.error == max(errors.values()) > 0
    assert f"+-{row.error:.1e}" in run("stats", tmp_path / "pack").stdout


# Growth and forecast


def test_at_its_own_size_a_pack_takes_what_it_takes(mixed: Path, pack: Path) -> None:
    for path in (mixed, pack):
        found = petlpack.stats(path)
        leftovers = found.other_bytes - 37
        assert found.growth is not None
        assert found.growth.at(len(found.tasks)) == pytest.approx(found.disk_bytes - leftovers, abs=1e-6)
        each = next(row.bytes_per_task for row in found.amortized if row.tasks == len(found.tasks))
        assert each == round((found.disk_bytes - leftovers) / len(found.tasks))


def test_expected_parts_of_fewer_tasks_are_those_of_all_subsets() -> None:
    import itertools

    users = [(4, 100), (1, 7), (2, 31), (3, 1000), (1, 5)]
    owners = [{0, 1, 2, 3}, {2}, {0, 3}, {1, 2, 3}, {0}]
    role = PartRole("x", tuple(users))
    for count in range(1, 5):
        drawn = [
            sum(nbytes for (_, nbytes), own in zip(users, owners, strict=True) if own & {*chosen})
            for chosen in itertools.combinations(range(4), count)
        ]
        assert role.at(count, 4) == pytest.approx(sum(drawn) / len(drawn))


def test_what_all_share_never_grows_and_what_each_has_grows_with_them() -> None:
    assert PartRole("all", ((7, 500),)).at(10**6, 7) == 500
    assert PartRole("own", ((1, 500),)).at(7_000, 7) == pytest.approx(500_000)
    assert PartRole("none", ()).at(100, 7) == 0


def test_break_even_is_the_first_number_from_which_on_it_pays() -> None:
    growth = Growth(
        10, 5_000.0, (100,) * 10, (PartRole("template", ((10, 900),)), PartRole("file", ((1, 30), (2, 40))))
    )
    for each in (101, 150, 1000, 10_000):
        tasks = break_even(growth.at, lambda count, each=each: each * count)  # type: ignore[misc]
        assert tasks is not None
        assert growth.at(tasks) < each * tasks
        assert tasks == 1 or growth.at(tasks - 1) >= each * (tasks - 1)
        assert all(growth.at(count) < each * count for count in counts_up_to(10**9) if count >= tasks)
    assert break_even(growth.at, lambda count: 100.0 * count) is None


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("1e2..1e6", [100, 1000, 10_000, 100_000, 1_000_000]),
        ("10..1000", [10, 20, 50, 100, 200, 500, 1000]),
        ("3..40", [3, 5, 10, 20, 40]),
        ("7", [7]),
        ("500,10,10", [10, 500]),
        ("1..1", [1]),
    ],
)
def test_numbers_of_tasks(text: str, counts: list[int]) -> None:
    assert parse_counts(text) == counts


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "nan", "inf", "1e99", "5..2", "1..2..3", "a", "1,,2", "1e2.."])
@pytest.mark.parametrize("option", ["--at", "--forecast"])
def test_other_numbers_of_tasks_are_refused(option: str, text: str, pack: Path) -> None:
    result = run("stats", pack, f"{option}={text}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Hint: " in result.stderr


def test_a_forecast_tells_bytes_money_and_days(pack: Path) -> None:
    found = petlpack.stats(pack)
    seen = forecast(found, [2, 1000], price_per_gb_month=0.5, egress_per_gb=2.0, growth_per_day=4)
    assert found.growth is not None
    for row in seen.rows:
        nbytes = found.growth.at(row.tasks)
        assert row.pack.bytes == round(nbytes)
        assert row.pack.monthly == pytest.approx(nbytes / 1e9 * 0.5)
        assert row.pack.transfer == pytest.approx(nbytes / 1e9 * 2)
        assert row.dense is not None
        assert found.dense_bytes is not None
        assert row.dense.bytes == round(row.tasks * found.dense_bytes)
        assert row.days == max(0, (row.tasks - 2) / 4)
    answer = json.loads(run("stats", pack, "--forecast", "10..1e3", "--growth", "4/day", "--json").stdout)["forecast"]
    assert [row["tasks"] for row in answer["rows"]] == [10, 20, 50, 100, 200, 500, 1000]
    assert answer["rows"][0]["pack"]["monthly"] is None


@pytest.mark.parametrize(
    "options",
    [
        ["--price-per-gb-month", "-1"],
        ["--egress", "-0.1"],
        ["--egress", "nan"],
        ["--price-per-gb-month", "inf"],
        ["--growth", "-3/day"],
        ["--growth", "3/week"],
        ["--growth", "many"],
    ],
)
def test_prices_that_make_no_sense_are_refused(options: list[str], pack: Path) -> None:
    result = run("stats", pack, "--forecast", "10", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert run("stats", pack, *options).exit_code == 2  # without a forecast, too


@pytest.fixture(scope="module")
def thousands(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """Return a pack of 10,000 generated tasks, which take a minute, or of 800 where not every case is asked for."""
    pack = tmp_path_factory.mktemp("many") / "pack"
    write_many(pack, 10_000 if pytestconfig.getoption("exhaustive") else 800)
    return pack


def test_a_forecast_from_100_tasks_is_within_2_percent_of_10_000(thousands: Path, tmp_path: Path) -> None:
    encode_tasks(tmp_path / "hundred", range(100))
    found = petlpack.stats(tmp_path / "hundred")
    measured = petlpack.stats(thousands)
    count = len(measured.tasks)
    assert count in (800, 10_000)
    (row,) = forecast(found, [count]).rows
    assert measured.disk_bytes == on_disk(thousands)
    assert row.pack.bytes == pytest.approx(measured.disk_bytes, rel=0.02)
    assert found.growth is not None
    assert abs(row.pack.bytes / measured.disk_bytes - 1) <= found.growth.error  # as far off as it said it may be
    # the part that has to be foretold, and is no mean: what tasks share
    shared = sum(measured.inventory.parts.values())
    told = sum(role.at(count, 100) for role in found.growth.roles)
    assert told == pytest.approx(shared, rel=0.5)
    assert shared > (5 if count == 10_000 else 2) * sum(found.inventory.parts.values())  # something to foretell


def test_the_stated_error_holds_for_random_hundreds(thousands: Path) -> None:
    read = petlpack.stats(thousands).inventory
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        growth = growth_of([read.tasks[i] for i in rng.choice(len(read.tasks), 100, replace=False)], read.parts)
        held += abs(growth.at(len(read.tasks)) / (read.disk_bytes) - 1) <= growth.error
    assert held >= 185  # 95 % and what 200 trials leave to chance


# Bounds


def test_bounds_of_positions_need_no_decoding_and_are_the_same_decoded(mixed: Path, base: Path) -> None:
    found = petlpack.stats(mixed)
    (task,) = [task for task in found.inventory.tasks if task.codec == "sparse"]
    (row,) = [row for row in found.tasks if row.name == task.name]
    told = next(r for r in table_by("section", found).rows if r["section"] == "sparse.positions")
    weights = sum(slot.size for slot in task.kind.stored if slot.base is not None)
    positions = next(section for section in row.sections if section.kind == "sparse.positions")
    assert told["bound"] == pytest.approx(choose_bits(weights, positions.count) / positions.count)
    answer = audit(mixed, task.name, base, bounds=True)
    assert answer.bounds[positions.name] == pytest.approx(choose_bits(weights, positions.count))


def test_bounds_of_every_section_of_every_codec(mixed: Path, base: Path, tmp_path: Path) -> None:
    found = petlpack.stats(mixed)
    on_base = {task.name for task in found.inventory.tasks if task.codec in ("ulp", "sparse")}
    only = dataclasses.replace(
        found,
        inventory=dataclasses.replace(
            found.inventory, tasks=tuple(task for task in found.inventory.tasks if task.name in on_base)
        ),
    )
    bounds, failed = measure(only, Store(mixed), petlpack.Base(base))
    assert failed == {}
    for task in only.inventory.tasks:
        for section in task.sections:
            bits = bounds[task.name, section.name]
            assert 0 < bits <= 8 * section.nbytes * 1.05
    shared = [key for key in bounds if key[0] not in on_base]
    assert {sha256 for sha256, _ in shared} == set(found.inventory.tensors)
    assert all(bits >= 0 for bits in bounds.values())


def test_of_a_whole_model_without_a_base_nothing_is_the_head(tmp_path: Path) -> None:
    run_dir, base = write_pair(tmp_path, width=64, words=400)
    for codec in ("plain", "ulp"):
        petlpack.encode(run_dir, tmp_path / codec, base, codec=codec)
    (plain,), (near,) = petlpack.stats(tmp_path / "plain").tasks, petlpack.stats(tmp_path / "ulp").tasks
    assert (plain.bytes.head, plain.figures.head_parameters) == (0, 0)
    tuned, _ = make_pair(width=64, words=400)
    assert plain.figures.stored_parameters == sum(tensor.size for tensor in tuned.values())
    assert near.bytes.head


def test_masks_are_bound_by_what_each_of_them_keeps(mixed: Path) -> None:
    answer = audit(mixed, "mask.a", bounds=True)
    task = petlpack.open(mixed)["mask.a"]
    tensors = task.load()
    kept = [
        choose_bits(tensors[slot.name].size, int(np.count_nonzero(tensors[slot.name].bits())))
        for slot in task.sources.stored
        if slot.dtype.name == "BOOL"
    ]
    assert kept
    told = sum(bits for name, bits in answer.bounds.items() if name.startswith("masks"))
    assert told == pytest.approx(sum(kept))


def test_numbers_are_bound_by_their_classes(tmp_path: Path) -> None:
    run_dir, base = write_pair(tmp_path, width=64, words=400, dtype="BF16")
    petlpack.encode(run_dir, tmp_path / "pack", base)
    answer = audit(tmp_path / "pack", "run", base, bounds=True)
    for section in answer.row.sections:
        if section.count > 4096:  # moves are uniform in 81 ulps, whatever the class
            assert answer.bounds[section.name] / section.count == pytest.approx(np.log2(81), rel=0.02)
            assert 8 * section.nbytes <= 1.1 * answer.bounds[section.name]


def test_bounds_without_the_base_are_those_of_the_rest(mixed: Path) -> None:
    result = run("stats", mixed, "--bounds")
    assert result.exit_code == 5
    assert "needs its base" in result.stderr
    rows = json.loads(run("stats", mixed, "--bounds", "--json").stdout)["rows"]
    bounds = {row["section"]: row["bound"] for row in rows}
    assert bounds["ulps"] is None
    assert bounds["masks (shared)"] is not None or bounds["masks"] is not None


def test_bounds_beside_a_damaged_section_are_those_of_the_rest(pack: Path, base: Path) -> None:
    damage(pack, "a")
    result = run("stats", pack, "--bounds", "--base", base)
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: a: ")
    assert re.search("^ulps ", result.stdout, re.MULTILINE)


def test_a_filter_of_no_column_is_refused_before_sections_are_decoded(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petlpack.analyze.stats.measure", lambda *_: pytest.fail("decoded"))
    for option in (["--filter", "typo=x"], ["--sort", "typo"]):
        result = run("stats", mixed, "--bounds", *option)
        assert result.exit_code == 2
        assert "typo" in result.stderr


# One task


def test_one_task_is_told_without_the_others(mixed: Path) -> None:
    for path in (mixed / "tasks").iterdir():
        if not path.name.startswith("mask.a."):
            path.touch()
    answer = json.loads(run("stats", mixed, "--task", "mask.a", "--json").stdout)
    own = Store(mixed).task_path("mask.a").stat().st_size
    assert answer["task"]["bytes"]["total"] == own
    assert sum(row["nbytes"] for row in answer["sections"]) + answer["task"]["bytes"]["header"] == own
    parts = petlpack.open(mixed)["mask.a"].parts
    assert {row["sha256"] for row in answer["parts"]} == set(parts)
    text = run("stats", mixed, "--task", "mask.a").stdout
    assert "own file" in text
    assert "template" in text


def test_one_task_that_is_not_there(mixed: Path) -> None:
    result = run("stats", mixed, "--task", "nobody")
    assert result.exit_code == 1
    assert "no task 'nobody'" in result.stderr
    assert run("stats", mixed, "--task", "mask.a", "--by", "task").exit_code == 2


# Tables


def table(found: petlpack.Stats) -> Table:
    return table_by("task", found)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["method=full*"], ["run1", "run2", "run3"]),
        (["method=FULL FINE-TUNE", "codec=ulp"], ["run1", "run2"]),
        (["codec!=ulp", "method=full*"], ["run3"]),
        (["task=mask.?"], ["mask.a", "mask.b"]),
        (["total>1GB"], []),
        (["total>=0"], None),
        (["payload > 2.0kB", "codec=ulp"], ["run1", "run2"]),
        (["density<0.02", "density>0"], ["run3"]),
        (["trained>1e30"], []),
    ],
)
def test_filters(filters: list[str], names: list[str] | None, mixed: Path) -> None:
    found = petlpack.stats(mixed)
    told = [row["task"] for row in selected(table(found), filters).rows if row["method"]]
    assert sorted(map(str, told)) == (sorted(row.name for row in found.tasks) if names is None else names)


@pytest.mark.parametrize("text", ["", "method", "=x", "nothing=1", "total>many", "total>1XB", "method>a", "total>-1"])
def test_other_filters_are_refused(text: str, mixed: Path) -> None:
    result = run("stats", mixed, "--filter", text)
    assert (result.exit_code, result.stdout) == (2, "")


def test_sorting(mixed: Path) -> None:
    found = petlpack.stats(mixed)
    for name, unit in table(found).columns.items():
        for direction, down in (("", unit != "text"), (":asc", False), (":desc", True)):
            told = [row[name] for row in ordered(table(found), name + direction).rows]
            known = [value for value in told if value is not None]
            assert told == known + [None] * (len(told) - len(known))
            key = (lambda value: str(value).lower()) if unit == "text" else (lambda value: value)
            assert [key(value) for value in known] == sorted(map(key, known), reverse=down)
    for text in ("nothing", "total:up", ":desc"):
        assert run("stats", mixed, "--sort", text).exit_code == 2


def test_csv_has_exact_numbers_and_no_formulas(mixed: Path, base: Path) -> None:
    rewrite(mixed, "run1", facts={**petlpack.open(mixed)["run1"].manifest.facts, "method": "=cmd|' /C calc'!A0,\n\""})
    result = run("stats", mixed, "--csv", "--all")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    found = petlpack.stats(mixed)
    assert [row["task"] for row in rows if row["method"]] == [row.name for row in found.tasks]
    assert [int(row["total"]) for row in rows if row["method"]] == [row.bytes.total for row in found.tasks]
    assert not any(value.startswith(("=", "+", "@")) for row in rows for value in row.values())
    text = run("stats", mixed, "--md").stdout
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines()}) == 1


@pytest.mark.parametrize("options", [["--csv", "--md"], ["--csv", "--json"], ["--md", "--json"]])
def test_one_format_at_a_time(options: list[str], mixed: Path) -> None:
    assert run("stats", mixed, *options).exit_code == 2


@pytest.mark.parametrize("key", KEYS)
def test_json_has_the_table_that_is_asked_for(key: str, mixed: Path) -> None:
    answer = json.loads(run("stats", mixed, "--by", key, "--json", "--sort", key).stdout)
    assert answer["by"] == key
    assert answer["rows"]
    assert answer["disk_bytes"] == on_disk(mixed)


@pytest.mark.parametrize("key", KEYS)
def test_tables_fit_80_columns(key: str, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for options in ([], ["--by", key], ["--forecast", "1e2..1e6", "--price-per-gb-month", "0.023", "--egress", "0.09"]):
        lines = run("stats", mixed, *options).stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert not any("\u2026" in line for line in lines if re.search("[0-9]\u2026", line))


def test_a_conclusion_in_plain_words(pack: Path, tmp_path: Path) -> None:
    last = " ".join(run("stats", pack).stdout.split("\n\n")[-1].split())
    assert re.fullmatch(
        r"2 tasks take [0-9.]+ kB; the next will take about [0-9.]+ kB; "
        r"as dense models they would take [0-9.]+ kB \([0-9.]+x\)\.",
        last,
    )
    Store(pack).remove("a")
    last = " ".join(run("stats", pack).stdout.split("\n\n")[-1].split())
    assert re.match(
        r"1 task takes [0-9.]+ kB; another will take [0-9.]+ kB to [0-9.]+ kB, depending on whether it shares", last
    )


# Damage, and what is no pack


def test_a_missing_shared_part_is_damage_of_its_tasks_only(pack: Path, tmp_path: Path, base: Path) -> None:
    petlpack.encode(write_methods(tmp_path / "m")["merge"][0], pack)
    config = petlpack.open(pack)["a"].template.files["config.json"]
    Store(pack).shared_path(config).unlink()
    result = run("stats", pack)
    assert result.exit_code == 4
    assert result.stderr.startswith(f"Error: a, b: shared part {config} is missing")  # one reason, told once
    assert re.search(r"^merge +", result.stdout, re.MULTILINE)
    assert run("stats", pack, "--task", "a").exit_code == 4


def test_a_damaged_part_of_tensors_is_damage_of_its_tasks(tmp_path: Path) -> None:
    path, options = write_methods(tmp_path)["mask"]
    petlpack.encode(path, tmp_path / "pack", **options)
    petlpack.encode(write_methods(tmp_path / "n")["merge"][0], tmp_path / "pack")
    part = petlpack.open(tmp_path / "pack")["mask.a"].manifest.shared[1]
    file = Store(tmp_path / "pack").shared_path(part)
    file.write_bytes(file.read_bytes()[:-1])
    found = petlpack.stats(tmp_path / "pack")
    assert sorted(found.damaged) == ["mask.a", "mask.b"]
    assert [row.name for row in found.tasks] == ["merge"]


@pytest.mark.parametrize(
    "option", ["--by=task", "--at=5", "--egress=0", "--csv", "--forecast=10", "--bounds", "--html=x.html"]
)
def test_options_for_packs_are_refused_for_runs(option: str, tmp_path: Path) -> None:
    path, _ = write_pair(tmp_path)
    result = run("stats", path, option)
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.stderr


def test_a_section_that_its_tensors_do_not_need_is_damage(pack: Path) -> None:
    rows = petlpack.open(pack)["a"].manifest.sections
    rewrite(pack, "a", sections=tuple(dataclasses.replace(row, count=2**40) for row in rows))
    for key in KEYS:
        result = run("stats", pack, "--by", key)
        assert result.exit_code == 4
        assert "that its tensors do not need" in result.stderr
    assert run("stats", pack, "--task", "a").exit_code == 4


def test_a_task_of_a_newer_version_is_told_to_be_one(pack: Path) -> None:
    rewrite(pack, "a", codec="novel")
    result = run("stats", pack)
    assert result.exit_code == 7
    assert re.search("^b ", result.stdout, re.MULTILINE)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_in_a_pack_is_no_task_and_has_its_own_bytes(pack: Path) -> None:
    (pack / "tasks" / "c.petl.safetensors").symlink_to(Store(pack).task_path("a"))
    found = petlpack.stats(pack)
    assert list(found.damaged) == ["c"]
    assert found.disk_bytes == sum(path.lstat().st_size for path in pack.rglob("*") if not path.is_dir())
    assert found.other_bytes == 37


def test_an_emptied_part_is_damage(pack: Path) -> None:
    config = petlpack.open(pack)["a"].template.files["config.json"]
    Store(pack).shared_path(config).write_bytes(b"")
    assert sorted(petlpack.stats(pack).damaged) == ["a", "b"]


@pytest.mark.parametrize("options", [[], ["--forecast", "10"], ["--plot", "x.svg"], ["--by", "codec"]])
def test_a_pack_of_damaged_tasks_only_is_4(options: list[str], pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pack.parent)
    for name in "ab":
        Store(pack).task_path(name).write_bytes(b"x" * 300)
    result = run("stats", pack, *options)
    assert result.exit_code == 4
    assert "Error: a: " in result.stderr
    assert not Path("x.svg").exists()


def test_the_conclusion_tells_damaged_bytes_apart(pack: Path) -> None:
    Store(pack).task_path("a").write_bytes(b"x" * 100_000)
    text = " ".join(run("stats", pack).stdout.split())
    assert re.search(r"1 task takes [0-9.]+ kB \(1 unreadable one 100\.0 kB more\); another will", text)


@pytest.mark.parametrize(
    "options",
    [
        ["--forecast", "10", "--csv"],
        ["--forecast", "10", "--by", "task"],
        ["--forecast", "10", "--at", "5"],
        ["--at", "5", "--by", "task"],
        ["--task", "a", "--lora-rank", "4"],
        ["--task", "a", "--egress", "0"],
        ["--jobs", "2"],
        ["--filter", "method==lora"],
        ["--lora-rank", "9" * 30],
        ["--html", "same.html", "--plot", "same.html"],
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], pack: Path) -> None:
    result = run("stats", pack, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    flags = [option for option in options if option.startswith("--")]
    assert any(flag in result.stderr for flag in flags) or "rank" in result.stderr or "filter" in result.stderr


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("stats", "")
    assert (result.exit_code, result.stdout) == (2, "")


def test_the_pack_json_of_somebody_else_makes_no_pack(tmp_path: Path) -> None:
    path, _ = write_pair(tmp_path)
    (path / "pack.json").write_text('{"name": "webpack"}')
    assert run("stats", path).exit_code == 0
    assert run("stats", path, tmp_path / "base").exit_code == 0


def test_what_a_sort_or_a_filter_is_about_is_shown(mixed: Path) -> None:
    result = run("stats", mixed, "--sort", "stored", "--filter", "density>0")
    assert {"Stored", "Density"} <= set(result.stdout.splitlines()[0].split())


def test_an_output_without_unicode_gets_escapes(pack: Path) -> None:
    for options in ([], ["--forecast", "1e2..1e4"], ["--by", "section"]):
        command = [sys.executable, "-m", "petlpack_cli", "stats", str(pack), *options]
        environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.isascii()
        assert b"\x1b" not in done.stdout


def test_a_pack_among_runs_is_refused(pack: Path, tmp_path: Path) -> None:
    result = run("stats", pack, tmp_path / "a")
    assert result.exit_code == 2
    assert f"got 2 paths, but '{pack}' is a pack" in result.stderr


def test_nothing_there_is_told(tmp_path: Path) -> None:
    result = run("stats", tmp_path / "nothing")
    assert result.exit_code == 2
    assert str(tmp_path / "nothing") in result.stderr


def test_a_directory_without_a_run_is_told_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"x" * 1234)
    result = run("stats", tmp_path)
    assert result.exit_code == 1
    assert "1.2 kB" in result.stdout
    assert result.stderr.startswith(f"Error: no pack or run in '{tmp_path}'\nHint: ")
    assert json.loads(run("stats", tmp_path, "--json").stdout)["disk_bytes"] == 1234


def test_stats_of_options_that_make_no_sense(pack: Path) -> None:
    for given in ({"at": [0]}, {"at": [-3]}, {"lora_rank": 0}):
        arguments: dict[str, Any] = given
        with pytest.raises(petlpack.UsageError):
            petlpack.stats(pack, **arguments)
