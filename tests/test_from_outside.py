"""Codecs, a coder, a layout, an export from outside, a line in a registry each: all commands and tables know them."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner, Result

import petlpack
from petlpack import coding
from petlpack.analyze.tables import KEYS
from petlpack.codecs import registry as codecs
from petlpack.coding import registry as coders
from petlpack.coding.array import Array
from petlpack.exports import registry as exports
from petlpack.layouts import registry as layouts
from petlpack.tensors.dtypes import DTYPES
from petlpack_cli import encode as encode_command
from petlpack_cli import stats
from petlpack_cli.app import COMMANDS, cli
from tests.support.small_runs import make_pair, weights, write_run, write_safetensors
from tests.support.toys import ToyCoder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WHOLE = ("sst2", "mrpc")
LORA = "lora"
NAMES = (*WHOLE, LORA)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register a coder, three codecs, two layouts and an export, a line each."""
    monkeypatch.setitem(layouts.LAYOUTS, "deep", "tests.support.toys:DeepLayout")
    monkeypatch.setitem(exports.EXPORTS, "toy", "tests.support.toys:ToyExport")
    monkeypatch.setitem(coders.CODERS, "toy", "tests.support.toys:ToyCoder")
    monkeypatch.setitem(codecs.CODECS, "named", "tests.support.toys:NamedCodec")
    monkeypatch.setitem(codecs.CODECS, "shy", "tests.support.toys:ShyCodec")
    monkeypatch.setitem(codecs.CODECS, "toy", "tests.support.toys:ToyCodec")
    monkeypatch.setitem(layouts.LAYOUTS, "toy", "tests.support.toys:ToyLayout")
    yield
    codecs.codec.cache_clear()
    coders.coder.cache_clear()


def write_toy(directory: Path, left: dict[str, Any], right: dict[str, Any], *, lora: bool = False) -> Path:
    for side, tensors in (("left", left), ("right", right)):
        write_safetensors(directory / f"{side}.safetensors", tensors, {"format": "pt"})
    (directory / "toy.json").write_text(json.dumps({"lora": lora}), encoding="utf-8")
    return directory


@pytest.fixture
def place(toys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, with a base, two whole toys on it and a LoRA, and a pack of all of them."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(WHOLE, 1):
        tuned, base = make_pair(seed, share=0.05)
        head = {name: tensor for name, tensor in tuned.items() if name.startswith("classifier.")}
        write_toy(Path("runs") / name, {name: t for name, t in tuned.items() if name not in head}, head)
    write_run(Path("base"), base)
    query = "bert.encoder.layer.0.attention.self.query"
    factors = {f"{query}.lora_A": weights("F32", (4, 16), 1), f"{query}.lora_B": weights("F32", (16, 4), 2)}
    write_toy(Path("runs") / LORA, factors, {"classifier.weight": weights("F32", (2, 16), 3)}, lora=True)
    for name in NAMES:
        petlpack.encode(f"runs/{name}", "pack", "base", codec="toy")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), arguments
    return json.loads(result.stdout)


STATS = (
    *(["stats", "pack", "--by", key] for key in KEYS),
    *(["stats", "pack", "--by", key, "--csv"] for key in KEYS),
    *(["stats", "pack", "--task", name] for name in NAMES),
    ["stats"],
    ["stats", "pack", "--by", "section", "--bounds", "--base", "base"],
    ["stats", "pack", "--task", WHOLE[0], "--bounds", "--base", "base"],
    ["stats", "pack", "--filter", "codec=toy", "--sort", "total", "--md"],
    ["stats", "pack", "--forecast", "1e2..1e4"],
    ["stats", "pack", "--at", "10,100"],
    ["stats", "pack", "--html", "page.html"],
    ["stats", "runs"],
    ["stats", "runs", "--base", "base"],
    *(["stats", f"runs/{name}"] for name in NAMES),
)

