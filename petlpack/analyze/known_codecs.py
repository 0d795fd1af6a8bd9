"""The codecs that this version knows, as people choose among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from petlpack.codecs.registry import CODECS, codec


@dataclass(frozen=True)
class KnownCodec:
    """A codec: its id, and what it stores, as `formats/codecs/` says it, too."""

    id: str
    description: str


@dataclass(frozen=True)
class KnownCodecs:
    """All codecs, in the order in which they are tried."""

    codecs: tuple[KnownCodec, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack codecs --json` prints."""
        return {"codecs": [vars(known) for known in self.codecs]}


def known_codecs() -> KnownCodecs:
    """Return the codecs that `encode` takes by their id; what each stores is the first line of its docstring."""
    codecs = [codec(codec_id) for codec_id in CODECS]
    return KnownCodecs(
        tuple(KnownCodec(known.id, (type(known).__doc__ or "").partition("\n")[0].rstrip(".")) for known in codecs)
    )
