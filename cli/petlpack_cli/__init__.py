"""The command line of petlpack: one file per command, each parse -> one library call -> print."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line: the entry point of the `petlpack` script."""
    try:
        from petlpack_cli.app import cli  # here, so that an interrupt while modules load is one, too

        cli.main(prog_name="petlpack")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
