"""The command `petlpack`: the table of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

import petlpack
from petlpack_cli.command import CONTEXT, DEBUG_HELP
from petlpack_cli.output.errors import STDOUT, Interrupted, naming, report

COMMANDS = {
    "encode": "Put runs into a pack.",
    "plan": "Show how small each codec would make runs.",
    "decode": "Restore a task as the run that it was.",
    "list": "List the tasks of a pack.",
    "show": "Show one task: sections, base, files.",
    "stats": "Account for every byte of a pack.",
    "survey": "Account for every byte of directories that were never packed.",
    "forecast": "Predict storage and its cost as tasks are added.",
    "verify": "Check a pack, or one task of it, for damage.",
    "remove": "Remove tasks from a pack.",
    "gc": "Delete shared parts that removed tasks gave up.",
    "seal": "Write down every file of a pack, and one digest of all.",
    "codecs": "List the codecs.",
}
"""Every command with its line in `petlpack --help`; `NAME` is `petlpack_cli.NAME:run`, imported when it is called."""


class Application(click.Group):
    """The group of commands: loads each when it is called, and reports whatever goes wrong."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"petlpack_cli.{cmd_name}").run
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and for an unknown one the nearest names, without loading any."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS)
            question = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{question}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interrupt leaves click as an exception of its own, without click's blank line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def main(self, args: Sequence[str] | None = None, *others: Any, **extra: Any) -> Any:
        """Parse and run; exits with the command's code, or with that of the error, which is reported."""
        arguments = list(sys.argv[1:] if args is None else args)
        _open_stdout()
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *others, **extra)
            with naming(STDOUT):
                sys.stdout.flush()
        except BrokenPipeError:
            _close_stdout()
            code = 1
        except (Exception, KeyboardInterrupt) as error:
            code = _report(error, arguments)
            _flush_stdout()
        gc.freeze()  # the process ends: looking through what it made once more takes 0.1 s at 10,000 tasks
        sys.exit(code)


def _report(error: BaseException, arguments: list[str]) -> int:
    """Report an error the way the arguments ask for, as far as they can be read; returns the exit code."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    try:
        return report(error, as_json="--json" in options, debug=debug)
    except OSError:  # stdout itself is broken: full, or closed
        _close_stdout()
        return report(error, as_json=False, debug=debug)


def _open_stdout() -> None:
    """Make stdout take every text: what its encoding lacks is escaped, and without a stdout nobody listens."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as the process lives
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush_stdout() -> None:
    """Write what is still buffered where that is possible: what stays would make the exit code Python's 120."""
    try:
        sys.stdout.flush()
    except OSError:
        _close_stdout()


def _close_stdout() -> None:
    """Send what is still buffered nowhere, so that Python does not complain when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group("petlpack", cls=Application, context_settings=CONTEXT)
@click.version_option(petlpack.__version__, prog_name="petlpack", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help=DEBUG_HELP)
def cli(debug: bool) -> None:
    """Keep a thousand fine-tunes of one model without a thousand copies of it, each exact to the bit.

    A pack is a directory of tasks; a task is one fine-tune, stored against the base that all of them share. Commands
    that take a pack use $PETLPACK_PACK, else ./pack, where none is given.
    """
