"""Figures: what must stand in them, the same bytes each time, no text that breaks them, nothing left behind."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

from petlpack.analyze.forecast import forecast
from petlpack.analyze.growth import Growth
from petlpack.analyze.plots import write_plot
from petlpack.analyze.reading import SectionBytes
from petlpack.analyze.rows import TaskBytes, TaskRow
from petlpack.analyze.stats import BreakEven, Stats, stats
from petlpack.encoding.encode import encode
from petlpack.errors import PetlpackError, UsageError, printable
from petlpack.records.facts import Score
from tests.support.scores import scored
from tests.support.small_runs import make_pair, write_run

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "$\\frac{1}{0}$ a_b^c",
    "$unbalanced",
    "_hidden",
    "<script>&amp;\"'",
    "two\nlines\r\n\x1b[31m",
    "\u202e\u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u5fae\u8c03 \U0001f600",
    "\udcff\ufffe\x00",
    "long " + "W" * 5000,
    "Z\u0351\u036b" * 40,
    "",
    " ",
]
"""Texts that a run may state of itself."""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plots")
    for seed, name in enumerate(("sst2", "rte", "cola"), 1):
        tuned, base = make_pair(seed, share=0.01 * seed)
        write_run(directory / "base", base)
        encode(write_run(directory / name, tuned), pack=directory / "glue.pack", base=directory / "base")
    return directory / "glue.pack"


@pytest.fixture(scope="module")
def found(pack: Path) -> Stats:
    return stats(pack)


def texts(path: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ET.parse(path).iter(f"{SVG}text")]


def panels(path: Path) -> list[str]:
    return [text for text in texts(path) if text.startswith(("Bytes", "Score", "Storage"))]


def resized(row: TaskRow, nbytes: int) -> TaskRow:
    """Return a task whose every part has so many bytes."""
    sections = tuple(replace(section, nbytes=nbytes) for section in row.sections)
    header = max(nbytes, 1)
    return replace(row, sections=sections, bytes=TaskBytes(nbytes, nbytes, nbytes, header, 3 * nbytes + header, nbytes))


def hostile(found: Stats, names: Sequence[str], pack: str) -> Stats:
    """Return stats of a task for each text, which stands wherever one can."""
    rows = tuple(
        replace(
            found.tasks[0],
            name=text,
            method=text,
            score=Score(names[0], 0.5),
            sections=(*found.tasks[0].sections, SectionBytes(text, text, "own", "raw", "U8", 9, 9)),
        )
        for text in names
    )
    return replace(found, tasks=rows, pack=pack)


def test_the_figure_says_what_it_shows(found: Stats, tmp_path: Path) -> None:
    known = replace(
        found, lora_bytes=4096.0, dense_bytes=4e8, base_bytes=10**9, break_even=BreakEven(3, 1300, None, ())
    )
    write_plot(tmp_path / "a.svg", known)
    said = texts(tmp_path / "a.svg")
    assert said[-1].startswith("glue.pack: 3 tasks, ")
    assert panels(tmp_path / "a.svg") == ["Bytes a task", "Bytes by task and section"]
    for text in (
        "one LoRA of rank 8 a task: 4.1 kB",
        "one dense model a task: 400 MB",
        "from 1,300 tasks on smaller than LoRA",
        "from 3 tasks on smaller than dense models,",
        "the same with the base, once",
        "sst2",
        "rte",
        "cola",
        "ulps",
        "head",
        "manifest, header",
        "share of shared parts",
        "bytes a task",
        "tasks",
        "10,000",
        "1 GB",
        "10 kB",
    ):
        assert text in said, text
    assert any(re.fullmatch(r"this pack: 3 tasks of [\d.]+ k?B", text) for text in said)


def test_every_tick_of_bytes_has_its_unit(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.svg", scored(found, [Score("f1", 0.5)] * 3), forecast(found, [10, 100, 1000]))
    groups = {group.get("id"): group for group in ET.parse(tmp_path / "a.svg").iter(f"{SVG}g")}
    for axis in (2, 3, 5, 8):  # y of the first panel, x of the second and third, y of the fourth
        *ticks, label = ("".join(text.itertext()) for text in groups[f"matplotlib.axis_{axis}"].iter(f"{SVG}text"))
        assert label.startswith("bytes")
        assert len(ticks) >= 2
        assert all(re.fullmatch(r"[\d.]+ [kMG]?B", tick) for tick in ticks), ticks


def test_scores_of_the_commonest_metric_are_shown_by_method(found: Stats, tmp_path: Path) -> None:
    scores = [Score("accuracy", 0.9), Score("accuracy", 0.8), Score("accuracy", 0.7), Score("f1", 0.1), None]
    write_plot(tmp_path / "a.svg", scored(found, scores, ["lora", "adamix"]))
    said = texts(tmp_path / "a.svg")
    assert panels(tmp_path / "a.svg")[2] == "Score against bytes (1 task of other metrics left out)"
    assert {"accuracy", "lora (2 tasks)", "adamix (1 task)"} < {*said}
    assert "f1" not in said


def test_more_methods_and_sections_than_colours_share_one(found: Stats, tmp_path: Path) -> None:
    many = scored(found, [Score("accuracy", 0.5)] * 9, [f"method {i}" for i in range(9)])
    section = found.tasks[0].sections[0]
    sections = tuple(replace(section, name=f"s{i}", kind=f"kind {i}", nbytes=100 - i) for i in range(9))
    rows = tuple(replace(row, sections=sections) for row in many.tasks)
    write_plot(tmp_path / "a.svg", replace(many, tasks=rows))
    assert {"method 4 (1 task)", "4 other methods (4 tasks)", "kind 4", "4 other kinds of sections"} < {
        *texts(tmp_path / "a.svg")
    }


def test_many_tasks_become_their_mean(found: Stats, tmp_path: Path) -> None:
    rows = [replace(resized(found.tasks[0], 10_000 - i), name=f"task-{i:04}") for i in range(2000)]
    write_plot(tmp_path / "a.svg", replace(found, tasks=tuple(reversed(rows))))
    said = texts(tmp_path / "a.svg")
    bars = [text for text in said if text.startswith("task-")]
    assert bars == [f"task-{i:04}" for i in range(15)]
    assert {"mean of 1,985 others,", "89.3 MB in all"} < {*said}
    write_plot(tmp_path / "a.svg", replace(found, tasks=tuple(rows[:16])))
    assert "task-0015" in texts(tmp_path / "a.svg")


@pytest.mark.parametrize(("price", "cost"), [(None, ""), (0.5, ", 2.00 a month"), (0, ", 0 a month")])
def test_a_forecast_says_totals_cost_and_error(found: Stats, tmp_path: Path, price: float | None, cost: str) -> None:
    told = forecast(replace(found, dense_bytes=4e6), [10, 1000], price_per_gb_month=price)
    write_plot(tmp_path / "a.svg", found, replace(told, error=0.125))
    said = texts(tmp_path / "a.svg")
    assert panels(tmp_path / "a.svg")[2] == "Storage to come, up to 1,000 tasks"
    assert {f"one dense model a task: 4 GB{cost}", "its 95 % band: ± 12.5 %"} < {*said}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_breaks_a_figure(found: Stats, tmp_path: Path, text: str) -> None:
    write_plot(tmp_path / "a.svg", hostile(found, [text], f"{text}.pack".replace("\0", "")))
    assert max(map(len, texts(tmp_path / "a.svg"))) < 50
    assert ET.parse(tmp_path / "a.svg").getroot().get("width") == "720pt"


def test_no_texts_together_break_a_figure(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.png", hostile(found, HOSTILE, "a.pack"))


def test_dollars_stay_dollars(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.svg", scored(found, [Score("$\\alpha$", 0.5)], ["$a_b$ <c>"]))
    assert {"$\\alpha$", "$a_b$ <c> (1 task)"} < {*texts(tmp_path / "a.svg")}


def test_a_long_text_loses_its_middle(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.svg", scored(found, [Score("first" + "x" * 100 + "last", 0.5)]))
    (text,) = (text for text in texts(tmp_path / "a.svg") if "…" in text)
    assert re.fullmatch(r"firstx+…x+last", text)
    assert len(text) == 24


NOTHING_KNOWN = {"lora_bytes": None, "dense_bytes": None, "base_bytes": None}


@pytest.mark.parametrize(
    "changes",
    [
        NOTHING_KNOWN,
        {**NOTHING_KNOWN, "break_even": BreakEven(None, None, None, ())},
        {"lora_bytes": 0.0, "dense_bytes": 0.0, "base_bytes": 0},
        {"break_even": BreakEven(10**12, 10**12, None, ())},
        {"lora_bytes": 1e31, "dense_bytes": 1e31, "base_bytes": 10**31},
        {"lora_bytes": 1e308, "dense_bytes": 1e36, "base_bytes": 10**400, "lora_rank": 10**27},
        {"dense_bytes": 1e13, "base_bytes": 10**13},
        {**NOTHING_KNOWN, "growth": Growth(1, 0.0, (1,))},
        {**NOTHING_KNOWN, "growth": Growth(3, 1e18, (10**15,) * 3)},
    ],
)
def test_unknown_and_extreme_sizes_are_no_trouble(found: Stats, tmp_path: Path, changes: dict[str, object]) -> None:
    for suffix in (".svg", ".png"):
        write_plot(tmp_path / f"a{suffix}", replace(found, **changes))  # type: ignore[arg-type]


def test_a_lora_larger_than_an_axis_is_left_out(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.svg", replace(found, lora_bytes=1e31, lora_rank=65_536))
    assert "one LoRA of rank 65536 a task: 1e+07 YB" in texts(tmp_path / "a.svg")
    write_plot(tmp_path / "a.svg", replace(found, lora_bytes=1e308), forecast(replace(found, lora_bytes=1e290), [10]))
    assert not [text for text in texts(tmp_path / "a.svg") if "LoRA" in text]


@pytest.mark.parametrize("nbytes", [0, 1, 10**15, 10**30])
@pytest.mark.parametrize("count", [1, 2])
def test_tasks_of_any_size_have_bars(found: Stats, tmp_path: Path, nbytes: int, count: int) -> None:
    rows = tuple(replace(resized(row, nbytes), score=Score("f1", 0.5)) for row in found.tasks[:count])
    write_plot(tmp_path / "a.svg", replace(found, tasks=rows))
    assert len(panels(tmp_path / "a.svg")) == 3


@pytest.mark.parametrize(
    "values", [[0.5], [0.0, 0.0], [0.5, 0.5 + 1e-16], [5e-324, 0.0], [1e12, -1e12], [-1.5, 1e308], [0.9, 0.1]]
)
def test_scores_of_any_value_are_drawn(found: Stats, tmp_path: Path, values: list[float]) -> None:
    write_plot(tmp_path / "a.svg", scored(found, [Score("loss", value) for value in values]))
    assert len(panels(tmp_path / "a.svg")) == 3


def test_scores_that_no_axis_can_show_make_no_panel(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.svg", scored(found, [Score("loss", 1e308), Score("loss", -1e308)]))
    assert len(panels(tmp_path / "a.svg")) == 2


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ([1], 0.1),
        ([100, 10], 0.1),
        ([10**12], 50.0),
        ([10], 1e308),
        ([1, 10**12], 1.0),
        ([7, 8], 0.0),
        ([*range(1, 300)], None),
    ],
)
def test_forecasts_of_any_range_are_drawn(found: Stats, tmp_path: Path, counts: list[int], error: float | None) -> None:
    told = forecast(found, counts, price_per_gb_month=1e9)
    write_plot(tmp_path / "a.svg", found, replace(told, error=error))
    assert len(panels(tmp_path / "a.svg")) == 3


def test_no_money_is_told_that_is_none(found: Stats, tmp_path: Path) -> None:
    told = forecast(found, [10], price_per_gb_month=1)
    rows = tuple(replace(row, pack=replace(row.pack, monthly=float("inf"))) for row in told.rows)
    write_plot(tmp_path / "a.svg", found, replace(told, rows=rows))
    (text,) = (text for text in texts(tmp_path / "a.svg") if text.startswith("this pack's mix: "))
    assert "," not in text


def test_ten_thousand_points_are_one_image(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.svg", scored(found, [Score("f1", i / 10_000) for i in range(10_000)]))
    assert len([*ET.parse(tmp_path / "a.svg").iter(f"{SVG}image")]) == 1
    assert (tmp_path / "a.svg").stat().st_size < 300_000


def test_a_png_has_its_size_and_no_date(found: Stats, tmp_path: Path) -> None:
    write_plot(tmp_path / "a.PNG", found)
    data = (tmp_path / "a.PNG").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert width == 1200
    assert 500 < height < 1000
    assert b"tEXt" not in data


# The same bytes, and nothing else changed


def test_the_same_pack_gives_the_same_bytes(pack: Path, tmp_path: Path) -> None:
    found = scored(stats(pack), [Score("f1", 0.5)] * 3, ["a", "b"])
    told = forecast(found, [10, 1000])
    program = (
        "import sys; from pathlib import Path\n"
        "import petlpack.analyze.plots as plots\n"
        "from petlpack.analyze.forecast import forecast\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from petlpack.analyze.stats import stats\n"
        "from petlpack.records.facts import Score\n"
        "from tests.support.scores import scored\n"
        "found = scored(stats(sys.argv[1]), [Score('f1', 0.5)] * 3, ['a', 'b'])\n"
        "for path in sys.argv[2:]: plots.write_plot(Path(path), found, forecast(found, [10, 1000]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "1"}
    others = [tmp_path / "other.svg", tmp_path / "other.png"]
    subprocess.run([sys.executable, "-c", program, pack, *others], env=environment, check=True)
    for other in others:
        first, second = (tmp_path / f"{name}{other.suffix}" for name in ("first", "second"))
        write_plot(first, found, told)
        with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 20, "text.parse_math": True}):
            write_plot(second, found, told)
            assert matplotlib.rcParams["font.size"] == 20
        assert first.read_bytes() == second.read_bytes() == other.read_bytes()


# Errors


@pytest.mark.parametrize("name", ["a.pdf", "a", "svg", ".svg", "a.svg.gz", "a.\n"])
def test_another_suffix_is_refused_by_name(found: Stats, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"'{printable(str(tmp_path / name))}'")) as caught:
        write_plot(tmp_path / name, found)
    assert ".png" in str(caught.value.hint)
    assert not [*tmp_path.iterdir()]


def test_a_pack_without_tasks_has_nothing_to_plot(found: Stats, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task to plot"):
        write_plot(tmp_path / "a.svg", replace(found, tasks=(), growth=None))


def test_without_matplotlib_the_extra_is_named(found: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PetlpackError, match="plots need matplotlib") as caught:
        write_plot(tmp_path / "a.svg", found)
    assert caught.value.hint == "pip install 'petlpack[report]'"


def test_a_missing_directory_is_told(found: Stats, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.svg"
    with pytest.raises(UsageError, match="there is no directory"):
        write_plot(path, found)


def test_a_figure_is_no_file_of_the_pack(found: Stats, pack: Path) -> None:
    before = sorted(pack.rglob("*"))
    with pytest.raises(UsageError, match="inside the pack"):
        write_plot(pack / "tasks" / "a.svg", found)
    assert sorted(pack.rglob("*")) == before


@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
def test_a_failure_leaves_the_file_as_it_was(
    found: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(path: Path, *_: object) -> None:
        path.touch()
        raise OSError(28, "no space left on device")

    (tmp_path / "a.svg").write_text("before")
    monkeypatch.setattr(Path, broken, fail)
    with pytest.raises(OSError, match="no space") as caught:
        write_plot(tmp_path / "a.svg", found)
    assert caught.value.filename == str(tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    assert (tmp_path / "a.svg").read_text() == "before"
