"""All targets by name, each made with a directory of its own to write into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.fuzz.codings import coders
from tests.support.fuzz.files import FILES
from tests.support.fuzz.layouts import RUNS
from tests.support.fuzz.records import RECORDS
from tests.support.fuzz.target import Target

TARGETS: Mapping[str, Callable[[Path], Target]] = {**RECORDS, **coders(), **FILES, **RUNS}
