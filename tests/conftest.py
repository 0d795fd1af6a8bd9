"""How every test runs, which versions are not the locks' above the first line, and a pack to try bad things on."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.locks import differences
from tests.support.places import Methods, Place, write_place
from tests.support.sampling import Sample
from tests.support.small_runs import write_methods
from tests.support.tally import Tally, bar_of, table

# The same examples on every run, no deadline: what is shown must not depend on the day or on a busy machine.
# HYPOTHESIS_PROFILE=explore draws new examples, ten times as many where a test does not say how many it takes.
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=_QUIET, database=None)
settings.register_profile("explore", deadline=None, suppress_health_check=_QUIET, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell has what it starts with `&` ignore Ctrl-C, and so does what that starts: the tests of an interrupt, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say above the tests which versions they run with."""
    others = [f"{name} {here} ({locked})" for name, (here, locked) in differences("dev").items()]
    return f"not as in locks/dev.txt: {', '.join(others)}" if others else "versions: those of locks/dev.txt"


@pytest.fixture(autouse=True, scope="session")
def _no_power_cut() -> Iterator[None]:
    """Wait for no disk in this process: nothing that a test writes has to outlive a power cut.

    Waiting was a third of what encoding a small run took. What is no open file is refused as before, tests of a disk
    that fails put their own in its place, and the processes that tests start and kill do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


# What bad things are tried on, in several rooms. Where a directory or a file has a `place` of its own, that is taken.


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what every `place` is a copy of: a pack of two tasks, their runs and their base."""
    return write_place(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def place(pristine: Path, tmp_path: Path) -> Place:
    """Return a copy of the pack and of what it was made of, to change."""
    root = tmp_path / "place"
    shutil.copytree(pristine, root)
    return Place(root, root / "pack", root / "base", root / "run")


@pytest.fixture
def methods(tmp_path: Path) -> Methods:
    """Return runs of the codecs mask, hyper and merge."""
    root = tmp_path / "methods"
    return Methods(root, write_methods(root))


# Tests over every bit, every length or every n-th fault are marked `exhaustive(step)`. One that loops over its cases
# asks for the fixture `sample`; of one that has them as parameters, parameters are left out. Attacks that take longer
# than `make check` can wait are marked `trust(step)`. They say how much they tried, for a table at the end.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how much of what is marked `exhaustive` is run."""
    parser.addoption("--exhaustive", action="store_true", help="all cases of every test, as `make check` runs them")
    parser.addoption("--trust", action="store_true", help="all cases of every attack, as `make trust` runs them")


def step_of(item: pytest.Item) -> int:
    """Return of how many cases of a test one is run."""
    marks = [item.get_closest_marker(name) for name in ("exhaustive", "trust") if not item.config.getoption(name)]
    return max((int(mark.args[0]) for mark in marks if mark is not None), default=1)


@pytest.fixture
def sample(request: pytest.FixtureRequest) -> Sample:
    """Return what takes a share of a loop's cases, or all of them."""
    return Sample(step_of(request.node), request.node.nodeid)


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Return what adds to a row of the table of attacks."""

    def add(row: str, count: int) -> None:
        assert bar_of(row)
        record_property("tally", f"{row}={count}")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was attacked how often."""
    if config.getoption("trust"):
        lines, _ = table(_added(terminalreporter))
        terminalreporter.section("attacks")
        terminalreporter.write_line("\n".join(lines))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where attacks were too few."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("trust") and isinstance(reporter, pytest.TerminalReporter) and not session.exitstatus:
        _, low = table(_added(reporter))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if low else pytest.ExitCode.OK


def _added(reporter: pytest.TerminalReporter) -> list[tuple[str, object]]:
    """Return what tests that passed added to the table."""
    passed: list[pytest.TestReport] = [
        one for one in reporter.getreports("passed") if isinstance(one, pytest.TestReport)
    ]
    return [added for report in passed if report.when == "call" for added in report.user_properties]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out parameters of what is marked, unless its cases are in a loop."""
    seen: Counter[str] = Counter()
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        test, step = item.nodeid.partition("[")[0], step_of(item)
        takes = step == 1 or "sample" in getattr(item, "fixturenames", ()) or Sample(step, test).takes(seen[test])
        (kept if takes else left).append(item)
        seen[test] += 1
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
