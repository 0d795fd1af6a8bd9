"""`petlpack seal`: every file of a pack, and one digest of all."""

from __future__ import annotations

from pathlib import Path

import petlpack
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import naming
from petlpack_cli.output.sizes import count, size


@command("seal", "petlpack seal glue.pack", "petlpack seal glue.pack -q > glue.sha256")
@pack_argument()
def run(out: Output, pack: Path) -> None:
    """Write down every file of a pack, and one digest of all.

    Each file stands in inventory.json with its size and sha256. From then on verify tells which files are missing,
    changed or foreign. Commands that change the pack keep it up to date. Keep the digest elsewhere, or sign it, to tell
    a pack that somebody replaced as a whole.
    """
    with naming(pack):
        sealed = petlpack.seal(pack)
    if out.as_json:
        out.json(sealed.to_json())
    elif out.quiet:
        out.line(sealed.sha256)
    else:
        out.line(f"{count(sealed.files, 'file')}, {size(sealed.nbytes)} sealed.")
        out.line(f"sha256 {sealed.sha256}")
