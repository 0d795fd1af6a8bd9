"""Errors as people and programs see them: `Error:` and `Hint:` on stderr, or a JSON object, and an exit code."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from petlpack import DamageError, Problem, printable, problem_of

SCHEMA_VERSION = 1
"""Version of what --json prints; a field that changes its meaning or goes away makes a new one."""

STDOUT = "standard output"

DAMAGE = DamageError.exit_code


class Interrupted(Exception):
    """Someone pressed Ctrl-C."""


def describe(error: BaseException) -> Problem:
    """Return what to say of any exception: an interrupt, arguments that make no sense, or what the library says."""
    if isinstance(error, (Interrupted, KeyboardInterrupt, click.Abort)):
        return Problem("Interrupted", "interrupted", "interrupted", None, 130)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "petlpack"
        hint = f"run `{path} --help` for usage"
        return Problem("UsageError", "usage", error.format_message(), hint, error.exit_code)
    return problem_of(error)


def error_lines(problem: Problem, about: str = "") -> str:
    """Return what people read of an error; `about` names the run where there are several."""
    if problem.type == "Interrupted":
        return "interrupted"
    message = f"Error: {printable(about)}{printable(problem.message)}"
    return f"{message}\nHint: {printable(problem.hint)}" if problem.hint else message


def worst(problems: Iterable[Problem]) -> int | None:
    """Return the exit code for several problems that did not stop a command: damage before all, None without any."""
    codes = {problem.exit_code for problem in problems}
    return DAMAGE if DAMAGE in codes else max(codes, default=None)


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Report an error and return its exit code; raises OSError where stdout takes no JSON."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:  # its message is the whole help
        click.echo(str(error), err=True)
        return 2
    problem = describe(error)
    if debug:
        show_traceback(error)
    if as_json:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "error": problem.to_json()}))
    else:
        click.echo(error_lines(problem), err=True)
    return problem.exit_code


def show_traceback(error: BaseException) -> None:
    """Write the traceback to stderr: what --debug is for."""
    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


@contextlib.contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """Give an error of the operating system that names no file (a full disk's does not) the place that was written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise
