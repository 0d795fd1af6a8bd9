"""The command line: what every command promises, exit codes, and what people and programs see (docs/cli.md)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import petlpack
from petlpack_cli.app import COMMANDS
from tests.support.command_line import (
    DOCS,
    ENVIRONMENT,
    ERROR,
    LOSSY_ULP,
    MASK,
    METHOD_TASKS,
    ROOT,
    SCHEMAS,
    files_of,
    load,
    run,
    run_json,
    table,
)

# What every command promises


def invocation(name: str, place: Path, pack: Path, out: Path) -> list[str | Path]:
    """Return arguments with which a command does its work."""
    arguments: dict[str, list[str | Path]] = {
        "encode": [place / "sst2", "--base", place / "base", "--pack", out],
        "decode": [pack, "sst2", out, "--base", place / "base"],
        "plan": [place / "sst2", "--base", place / "base"],
        "survey": [place / "sst2", "--base", place / "base"],
        "show": [pack, "sst2"],
        "remove": [pack, "sst2"],
        "codecs": [],
    }
    return arguments.get(name, [pack])


@pytest.fixture(params=COMMANDS)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a command, one after another."""
    return str(request.param)


def test_json_is_one_object_of_the_stated_schema(name: str, place: Path, pack: Path, tmp_path: Path) -> None:
    code, answer = run_json(name, *invocation(name, place, pack, tmp_path / "out"))
    assert code == 0
    jsonschema.validate(answer, table(schema_version={"const": 1}, **SCHEMAS[name]))


ON_METHODS: dict[str, list[str]] = {
    "encode": ["encode", "{methods}/mask", "--pack", "{tmp}/q", *MASK],
    "encode on a base": ["encode", "{methods}/hyper", "--pack", "{tmp}/q", "--base", "{methods}/t5"],
    "encode with another's base": ["encode", "{methods}/merge", "--pack", "{tmp}/q", "--base", "{methods}/t5"],
    "decode": ["decode", "{methods}/p", "mask.a", "{tmp}/out"],
    "decode on a base": ["decode", "{methods}/p", "hyper.a", "{tmp}/out", "--base", "{methods}/t5"],
    **{
        f"decode {task} to {to}": ["decode", "{methods}/p", task, "{tmp}/out", "--to", to, "--base", "{methods}/t5"]
        for task in ("mask.b", "hyper.b", "merge")
        for to in ("safetensors", "adapterhub")
    },
    **{f"show {task}": ["show", "{methods}/p", task] for task in METHOD_TASKS},
    "list": ["list", "{methods}/p"],
    "stats": ["stats", "{methods}/p"],
    "verify": ["verify", "{methods}/p", "--base", "{methods}/t5"],
    "gc": ["gc", "{methods}/p", "--dry-run"],
}


