"""`petlpack codecs`: the closed table of codecs."""

from __future__ import annotations

from petlpack_cli.command import command
from petlpack_cli.output import Output


@command("codecs", "petlpack codecs", "petlpack codecs --json")
def run(out: Output) -> None:
    """List the codecs that `petlpack encode --codec` takes; `auto` chooses by measured bytes."""
    from petlpack.codecs.registry import CODECS, codec

    codecs = [codec(codec_id) for codec_id in CODECS]
    if out.as_json:
        rows = [{"id": one.id, "exact": one.exact, "description": _description(one)} for one in codecs]
        out.json({"codecs": rows})
    elif out.quiet:
        out.names(list(CODECS))
    else:
        out.table(
            {"Codec": "text", "Exact": "text", "What it stores": "name"},
            [(one.id, "every bit" if one.exact else "to a bound", _description(one)) for one in codecs],
        )


def _description(codec: object) -> str:
    """Return the first line of a codec's docstring, which is what `formats/codecs/` says of it, too."""
    return (type(codec).__doc__ or "").partition("\n")[0].rstrip(".")
