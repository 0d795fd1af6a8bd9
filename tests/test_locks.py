"""locks/ pins all that pyproject.toml asks for, on every platform and every Python that is supported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from tests.support.locks import differences, left_out, pins

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
ASKED: dict[str, list[str]] = {
    "build-system": PROJECT["build-system"]["requires"],
    "dependencies": PROJECT["project"]["dependencies"],
    **{f"[{extra}]": asked for extra, asked in PROJECT["project"]["optional-dependencies"].items()},
    **PROJECT["dependency-groups"],
}
"""Everything that pyproject.toml asks for, by where it stands there."""

PACKAGE = ["build-system", "dependencies", "[report]", "[torch]", "test", "build"]
LOCKED = {
    "dev": [*PACKAGE, "torch", "check", "model", "fuzz", "install"],
    "oldest": PACKAGE,
    "adapters": ["torch", "adapters"],
    "libraries": ["build-system", "dependencies", "[torch]", "test", "build", "torch", "libraries"],
    "zipnn": ["torch", "zipnn"],
}
"""What stands in each lock."""

PLATFORMS = {
    "linux": {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "macos": {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "windows": {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
}
ENVIRONMENTS = {
    f"{platform}-{python}": {**markers, "python_version": python, "python_full_version": f"{python}.4"}
    for platform, markers in PLATFORMS.items()
    for python in ("3.10", "3.11", "3.12", "3.13")
}


def asked(where: list[str], environment: dict[str, str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, (text for place in where for text in ASKED[place])):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


def test_everything_that_is_asked_for_is_locked() -> None:
    assert set(ASKED) == {place for places in LOCKED.values() for place in places}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("lock", LOCKED)
def test_a_lock_pins_one_version_that_pyproject_allows(lock: str, environment: str) -> None:
    pinned = pins(lock, ENVIRONMENTS[environment])
    for requirement in asked(LOCKED[lock], ENVIRONMENTS[environment]):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"locks/{lock}.txt pins no {requirement.name}: make lock"
        assert version in requirement.specifier, f"locks/{lock}.txt has {version} for {requirement}: make lock"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_oldest_are_the_lower_bounds(environment: str) -> None:
    pinned = pins("oldest", ENVIRONMENTS[environment])
    bounds: dict[NormalizedName, set[Version]] = {}
    for requirement in asked(LOCKED["oldest"], ENVIRONMENTS[environment]):
        lowest = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        assert lowest, f"{requirement} has no lower bound"
        bounds.setdefault(canonicalize_name(requirement.name), set()).update(lowest)
    # Where a name has two bounds for one environment (NumPy's for 3.13), the higher one is the bound.
    assert {name: pinned.get(name) for name in bounds} == {name: max(versions) for name, versions in bounds.items()}


@pytest.mark.parametrize("lock", LOCKED)
def test_what_is_left_out_is_in_no_lock(lock: str) -> None:
    for environment in ENVIRONMENTS.values():
        pinned = set(pins(lock, environment))
        assert not pinned & left_out(lock)
        assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-"))], "locks/left-out.txt lacks them"


def test_what_the_locked_packages_ask_for_is_locked() -> None:
    pinned, others = pins("dev"), differences("dev")
    named = {*pinned, *left_out("dev")}
    for one in metadata.distributions():
        name = canonicalize_name(one.name)
        if name not in pinned or name in others:
            continue  # `make test-newest` brings others, and they may ask for others
        for requirement in map(Requirement, one.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in named, f"{name} asks for {requirement}: make lock"