@pytest.mark.parametrize("case", ON_METHODS)
def test_methods_are_told_by_the_same_schemas_and_in_80_columns(case: str, methods: Path, tmp_path: Path) -> None:
    arguments = [argument.format(methods=methods, tmp=tmp_path / "json") for argument in ON_METHODS[case]]
    code, answer = run_json(*arguments)
    assert code == 0
    jsonschema.validate(answer, table(schema_version={"const": 1}, **SCHEMAS[arguments[0]]))
    given = [argument.format(methods=methods, tmp=tmp_path / "text") for argument in ON_METHODS[case]]
    result = run(*given, env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert result.stdout
    if arguments[0] != "decode":
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert result.stderr == "" or (case == "encode with another's base" and "adapts no module" in result.stderr)


def test_people_get_plain_lines_of_at_most_80_columns(name: str, place: Path, pack: Path, tmp_path: Path) -> None:
    result = run(name, *invocation(name, place, pack, tmp_path / "out"), env={"COLUMNS": "80"})
    assert (result.exit_code, result.stderr) == (0, "")  # no talk and no progress where stderr is no terminal
    assert result.stdout
    assert "\x1b" not in result.stdout
    if name != "decode":  # whose line is a path that the caller chose
        lines = [line for line in result.stdout.splitlines() if not line.startswith("petlpack ")]  # commands to copy
        assert max(map(len, lines)) <= 80


def test_quiet_leaves_errors_and_what_was_asked_for(name: str, place: Path, pack: Path, tmp_path: Path) -> None:
    loud = run(name, *invocation(name, place, pack, tmp_path / "loud"))
    pack = Path(shutil.copytree(place / "p", tmp_path / "again"))
    quiet = run(name, *invocation(name, place, pack, tmp_path / "quiet"), "-q")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    if name in ("encode", "decode", "remove", "gc", "verify"):
        assert quiet.stdout == ""
    else:
        assert 0 < len(quiet.stdout) <= len(loud.stdout)
    assert "no pack or run at" in run("stats", tmp_path / "nothing", "--quiet").stderr


def test_help_has_an_example_and_says_what_the_table_says(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n  petlpack {name}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert COMMANDS[name] in run("--help").stdout
    assert COMMANDS[name].rstrip(".") in (load(name).help or "")


def test_docs_have_a_section_with_every_option_and_an_example(name: str) -> None:
    sections = dict(re.findall(r"^## `petlpack ([a-z]+)[^\n]*\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL))
    assert f"petlpack {name}" in sections[name]
    common = {"--json", "--quiet", "--debug"}
    options = {option for param in load(name).params for option in param.opts if option.startswith("--")}
    assert {option for option in options - common if f"`{option}" not in sections[name]} == set()
    assert all(option in DOCS for option in common)
    fields = SCHEMAS[name]
    assert {field for field in fields if f'"{field}"' not in sections[name]} == set()


def test_usage_errors_are_json_as_well(name: str) -> None:
    code, answer = run_json(name, "--no-such-option")
    jsonschema.validate(answer, table(schema_version={"const": 1}, error=ERROR))
    assert code == 2
    assert answer["error"]["type"] == "UsageError"
    assert "--no-such-option" in answer["error"]["message"]


def test_every_module_of_a_command_is_in_the_table() -> None:
    shared = {"__init__", "__main__", "app", "command"}
    assert {path.stem for path in (ROOT / "cli" / "petlpack_cli").glob("*.py")} - shared == set(COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["encode", "--help"], ["stats", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = ["numpy", "torch", "rich", "transformers", "zstandard", "pcodec", "filelock", "petlpack.encoding"]
    if arguments[0] == "encode":  # whose help asks the layouts for their settings, and these read tensors
        heavy.remove("numpy")
    program = (
        "import sys\nfrom petlpack_cli.app import cli\n"
        f"try:\n    cli.main({arguments!r}, prog_name='petlpack')\n"
        f"except SystemExit as done:\n    assert done.code == 0\nprint([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_of_the_whole_imports_no_command() -> None:
    program = (
        "import sys\nfrom petlpack_cli.app import COMMANDS, cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in COMMANDS if f'petlpack_cli.{name}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# Exit codes


@pytest.mark.parametrize(
    ("code", "kind", "arguments"),
    [
        (1, "RunError", ["encode", "{place}/nothing", "--pack", "{tmp}/q"]),
        (1, "TaskError", ["encode", "{place}/sst2", "--pack", "{pack}", "--base", "{place}/base"]),
        (1, "TaskError", ["show", "{pack}", "cola"]),
        (1, "TaskError", ["remove", "{pack}", "sst2", "cola"]),
        (1, "TaskError", ["decode", "{pack}", "cola", "{tmp}/out"]),
        (2, "UsageError", ["list", "{tmp}/nothing"]),
        (2, "UsageError", ["list", "--nothing"]),
        (2, "UsageError", ["lits"]),
        (2, "UsageError", ["show", "{pack}"]),
        (2, "UsageError", ["encode"]),
        (2, "UsageError", ["encode", "{place}/sst2", "{place}/rte", "--task", "x"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--level", "tiny"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--jobs", "0"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--task", "a/b", "--pack", "{tmp}/q"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--base", "{place}/base", "--task=--json", "--pack", "{tmp}/q"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--base", "{place}/base", "--task", "-x", "--pack", "{tmp}/q"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--codec", "zip", "--pack", "{tmp}/q"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--pack", "{place}", "--base", "{place}/base"]),
        (2, "UsageError", ["decode", "{pack}", "sst2", "{place}", "--base", "{place}/base"]),
        (2, "UsageError", ["verify", "{pack}", "--against", "{place}/sst2"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--set", "combine", "--pack", "{tmp}/q"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--set", "combine=", "--pack", "{tmp}/q"]),
        (2, "UsageError", ["encode", "{place}/sst2", "--set", "speed=1", "--pack", "{tmp}/q"]),
        (2, "UsageError", ["encode", "{methods}/mask", "--set", "combine=or", "--set", "combine=and"]),
        (2, "UsageError", ["encode", "{methods}/mask", "--pack", "{tmp}/q", "--set", "combine=xor"]),
        (2, "UsageError", ["encode", "{methods}/mask", "--pack", "{tmp}/q", *MASK, "--codec", "ulp"]),
        (2, "UsageError", ["encode", "{place}/adapter", "--pack", "{tmp}/q", "--codec", "ulp"]),
        (2, "UsageError", ["encode", "{place}/adapter", "--pack", "{tmp}/q", "--density", "0.1"]),
        *(
            (2, "UsageError", ["encode", "{place}/sst2", "--pack", "{tmp}/q", "--density", density])
            for density in ("0", "1", "-0.5", "1.5", "nan", "half")
        ),
        (2, "UsageError", ["encode", "{place}/sst2", "--pack", "{tmp}/q", "--base", "{place}/base", *LOSSY_ULP]),
        (2, "UsageError", ["decode", "{pack}", "sst2", "{tmp}/out", "--base", "{place}/base", "--to", "zip"]),
        (2, "UsageError", ["decode", "{pack}", "sst2", "{tmp}/out", "--base", "{place}/base", "--to", "peft"]),
        (2, "UsageError", ["decode", "{methods}/p", "mask.a", "{tmp}/out", "--to", "peft"]),
        (1, "RunError", ["encode", "{methods}/mask", "--pack", "{tmp}/q"]),
        (1, "RunError", ["encode", "{methods}/mask", "--pack", "{tmp}/q", "--set", "combine=or"]),
        (1, "TaskError", ["encode", "{methods}/mask", "--pack", "{methods}/p", *MASK]),
        (5, "BaseError", ["encode", "{methods}/hyper", "--pack", "{tmp}/q"]),
        (5, "BaseError", ["encode", "{methods}/hyper", "--pack", "{tmp}/q", "--base", "{place}/base"]),
        (5, "BaseError", ["decode", "{methods}/p", "hyper.a", "{tmp}/out"]),
        (5, "BaseError", ["encode", "{place}/sst2", "--pack", "{tmp}/q"]),
        (5, "BaseError", ["encode", "{place}/sst2", "--pack", "{tmp}/q", "--base", "{tmp}/nothing"]),
        (5, "BaseError", ["decode", "{pack}", "sst2", "{tmp}/out"]),
        (5, "BaseError", ["decode", "{pack}", "sst2", "{tmp}/out", "--base", "{place}/rte"]),
    ],
)
def test_errors_have_their_codes_and_say_what_to_do(
    code: int, kind: str, arguments: list[str], place: Path, methods: Path, pack: Path, tmp_path: Path
) -> None:
    given = [argument.format(place=place, methods=methods, pack=pack, tmp=tmp_path) for argument in arguments]
    before = files_of(pack) | files_of(methods / "p")
    result = run(*given)
    assert result.exit_code == code
    assert result.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\nHint: [^\n]+\n", result.stderr)
    assert run_json(*given)[1]["error"]["type"] == kind
    assert files_of(pack) | files_of(methods / "p") == before
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "q").exists()


EMPTY = [
    *(["encode", ""], ["plan", ""], ["survey", ""], ["stats", ""], ["encode", "{place}/sst2", ""]),
    *(["list", ""], ["verify", ""], ["gc", ""], ["forecast", ""], ["show", "", "sst2"]),
    *(["decode", "{place}/p", "sst2", ""], ["encode", "{place}/sst2", "--pack", ""]),
    *(["encode", "{place}/sst2", "--base", ""], ["verify", "{place}/p", "--base", ""]),
    *(["stats", "{place}/p", "--html", ""], ["verify", "{place}/p", "sst2", "--against", ""]),
]


@pytest.mark.parametrize("given", EMPTY, ids=" ".join)
def test_an_empty_path_is_told_as_one(given: list[str], place: Path) -> None:
    code, answer = run_json(*(word.format(place=place) for word in given))
    assert (code, answer["error"]["type"]) == (2, "UsageError")
    name = next((word for word in given if word.startswith("--")), "an argument")
    assert answer["error"]["message"] == f"{name} is an empty path"


@pytest.mark.parametrize("given", [["decode", "{p}", "", "o"], ["remove", "{p}", ""], ["show", "{p}", "../x"]])
def test_a_name_that_no_task_can_have_is_no_task(given: list[str], pack: Path) -> None:
    result = run(*(word.format(p=pack) for word in given))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no task '")
    assert "--task" not in result.stderr


def test_no_command_is_the_help_and_2() -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: petlpack")
    assert run_json()[1]["error"]["type"] == "UsageError"


def test_an_unknown_command_names_the_nearest() -> None:
    assert "Did you mean list?" in run("lits").stderr


HELP = {
    "encode": {"--set", "--density", "--bake", "--keep-experts", "--keep-retriever", "--codec", "--level", "--replace"},
    "decode": {"--to", "--base", "--jobs"},
}


@pytest.mark.parametrize("command", HELP)
def test_help_tells_every_option_and_what_it_may_be(command: str) -> None:
    text = run(command, "--help").stdout
    options = {option for param in load(command).params for option in param.opts if option.startswith("--")}
    assert HELP[command] <= options
    for option in options:
        assert re.search(rf"^  (-., )?{option}\b.*\S", text, re.MULTILINE), option
    from petlpack.exports.registry import EXPORTS
    from petlpack.layouts.registry import settings

    if command == "decode":
        assert set(EXPORTS) <= set(re.findall(r"[a-z]+", text))
        return
    named = re.search(r"--set KEY=VALUE[^:]*: ([^.]*)\.", text)
    assert named is not None
    assert (
        set(re.findall(r"[a-z_]+", named[1])) <= settings().keys()
    )  # those of a layout from outside stand in an error


def test_the_pack_is_the_environments_or_here(place: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pack.parent / "here").mkdir()
    monkeypatch.chdir(pack.parent / "here")
    assert run("list").exit_code == 2
    assert "no pack at 'pack'" in run("list").stderr
    pack.rename("pack")
    for command in ("list", "stats", "verify", "gc"):
        assert run(command).exit_code == 0
    for command in ("list", "stats", "verify", "gc"):
        assert run(command, env={"PETLPACK_PACK": str(place / "nothing")}).exit_code == 2
    given: list[str | Path] = ["encode", place / "sst2", "--task", "there", "--base", place / "base"]
    assert run(*given, env={"PETLPACK_PACK": str(pack.parent / "there")}).exit_code == 0
    assert run(*given).exit_code == 0
    assert list(petlpack.open(pack.parent / "there")) == ["there"]
    assert "there" in petlpack.open("pack")
