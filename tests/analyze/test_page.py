"""The page of `petlpack stats --html`, in a real browser: it shows what the pack holds, and asks for nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack.analyze.forecast import Cost, forecast
from petlpack.analyze.page import page, write_page
from petlpack.analyze.reading import SectionBytes
from petlpack.analyze.rows import TaskRow
from petlpack.analyze.stats import SharedRow, Stats
from petlpack.errors import UsageError
from petlpack.records.facts import Score
from petlpack.store import Store
from petlpack_cli.output.pack_stats import conclusion
from petlpack_cli.output.sizes import count, ratio, size
from tests.support.small_runs import write_methods, write_pair

pytest.importorskip("playwright.sync_api", reason="the page is tried in a browser, which needs playwright")

from playwright.sync_api import Browser, expect

from tests.support.page_driver import PHONE, SCHEMES, Opened, browser, opened

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "'\"`${alert(3)}&lt;b&gt;&amp;<!--",
    "\u202egnp.exe\u2028\u2029\x00\x1b[31m",
    "עברית 中文 🙂 " + "W" * 110,
    "javascript:alert(4)//" + "x" * 107,
]


@pytest.fixture(scope="session")
def running() -> Iterator[Browser]:
    with browser() as lent:
        yield lent


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Stats:
    """Eight tasks of five methods, one of them with a score, one inexact with an error, one inexact without."""
    place = tmp_path_factory.mktemp("page")
    for name, seed, share in (("small", 1, 0.001), ("middle", 2, 0.5), ("Big.1", 3, 1.0)):
        run, base = write_pair(place / name, seed, share=share)
        petlpack.encode(run, pack=place / "pack", base=base, task=name)
    for run, arguments in write_methods(place / "methods").values():
        petlpack.encode(run, pack=place / "pack", **arguments)
    found = petlpack.stats(place / "pack")
    changed: dict[str, dict[str, Any]] = {
        "small": {"score": Score("accuracy", 0.75)},
        "middle": {"exact": False, "error": 1.2e-7, "score": Score("f1", -0.5)},
        "Big.1": {"exact": False, "error": None},
    }
    rows = tuple(dataclasses.replace(row, **changed.get(row.name, {})) for row in found.tasks)
    return dataclasses.replace(found, tasks=rows)


@pytest.fixture
def show(running: Browser, tmp_path: Path) -> Callable[..., Any]:
    """Write a page and open it."""

    def write_and_open(found: Stats, *more: Any, **context: Any) -> Any:
        path = tmp_path / "page.html"
        write_page(path, found, *more)
        return opened(running, path, **context)

    return write_and_open


def many(found: Stats, number: int) -> Stats:
    """Return the stats of a pack of so many tasks of two methods, of which one task is large."""
    row, draw = found.tasks[0], random.Random(7)
    rows = []
    for i in range(number):
        payload = 10**9 if not i else draw.randrange(3000, 3100)
        nbytes = dataclasses.replace(row.bytes, payload=payload, head=0, files=0, header=500, total=payload + 500)
        section = SectionBytes("tensors", "tensors", "own", "raw", "F32", 1, payload)
        method = "lora" if i % 3 else "diff"
        rows.append(dataclasses.replace(row, name=f"t{i:05}", method=method, bytes=nbytes, sections=(section,)))
    rows.sort(key=lambda row: (-row.bytes.takes, row.name))
    total = sum(row.bytes.total for row in rows)
    return dataclasses.replace(found, tasks=tuple(rows), shared=(), disk_bytes=total + 37, other_bytes=37)


# ---- figures ----


def test_numbers_read_as_in_the_terminal(show: Callable[..., Any], found: Stats) -> None:
    draw = random.Random(0)
    numbers = [0, 1, 2.5, 999, 1000, 1150, 1250, 1350, 1750, 12250, 999_949, 999_950, 999_999, 10**9, 4 * 10**20]
    numbers += [int(10 ** draw.uniform(0, 17)) for _ in range(2000)]
    pairs = [(draw.randrange(1, 10**6), draw.randrange(1, 10**4)) for _ in range(2000)]
    pairs += [(0, 1), (1, 0), (9, 8), (1, 8), (81, 8), (10125, 1000), (201, 2), (205, 2), (1999, 2), (10**9, 3)]

    with show(found) as shown:
        assert shown.page.evaluate("numbers => numbers.map(size)", numbers) == [size(number) for number in numbers]
        assert shown.page.evaluate("p => p.map(([a, b]) => ratio(a, b))", pairs) == [ratio(a, b) for a, b in pairs]


def test_the_sentence_is_that_of_the_terminal(show: Callable[..., Any], found: Stats) -> None:
    dense = tuple(dataclasses.replace(row, dense_bytes=123_456) for row in found.tasks)
    one = dataclasses.replace(found, tasks=found.tasks[:1])
    lost = {"damaged": {"lost": "cut off"}, "damaged_bytes": found.disk_bytes // 3}
    more = {"damaged": dict.fromkeys(map(str, range(1234)), "gone"), "damaged_bytes": 1000}
    for seen in (
        *(found, dataclasses.replace(found, tasks=dense, dense_bytes=123_456.0), one),
        *(dataclasses.replace(found, **said) for said in (lost, more, {**lost, "tasks": ()})),  # type: ignore[arg-type]
        *(dataclasses.replace(one, **lost), dataclasses.replace(found, tasks=dense, dense_bytes=1e6, **lost)),  # type: ignore[arg-type]
    ):
        with show(seen) as shown:
            assert shown.text("#conclusion") == conclusion(seen)


def test_the_conclusion_and_the_key_figures(show: Callable[..., Any], found: Stats) -> None:
    found = dataclasses.replace(
        found,
        tasks=tuple(dataclasses.replace(row, dense_bytes=10**6) for row in found.tasks),
        base_bytes=400_000,
        dense_bytes=1e6,
        break_even=dataclasses.replace(found.break_even, dense=3, lora=None),
        amortized=tuple(dataclasses.replace(row, lora_bytes_per_task=4096) for row in found.amortized),
    )
    number, disk = len(found.tasks), found.disk_bytes
    assert found.marginal_bytes is not None
    with show(found) as shown:
        assert shown.text("#conclusion") == (
            f"{number} tasks take {size(disk)}; the next will take about {size(found.marginal_bytes)}; "
            f"as dense models they would take {size(number * 10**6)} ({ratio(number * 10**6, disk)})."
        )
        assert shown.figures() == {
            "On disk": size(disk),
            "Tasks": str(number),
            "Each task": size(disk / number),
            "The next task": size(found.marginal_bytes),
            "Manifests and headers": size(sum(row.bytes.header for row in found.tasks)),
            "Dense models": f"{ratio(number * 10**6, disk)} as big",
            "Smaller than dense models": "from 3 tasks",
            "Smaller than LoRAs": "never",
        }
        assert shown.page.title() == f"{found.pack}: what it costs (petlpack)"
        assert found.pack in shown.text("h1")
        assert petlpack.__version__ in shown.text("footer")


def test_what_is_not_known_has_no_figure(show: Callable[..., Any], found: Stats) -> None:
    runs = sum(row.run_bytes for row in found.tasks)
    assert (found.dense_bytes, found.lora_bytes) == (None, None)
    with show(found) as shown:
        figures = shown.figures()
        assert "-" not in figures.values()
        assert list(figures)[5:] == ["Runs as they were", "Smaller than the runs"]
        assert figures["Runs as they were"] == f"{ratio(runs, found.disk_bytes)} as big"


def test_the_page_says_what_is_not_known_and_what_tells_it(show: Callable[..., Any], found: Stats) -> None:
    known = {
        "base_bytes": 400_000,
        "dense_bytes": 1e6,
        "amortized": tuple(dataclasses.replace(row, lora_bytes_per_task=4096) for row in found.amortized),
        "tasks": tuple(dataclasses.replace(row, dense_bytes=10**6) for row in found.tasks),
    }
    some = (dataclasses.replace(found.tasks[0], dense_bytes=None), *known["tasks"][1:])  # type: ignore[index]
    none = tuple(dataclasses.replace(row, dense_bytes=None) for row in found.tasks)
    others = "bytes of the base: not known; LoRAs: not known"
    for changes, said in (
        ({"tasks": none}, f"Dense models: not known; {others}; give --base DIR."),
        ({**known, "tasks": none, "dense_bytes": None}, "Dense models: not known; give --base DIR."),
        (
            {**known, "tasks": some, "dense_bytes": None},
            f"Dense models: not known for 1 task of {len(some)}; give --base DIR.",
        ),
        ({**known, "base_bytes": None}, "Bytes of the base: not known; give --base DIR."),
    ):
        with show(dataclasses.replace(found, **changes)) as shown:
            assert shown.text("#missing") == said
    for seen in (dataclasses.replace(found, **known), dataclasses.replace(found, tasks=())):  # type: ignore[arg-type]
        with show(seen) as shown:
            expect(shown.page.locator("#missing")).to_be_hidden()


@pytest.mark.parametrize("path", [".", "..", "glue.pack", "./"])
def test_a_path_that_names_nothing_gives_the_name_of_the_directory(
    found: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "glue.pack" / "tasks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "glue.pack" / ("tasks" if path == ".." else ""))
    assert "<title>glue.pack: what it costs" in page(dataclasses.replace(found, pack=path))


# ---- the table of tasks ----

KEYS: dict[str, Callable[[TaskRow], Any]] = {
    "Task": lambda row: row.name,
    "Method": lambda row: row.method,
    "Codec": lambda row: row.codec,
    "Exact, or error": lambda row: -1 if row.exact else row.error,
    "Takes": lambda row: row.bytes.takes,
    "Payload": lambda row: row.bytes.payload,
    "Head": lambda row: row.bytes.head,
    "Files": lambda row: row.bytes.files,
    "Header": lambda row: row.bytes.header,
    "Total": lambda row: row.bytes.total,
    "Share": lambda row: row.bytes.share,
    "Dense": lambda row: row.dense_bytes,
    "Ratio": lambda row: None if row.dense_bytes is None else row.dense_bytes / row.bytes.takes,
    "Score": lambda row: None if row.score is None else row.score.value,
}


def ordered(found: Stats, column: str, down: bool) -> list[str]:
    """Return the names of the tasks in the order of a column; what is not known stands last both ways.

    Scores are in the order of their metrics, and in order within each.
    """
    key = KEYS[column]
    known = sorted((row for row in found.tasks if key(row) is not None), key=key, reverse=down)
    if column == "Score":
        known.sort(key=lambda row: "" if row.score is None else row.score.metric)
    unknown = [row for row in found.tasks if key(row) is None]
    return [row.name for row in (*known, *unknown)]


def test_every_column_sorts_both_ways(show: Callable[..., Any], found: Stats) -> None:
    with show(found) as shown:
        assert shown.heads() == list(KEYS)
        assert shown.names() == ordered(found, "Takes", True) == [row.name for row in found.tasks]
        for column in KEYS:
            head = shown.page.locator("#tasks thead th", has_text=re.compile(f"^{column}$"))
            seen = []
            for press in ("click", "Enter"):
                if press == "click":
                    head.locator("button").click()
                else:
                    head.locator("button").press(press)
                direction = head.get_attribute("aria-sort")
                assert shown.names() == ordered(found, column, direction == "descending"), (column, direction)
                seen.append(direction)
            assert sorted(map(str, seen)) == ["ascending", "descending"]
            assert shown.page.locator("#tasks th[aria-sort]:not([aria-sort=none])").count() == 1


def test_a_row_says_what_the_task_is(show: Callable[..., Any], found: Stats) -> None:
    with show(found) as shown:
        rows = {row[0]: dict(zip(shown.heads(), row, strict=True)) for row in shown.rows("tasks")}
    for task in found.tasks:
        row, nbytes = rows[task.name], task.bytes
        assert [row["Method"], row["Codec"]] == [task.method, task.codec]
        figures = [row[name] for name in ("Takes", "Payload", "Head", "Files", "Header", "Total", "Share")]
        parts = (nbytes.payload, nbytes.head, nbytes.files, nbytes.header)
        assert figures == [*map(size, (sum(parts) + nbytes.share, *parts, sum(parts), nbytes.share))]
        assert row["Dense"] == ("-" if task.dense_bytes is None else size(task.dense_bytes))
        assert row["Ratio"] == ratio(task.dense_bytes or 0, nbytes.takes)
    said = {name: (row["Exact, or error"], row["Score"]) for name, row in rows.items()}
    assert said["small"] == ("exact", "0.75 accuracy")
    assert said["middle"] == ("within 1.2e-7", "-0.5 f1")
    assert said["Big.1"] == ("inexact", "-")


def test_the_filter_and_the_sums(show: Callable[..., Any], found: Stats) -> None:
    def check(shown: Opened, kept: list[TaskRow]) -> None:
        assert sorted(shown.names()) == sorted(row.name for row in kept)
        part = f" of {len(found.tasks)}" if len(kept) < len(found.tasks) else ""
        assert shown.text("#tasks [role=status]") == count(len(kept), "task") + part
        if kept:
            sums = dict(zip(shown.heads(), shown.sums(), strict=True))
            assert sums["Task"] == count(len(kept), "task")
            for name in ("Takes", "Payload", "Head", "Files", "Header", "Total", "Share"):
                assert sums[name] == size(sum(KEYS[name](row) for row in kept))
            dense = [row.dense_bytes for row in kept]
            assert sums["Dense"] == ("-" if None in dense else size(sum(filter(None, dense))))
        else:
            assert shown.sums() == []

    with show(found) as shown:
        check(shown, list(found.tasks))
        for text in ("big.", "ULP", "full", "a", "no such task", ""):
            shown.page.fill("#find", text)
            check(
                shown,
                [
                    row
                    for row in found.tasks
                    if any(text.lower() in said.lower() for said in (row.name, row.method, row.codec))
                ],
            )
        for method in sorted({row.method for row in found.tasks}):
            shown.page.select_option("#method", label=method)
            check(shown, [row for row in found.tasks if row.method == method])
        shown.page.select_option("#method", label="all")
        shown.page.select_option("#least", label="1.0 kB")
        check(shown, [row for row in found.tasks if row.bytes.takes >= 1000])
        shown.page.press("#find", "Enter")  # a form that is sent would open the page anew
        check(shown, [row for row in found.tasks if row.bytes.takes >= 1000])


def test_scores_of_several_metrics_are_no_one_order(show: Callable[..., Any], found: Stats) -> None:
    scores = [Score("f1", 0.91), Score("accuracy", 88.5), Score("f1", 0.2), Score("accuracy", 0.3)]
    rows = [dataclasses.replace(row, score=score) for row, score in zip(found.tasks, scores, strict=False)]
    with show(dataclasses.replace(found, tasks=tuple(rows))) as shown:
        head = shown.page.locator("#tasks thead button", has_text="Score")
        head.click()
        assert [row[-1] for row in shown.rows("tasks")] == ["88.5 accuracy", "0.3 accuracy", "0.91 f1", "0.2 f1"]
        head.click()
        assert [row[-1] for row in shown.rows("tasks")] == ["0.3 accuracy", "88.5 accuracy", "0.2 f1", "0.91 f1"]
        assert "only those of the same metric compare" in shown.text("#metrics")
    rows = [dataclasses.replace(row, score=None if i else scores[0]) for i, row in enumerate(rows)]
    with show(dataclasses.replace(found, tasks=tuple(rows))) as shown:
        assert shown.page.locator("#metrics").count() == 0


def test_no_column_of_scores_without_one(show: Callable[..., Any], found: Stats) -> None:
    rows = tuple(dataclasses.replace(row, score=None) for row in found.tasks)
    with show(dataclasses.replace(found, tasks=rows)) as shown:
        assert shown.heads() == [name for name in KEYS if name != "Score"]


# ---- the map ----


def test_every_level_of_the_map_adds_up(show: Callable[..., Any], found: Stats) -> None:
    def walk(shown: Opened, nbytes: int, depth: int) -> int:
        cells = shown.cells()
        assert sum(cells.values()) == nbytes
        seen = 1
        for name, inner in cells.items():
            if shown.cell(name).get_attribute("aria-disabled"):
                continue
            shown.cell(name).press("Enter")
            seen += walk(shown, inner, depth + 1)
            shown.page.keyboard.press("Escape")
            assert shown.focused() == name
        return seen

    with show(found) as shown:
        top = shown.cells()
        methods = {row.method for row in found.tasks}
        assert {*top} == {*methods, "shared parts", "other files"}
        for method in methods:
            assert top[method] == sum(row.bytes.total for row in found.tasks if row.method == method)
        assert top["shared parts"] == sum(part.bytes for part in found.shared)
        assert walk(shown, found.disk_bytes, 0) == 1 + len(methods) + len(found.tasks) + 1


def test_drilling_by_click_and_back_by_the_trail(show: Callable[..., Any], found: Stats) -> None:
    task = next(row for row in found.tasks if row.name == "small")
    with show(found) as shown:
        assert shown.trail() == [found.pack]
        shown.cell(task.method).click(position={"x": 8, "y": 8})
        assert set(shown.cells()) == {row.name for row in found.tasks if row.method == task.method}
        shown.cell(task.name).click(position={"x": 4, "y": 4})
        assert shown.trail() == [found.pack, task.method, task.name]
        sections = {section.name: section.nbytes for section in task.sections}
        assert shown.cells() == {
            name: nbytes
            for name, nbytes in {
                **sections,
                "kept files": task.bytes.files,
                "manifest and header": task.bytes.header,
            }.items()
            if nbytes
        }
        share = 100 * task.bytes.header / task.bytes.total
        label = str(shown.cell("manifest and header").get_attribute("aria-label"))
        assert label.startswith(f"manifest and header: {size(task.bytes.header)}, {share:.1f} % of {task.name}, ")
        shown.cell("manifest and header").hover()
        assert shown.text("#cell") == label
        shown.cell("manifest and header").click(force=True)
        assert len(shown.trail()) == 3
        shown.page.locator("#trail button", has_text=task.method).click()
        assert shown.trail() == [found.pack, task.method]
        assert shown.focused() == task.name
        shown.page.locator("#trail button").first.click()
        assert shown.trail() == [found.pack]


def test_the_keyboard_alone(show: Callable[..., Any], found: Stats) -> None:
    with show(found) as shown:
        press = shown.page.keyboard.press
        press("Tab")
        assert shown.page.evaluate("document.activeElement.id") == "theme"
        assert shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        press("Tab")
        names = list(shown.cells())
        assert shown.focused() == names[0]
        assert shown.text("#cell").startswith(names[0])
        press("ArrowRight")
        press("ArrowDown")
        press("ArrowLeft")
        assert shown.focused() == names[1]
        press("End")
        assert shown.focused() == names[-1]
        press("ArrowRight")
        assert shown.focused() == names[-1]
        press("Home")
        assert shown.focused() == names[0]
        method = next(name for name in names if name in {row.method for row in found.tasks})
        for _ in range(names.index(method)):
            press("ArrowRight")
        press("Enter")
        assert shown.trail() == [found.pack, method]
        inside = list(shown.cells())
        assert shown.focused() == inside[0]
        press("Enter")
        assert shown.trail() == [found.pack, method, inside[0]]
        press("Backspace")
        assert (shown.trail(), shown.focused()) == ([found.pack, method], inside[0])
        press("Escape")
        assert (shown.trail(), shown.focused()) == ([found.pack], method)
        press("Escape")
        assert shown.trail() == [found.pack]
        press("Tab")
        assert shown.page.evaluate("document.activeElement.id") == "find"


def test_cells_lie_in_the_map_and_their_areas_are_bytes(show: Callable[..., Any], found: Stats) -> None:
    with show(many(found, 200)) as shown:
        shown.cell("lora").press("Enter")
        boxes = shown.page.evaluate(
            """() => { const map = document.getElementById("map").getBoundingClientRect();
            return [...document.querySelectorAll(".cell")].map(cell => { const box = cell.getBoundingClientRect();
              return [box.left - map.left, box.top - map.top, box.width, box.height, Number(cell.dataset.bytes)] })}"""
        )
        whole = shown.page.evaluate("(({clientWidth, clientHeight}) => [clientWidth, clientHeight])($('map'))")
    assert sum(width * height for _, _, width, height, _ in boxes) == pytest.approx(math.prod(whole), rel=0.01)
    each = [width * height / nbytes for _, _, width, height, nbytes in boxes]
    assert max(each) / min(each) == pytest.approx(1, rel=0.02)
    for i, (x, y, width, height, _) in enumerate(boxes):
        assert -0.5 <= x <= x + width <= whole[0] + 0.5
        assert -0.5 <= y <= y + height <= whole[1] + 0.5
        assert max(width / height, height / width) < 4
        for left, top, wide, high, _ in boxes[:i]:
            across = min(x + width, left + wide) - max(x, left)
            down = min(y + height, top + high) - max(y, top)
            assert min(across, down) < 0.5


# ---- growth, forecast, shared parts ----


def test_the_chart_and_its_points(show: Callable[..., Any], found: Stats) -> None:
    found = dataclasses.replace(
        found,
        base_bytes=100_000,
        break_even=dataclasses.replace(found.break_even, dense=2, lora=5000, runs=2),
        amortized=tuple(
            dataclasses.replace(row, lora_bytes_per_task=4096, dense_bytes_per_task=90_000) for row in found.amortized
        ),
    )
    with show(found) as shown:
        assert shown.heads("growth") == [
            "Tasks",
            "This pack",
            "Pack and base",
            f"LoRA, rank {found.lora_rank}",
            "Dense model",
            "Run as it was",
        ]
        assert shown.rows("growth") == [
            [
                f"{row.tasks:,}",
                size(row.bytes_per_task),
                size(row.bytes_per_task + 100_000 / row.tasks),
                size(4096),
                size(90_000),
                size(row.run_bytes_per_task),
            ]
            for row in found.amortized
        ]
        assert shown.page.locator("#chart path").count() == 4
        assert shown.page.locator("#chart circle").count() == 4 * len(found.amortized)
        assert shown.page.locator("#chart .mark").count() == 2
        texts = shown.page.locator("#chart text").all_text_contents()
        assert {"under dense from 2 tasks", "under LoRA from 5,000 tasks"} <= {*texts}
        assert "from 2 tasks on" in shown.text("#even")


def test_the_forecast(show: Callable[..., Any], found: Stats) -> None:
    with show(found) as shown:
        expect(shown.page.locator("#forecast")).to_be_hidden()
    told = forecast(found, [100, 10**6], price_per_gb_month=20, egress_per_gb=90, growth_per_day=2)
    with show(found, told) as shown:
        heads = shown.heads("forecast")
        assert heads[:5] == [
            "Tasks",
            "Reached in",
            "This pack, size",
            "This pack, cost per month",
            "This pack, cost to send",
        ]
        for row, seen in zip(told.rows, shown.rows("forecast"), strict=True):
            assert row.days is not None
            assert row.pack.monthly is not None
            assert row.pack.transfer is not None
            assert seen[:3] == [f"{row.tasks:,}", count(math.ceil(row.days), "day"), size(row.pack.bytes)]
            costs = [row.pack.monthly, row.pack.transfer]
            assert seen[3:5] == ["<0.01" if cost < 0.01 else f"{cost:,.2f}" for cost in costs]
        assert "A GB costs 20 a month." in shown.text("#forecast-note")
    with show(found, dataclasses.replace(told, price_per_gb_month=None)) as shown:
        assert not any("month" in head for head in shown.heads("forecast"))


@pytest.mark.parametrize(
    ("days", "said"),
    [
        *((0.0, "now"), (1e-9, "<1 day"), (0.99, "<1 day"), (1.0, "1 day"), (1.01, "2 days"), (1234.5, "1,235 days")),
        *((None, "-"), (math.inf, "-"), (math.nan, "-")),
    ],
)
def test_days_are_rounded_up(show: Callable[..., Any], found: Stats, days: float | None, said: str) -> None:
    told = forecast(found, [100], growth_per_day=2)
    with show(found, dataclasses.replace(told, rows=(dataclasses.replace(told.rows[0], days=days),))) as shown:
        assert shown.rows("forecast")[0][1] == said


def test_what_is_not_finite_is_not_known(show: Callable[..., Any], found: Stats) -> None:
    told = forecast(found, [100], price_per_gb_month=20, egress_per_gb=90, growth_per_day=2)
    for endless in (Cost(10**400, 1, math.inf, math.nan), Cost(10**400, 1, -math.inf, None)):
        row = dataclasses.replace(told.rows[0], pack=endless, lora=endless, dense=endless)
        with show(found, dataclasses.replace(told, rows=(row,), error=math.inf)) as shown:
            assert shown.rows("forecast")[0][2:] == ["-"] * 9
            assert "unknown" in shown.text("#forecast-note")
    huge = {"base_bytes": 10**400, "dense_bytes": math.inf}
    tasks = tuple(dataclasses.replace(row, dense_bytes=10**400) for row in found.tasks)
    rows = (
        dataclasses.replace(row, dense_bytes_per_task=10**400, lora_bytes_per_task=10**400) for row in found.amortized
    )
    with show(dataclasses.replace(found, tasks=tasks, amortized=tuple(rows), **huge)) as shown:  # type: ignore[arg-type]
        assert "Dense models: not known" in shown.text("#missing")
        assert shown.page.locator("#chart path").count() == 1


def test_shared_parts(show: Callable[..., Any], found: Stats) -> None:
    assert found.shared
    with show(found) as shown:
        assert shown.rows("shared") == [
            [part.sha256[:12], part.role, size(part.bytes), str(part.tasks)] for part in found.shared
        ]


# ---- packs that are not like others ----


def test_damaged_tasks_are_named(show: Callable[..., Any], tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        run, base = write_pair(tmp_path / name, seed)
        petlpack.encode(run, pack=tmp_path / "pack", base=base, task=name)
    path = Store(tmp_path / "pack").task_path("two")
    path.write_bytes(path.read_bytes()[:-9])
    found = petlpack.stats(tmp_path / "pack")
    with show(found) as shown:
        assert shown.rows("damaged") == [["two", found.damaged["two"]]]
        assert shown.cells()["unreadable tasks"] == path.stat().st_size
        assert sum(shown.cells().values()) == found.disk_bytes
        readable = found.disk_bytes - path.stat().st_size
        assert shown.text("#conclusion") == conclusion(found)
        assert shown.text("#conclusion").startswith(
            f"2 tasks take {size(readable)} (1 unreadable one {size(path.stat().st_size)} more); "
        )
        figures = shown.figures()
        assert figures["On disk"] == size(found.disk_bytes)
        assert (figures["Tasks"], figures["Unreadable tasks"]) == ("2", "1")
        assert figures["Each task"] == size(readable / 2)
        runs = sum(row.run_bytes for row in found.tasks)
        assert figures.get("Runs as they were", f"{ratio(runs, readable)} as big") == f"{ratio(runs, readable)} as big"


def test_an_empty_pack(show: Callable[..., Any], tmp_path: Path) -> None:
    found = petlpack.stats(Store.create(tmp_path / "pack").path)
    nbytes = size(found.disk_bytes)
    with show(found) as shown:
        assert shown.text("#conclusion") == f"No readable task; the files take {nbytes}."
        assert shown.cells() == {"other files": found.disk_bytes}
        for section in ("tasks", "growth", "forecast", "shared", "damaged"):
            expect(shown.page.locator(f"#{section}")).to_be_hidden()


def test_a_pack_of_one_task(show: Callable[..., Any], tmp_path: Path) -> None:
    run, base = write_pair(tmp_path)
    petlpack.encode(run, pack=tmp_path / "pack", base=base, task="only")
    found = petlpack.stats(tmp_path / "pack")
    with show(found) as shown:
        assert shown.text("#conclusion").startswith(f"1 task takes {size(found.disk_bytes)}; ")
        assert shown.names() == ["only"]
        expect(shown.page.locator("#shared")).to_be_hidden()
        assert shown.page.locator("#chart circle").count() >= len(found.amortized)


GROUPS = """() => {
  const cells = () => [...document.querySelectorAll(".cell")].map(c => [c.dataset.name, Number(c.dataset.bytes)]);
  return cells().map(([, bytes], i) => {
    document.querySelectorAll(".cell")[i].click();
    const inside = cells();
    document.querySelector("#trail button:last-of-type").click();
    return [bytes, inside];
  });
}"""
"""Opens every cell of the map and goes back: bytes of the cell, names and bytes of those inside."""


def test_ten_thousand_tasks(show: Callable[..., Any], found: Stats) -> None:
    found = many(found, 10_000)
    assert len(page(found)) < 2_000_000
    by_name = {row.name: row for row in found.tasks}
    with show(found) as shown:
        assert len(shown.names()) == 200
        assert shown.text("#tasks [role=status]") == "10,000 tasks, the first 200 shown"
        shown.page.locator("#tasks thead button", has_text="Payload").click()
        shown.page.locator("#tasks thead button", has_text="Payload").click()
        assert shown.names() == ordered(found, "Payload", False)[:200]
        shown.page.locator("#tasks .more").click()
        assert shown.names() == ordered(found, "Payload", False)[:400]
        shown.page.fill("#find", "t0999")
        assert sorted(shown.names()) == [f"t{i:05}" for i in range(9990, 10_000)]
        assert shown.sums()[4] == size(sum(by_name[name].bytes.takes for name in shown.names()))
        expect(shown.page.locator("#tasks .more")).to_be_hidden()
        shown.cell("lora").press("Enter")
        groups = shown.page.evaluate(GROUPS)
        assert len(groups) > 10
        tasks = [name for _, inside in groups for name, _ in inside]
        assert sorted(tasks) == sorted(row.name for row in found.tasks if row.method == "lora")
        for nbytes, inside in groups:
            assert sum(nbytes for _, nbytes in inside) == nbytes
            assert len(inside) <= 300


def test_one_task_dwarfs_the_others(show: Callable[..., Any], found: Stats) -> None:
    found = many(found, 301)
    rows = tuple(dataclasses.replace(row, method="lora") for row in found.tasks)
    with show(dataclasses.replace(found, tasks=rows)) as shown:
        shown.cell("lora").press("Enter")
        assert list(shown.cells()) == ["t00000", "300 smaller tasks"]
        shown.cell("300 smaller tasks").press("Enter")
        assert shown.trail() == [found.pack, "lora", "300 smaller tasks"]
        assert len(shown.cells()) == 300


# ---- hostile texts, the policy, looks ----


def hostile(found: Stats) -> Stats:
    """Return the stats with every text that a pack can say of itself made hostile."""
    rows = tuple(
        dataclasses.replace(
            row,
            method=HOSTILE[i % len(HOSTILE)],
            score=Score(HOSTILE[(i + 1) % len(HOSTILE)], 0.5),
            sections=tuple(
                dataclasses.replace(section, name=HOSTILE[j % len(HOSTILE)]) for j, section in enumerate(row.sections)
            ),
        )
        for i, row in enumerate(found.tasks)
    )
    shared = tuple(SharedRow("e" * 64, 5, text, ("a", "b")) for text in HOSTILE)
    damaged = {f"{i}{HOSTILE[i]}": text for i, text in enumerate(reversed(HOSTILE))}
    return dataclasses.replace(found, pack=f"/{HOSTILE[0]}\udcff", tasks=rows, shared=shared, damaged=damaged)


def shown_as(text: str) -> str:
    return petlpack.errors.printable(text)


def test_hostile_texts_are_shown_and_do_nothing(show: Callable[..., Any], found: Stats) -> None:
    found = hostile(found)
    assert "<script>alert" not in page(found)
    with show(found, forecast(found, [100])) as shown:
        assert shown_as(found.pack) in shown.text("h1")
        assert shown.page.title().startswith(shown_as(found.pack))
        rows = {row[0]: row for row in shown.rows("tasks")}
        for task in found.tasks:
            assert task.score is not None
            assert rows[task.name][1] == shown_as(task.method)
            assert rows[task.name][-1] == f"0.5 {shown_as(task.score.metric)}"
        assert [row[1] for row in shown.rows("shared")] == [shown_as(text) for text in HOSTILE]
        assert shown.rows("damaged") == [[shown_as(name), shown_as(why)] for name, why in sorted(found.damaged.items())]
        assert {shown_as(row.method) for row in found.tasks} <= shown.cells().keys()
        for text in HOSTILE:
            shown.page.select_option("#method", label=shown_as(text))
            assert shown.names() == [row.name for row in found.tasks if row.method == text]
        shown.page.locator(".cell").first.press("Enter")
        shown.page.locator(".cell").first.press("Enter")
        assert shown.page.locator("script").count() == 2
        assert shown.page.locator("img, iframe, [src], [onerror], [onclick]").count() == 0


def test_the_policy_lets_nothing_else_run_or_load(show: Callable[..., Any], found: Stats) -> None:
    with show(found) as shown:
        shown.page.evaluate(
            """() => { const script = document.createElement("script");
            script.textContent = "document.title = 'run'"; document.body.append(script);
            const image = document.createElement("img"); image.src = "https://example.org/x.png";
            document.body.append(image); }"""
        )
        assert shown.page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
        assert shown.page.title() != "run"
        assert all("Content Security Policy" in text for text in shown.complaints)
        assert len(shown.complaints) >= 3
        shown.complaints.clear()


CONTRASTS = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const colour = (text) => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data]; };
  const linear = (value) => value <= 10 ? value / 3294.6 : ((value / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const under = (element) => { const found = colour(getComputedStyle(element).backgroundColor);
    return found[3] === 255 ? found : element.parentElement ? under(element.parentElement) : [255, 255, 255, 255]; };
  const poor = [];
  for (const element of document.querySelectorAll("body *:not(script, noscript)")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!says || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(colour(element.closest("svg") ? style.fill : style.color)), light(under(element))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) poor.push([element.tagName, element.textContent.slice(0, 40), contrast]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_theme_follows_the_system_until_it_is_chosen(show: Callable[..., Any], found: Stats, scheme: str) -> None:
    found = dataclasses.replace(found, damaged={"lost": "it is not what it was"})
    background = "getComputedStyle(document.body).backgroundColor"
    with show(found, forecast(found, [10]), color_scheme=scheme) as shown:
        button = shown.page.locator("#theme")
        first = shown.page.evaluate(background)
        assert (first == "rgb(255, 255, 255)") == (scheme == "light")
        assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
        assert shown.page.evaluate(CONTRASTS) == []
        button.click()
        second = shown.page.evaluate(background)
        assert second != first
        assert button.get_attribute("aria-pressed") == str(scheme == "light").lower()
        assert shown.page.evaluate(CONTRASTS) == []
        button.click()
        assert shown.page.evaluate(background) == first
    with show(found, color_scheme=scheme) as shown:
        shown.page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        assert shown.page.evaluate(background) == second
        expect(shown.page.locator("#theme")).to_have_attribute("aria-pressed", str(scheme == "light").lower())


@pytest.mark.parametrize("which", ["found", "hostile", "many"])
def test_a_phone_never_scrolls_sideways(show: Callable[..., Any], found: Stats, which: str) -> None:
    found = {"found": lambda: found, "hostile": lambda: hostile(found), "many": lambda: many(found, 2000)}[which]()
    with show(found, forecast(found, [100], price_per_gb_month=1), viewport=PHONE) as shown:
        for _ in range(3):
            assert shown.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
            assert shown.page.evaluate("document.querySelector('#tasks .box').scrollWidth") > PHONE["width"]
            cell = shown.page.locator(".cell:not([aria-disabled])").first
            if cell.count():
                cell.press("Enter")


def test_a_wider_window_is_drawn_anew(show: Callable[..., Any], found: Stats) -> None:
    with show(found, viewport=PHONE) as shown:
        narrow = shown.page.locator("#chart svg").bounding_box()
        shown.page.locator(".cell").first.press("Enter")
        trail, focused = shown.trail(), shown.focused()
        shown.page.set_viewport_size({"width": 1000, "height": 700})
        expect(shown.page.locator("#chart svg")).to_have_attribute("viewBox", re.compile(r"^0 0 9\d\d "))
        assert narrow is not None
        assert narrow["width"] < 375
        assert (shown.trail(), shown.focused()) == (trail, focused)


def test_paper_shows_whole_tables_in_black_on_white(show: Callable[..., Any], found: Stats) -> None:
    with show(found, color_scheme="dark") as shown:
        shown.page.emulate_media(media="print")
        assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert shown.page.evaluate("getComputedStyle(document.querySelector('.box')).overflow") == "visible"
        expect(shown.page.locator("#filter")).to_be_hidden()


def test_those_who_want_no_motion_get_none(show: Callable[..., Any], found: Stats) -> None:
    with show(found, reduced_motion="reduce") as shown:
        moving = "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).animationName !== 'none').length"
        assert shown.page.evaluate(moving) == 0


def test_headings_names_and_labels(show: Callable[..., Any], found: Stats) -> None:
    with show(found, forecast(found, [10])) as shown:
        assert shown.page.locator("h1").count() == 1
        assert shown.page.evaluate("document.documentElement.lang") == "en"
        for role in ("banner", "main", "contentinfo"):
            assert shown.page.get_by_role(role).count() == 1
        for name in ("Where the bytes are", "Tasks", "Bytes per task as tasks grow", "Forecast", "Shared parts"):
            assert shown.page.get_by_role("heading", name=name, level=2, exact=True).count() == 1
        for name in ("Tasks", "Bytes per task as tasks grow", "Forecast", "Shared parts"):
            assert shown.page.get_by_role("table", name=name, exact=True).count() == 1
        assert shown.page.get_by_role("img", name="Bytes per task as tasks grow").count() == 1
        assert shown.page.get_by_label("Find").count() == 1
        assert shown.page.locator("th:not([scope])").count() == 0
        assert shown.page.locator(".cell:not([aria-label*=' B,'], [aria-label*='B, '])").count() == 0


# ---- the file ----


def test_the_same_figures_give_the_same_bytes(found: Stats, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, found)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes() == page(found).encode()
    assert b"\r" not in (tmp_path / "a.html").read_bytes()


def test_the_data_is_plain_and_cannot_end_its_element(found: Stats) -> None:
    text = page(hostile(found))
    content = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)[0]
    assert not {*"<>&"} & {*content}
    assert content.isascii()
    assert json.loads(content)["disk"] == found.disk_bytes


def test_what_cannot_be_written_leaves_nothing_behind(
    found: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "page.html"
    old.write_text("old")
    path = tmp_path / "nowhere" / "page.html"
    with pytest.raises(UsageError, match=re.escape(f"there is no directory '{path.parent}'")):
        write_page(path, found)

    def fail(*_: object) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full") as caught:
        write_page(old, found)
    assert caught.value.filename == str(old)
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("name", ["page", "page.svg", ".html", "page.html.gz", ""])
def test_another_suffix_is_refused_by_name(found: Stats, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"'{tmp_path / name}'")) as caught:
        write_page(tmp_path / name, found)
    assert ".html" in str(caught.value.hint)
    assert not [*tmp_path.iterdir()]


def test_a_page_is_no_file_of_the_pack(found: Stats, tmp_path: Path) -> None:
    pack = Store.create(tmp_path / "pack").path
    inside = dataclasses.replace(found, pack=str(pack))
    with pytest.raises(UsageError, match="inside the pack"):
        write_page(pack / "a.html", inside)
    assert not (pack / "a.html").exists()
    write_page(tmp_path / "a.HTM", inside)
    assert (tmp_path / "a.HTM").read_bytes() == page(inside).encode()
