"""`petlpack codecs`: the closed table of codecs."""

from __future__ import annotations

import petlpack
from petlpack_cli.command import command
from petlpack_cli.output import Output


@command("codecs", "petlpack codecs", "petlpack codecs --json")
def run(out: Output) -> None:
    """List the codecs that `petlpack encode --codec` takes; `auto` chooses by measured bytes."""
    known = petlpack.known_codecs()
    if out.as_json:
        out.json(known.to_json())
    elif out.quiet:
        out.names([codec.id for codec in known.codecs])
    else:
        out.table(
            {"Codec": "text", "What it stores": "name"},
            [(codec.id, codec.description) for codec in known.codecs],
        )
