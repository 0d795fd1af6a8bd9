"""What the seal of a pack says of its files: which are missing, changed, or foreign."""

from __future__ import annotations

import time
from collections.abc import Iterator

from petlpack.errors import DamageError, PetlpackError, UnknownFormatError, printable
from petlpack.store import Seal, Store
from petlpack.store.names import INVENTORY, is_sealed_apart
from petlpack.store.seals import File, file_now

Finding = tuple[str, PetlpackError | None, tuple[str, ...]]
"""A file, what is wrong with it, and what else there is to say."""

_PATIENCE = 5.0
"""Seconds to wait for a writer that keeps the seal up to date."""

_SEAL_AGAIN = "if the pack is as it should be, `petlpack seal` seals it as it is now"
_HINT = f"restore the file; or, {_SEAL_AGAIN}"
_FOREIGN_HINT = f"move the file out of the pack; or, {_SEAL_AGAIN}"


def check_seal(store: Store) -> Iterator[Finding]:
    """Yield what is wrong with each file of a sealed pack, and first of all of the seal; nothing of a pack without one.

    A pack that somebody writes into meanwhile is looked at again.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            seal = store.read_seal()
            findings = [] if seal is None else _compare(store, seal)
            settled = store.read_seal() == seal
        except (DamageError, UnknownFormatError) as error:
            yield INVENTORY, error, ()
            return
        waiting = not settled or (seal is not None and seal.stale)
        if not waiting or time.monotonic() > end:
            break
        time.sleep(0.05)
    if seal is not None:
        yield INVENTORY, _stale(store) if seal.stale else None, (f"sha256 {seal.sha256}",)
        yield from findings


def _compare(store: Store, seal: Seal) -> list[Finding]:
    """Return the files that are not as a seal says."""
    names = {name for name, _ in store.files() if not is_sealed_apart(name)}
    findings: list[Finding] = []
    for name in sorted({*names, *seal.files}):
        error = _difference(store, name, seal.files.get(name), name in names)
        if error is not None:
            findings.append((name, error, ()))
    return findings


def _difference(store: Store, name: str, sealed: File | None, is_there: bool) -> PetlpackError | None:
    """Return how a file differs from what is sealed."""
    path = f"'{printable(str(store.path / name))}'"
    if sealed is None:
        return DamageError(f"{path} is not in the seal of the pack", hint=_FOREIGN_HINT, code="sealed-foreign")
    try:
        found = file_now(store.path / name) if is_there else None
    except FileNotFoundError:
        found = None
    except (OSError, PetlpackError) as error:
        return DamageError(f"{path} cannot be read: {error}", hint=_HINT, code="file-unreadable")
    if found is None:
        return DamageError(f"{path} is in the seal of the pack, but missing", hint=_HINT, code="sealed-missing")
    if found != sealed:
        return DamageError(
            f"{path} has {found.nbytes:,} bytes with sha256 {found.sha256}, "
            f"the seal of the pack says {sealed.nbytes:,} with {sealed.sha256}",
            hint=_HINT,
            code="sealed-changed",
        )
    return None


def _stale(store: Store) -> DamageError:
    return DamageError(
        f"the seal of pack '{printable(str(store.path))}' is stale: a writer was interrupted before it wrote it anew",
        hint=f"look at what differs from it; {_SEAL_AGAIN}",
        code="sealed-stale",
    )
