"""What a stranger could send: a few kilobytes that would take gigabytes, or minutes, are refused at once, and by name.

Each command runs in a process of its own, which may take a second, and twice the pack and 128 MB.
"""

from __future__ import annotations

import json
import struct
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import petlpack
from petlpack import LimitError, UsageError
from petlpack.container import EncodedSection
from petlpack.store import SUFFIX
from tests.support.bombs import NO_SUM, NOTHING, BombPack, Shapes
from tests.support.confined import Runner
from tests.support.tally import Tally

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are Linux's here")

MILLION = 1 << 20
ONE: Shapes = {"a": ("F32", [1])}
BIG: Shapes = {"a": ("F32", [1 << 24])}


def rule(rows: Sequence[Any], kind: str = "adapter", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "settings": {"activation": "relu", "form": "pfeiffer", "scaling": 1}, "rows": [*rows], **more}


def kept(content: bytes, names: Sequence[str] = ("a.txt",), **more: Any) -> Callable[[BombPack], None]:
    return lambda pack: pack.task(files=dict.fromkeys(names, pack.keep(content)), **more)


def task(*args: Any, **fields: Any) -> Callable[[BombPack], None]:
    return lambda pack: pack.task(*args, **fields)


def generated(weight: str, shape: Sequence[int], name: str = "o") -> list[Any]:
    return [name, weight, None, 0, [["c", 0]], list(shape), False]


TRUNK = [["w1", "b1"], ["w2", "b2"], None, "0.5"]
NETWORK: Shapes = {
    **{"c": ("F32", [1]), "w1": ("F32", [1, 1]), "b1": ("F32", [1])},
    **{"w2": ("F32", [1, 1]), "b2": ("F32", [1])},
}
NAMED: dict[str, Any] = {"params": {"name": "n" * 128}}


MASKS = b"\x40" + struct.pack("<BII", 1, 0, 0) * 64
"""Masks in 64 classes, none of which keeps an entry."""


def a_part_often(pack: BombPack, count: int) -> None:
    part = pack.part([("F32", [1], 0)])
    pack.task(ONE, parts=[["a"], *([None] for _ in range(count - 1))], shared=[part] * count)


def a_large_part(pack: BombPack, rows: Sequence[tuple[str, Sequence[int], int]], shapes: Shapes = ONE) -> None:
    part = pack.part(rows, named=NOTHING)
    pack.task(shapes, parts=[[None] * len(rows)], shared=[part])


def empty_sections(pack: BombPack, count: int) -> None:
    pack.task(ONE, sections=[EncodedSection(f"tensors.{i}", "raw", "F32", 0, b"") for i in range(count)])


def base(pack: BombPack, view: Any, shape: Sequence[int], rows: Sequence[Any] = (("w", "F32", [4, 4]),)) -> None:
    table = pack.keep(json.dumps([[*row, NOTHING, NO_SUM] for row in rows], separators=(",", ":")).encode())
    pack.task(
        {"a": ("F32", shape)},
        codec_id="ulp",
        params={"unchanged": [[0, 1]]},
        sections=[],
        base={"table": table, "tensors": [["a", view]]},
    )


