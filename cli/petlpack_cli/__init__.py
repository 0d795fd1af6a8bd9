"""The command line of petlpack: one file per command, each parse -> one library call -> print."""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Run the command line: the entry point of the `petlpack` script."""
    sys.unraisablehook = _interrupt_again
    try:
        from petlpack_cli.app import cli  # here, so that an interrupt while modules load is one, too

        cli.main(prog_name="petlpack")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _interrupt_again(ignored: Any) -> None:
    """Raise an interrupt again a moment later where Python ignores it: in destructors and callbacks of weak references.

    They are called often while threads end: one Ctrl-C of some hundreds was lost.
    """
    if ignored.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(ignored)
        return
    import _thread
    import threading

    timer = threading.Timer(0.05, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