LINES: dict[str, tuple[list[str], ...]] = {
    "encode": (
        ["encode", f"runs/{WHOLE[0]}", "--base", "base", "--pack", "new", "--codec", "toy"],
        ["encode", f"runs/{LORA}", "--pack", "new", "--codec", "toy", "--level", "fast"],
        ["encode", *(f"runs/{name}" for name in NAMES), "--base", "base", "--pack", "auto"],
        ["encode", f"runs/{WHOLE[0]}", "--base", "base", "--pack", "half", "--set", "toy_half=true"],
        ["encode", f"runs/{WHOLE[0]}", "--base", "base", "--pack", "red", "--set", "toy_colour=red"],
    ),
    "plan": (
        ["plan", *(f"runs/{name}" for name in NAMES), "--base", "base"],
        ["plan", f"runs/{WHOLE[0]}", "--base", "base", "--sample", "0.5"],
        ["plan", f"runs/{LORA}", "--base", "base", "--sample", "0.5"],
        ["plan", f"runs/{WHOLE[0]}", "--base", "base", "--set", "toy_half=true"],
        ["plan", f"runs/{LORA}", "--set", "toy_half=true", "--set", "toy_colour=blue"],
    ),
    "decode": (
        *(["decode", "pack", name, f"out/{name}", "--base", "base"] for name in NAMES),
        *(["decode", "pack", name, f"st/{name}", "--base", "base", "--to", "safetensors"] for name in NAMES),
    ),
    "list": (["list"], ["list", "--long"]),
    "show": tuple(["show", "pack", name] for name in NAMES),
    "stats": STATS,
    "survey": (["survey", "runs"], ["survey", *(f"runs/{name}" for name in NAMES), "--base", "base"]),
    "forecast": (["forecast"], ["forecast", "pack", "--at", "1e2..1e4", "--html", "page.html"]),
    "verify": (
        ["verify"],
        ["verify", "pack", "--base", "base"],
        *(["verify", "pack", name, "--base", "base", "--against", f"runs/{name}"] for name in NAMES),
    ),
    "remove": (["remove", "pack", WHOLE[0]],),
    "gc": (["gc", "--dry-run"], ["gc"]),
    "seal": (["seal"],),
    "codecs": (["codecs"],),
}
"""Command lines of each command, all of which work."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(place: Path, command: str) -> None:
    for line in LINES[command]:
        result = run(*line)
        assert (result.exit_code, result.stderr) == (0, ""), line
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_every_command_has_lines_here() -> None:
    assert LINES.keys() == COMMANDS.keys()
    assert all(line[0] == command for command, lines in LINES.items() for line in lines)
    assert set(KEYS) == set(stats.KEYS)


# What they say


def test_the_toys_are_what_stands_in_the_pack(place: Path) -> None:
    pack = petlpack.open("pack")
    for name in NAMES:
        task = pack[name]
        assert (task.codec, task.method, task.facts.layout) == ("toy", "toy tune", "toy")
        assert "toy" in {row.coder for row in task.manifest.sections} or name == LORA  # whose numbers do not deflate
        task.decode(f"out/{name}", "base")
        for side in ("left", "right"):
            file = f"{name}/{side}.safetensors"
            assert Path("out", file).read_bytes() == Path("runs", file).read_bytes()
    assert run_json("verify", "pack", "--base", "base")["damaged"] == 0


def test_the_toy_codec_is_listed_and_offered(place: Path) -> None:
    listed = {row["id"]: row["description"] for row in run_json("codecs")["codecs"]}
    assert listed["toy"] == "Every tensor by the toy coder"
    refused = run("encode", f"runs/{WHOLE[0]}", "--base", "base", "--pack", "new", "--codec", "toi")
    assert "toy" in refused.stderr
    (whole,) = run_json("plan", f"runs/{WHOLE[0]}", "--base", "base")["runs"]
    offers = {" ".join(offer["options"][1:]): offer for offer in whole["offers"]}
    assert offers["toy --set toy_half=true"]["loss"]["text"] == "the right half"
    assert offers["ulp --set toy_half=true"]["loss"]["text"] == "the right half"
    assert offers["ulp"]["loss"]["text"] == "nothing"
    assert offers["toy"]["bytes"] == petlpack.open("pack")[WHOLE[0]].nbytes
    refused = run("encode", f"runs/{WHOLE[0]}", "--base", "base", "--pack", "new", "--codec", "shy")
    assert (
        offers["shy"]["refused"]["message"]
        == f"codec 'shy' does not suit 'runs/{WHOLE[0]}': it has a head of 34 weights"
    )
    assert offers["shy"]["refused"]["message"] in refused.stderr
    assert sum(offer["auto"] for offer in whole["offers"]) == 1
    (lora,) = run_json("plan", f"runs/{LORA}")["runs"]
    assert {offer["codec"] for offer in lora["offers"]} == {"toy", "plain"}


@pytest.mark.parametrize("codec", ["toy", "ulp", "plain"])
def test_what_a_setting_of_a_toy_loses_is_told_of_every_codec(place: Path, codec: str) -> None:
    (said,) = run_json("plan", f"runs/{WHOLE[0]}", "--base", "base", "--set", "toy_half=true")["runs"]
    offers = {offer["codec"]: offer["loss"] for offer in said["offers"] if offer["refused"] is None}
    assert offers[codec]["text"] == "the right half"


def test_a_damaged_toy_is_not_mended_by_a_setting_that_it_did_not_name(place: Path) -> None:
    right = Path("runs", WHOLE[0], "right.safetensors")
    right.write_bytes(right.read_bytes()[:-8])
    line = [f"runs/{WHOLE[0]}", "--base", "base"]
    encoded, planned = run("encode", *line, "--pack", "new"), run("plan", *line)
    assert (planned.exit_code, planned.stdout) == (1, "")
    assert "right.safetensors" in encoded.stderr
    assert planned.stderr == encoded.stderr


@pytest.mark.parametrize("said", ["toy_half=true", "toy_half=false", "toy_colour=red"])
def test_a_planned_command_does_what_was_planned(place: Path, said: str) -> None:
    (planned,) = run_json("plan", f"runs/{WHOLE[0]}", "--base", "base", "--set", said)["runs"]
    measured = [offer for offer in planned["offers"] if offer["refused"] is None]
    for i, offer in enumerate(measured):
        done = run(*offer["command"][1:], "--pack", f"planned-{i}")
        assert done.exit_code == 0, offer["command"]
        assert petlpack.open(f"planned-{i}")[WHOLE[0]].nbytes == offer["bytes"]
    assert {"toy", "ulp", "plain"} <= {offer["codec"] for offer in measured}
    halved = {offer["codec"]: offer["exact"] for offer in measured if "toy_half=true" in offer["command"]}
    assert "toy" in halved or said == "toy_half=false"


@pytest.mark.parametrize("said", [[], ["--set", "toy_half=true"], ["--set", "toy_colour=red"]])
def test_a_sample_measures_what_an_offer_switches_on(place: Path, said: list[str]) -> None:
    (whole,) = run_json("plan", f"runs/{WHOLE[0]}", "--base", "base", *said)["runs"]
    (sampled,) = run_json("plan", f"runs/{WHOLE[0]}", "--base", "base", "--sample", "0.9", *said)["runs"]
    truth = {tuple(offer["options"]): offer for offer in whole["offers"]}
    measured = [offer for offer in sampled["offers"] if offer["refused"] is None]
    assert any("toy_half=true" in offer["options"] for offer in measured)
    for offer in sampled["offers"]:
        if offer["refused"] is not None and offer["codec"] == "shy":
            assert offer["refused"] == truth[tuple(offer["options"])]["refused"]
    for offer in measured:
        known = truth[tuple(offer["options"])]
        assert offer["sampled_share"] == 1  # there are few units
        assert offer["bytes"] == pytest.approx(known["bytes"], abs=32)  # of the manifest
        for field in ("shared_bytes", "exact", "loss", "auto", "best"):
            assert offer[field] == known[field], (offer["options"], field)


def test_the_toys_have_rows_in_every_table(place: Path) -> None:
    tables = {key: run_json("stats", "pack", "--by", key) for key in KEYS}
    assert {row["layout"] for row in tables["task"]["tasks"]} == {"toy"}
    assert {row["codec"] for row in tables["codec"]["rows"]} >= {"toy"}
    assert {row["method"] for row in tables["method"]["rows"]} >= {"toy tune"}
    sections = {row["section"]: row for row in tables["section"]["rows"]}
    assert {"toys", "loose", "head"} <= sections.keys()
    for found in tables.values():
        assert sum(row["bytes"] for row in found["rows"] if "bytes" in row) in (0, found["disk_bytes"])
    tasks = {row["name"]: row for row in tables["task"]["tasks"]}
    assert tasks[WHOLE[0]]["dense_bytes"] == tasks[WHOLE[0]]["run_bytes"]
    assert tasks[LORA]["dense_bytes"] > tasks[LORA]["run_bytes"]
    assert all(row["bytes"]["head"] for row in tasks.values())
    run("stats", "--html", "page.html")
    assert "toy tune" in Path("page.html").read_text(encoding="utf-8")


def test_a_survey_knows_the_weights_of_a_toy(place: Path) -> None:
    for name in NAMES:
        (row,) = petlpack.survey([f"runs/{name}"], "base").runs
        weights_of = sum(file.stat().st_size for file in Path("runs", name).glob("*.safetensors"))
        assert (row.layout, row.method) == ("toy", "toy tune")
        assert row.bytes["weights"] == weights_of
    assert not petlpack.survey(["runs"], "base").problems


def test_a_survey_finds_a_run_whose_weights_are_called_like_no_others(place: Path) -> None:
    tuned, _ = make_pair(4)
    for part in (0, 1):
        write_safetensors(Path(f"deep/run/w/{part}.st"), dict(list(tuned.items())[part::2]), {"format": "pt"})
    Path("deep/run/deep.json").write_text("{}", encoding="utf-8")
    for found in (petlpack.survey(["deep"]), petlpack.survey(["deep/run"])):
        (row,) = found.runs
        assert (row.layout, row.method, row.problem) == ("deep", "deep tune", None)
        assert row.bytes["weights"] == sum(file.stat().st_size for file in Path("deep/run/w").iterdir())
    assert run("stats", "deep/run").exit_code == 0
    petlpack.encode("deep/run", "deep.pack", "base")
    petlpack.open("deep.pack")["run"].decode("out/deep", "base")
    assert Path("out/deep/w/1.st").read_bytes() == Path("deep/run/w/1.st").read_bytes()


def test_a_toy_by_a_codec_of_the_library_is_written_for_others(place: Path) -> None:
    petlpack.encode(f"runs/{LORA}", "plain", codec="plain")
    for to in ("peft", "adapterhub"):
        done = run("decode", "plain", LORA, f"out/{to}", "--to", to)
        assert done.exit_code == 0, done.stderr
    assert Path("out/peft/adapter_config.json").is_file()
    refused = run("decode", "pack", LORA, "out/toy", "--to", "peft")
    assert refused.exit_code == 2
    assert "toy tune" in refused.stderr


def test_a_whole_model_may_have_a_rule(place: Path) -> None:
    """It is as far from the base as it likes: nothing says that it froze it."""
    other, _ = make_pair(9)
    write_toy(Path("runs/far"), other, {})
    petlpack.encode("runs/far", "ruled", "base", codec="named")
    task = petlpack.open("ruled")["far"]
    name = next(name for name, tensor in other.items() if len(tensor.shape) == 2)
    found = task.rebuild("base")
    assert found is not None
    assert found.tensors[f"new.{name}"].sha256() == other[name].sha256()
    assert run("verify", "ruled", "far", "--base", "base", "--against", "runs/far").exit_code == 0


@pytest.mark.parametrize(("level", "chosen"), [("small", "ulps"), ("fast", "toy")])
def test_a_coder_that_says_it_is_fast_is_preferred_where_speed_counts(
    toys: None, monkeypatch: pytest.MonkeyPatch, level: Literal["fast", "small"], chosen: str
) -> None:
    bits, array = np.arange(999, dtype="<u4"), Array(DTYPES["F32"], 999, 1, np.zeros(999, "<u4"))
    size = len(coders.coder("ulps").encode(bits, array, level) or b"")
    monkeypatch.setattr(ToyCoder, "encode", lambda *_: bytes(size + 1))
    assert coding.encode(bits, array, ("ulps", "toy"), level)[0] == chosen
    monkeypatch.setattr(ToyCoder, "decode_ns", None)
    assert coding.encode(bits, array, ("ulps", "toy"), level)[0] == "ulps"


def test_a_task_is_written_by_an_export_from_outside(place: Path) -> None:
    done = run("decode", "pack", LORA, "out/toy", "--to", "toy")
    assert (done.exit_code, done.stderr) == (0, "Warning: the weights are not in it\n")
    assert "written for toy" in done.stdout
    assert "classifier.weight" in Path("out/toy/toy.txt").read_text(encoding="utf-8")
    assert "toy" in petlpack.known_exports()
    assert re.search(r"run\|safetensors\|.*toy", "".join(run("decode", "--help").stdout.split()))


def test_settings_of_a_toy(place: Path) -> None:
    assert "toy_colour" in run("encode", f"runs/{LORA}", "--set", "toy_size=1").stderr
    refused = run("encode", f"runs/{LORA}", "--pack", "new", "--set", "toy_colour=green")
    assert (refused.exit_code, "blue, red" in refused.stderr) == (2, True)
    petlpack.encode(f"runs/{WHOLE[0]}", "new", "base", settings={"toy_half": True, "toy_colour": "red"})
    assert petlpack.open("new")[WHOLE[0]].facts.options == {"toy_half": True, "toy_colour": "red"}
    line = ["verify", "new", WHOLE[0], "--base", "base", "--against", f"runs/{WHOLE[0]}"]
    assert run(*line).exit_code == 0
    warned = run("encode", f"runs/{WHOLE[0]}", "--base", "base", "--pack", "new2", "--set", "bake=true")
    assert "setting bake has no effect on this run" in warned.stderr


def test_the_help_lists_the_settings_of_a_toy(toys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        told = " ".join(CliRunner().invoke(importlib.reload(encode_command).run, ["--help"]).stdout.split())
    finally:
        monkeypatch.delitem(layouts.LAYOUTS, "toy")  # else its options stay in the command for all later tests
        importlib.reload(encode_command)
    assert "task_order, toy_colour." in told
    assert "--toy-half toys: leave out the right half." in told
    assert "--keep-experts AdaMix: store all experts, not their average." in told


def test_a_pack_is_read_where_its_layout_is_not_known(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(layouts.LAYOUTS, "toy")
    for line in (
        *(["stats", "pack", "--by", key] for key in KEYS),
        *(["show", "pack", name] for name in NAMES),
        *(["decode", "pack", name, f"out/{name}", "--base", "base"] for name in NAMES),
        ["list", "--long"],
        ["verify", "pack", "--base", "base"],
    ):
        assert run(*line).exit_code == 0, line


# What is known of codecs, coders, exports and layouts outside their own rooms

ROOT = Path(__file__).parent.parent
ROOMS: dict[str, dict[str, str]] = {
    "codecs": codecs.CODECS,
    "coding": coders.CODERS,
    "exports": exports.EXPORTS,
    "layouts": {**layouts.LAYOUTS, "sentence-transformers": ""},  # which `Run.layout` says beside the ids
}
"""The table of each room."""

ELSEWHERE = {
    "a role of units": [("analyze/bounds.py", "mask"), ("analyze/figures.py", "mask")],
    "what a table, a page or a rule has": [
        *[("analyze/page/__init__.py", "rows"), ("analyze/tables.py", "rows"), ("rules/rows.py", "rows")],
        *[(f"codecs/{name}.py", "rows") for name in ("hyper", "mask", "merge", "plain")],
        *[("methods/trainer.py", "rows"), ("analyze/tables.py", "run"), ("analyze/offers.py", "run")],
        *[("encoding/bind.py", "rows"), ("encoding/runs.py", "run")],
    ],
    "the coders that a codec tries": [
        *[("codecs/method.py", name) for name in ("bitmap", "masks")],
        *[("codecs/sparse.py", name) for name in ("gaps", "numbers", "rows", "ulps")],
        *[("codecs/units.py", name) for name in ("numbers", "planes", "rows", "ulps")],
    ],
    "what a codec calls its units": [("codecs/ulp.py", "ulps")],
    "a type of the same name": [("rules/arithmetic.py", "numbers")],
    "the one coder of shared bytes, by their format": [("sections/shared.py", "planes")],
    "a module of petlpack.methods": [
        *[("methods/__init__.py", name) for name in ("adamix", "pha", "propetl")],
        ("methods/propetl.py", "propetl"),
    ],
    "a word of English": [
        *[("errors/__init__.py", "run"), ("petlpack_cli/encode.py", "run"), ("petlpack_cli/plan.py", "run")],
        ("petlpack_cli/output/survey.py", "run"),
    ],
}
"""Where a word is no id, or has to be one, though it stands outside its room; each reason with (file, word)."""


def ids_used(source: str, table: Mapping[str, str]) -> set[str]:
    """Return the ids of a table that a source has as a text, in a pattern, or by the class that the table names."""
    tree, found = ast.parse(source), set()
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    classes = {place.rpartition(":")[2]: one for one, place in table.items() if place}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found |= {one for one in table if node.value == one or node.value.startswith(f"{one}.")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
            inside = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant))
            found |= {word for text in inside for word in re.findall(r"[\w-]+", str(text))} & table.keys()
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found |= {classes[name]} if name in classes else set()
    return found


def test_no_id_stands_outside_its_room() -> None:
    allowed = {place for places in ELSEWHERE.values() for place in places}
    used = set()
    files = [file for part in ("petlpack", "cli") for file in sorted((ROOT / part).rglob("*.py"))]
    for file in (file for file in files if file.name != "registry.py"):
        inside = ROOMS.keys() & {folder.name for folder in file.parents}
        own = {one for room in inside for one in ROOMS[room]}  # exports and layouts have ids in common
        for room in ROOMS.keys() - inside:
            found = ids_used(file.read_text(encoding="utf-8"), ROOMS[room]) - own
            used |= {(file.relative_to(ROOT).as_posix().partition("/")[2], one) for one in found}
    assert used == allowed


@pytest.mark.parametrize(
    "source",
    [
        'x == "ulp"',
        'x in ("raw", "ulp")',
        'y = ("ulp", "raw")',
        'y = {"ulp": 1}',
        'y["ulp"]',
        'y.get("ulp")',
        'x.startswith("ulp.")',
        'frozenset({"ulp"})',
        'match x:\n    case "ulp": pass',
        "isinstance(x, UlpCodec)",
        "isinstance(x, ulp.UlpCodec)",
        're.match("(ulp|other)$", x)',
        'def f(codec="ulp"): pass',
    ],
)
def test_an_id_is_found(source: str) -> None:
    assert ids_used(source, {"ulp": "petlpack.codecs.ulp:UlpCodec"}) == {"ulp"}


# What the linter keeps apart


@pytest.mark.parametrize("room", ROOMS)
def test_the_linter_keeps_all_of_a_room_apart(room: str) -> None:
    """It takes every module but those that others of the room are built on, of which none is in a table."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one.get("modules") == [f"petlpack.{room}.*"])
    common = {line.rpartition(" -> ")[2] for line in contract["ignore_imports"]}
    assert contract["type"] == "independence"
    assert common.isdisjoint({place.partition(":")[0] for place in ROOMS[room].values()})