BOMBS: dict[str, tuple[Callable[[BombPack], None], str, str | None]] = {
    # kept files
    "a name in a file": (kept(b"{name}" * (1 << 22), named=["a.txt"], **NAMED), "decode", "size-limit"),
    "a name in a file, shown": (kept(b"{name}" * (1 << 22), named=["a.txt"], **NAMED), "show", "size-limit"),
    "a name in two megabytes": (kept(b"{name}" * 400_000, named=["a.txt"], **NAMED), "decode", "size-limit"),
    "names of one file": (kept(bytes(1 << 24), [f"{i}.txt" for i in range(2000)]), "decode", "limit"),
    "names of one file, shown": (kept(bytes(1 << 24), [f"{i}.txt" for i in range(2000)]), "show", "limit"),
    "a file of zeros": (kept(bytes(64 << 20)), "show", "limit"),
    "many small names of one file": (kept(bytes(MILLION), [f"{i}" for i in range(4000)]), "show", "limit"),
    # facts, manifests and templates
    "lists in facts": (task(facts={"note": [[]] * (2 * MILLION)}), "list", "size-limit"),
    "few lists in facts": (task(facts={"note": [[]] * 300_000}), "list", "json-values"),
    "a long text in facts": (task(facts={"method": "x" * (8 * MILLION)}), "list", "size-limit"),
    "a long text in a template": (task(base_name="x" * (8 * MILLION)), "show", "size-limit"),
    "lists in a rule": (
        task(codec_id="mask", rule=rule([[]] * 300_000, produced=[]), sections=[]),
        "show",
        "json-values",
    ),
    "one name in a head": (task(head=[""] * 100_000, sections=[]), "show", "template-twice"),
    "two names in a head": (task(head=["a"] * 60_000 + ["b"] * 60_000, sections=[]), "show", "template-twice"),
    "a name in a template": (task(head=["{name}" * 100_000], sections=[], **NAMED), "show", "name-growth"),
    "a deep file name": (kept(b"x", ["a/" * 100_000 + "b"], sections=[]), "show", "file-name"),
    "deep file names": (kept(b"x", ["a/" * 2500 + f"{i}" for i in range(100)], sections=[]), "show", "file-name"),
    # sections and shared parts
    "empty sections": (lambda pack: empty_sections(pack, 200_000), "show", "section-crowd"),
    "a part often": (lambda pack: a_part_often(pack, 30_000), "verify", "size-limit"),
    "a part rather often": (lambda pack: a_part_often(pack, 2_000), "decode", "part-limit"),
    "a part of many tensors": (lambda pack: a_large_part(pack, [("U8", [1], 0)] * 60_000), "verify", "json-values"),
    "a part of some tensors": (lambda pack: a_large_part(pack, [("U8", [1], 0)] * 20_000), "verify", "part-limit"),
    "a part of large tensors": (lambda pack: a_large_part(pack, [("F32", [1 << 24], 0)] * 4), "decode", "limit"),
    # tensors
    "aliases": (
        task({f"{i}": ("F32", [MILLION]) for i in range(2000)}, params={"aliases": [[i, 0] for i in range(1, 2000)]}),
        "decode",
        "limit",
    ),
    "aliases, verified": (
        task({f"{i}": ("F32", [MILLION]) for i in range(2000)}, params={"aliases": [[i, 0] for i in range(1, 2000)]}),
        "verify",
        "limit",
    ),
    "masks of many kinds": (
        task({f"{i:x}z": ("BOOL", [1]) for i in range(6_000)}, codec_id="mask", rule=rule([], produced=[])),
        "stats",
        None,
    ),
    "masks of short rows": (
        task(
            {f"m.{i}.mask": ("BOOL", [4]) for i in range(5_000)},
            codec_id="mask",
            rule=rule([], produced=[]),
            sections=[EncodedSection("masks.0", "masks", "BOOL", 20_000, MASKS)],
        ),
        "decode",
        "decoded-digest",
    ),
    "a huge mask": (
        task(
            {"mask": ("BOOL", [1 << 24])},
            codec_id="mask",
            rule=rule([], produced=[]),
            sections=[EncodedSection("masks.0", "masks", "BOOL", 1 << 24, MASKS)],
        ),
        "decode",
        "decoded-digest",
    ),
    "elements without end": (task({"a": ("U8", [1 << 62])}, sections=[]), "stats", "section-capacity"),
    "a shape without elements": (task({"a": ("U32", [1 << 61, 0])}, sections=[]), "decode", "header-fields"),
    # rules
    "a network of nothing": (
        task(
            {**NETWORK, "w": ("F32", [1 << 30, 0])},
            codec_id="hyper",
            rule=rule([generated("w", [1 << 30])], trunks=[TRUNK]),
        ),
        "decode --to safetensors",
        "rule-shape",
    ),
    "an output without end": (
        task(
            {**NETWORK, "w": ("F32", [4, 1])},
            codec_id="hyper",
            rule=rule([generated("w", [1 << 30, 1 << 30])], trunks=[TRUNK]),
        ),
        "decode --to safetensors",
        "rule-shape",
    ),
    "an output of many sizes": (
        task(
            {**NETWORK, "w": ("F32", [1, 1])},
            codec_id="hyper",
            rule=rule([generated("w", [1] * 80)], trunks=[TRUNK]),
            sections=[],
        ),
        "decode --to safetensors",
        "rule-value",
    ),
    "rows of a rule": (
        task(
            BIG,
            codec_id="mask",
            rule=rule([[f"{i}.down.weight", "a", [], "none", False, None] for i in range(1300)], produced=[]),
        ),
        "decode --to safetensors",
        "limit",
    ),
    "experts of one name": (
        task({**BIG, "s": ("F32", [2000])}, codec_id="merge", rule=rule([["o", ["a"] * 2000, "s"]])),
        "decode --to safetensors",
        "limit",
    ),
    "hidden numbers": (
        task(
            {
                "c": ("F32", [MILLION, 1]),
                "w1": ("F32", [MILLION, 1]),
                "b1": ("F32", [MILLION]),
                "w2": ("F32", [1, MILLION]),
                "b2": ("F32", [1]),
            },
            codec_id="mask",
            rule=rule(
                [["p.prefix", "p", [], "none", False, None]],
                "prefix",
                produced=[["p", "c", ["w1", "b1"], ["w2", "b2"]]],
            ),
        ),
        "decode --to safetensors",
        "rule-shape",
    ),
    # views
    "a view of one tensor often": (
        lambda pack: base(pack, ["concatenate", 0, ["w"] * 10_000], [40_000, 4]),
        "show",
        "view-limit",
    ),
    "a slice of one tensor often": (
        lambda pack: base(pack, ["slice", 0, 0, 4, ["concatenate", 0, ["w"] * 10_000]], [4, 4]),
        "show",
        "view-limit",
    ),
    "a base without end": (
        lambda pack: base(pack, "w", [1 << 40], [("w", "F32", [1 << 40])]),
        "decode",
        "base-missing",
    ),
}


