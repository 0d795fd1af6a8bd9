"""What is public: the command line needs nothing else, the page says what each name is, and JSON is the library's."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import petlpack
from petlpack_cli.app import cli
from tests.support.small_runs import make_base, make_pair, write_run

ROOT = Path(__file__).parents[1]
CLI = sorted((ROOT / "cli" / "petlpack_cli").rglob("*.py"))
ANALYZE = sorted((ROOT / "petlpack" / "analyze").rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names_used(tree: ast.AST) -> Iterator[str]:
    """Yield what a file takes of petlpack: names that it imports or asks the package for, and modules as `.module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "petlpack":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("petlpack."):
            yield f".{node.module}"
        elif isinstance(node, ast.Import):
            yield from (f".{alias.name}" for alias in node.names if alias.name.startswith("petlpack."))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "petlpack":
            yield node.attr


@pytest.mark.parametrize("path", CLI, ids=lambda path: path.stem)
def test_the_command_line_takes_public_names_only(path: Path) -> None:
    assert set(names_used(parse(path))) <= set(petlpack.__all__)


@pytest.mark.parametrize(
    "source",
    [
        "from petlpack.store import Store",
        "import petlpack.store",
        "from petlpack import store",
        "import petlpack\npetlpack.store",
        "def f():\n    from petlpack.store import Store",
        "if TYPE_CHECKING:\n    from petlpack.store import Store",
    ],
)
def test_a_name_that_is_not_public_is_found(source: str) -> None:
    assert not set(names_used(ast.parse(source))) <= set(petlpack.__all__)


def test_every_public_name_is_on_the_page() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    assert {name for name in petlpack.__all__ if f"`{name}`" not in table} == set()
    assert set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()))) <= set(
        petlpack.__all__
    )


@pytest.mark.parametrize("path", CLI, ids=lambda path: path.stem)
def test_json_is_made_by_the_library(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "json":
            (content,) = node.args
            assert isinstance(content, ast.Call)
            assert isinstance(content.func, ast.Attribute)
            assert content.func.attr == "to_json", ast.unparse(node)


def test_the_library_imports_no_name_of_its_top() -> None:
    modules = {path.stem for path in (ROOT / "petlpack").iterdir()}
    for path in (ROOT / "petlpack").rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import):
                assert "petlpack" not in {alias.name for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom) and node.module == "petlpack":
                assert {alias.name for alias in node.names} <= modules, path


def test_no_two_classes_have_one_name() -> None:
    classes = Counter(
        node.name for path in (*CLI, *ANALYZE) for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in classes.items() if count > 1} == set()


# Other spellings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, two runs, and a pack of them."""
    here = tmp_path_factory.mktemp("public")
    write_run(here / "base", make_base())
    for seed, name in enumerate(("sst2", "rte"), 1):
        write_run(here / "runs" / name, make_pair(seed)[0])
        petlpack.encode(here / "runs" / name, here / "glue.pack", here / "base")
    return here


@pytest.mark.parametrize(
    ("spelling", "command"),
    [
        ("stats runs", "survey runs"),
        ("stats runs --base base --all --jobs 1", "survey runs --base base --all --jobs 1"),
        ("stats runs/sst2 runs/rte -q", "survey runs/sst2 runs/rte -q"),
        ("stats runs --json", "survey runs --json"),
        ("stats glue.pack --forecast 1e2..1e6", "forecast glue.pack"),
        ("stats --forecast=10,200 glue.pack --growth 3/day --json", "forecast glue.pack --at 10,200 --growth 3 --json"),
        (
            "stats glue.pack --forecast 10 --price-per-gb-month 1 --egress 0 --lora-rank 4 --base base",
            "forecast glue.pack --at 10 --price-per-gb-month 1 --egress 0 --lora-rank 4 --base base",
        ),
    ],
)
def test_stats_is_another_spelling(spelling: str, command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    other, own = (CliRunner().invoke(cli, line.split()) for line in (spelling, command))
    assert (other.exit_code, other.stdout, other.stderr) == (0, own.stdout, own.stderr)
    assert own.stdout


def test_a_page_and_a_plot_of_a_forecast_are_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for line in ("stats glue.pack --forecast 10,100 --html old.html", "forecast glue.pack --at 10,100 --html new.html"):
        assert CliRunner().invoke(cli, line.split()).exit_code == 0
    assert Path("old.html").read_bytes() == Path("new.html").read_bytes()


def test_a_forecast_of_the_pack_that_the_environment_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETLPACK_PACK", str(place / "glue.pack"))
    told = json.loads(CliRunner().invoke(cli, ["forecast", "--json"]).stdout)
    assert [row["tasks"] for row in told["forecast"]["rows"]] == [10**power for power in range(2, 7)]


@pytest.mark.parametrize("option", ["--forecast", "--jobs", "--growth", "--egress", "--price-per-gb-month"])
def test_the_help_of_stats_tells_of_stats_alone(option: str) -> None:
    told = CliRunner().invoke(cli, ["stats", "--help"]).stdout
    assert option not in told
    assert "petlpack survey" in " ".join(told.split())


def test_prices_are_for_a_forecast_and_the_message_says_which(place: Path) -> None:
    done = CliRunner().invoke(cli, ["stats", str(place / "glue.pack"), "--growth", "3"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--growth works with `petlpack forecast` only" in done.stderr


# Values


def test_several_runs_are_encoded_though_one_fails(place: Path, tmp_path: Path) -> None:
    runs = [place / "runs" / "sst2", tmp_path / "nothing", place / "runs" / "rte", place / "runs" / "sst2"]
    named: list[str] = []
    each = petlpack.encode_runs(runs, tmp_path / "p", place / "base", progress=lambda name: named.append(name))
    encoded = petlpack.EncodedRuns(tuple(each))
    assert [run.path for run in encoded.runs] == list(map(str, runs))
    assert [task.name for task in encoded.tasks] == ["sst2", "rte"] == sorted(petlpack.open(tmp_path / "p"))[::-1]
    assert [type(run.error) for run in encoded.failed] == [petlpack.RunError, petlpack.UsageError]
    assert named == ["sst2", "nothing", "rte"]
    assert encoded.to_json()["interrupted"] is False
    with pytest.raises(petlpack.UsageError):
        next(petlpack.encode_runs(runs, tmp_path / "p", task="x"))


def test_tables_of_stats(place: Path) -> None:
    stats = petlpack.stats(place / "glue.pack")
    assert stats.table("section", bounds=True).failed.keys() == {"sst2", "rte"}  # without their base
    assert stats.table("section", bounds=True, base=place / "base").failed == {}
    assert [row["task"] for row in stats.table(filters=["task=s*"]).rows] == ["sst2"]
    for wrong in ({"by": "colour"}, {"bounds": True}, {"filters": ["x"]}, {"sort": "x"}):
        with pytest.raises(petlpack.UsageError):
            stats.table(**wrong)


def test_removing_is_all_or_nothing(place: Path, tmp_path: Path) -> None:
    petlpack.encode(place / "runs" / "sst2", tmp_path / "p", place / "base")
    with pytest.raises(petlpack.TaskError):
        petlpack.remove(tmp_path / "p", ["sst2", "nothing"])
    nbytes = petlpack.open(tmp_path / "p")["sst2"].nbytes
    assert petlpack.remove(tmp_path / "p", ["sst2", "sst2"]).tasks == {"sst2": nbytes}
    planned, done = petlpack.gc(tmp_path / "p", dry_run=True), petlpack.gc(tmp_path / "p")
    assert planned.files == done.files
    assert all(name.startswith("shared/") for name in done.files)
    assert petlpack.gc(tmp_path / "p").files == {}


def test_any_exception_is_a_problem() -> None:
    told = petlpack.problem_of(petlpack.DamageError("broken", hint="restore it"))
    assert (told.to_json(), told.exit_code) == (
        {"type": "DamageError", "code": "damage", "message": "broken", "hint": "restore it"},
        4,
    )
    full = petlpack.problem_of(OSError(28, "No space left on device", "x"))
    assert (full.type, full.message, full.exit_code) == ("OSError", "No space left on device: 'x'", 1)
    assert petlpack.problem_of(ValueError("x")).type == "InternalError"
