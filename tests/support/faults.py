"""What other libraries cannot do with each other at some versions: a test that needs it says so, and skips there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import pytest
from packaging.specifiers import SpecifierSet


@dataclass(frozen=True)
class Fault:
    """A fault of other libraries."""

    versions: Mapping[str, str]
    """The versions of each library that have it together."""
    error: type[Exception]
    says: str
    why: str


SAVED_NORMS = Fault(
    {"transformers": "<5.6"},
    KeyError,
    "LayerNorm.weight",
    "a Trainer saves LayerNorm.weight as LayerNorm.gamma, and does not find it again",
)


def skip_where(fault: Fault, alone: Callable[[], object]) -> None:
    """Skip the rest of a test at the versions that have a fault, if the libraries `alone` do fail; else let it run.

    Where they work nevertheless, the test fails: the versions want an upper bound.
    """
    if not all(version(name) in SpecifierSet(allowed) for name, allowed in fault.versions.items()):
        return
    with pytest.raises(fault.error, match=fault.says):
        alone()
    pytest.skip(f"{' with '.join(f'{name} {version(name)}' for name in fault.versions)}: {fault.why}")
