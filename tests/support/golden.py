"""The golden vectors of formats/, and which error each class of refusal is."""

from __future__ import annotations

from petlpack.errors import BaseError, DamageError, PetlpackError, RunError, UnknownFormatError, UsageError
from tools.vectors import vectors

ALL = vectors()
BY_ID = {vector.id: vector for vector in ALL}
ERRORS: dict[str, tuple[type[PetlpackError], int]] = {
    "damage": (DamageError, 4),
    "base": (BaseError, 5),
    "unknown": (UnknownFormatError, 7),
    "usage": (UsageError, 2),
    "run": (RunError, 1),
}