MASK: dict[str, Any] = {"codec_id": "mask"}
ODD: dict[str, Callable[[BombPack], None]] = {
    "facts of other types": task(
        facts={
            **{"method": [1, {"a": 2}], "layout": None, "task": 5, "note": {"x": 1}, "run_bytes": "x", "score": [1, 2]},
            **{"options": [1], "figures": {"trained": -1}, "density": "nan", "error": {"a": "x"}, "exact": 5},
        }
    ),
    "facts of large numbers": task(facts={"exact": False, "density": "1e308", "error": {"a": "1e308"}}),
    "controls in facts": task(facts={"method": "\x1b[31m\n", "layout": "a\x00b"}),
    "rows with other masks": task(
        **MASK,
        rule=rule([["h.0.o", "a", ["m"], "none", False, None], ["h.1.o", "a", [], "none", False, None]], produced=[]),
    ),
    "a rule without rows": task(**MASK, rule=rule([], produced=[])),
    "a rule of nothing": task(rule={"kind": {}}, sections=[]),
    "a rule of names without dots": task(codec_id="merge", rule=rule([["\x1b[1m", ["a"], None]])),
    "a file and a directory": kept(b"x", ["a", "a/b"], sections=[]),
    "a config that is none": kept(
        b'{"config":[1],"lora_alpha":"x","r":[]}', ["adapter_config.json", "head_config.json"]
    ),
    "no weights": task(weights=[]),
    "many tensors of nothing": task({f"{i}": ("F32", [0]) for i in range(5000)}),
}


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_pack_gives_no_internal_error(name: str, as_json: bool, tmp_path: Path, runner: Runner) -> None:
    made = BombPack(tmp_path / "pack")
    ODD[name](made)
    for command in ("list", "show", "stats", "verify", "decode", "decode --to safetensors", "decode --to peft"):
        words = arguments(command, made.path)
        runner.check(made.path, [*words, "--json"] if as_json else words)


def arguments(command: str, pack: Path) -> list[str]:
    """Return the words of a command on the pack."""
    name, *options = command.split()
    place = {"show": ["bomb"], "decode": ["bomb", str(pack.parent / "out"), "--jobs", "1"], "list": ["--long"]}
    return [name, str(pack), *place.get(name, ["--jobs", "1"] if name == "verify" else []), *options]


@pytest.mark.exhaustive(3)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_name(name: str, tmp_path: Path, runner: Runner, tally: Tally) -> None:
    build, command, code = BOMBS[name]
    made = BombPack(tmp_path / "pack")
    pack = made.path
    build(made)
    found = runner.check(pack, [*arguments(command, pack), "--json"])
    assert found["code"] == code, found
    assert found["exit"] in ({1, 3, 4, 5, 7} if code else {0}), found
    assert not (tmp_path / "out").exists()
    for other in ("list", "show", "stats", "verify", "decode"):
        runner.check(pack, [*arguments(other, pack), "--json"])
    tally("bombs", 1)


def test_a_part_that_is_only_named_explains_nothing(tmp_path: Path) -> None:
    """Nobody reads a kept file for tensors, and so finds out that it is a link to a large file of somebody's."""
    made, count = BombPack(tmp_path / "pack"), 2000
    digest = made.keep(b"kept")
    aliases = [[number, 0] for number in range(1, count)]
    made.task({f"{i}": ("F32", [MILLION]) for i in range(count)}, params={"aliases": aliases}, files={"a.txt": digest})
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    part = made.path / "shared" / f"{digest}{SUFFIX}"
    part.unlink()
    part.symlink_to(tmp_path / "large")
    with pytest.raises(LimitError, match="explain"):
        petlpack.open(made.path)["bomb"].load()


