"""The closed table of coders: an id read from a file selects a row here, and nothing else."""

from __future__ import annotations

import functools
import importlib

from petlpack.coding.array import Coder
from petlpack.errors import UnknownFormatError, printable

CODERS = {
    "raw": "petlpack.coding.raw:Raw",
    "planes": "petlpack.coding.planes:Planes",
    "bitmap": "petlpack.coding.bitmap:Bitmap",
    "masks": "petlpack.coding.masks:Masks",
    "gaps": "petlpack.coding.gaps:Gaps",
    "numbers": "petlpack.coding.numbers:Numbers",
    "ulps": "petlpack.coding.ulps:Ulps",
    "rows": "petlpack.coding.rows:Rows",
}


@functools.cache
def coder(coder_id: str) -> Coder:
    """Return the coder of an id; raises UnknownFormatError for an id that is not in the table."""
    if coder_id not in CODERS:
        raise UnknownFormatError(
            f"unknown coder '{printable(coder_id)}' (known: {', '.join(CODERS)})",
            hint="the file was written by a newer petlpack: upgrade petlpack to read it",
            code="coder-unknown",
        )
    module, _, name = CODERS[coder_id].partition(":")
    loaded: Coder = getattr(importlib.import_module(module), name)()
    return loaded
