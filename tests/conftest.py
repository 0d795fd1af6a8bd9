"""How every test runs: the same examples each time, and the versions that are not the locks' above the first line."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

from tests.support.locks import differences

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
