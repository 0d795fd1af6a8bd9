"""What locks/ pins, and which of it is here in another version."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

LOCKS = Path(__file__).parents[2] / "locks"


def pins(lock: str, environment: Mapping[str, str] | None = None) -> dict[NormalizedName, Version]:
    """Return the version of each package that a lock pins in an environment of markers, by default the one at hand."""
    found: dict[NormalizedName, Version] = {}
    for line in (LOCKS / f"{lock}.txt").read_text(encoding="utf-8").splitlines():
        if not (text := line.partition("#")[0].strip()):
            continue
        requirement = Requirement(text)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"not one version: {line}"
        if requirement.marker is None or requirement.marker.evaluate(dict(environment or {})):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"two versions of {name}"
            found[name] = Version(specifier.version)
    return found


def left_out(lock: str) -> set[str]:
    """Return the names of the packages that a lock does not pin: those that no lock does, and its own."""
    files = [path for name in ("left-out", f"left-out-of-{lock}") if (path := LOCKS / f"{name}.txt").is_file()]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return {line for line in lines if line and not line.startswith("#")}


def differences(lock: str) -> dict[NormalizedName, tuple[Version, Version]]:
    """Return (version here, version in the lock) of each package that is here in another version."""
    pinned = pins(lock)
    here = {canonicalize_name(one.name): Version(one.version) for one in metadata.distributions()}
    return {
        name: (here[name], version)
        for name, version in sorted(pinned.items())
        if name in here and here[name].public != version.public
    }
