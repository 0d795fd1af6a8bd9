"""The closed table of codecs: an id read from a file selects a row here, and nothing else."""

from __future__ import annotations

import functools
import importlib

from petlpack.codecs.codec import Codec
from petlpack.errors import UnknownFormatError, UsageError, printable
from petlpack.errors.arguments import shown
from petlpack.rules.modules import Module

CODECS = {
    # of those that are tried on one kind of module, what declines it at once stands first
    "sparse": "petlpack.codecs.sparse:SparseCodec",
    "ulp": "petlpack.codecs.ulp:UlpCodec",
    "mask": "petlpack.codecs.mask:MaskCodec",
    "merge": "petlpack.codecs.merge:MergeCodec",
    "hyper": "petlpack.codecs.hyper:HyperCodec",
    "plain": "petlpack.codecs.plain:PlainCodec",
}


@functools.cache
def codec(codec_id: str) -> Codec:
    """Return the codec of an id; raises UnknownFormatError for an id that is not in the table."""
    if codec_id not in CODECS:
        raise UnknownFormatError(
            f"unknown codec '{printable(codec_id)}' (known: {', '.join(CODECS)})",
            hint="the file was written by a newer petlpack: upgrade petlpack to read it",
            code="codec-unknown",
        )
    module, _, name = CODECS[codec_id].partition(":")
    loaded: Codec = getattr(importlib.import_module(module), name)()
    return loaded


def codecs_for(module: Module) -> list[Codec]:
    """Return the codecs that take a module, in the order of the table."""
    return [candidate for candidate in map(codec, CODECS) if type(module) in candidate.takes]


def wanted_codec(codec_id: str) -> Codec:
    """Return the codec that a caller asked for; raises UsageError for an id that is not in the table."""
    if not isinstance(codec_id, str) or codec_id not in CODECS:
        raise UsageError(f"unknown codec {shown(codec_id)}", hint=f"choose one of auto, {', '.join(CODECS)}")
    return codec(codec_id)