def test_what_was_read_of_damaged_tasks_is_not_kept_with_their_errors(tmp_path: Path) -> None:
    made = BombPack(tmp_path / "pack")
    for number in range(6):
        made.task({"a": ("F32", [MILLION])}, name=f"t{number}")
    tracemalloc.start()
    try:
        found = list(petlpack.verify(made.path, jobs=1))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(one.damaged for one in found) == 6
    assert held < 8 * MILLION


def test_a_caller_may_allow_more_or_less(tmp_path: Path) -> None:
    made = BombPack(tmp_path / "pack")
    kept(bytes(40 << 20), ["a.bin"])(made)
    with pytest.raises(LimitError, match="explain"):
        petlpack.open(made.path)["bomb"].read_file("a.bin")
    assert len(petlpack.open(made.path, max_bytes=50 << 20)["bomb"].read_file("a.bin")) == 40 << 20
    with pytest.raises(LimitError, match=r"would take 4 bytes, is allowed 3") as caught:
        petlpack.open(made.path, max_bytes=3)["bomb"].load()
    assert (caught.value.code, caught.value.exit_code) == ("limit", 1)
    with pytest.raises(UsageError, match="max_bytes must be an integer"):
        petlpack.open(made.path, max_bytes="1GB")  # type: ignore[arg-type]
    (found,) = [found for found in petlpack.verify(made.path) if found.kind == "task"]
    assert isinstance(found.error, LimitError)
    assert not found.damaged
    assert found.unread


def test_encode_says_of_equal_weights_that_a_reader_will_refuse_them(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_file({f"w.{i}": np.zeros(1 << 20, "<f4") for i in range(40)}, tmp_path / "run" / "model.safetensors")
    (task,) = petlpack.encode(tmp_path / "run", tmp_path / "pack", task="bomb", codec="plain")
    assert [text for text in task.warnings if "explain" in text and "--max-bytes" in text]
    with pytest.raises(LimitError):
        petlpack.open(tmp_path / "pack")["bomb"].load()


def test_accounts_and_lists_are_bounded_too(tmp_path: Path) -> None:
    made = BombPack(tmp_path / "pack")
    part = made.part([("F32", [1 << 24], 0)] * 4, named=NOTHING)
    made.task(ONE, parts=[[None] * 4], shared=[part], facts={"run_bytes": 4})
    failed = petlpack.stats(made.path, max_bytes=3).table("section", bounds=True).failed
    assert {name: error.code for name, error in failed.items()} == {"bomb": "limit", part: "limit"}  # type: ignore[attr-defined]
    with pytest.raises(LimitError, match="is allowed 3"):
        petlpack.audit(made.path, "bomb", bounds=True, max_bytes=3)
    (row,) = petlpack.listing(made.path, long=True, max_bytes=3).tasks
    assert isinstance(row.error, LimitError)
    assert petlpack.listing(made.path, long=True, max_bytes=4).tasks[0].error is None
    wrong: Any = "1GB"
    for call in (petlpack.stats, petlpack.listing):
        with pytest.raises(UsageError, match="max_bytes must be an integer"):
            call(made.path, max_bytes=wrong)
    with pytest.raises(UsageError, match="max_bytes must be an integer"):
        petlpack.audit(made.path, "bomb", max_bytes=wrong)


def test_equal_numbers_are_no_bomb(tmp_path: Path) -> None:
    tensors = {f"l.{i}.w": np.full((1024, 1024), i, np.float32) for i in range(40)}  # 160 MB in 15 kB
    (tmp_path / "run").mkdir()
    save_file(tensors, tmp_path / "run" / "model.safetensors")
    petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", codec="plain", task="constant")
    assert len(petlpack.open(tmp_path / "pack")["constant"].load()) == 40


def test_shapes_of_a_large_model_open(tmp_path: Path) -> None:
    """What a model of 70 billion weights says of itself is small, and nothing of it is refused before it is decoded."""
    shapes: dict[str, tuple[str, Sequence[int]]] = {}
    for layer in range(80):
        for name, shape in {"q": [8192, 8192], "k": [1024, 8192], "up": [28672, 8192], "down": [8192, 28672]}.items():
            shapes[f"model.layers.{layer}.{name}_proj.weight"] = ("BF16", shape)
    made = BombPack(tmp_path / "pack")
    table = [[name, *row, NOTHING, NO_SUM] for name, row in sorted(shapes.items())]
    digest = made.keep(json.dumps(table, separators=(",", ":")).encode())
    views = {"table": digest, "tensors": sorted([name, name] for name in shapes)}
    made.task(shapes, codec_id="ulp", params={"unchanged": [[0, len(shapes)]]}, base=views)
    details = petlpack.details(petlpack.open(made.path)["bomb"])
    assert details.task.run_bytes > 80e9
    assert petlpack.stats(made.path).errors == {}
