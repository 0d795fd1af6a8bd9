"""What all commands have in common: --json, --quiet, --debug, examples in their help, and the arguments they share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

import petlpack
from petlpack_cli.output import Output

CONTEXT = {"help_option_names": ["-h", "--help"]}

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

DEBUG_HELP = "Show the traceback of an error."


class Command(click.Command):
    """A command whose function gets an `Output` instead of the flags, and whose help ends with examples."""

    def __init__(self, *args: Any, examples: tuple[str, ...], **others: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT, **others})
        self.examples = examples
        self.params += [
            click.Option(["--json"], is_flag=True, help="Print one JSON object."),
            click.Option(["-q", "--quiet"], is_flag=True, help="Print only what was asked for, and errors."),
            click.Option(["--debug"], is_flag=True, help=DEBUG_HELP),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; returns its exit code, or None for 0."""
        debug = ctx.params.pop("debug") or ctx.find_root().params.get("debug", False)
        out = Output(as_json=ctx.params.pop("json"), quiet=ctx.params.pop("quiet"), debug=debug)
        ctx.params["out"] = out
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            formatter.write("".join(f"{'':{formatter.current_indent}}{line}\n" for line in self.examples))


def command(name: str, *examples: str) -> Callable[[Callable[..., int | None]], Command]:
    """Make a command of a function `(out, ...) -> exit code or None`."""
    return click.command(name, cls=Command, examples=examples)


class PathType(click.Path):
    """A path, which is never empty: that would be the current directory, and is a variable that was not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; raises UsageError for an empty one, in the words of the library."""
        if value == "":
            option = param is not None and param.opts[0].startswith("--")
            name = param.opts[0] if param is not None and option else "an argument"
            raise petlpack.UsageError(f"{name} is an empty path", hint="check the variable that it comes from")
        return super().convert(value, param, ctx)


PATH = PathType(path_type=Path, readable=False)


def pack_argument(*, required: bool = False) -> Decorator[Any]:
    """Return the argument PACK; where it may be left out, its default is $PETLPACK_PACK, else ./pack."""
    if required:
        return click.argument("pack", type=PATH)
    return click.argument("pack", type=PATH, envvar="PETLPACK_PACK", default="pack")


class KnownChoice(click.ParamType):  # type: ignore[type-arg] # older versions have no such argument
    """One of the words that the library knows when it is asked, which may be more than when the command was loaded."""

    name = "choice"

    def __init__(self, known: Callable[[], Sequence[str]]) -> None:
        self._known = known

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return all words, as the help shows them."""
        return click.Choice(self._known()).get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word; fails for one that is not known."""
        return click.Choice(self._known()).convert(value, param, ctx)


def base_option(text: str) -> Decorator[Any]:
    """Return the option --base."""
    return click.option("--base", metavar="DIR", type=PATH, help=text)


def bases_option(text: str) -> Decorator[Any]:
    """Return the option --base that may be given several times; nothing is None."""
    return click.option(
        "--base",
        metavar="DIR",
        multiple=True,
        type=PATH,
        callback=lambda _context, _parameter, paths: paths or None,
        help=f"{text} Repeatable, or a directory of models.",
    )


def jobs_option(*, hidden: bool = False) -> Decorator[Any]:
    """Return the option --jobs."""
    text = "Threads to use; by default one per processor."
    return click.option("--jobs", metavar="N", type=click.IntRange(min=1), hidden=hidden, help=text)


every_row_option = click.option("--all", "everything", is_flag=True, help="Show every row, not only the 20 biggest.")


def price_options(*, hidden: bool = False) -> Decorator[Any]:
    """Return the options that a forecast makes money and days of."""

    def decorate(function: Any) -> Any:
        for option in (
            click.option(
                "--growth", metavar="N/day", hidden=hidden, help="New tasks per day: adds when it will be reached."
            ),
            click.option("--egress", metavar="X", type=float, hidden=hidden, help="Price of sending 10^9 bytes."),
            click.option(
                *("--price-per-gb-month", "price"),
                metavar="X",
                type=float,
                hidden=hidden,
                help="Price of storing 10^9 bytes for a month.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def figure_options(function: Any) -> Any:
    """Add the options of what a pack is compared with, and of the files that its figures are written to."""
    for option in (
        click.option("--html", metavar="FILE", type=PATH, help="Write an HTML page with all figures."),
        click.option("--plot", metavar="FILE", type=PATH, help="Draw an .svg or .png; needs matplotlib."),
        click.option(
            "--lora-rank",
            metavar="R",
            type=click.IntRange(min=1),
            help="Rank of the LoRA to compare with; by default 8.",
        ),
    ):
        function = option(function)
    return function


SOME_FAILED = 3
"""Exit code where some of several runs failed."""


def _settings(context: click.Context, _: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the settings of --set by name."""
    chosen: dict[str, str] = dict(context.params.get("settings", {}))
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not value:
            raise click.UsageError(f"--set needs KEY=VALUE, got '{pair}'", context)
        _refuse_other(context, name, chosen.setdefault(name, value), value)
    return chosen


def _refuse_other(context: click.Context, name: str, one: str, other: str) -> None:
    if one != other:
        raise click.UsageError(f"setting {name} is given twice, as '{one}' and as '{other}'", context)


def _switch(context: click.Context, parameter: click.Parameter, is_on: bool) -> None:
    if is_on:
        assert parameter.name is not None
        chosen = context.params.setdefault("settings", {})
        _refuse_other(context, parameter.name, chosen.setdefault(parameter.name, "true"), "true")


_FACTORS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_SIZE = re.compile(rf"(\d{{1,15}}(?:\.\d+)?) ?({'|'.join(_FACTORS)})?")


def _size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Return the bytes that a size says, with or without a unit: 5000, 64MiB, 1.5GB; None where none is given."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{parameter.opts[0]} needs a size as 5000, 10MB or 64MiB, got '{text}'", context)
    return int(float(match[1]) * _FACTORS[match[2] or "B"])


max_bytes_option = click.option(
    "--max-bytes",
    metavar="SIZE",
    callback=_size,
    help="The most that a task may decode to, as 500MB; by default what its files and its base explain.",
)


def file_options(function: Any) -> Any:
    """Add the options of the files beside the weights."""
    for option in (
        click.option(
            "--max-file",
            metavar="SIZE",
            default="64MiB",
            callback=_size,
            help="Leave out files beside the weights that are larger, with a warning; by default 64MiB.",
        ),
        click.option(
            "--keep", metavar="GLOB", multiple=True, help="Keep these files, also what is left out by default."
        ),
        click.option(
            "--drop", metavar="GLOB", multiple=True, help="Leave out these files; may be given several times."
        ),
    ):
        function = option(function)
    return function


def flag_options(flags: Mapping[str, str]) -> Decorator[Any]:
    """Return short ways to write --set NAME=true, each with its text in the help."""

    def decorate(function: Any) -> Any:
        for name, text in reversed(list(flags.items())):
            option = f"--{name.replace('_', '-')}"
            flag = click.option(option, name, is_flag=True, expose_value=False, callback=_switch, help=text)
            function = flag(function)
        return function

    return decorate


def settings_option(text: str) -> Decorator[Any]:
    """Return the option --set KEY=VALUE, which may be repeated; its value is a dictionary."""
    return click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, callback=_settings, help=text)
