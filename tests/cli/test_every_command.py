"""The command line: what every command promises, exit codes, and what people and programs see (docs/cli.md)."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import filelock
import jsonschema
import pytest
from click.testing import CliRunner, Result

import petlpack
from petlpack import container, store
from petlpack_cli.app import COMMANDS, cli
from petlpack_cli.output.sizes import bar, ratio, size
from tests import method_runs
from tests.conftest import METHOD_SETTINGS, make_base, make_pair, weights, write_methods, write_run

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
DEMO = ROOT / "benchmarks" / "demo"
LONG = "a-task-whose-name-is-as-long-as-names-may-be-" + "x" * 83
ESC = "\x1b[31m"

posix = pytest.mark.skipif(os.name == "nt", reason="signals, terminals and such file names are POSIX")


# What the tests work on


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, three runs, and a pack `p` of them."""
    here = tmp_path_factory.mktemp("cli")
    write_run(here / "base", make_base())
    state = {"optimizer.pt": b"never opened", "training_args.bin": b"nor this", "notes.txt": b"hm"}
    for seed, name in enumerate(("sst2", "rte")):
        write_run(here / name, make_pair(seed + 1)[0], files=state)
    write_adapter(here / "adapter", "LORA")
    for name in ("sst2", "rte", "adapter"):
        petlpack.encode(here / name, here / "p", here / "base")
    return here


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with runs of the codecs mask, hyper and merge, their base, and a pack `p` of them."""
    here = tmp_path_factory.mktemp("methods")
    for source, options in write_methods(here).values():
        petlpack.encode(source, here / "p", **options)
    return here


@pytest.fixture
def pack(place: Path, tmp_path: Path) -> Path:
    """Return a copy of the pack, to change."""
    return Path(shutil.copytree(place / "p", tmp_path / "p"))


def write_adapter(directory: Path, peft_type: str) -> Path:
    tensors = {"base_model.model.layer.0.lora_A.weight": weights("F32", (4, 16), 1)}
    config = json.dumps({"peft_type": peft_type, "base_model_name_or_path": "a/base"}).encode()
    return write_run(directory, tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    """Run the command line in this process."""
    return CliRunner(env=env).invoke(cli, [str(argument) for argument in arguments])


def run_json(*arguments: str | Path) -> tuple[int, Any]:
    """Run with --json; stdout must be one object, and stderr empty."""
    result = run(*arguments, "--json")
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    return result.exit_code, json.loads(result.stdout)


def command_line(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "petlpack_cli", *map(str, arguments)]


ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")},
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]),
}


def files_of(pack: Path) -> dict[str, bytes]:
    """Return what a pack holds, the lock apart."""
    return {str(path): path.read_bytes() for path in pack.rglob("*") if path.is_file() and path.name != ".lock"}


def damage(pack: Path, task: str) -> Path:
    """Flip a bit of the last section of a task, which ends where the manifest begins."""
    path = pack / "tasks" / f"{task}.petl.safetensors"
    octets = bytearray(path.read_bytes())
    room = int.from_bytes(octets[:8], "little")
    start = json.loads(octets[8 : 8 + room])["manifest"]["data_offsets"][0]
    octets[8 + room + start - 1] ^= 1
    path.write_bytes(octets)
    return path


def rewrite(pack: Path, task: str, **changes: Any) -> None:
    """Write a task's file again, whole, with a changed manifest, as another version might have written it."""
    path = pack / "tasks" / f"{task}.petl.safetensors"
    opened = container.read(path)
    sections = opened.open_sections()
    rows = opened.manifest.sections
    data = [container.Encoded(row.name, row.coder, row.dtype, row.count, sections.read(row)) for row in rows]
    with path.with_suffix(".new").open("wb") as file:
        container.write(
            file,
            [row.name for row in rows],
            opened.nbytes + 10_000,
            iter(data),
            lambda _: dataclasses.replace(opened.manifest, **changes),
        )
    path.with_suffix(".new").replace(path)


# What every command promises


def invocation(name: str, place: Path, pack: Path, out: Path) -> list[str | Path]:
    """Return arguments with which a command does its work."""
    arguments: dict[str, list[str | Path]] = {
        "encode": [place / "sst2", "--base", place / "base", "--pack", out],
        "decode": [pack, "sst2", out, "--base", place / "base"],
        "plan": [place / "sst2", "--base", place / "base"],
        "show": [pack, "sst2"],
        "remove": [pack, "sst2"],
        "codecs": [],
    }
    return arguments.get(name, [pack])


NUMBER, TEXT, YES, NULL = ({"type": kind} for kind in ("integer", "string", "boolean", "null"))
SECONDS = {"type": "number", "minimum": 0}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def table(**fields: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these fields."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def rows(**fields: Any) -> dict[str, Any]:
    return {"type": "array", "items": table(**fields)}


def maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, NULL]}


ERROR = table(type=TEXT, message=TEXT, hint=maybe(TEXT))
FILES = rows(file=TEXT, bytes=NUMBER)
FIGURES = table(
    trained_parameters=maybe(NUMBER),
    stored_parameters=NUMBER,
    own_parameters=NUMBER,
    head_parameters=NUMBER,
    base_parameters=maybe(NUMBER),
    paper_bytes=NUMBER,
    percent_of_base=maybe(SECONDS),
    mask_entries=NUMBER,
    mask_bytes=NUMBER,
    bits_per_entry=maybe(SECONDS),
    density=maybe(SECONDS),
    entropy_bits=maybe(SECONDS),
)
OFFERS = rows(
    codec=TEXT,
    options={"type": "array", "items": TEXT, "minItems": 1},
    auto=YES,
    best=YES,
    bytes=maybe(NUMBER),
    shared_bytes=maybe(NUMBER),
    total_bytes=maybe(NUMBER),
    error_bytes=maybe(NUMBER),
    sampled_share=maybe(SECONDS),
    ratio=maybe(SECONDS),
    exact=maybe(YES),
    loss=maybe(table(text=TEXT, density=maybe(SECONDS), error=maybe(SECONDS))),
    refused=maybe(ERROR),
    command={"type": "array", "items": TEXT, "minItems": 1},
)
SCHEMAS: dict[str, dict[str, Any]] = {
    "encode": {
        "tasks": rows(
            name=TEXT,
            run=TEXT,
            method=TEXT,
            layout=TEXT,
            codec=TEXT,
            exact=YES,
            bytes=NUMBER,
            source_bytes=NUMBER,
            seconds=SECONDS,
        ),
        "shared": rows(sha256=SHA256, bytes=NUMBER),
        "left_out": rows(run=TEXT, file=TEXT, bytes=NUMBER, why=TEXT),
        "warnings": rows(run=TEXT, message=TEXT),
        "failed": rows(run=TEXT, type=TEXT, message=TEXT, hint=maybe(TEXT)),
        "interrupted": YES,
    },
    "plan": {
        "runs": rows(
            run=TEXT, layout=TEXT, method=TEXT, tasks=NUMBER, source_bytes=NUMBER, directory_bytes=NUMBER, offers=OFFERS
        ),
        "pack": maybe(
            table(
                runs=NUMBER,
                tasks=NUMBER,
                bytes=NUMBER,
                error_bytes=NUMBER,
                own_bytes=NUMBER,
                shared_bytes=NUMBER,
                other_bytes=NUMBER,
                bytes_per_task=NUMBER,
                source_bytes=NUMBER,
                directory_bytes=NUMBER,
                commands={"type": "array", "items": {"type": "array", "items": TEXT, "minItems": 1}},
            )
        ),
        "warnings": rows(run=TEXT, message=TEXT),
        "failed": rows(run=TEXT, type=TEXT, message=TEXT, hint=maybe(TEXT)),
    },
    "decode": {
        "task": TEXT,
        "out": TEXT,
        "to": {"enum": ["run", "safetensors", "peft", "adapterhub"]},
        "notes": {"type": "array", "items": TEXT},
        "codec": TEXT,
        "exact": YES,
        "decoded_sha256": SHA256,
        "files": FILES,
        "bytes": NUMBER,
        "seconds": SECONDS,
    },
    "list": {"pack": TEXT, "tasks": rows(name=TEXT, bytes=NUMBER)},
    "show": {
        "name": TEXT,
        "method": TEXT,
        "layout": maybe(TEXT),
        "codec": TEXT,
        "exact": YES,
        "bytes": NUMBER,
        "payload_bytes": NUMBER,
        "run_bytes": NUMBER,
        "tensors": table(count=NUMBER, unchanged=NUMBER, aliases=NUMBER, stored=NUMBER),
        "base": maybe(table(name=maybe(TEXT), tensors=NUMBER)),
        "sections": rows(
            name=TEXT, coder=TEXT, dtype=TEXT, elements=NUMBER, bytes=NUMBER, bits_per_element=maybe(SECONDS)
        ),
        "rule": maybe(table(kind=TEXT, settings={"type": "object"}, formula={"type": "array", "items": TEXT})),
        "facts": {"type": "object"},
        "files": FILES,
        "shared": rows(sha256=SHA256, bytes=NUMBER, holds={"type": "array", "items": TEXT}),
        "decoded_sha256": SHA256,
    },
    "stats": {
        "pack": TEXT,
        "disk_bytes": NUMBER,
        "other_bytes": NUMBER,
        "damaged_bytes": NUMBER,
        "tasks": rows(
            name=TEXT,
            method=TEXT,
            layout=TEXT,
            codec=TEXT,
            exact=YES,
            error=maybe(SECONDS),
            bytes=table(
                payload=NUMBER, head=NUMBER, files=NUMBER, header=NUMBER, total=NUMBER, share=NUMBER, takes=NUMBER
            ),
            run_bytes=NUMBER,
            dense_bytes=maybe(NUMBER),
            base=maybe({"enum": ["task", "encoder", "option", "pack"]}),
            score=maybe(table(metric=TEXT, value={"type": "number"})),
            shared={"type": "array", "items": SHA256},
            figures=FIGURES,
        ),
        "shared": rows(sha256=SHA256, bytes=NUMBER, role=TEXT, tasks=NUMBER, used_by={"type": "array", "items": TEXT}),
        "amortized": rows(
            tasks=NUMBER,
            bytes_per_task=NUMBER,
            run_bytes_per_task=NUMBER,
            lora_bytes_per_task=maybe(NUMBER),
            dense_bytes_per_task=maybe(NUMBER),
        ),
        "next_task": table(bytes=maybe(NUMBER), at_least=maybe(NUMBER)),
        "break_even": table(
            dense=maybe(NUMBER),
            lora=maybe(NUMBER),
            runs=maybe(NUMBER),
            methods=rows(method=TEXT, against=TEXT, tasks=maybe(NUMBER)),
        ),
        "base_bytes": maybe(NUMBER),
        "dense_bytes": maybe(SECONDS),
        "lora": table(rank=NUMBER, bytes=maybe(SECONDS)),
        "damaged": {"type": "object", "additionalProperties": TEXT},
    },
    "verify": {
        "pack": TEXT,
        "checked": rows(
            name=TEXT,
            kind={"enum": ["task", "shared"]},
            depth={"enum": ["bytes", "decoded", "compared"]},
            ok=YES,
            error=maybe(ERROR),
        ),
        "damaged": NUMBER,
    },
    "remove": {"pack": TEXT, "removed": rows(name=TEXT, bytes=NUMBER), "bytes": NUMBER},
    "gc": {"pack": TEXT, "dry_run": YES, "files": FILES, "bytes": NUMBER},
    "codecs": {"codecs": rows(id=TEXT, exact=YES, description=TEXT)},
}
"""What --json prints, besides "schema_version"."""


@pytest.fixture(params=COMMANDS)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a command, one after another."""
    return str(request.param)


def load(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def test_json_is_one_object_of_the_stated_schema(name: str, place: Path, pack: Path, tmp_path: Path) -> None:
    code, answer = run_json(name, *invocation(name, place, pack, tmp_path / "out"))
    assert code == 0
    jsonschema.validate(answer, table(schema_version={"const": 1}, **SCHEMAS[name]))


MASK = [option for setting in METHOD_SETTINGS.items() for option in ("--set", "=".join(setting))]
"""Options with which the run of codec mask is encoded."""
LOSSY_ULP = ["--density", "0.1", "--codec", "ulp"]
METHOD_TASKS = {"mask.a": "mask", "mask.b": "mask", "hyper.a": "hyper", "hyper.b": "hyper", "merge": "merge"}
ON_METHODS: dict[str, list[str]] = {
    "encode": ["encode", "{methods}/mask", "--pack", "{tmp}/q", *MASK],
    "encode on a base": ["encode", "{methods}/hyper", "--pack", "{tmp}/q", "--base", "{methods}/t5"],
    "encode for the accounting": ["encode", "{methods}/merge", "--pack", "{tmp}/q", "--base", "{methods}/t5"],
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
        assert result.stderr == ""


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
    assert "no pack at" in run("stats", tmp_path / "nothing", "--quiet").stderr


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
    heavy = ("numpy", "torch", "rich", "transformers", "zstandard", "pcodec", "filelock", "petlpack.encoding")
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
    from petlpack.layouts.registry import settings
    from petlpack.loading import TARGETS

    if command == "decode":
        assert set(TARGETS) <= set(re.findall(r"[a-z]+", text))
        return
    named = re.search(r"--set KEY=VALUE[^:]*: ([^.]*)\.", text)
    assert named is not None
    assert (
        set(re.findall(r"[a-z_]+", named[1])) <= settings().keys()
    )  # those of a layout from outside stand in an error


PREFIX = ["encode", "run", "--pack", "p"]


@pytest.mark.parametrize(
    "said", [["--bake"], ["--set", "bake=true"], ["--bake", "--set", "bake=true"], ["--set", "bake=true", "--bake"]]
)
def test_a_flag_is_short_for_a_setting(said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    method_runs.write_propetl_roberta(Path("run"), "sst2", kind="prefix", keep=0.5)
    for others in ([], ["--set", "keep_experts=false"]):
        for line in ([*PREFIX, *said, *others], [*PREFIX, *others, *said]):
            assert run(*line, "--replace").exit_code == 0, line
            assert petlpack.open("p")["run"].facts.options == {"bake": True}
    refused = run(*PREFIX, *said, "--set", "bake=false")
    assert (refused.exit_code, "--set gives bake two values" in refused.stderr) == (2, True)
    refused = run(*PREFIX, "--set", "bake=false", *said)
    assert (refused.exit_code, "--set gives bake two values" in refused.stderr) == (2, True)
    assert "neither true nor false" in run(*PREFIX, "--set", "bake=yes", "--replace").stderr


def test_some_runs_that_fail_are_3_and_do_not_stop_the_rest(place: Path, tmp_path: Path) -> None:
    given: list[str | Path] = [place / "sst2", tmp_path / "nothing", place / "rte", "--base", place / "base", "--pack"]
    code, answer = run_json("encode", *given, tmp_path / "q")
    assert code == 3
    assert [task["name"] for task in answer["tasks"]] == ["sst2", "rte"]
    assert [(one["run"], one["type"]) for one in answer["failed"]] == [(str(tmp_path / "nothing"), "RunError")]
    result = run("encode", *given, tmp_path / "r")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"Error: {tmp_path / 'nothing'}: no run at ")
    assert sorted(petlpack.open(tmp_path / "r")) == ["rte", "sst2"]


@pytest.mark.parametrize("replace", [[], ["--replace"]])
def test_runs_of_one_name_are_refused_even_to_replace(replace: list[str], place: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(place / "rte", tmp_path / "other" / "SST2"))
    code, answer = run_json(
        "encode", place / "sst2", twin, "--base", place / "base", "--pack", tmp_path / "q", *replace
    )
    assert code == 3
    assert [task["name"] for task in answer["tasks"]] == ["sst2"]
    assert str(place / "sst2") in answer["failed"][0]["message"]
    assert "--task" in answer["failed"][0]["hint"]


def test_the_base_is_opened_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    original = petlpack.Base

    def open_base(path: Path) -> petlpack.Base:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(petlpack, "Base", open_base)
    assert run("encode", place / "sst2", place / "rte", "--base", place / "base", "--pack", tmp_path).exit_code == 0
    assert opened == [place / "base"]


@pytest.mark.parametrize("given", [[], ["sst2"]])
def test_damage_is_4_and_names_the_part(given: list[str], pack: Path) -> None:
    path = damage(pack, "sst2")
    result = run("verify", pack, *given)
    assert result.exit_code == 4
    assert result.stdout.startswith(f"task 'sst2': '{path}'")
    assert "Damage in 1 of" in result.stdout
    assert "Damage" not in run("verify", pack, *given, "-q").stdout
    code, answer = run_json("verify", pack, *given)
    assert (code, answer["damaged"]) == (4, 1)
    assert [one["error"]["type"] for one in answer["checked"] if not one["ok"]] == ["DamageError"]


def test_another_base_is_5_for_verify_and_no_damage(place: Path, pack: Path) -> None:
    result = run("verify", pack, "--base", place / "rte")
    assert (result.exit_code, result.stderr) == (5, "")
    assert result.stdout.startswith(f"task 'rte': base '{place / 'rte'}' has no tensor ")
    assert "2 tasks of another base: every byte checked, no weight decoded.\n" in result.stdout
    assert "1 task: every byte checked and every weight decoded.\n" in result.stdout
    assert "No damage in 8 parts.\n" in result.stdout  # tasks, templates, the base's table, config and adapter_config
    code, answer = run_json("verify", pack, "--base", place / "rte")
    assert (code, answer["damaged"]) == (5, 0)
    assert [one["error"]["type"] for one in answer["checked"] if not one["ok"]] == ["BaseError", "BaseError"]
    damage(pack, "sst2")
    code, answer = run_json("verify", pack, "--base", place / "rte")
    assert (code, answer["damaged"]) == (4, 1)


@pytest.mark.parametrize("command", ["stats", "list"])
def test_tables_go_on_past_damage_with_4(command: str, pack: Path) -> None:
    (pack / "tasks" / "sst2.petl.safetensors").write_bytes(b"not much")
    given: list[str | Path] = [command, pack, *(["--long"] if command == "list" else [])]
    result = run(*given)
    assert result.exit_code == 4
    assert "rte" in result.stdout
    assert result.stderr.startswith("Error: sst2: ")
    code, answer = run_json(*given)
    assert code == 4
    assert "sst2" in json.dumps(answer)


def test_stats_tell_the_bytes_of_damaged_tasks_apart(pack: Path) -> None:
    (pack / "tasks" / "adapter.petl.safetensors").write_bytes(b"x" * 1234)
    text = run("stats", pack).stdout
    assert re.search(r"^1 damaged task +1\.2 kB +1,234$", text, re.MULTILINE)
    assert re.search(r"^pack.json and other files +37 B +37$", text, re.MULTILINE)
    assert "parts that no readable task needs" in text
    assert "(gc)" not in text
    (pack / "tasks" / "adapter.petl.safetensors").unlink()
    text = run("stats", pack).stdout
    assert "parts that no task needs (gc)" in text
    assert "damaged" not in text


@pytest.mark.parametrize(("command", "code"), [(["stats"], 7), (["list", "--long"], 7)])
def test_tables_go_on_past_a_codec_of_a_newer_version(command: list[str], code: int, pack: Path) -> None:
    rewrite(pack, "sst2", codec="novel")
    result = run(*command, pack)
    assert result.exit_code == code
    assert re.search(r"^rte +", result.stdout, re.MULTILINE)
    assert result.stderr.startswith("Error: sst2: unknown codec 'novel'")
    assert ("cannot be read" in result.stdout) == (command[0] == "list")
    code_again, answer = run_json(*command, pack)
    assert code_again == code
    assert "unknown codec 'novel'" in json.dumps(answer)


@pytest.mark.parametrize("nbytes", [10**400, 2**63, -5, True, "many", None], ids=lambda nbytes: str(nbytes)[:20])
def test_a_fact_that_makes_no_sense_is_not_known(nbytes: object, pack: Path) -> None:
    rewrite(pack, "sst2", facts={**petlpack.open(pack)["sst2"].manifest.facts, "run_bytes": nbytes})
    result = run("list", pack, "--long")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"^sst2 +full fine-tune +ulp +\? +[0-9.]+ k?B +-$", result.stdout, re.MULTILINE)
    known = {row["name"]: row["run_bytes"] for row in run_json("list", pack, "--long")[1]["tasks"]}
    assert known["sst2"] is None
    assert known["rte"] > 0


NONSENSE = [5, "x", [], [{}], None, {"a": [1]}, True, -1, 10**400, 1e308]


@pytest.mark.parametrize(
    "fact",
    [
        "figures",
        "options",
        "layout",
        "method",
        "task",
        "exact",
        "density",
        "error",
        "run_bytes",
        "whole",
        "score",
        "note",
    ],
)
@pytest.mark.parametrize("task", ["mask.a", "merge", "sst2"])
def test_no_fact_is_trusted(fact: str, task: str, place: Path, methods: Path, tmp_path: Path) -> None:
    origin = place if task == "sst2" else methods
    pack = Path(shutil.copytree(origin / "p", tmp_path / "p"))
    run_dir = origin / task.partition(".")[0]
    known = petlpack.open(pack)[task].manifest.facts
    inner = [{"trained": value, "kept": value, "base": value} for value in NONSENSE] if fact == "figures" else []
    if fact == "options":
        inner = [dict.fromkeys(("combine", "activation", "keep_experts", "bake"), value) for value in NONSENSE]
    for value in [*NONSENSE, *inner]:
        rewrite(pack, task, facts={**known, fact: value})
        commands: list[list[str | Path]] = [
            ["show", pack, task],
            ["stats", pack],
            ["list", pack, "--long"],
            ["verify", pack, task, "--base", place / "base", "--against", run_dir],
            ["decode", pack, task, tmp_path / "out", "--base", place / "base", "--to", "safetensors"],
        ]
        for given in commands:
            for form in ([], ["--json"]):
                result = run(*given, *form)
                shutil.rmtree(tmp_path / "out", ignore_errors=True)
                told = f"{fact} {value!r:.40}: {given[0]}: {result.output}"
                assert "internal error" not in result.output, told
                if given[0] != "verify":  # which reads the run again by what the facts say
                    assert result.exit_code == 0, told


@pytest.mark.parametrize("holds", ["template", "base digests", "config.json", "19 tensors"])
def test_a_missing_shared_part_of_any_kind_is_4_for_show(holds: str, methods: Path, tmp_path: Path) -> None:
    pack = Path(shutil.copytree(methods / "p", tmp_path / "p"))
    parts = run_json("show", pack, "hyper.a")[1]["shared"]
    assert len(parts) == 4
    (sha256,) = (part["sha256"] for part in parts if part["holds"] == [holds])
    (pack / "shared" / f"{sha256}.petl.safetensors").unlink()
    result = run("show", pack, "hyper.a")
    assert result.exit_code == 4
    assert result.stderr.startswith(f"Error: shared part {sha256} is missing from pack ")
    assert run_json("show", pack, "hyper.a")[1]["error"]["type"] == "DamageError"
    code, answer = run_json("verify", pack, "--base", methods / "t5")
    assert (code, answer["damaged"]) == (4, 2)
    assert {one["name"] for one in answer["checked"] if not one["ok"]} == {"hyper.a", "hyper.b"}


@pytest.mark.parametrize("kept", [True, False])
def test_a_missing_shared_part_is_4_for_show(kept: bool, pack: Path) -> None:
    parts = run_json("show", pack, "sst2")[1]["shared"]
    assert [part["holds"] for part in parts] == [["template"], ["base digests"], ["config.json"]]
    sha256 = next(part["sha256"] for part in parts if part["holds"] == (["config.json"] if kept else ["template"]))
    (pack / "shared" / f"{sha256}.petl.safetensors").unlink()
    result = run("show", pack, "sst2")
    assert result.exit_code == 4
    assert result.stderr.startswith(f"Error: shared part {sha256} is missing from pack ")
    assert run_json("show", pack, "sst2")[1]["error"]["type"] == "DamageError"


def test_a_damaged_task_is_4_for_show_and_decode(place: Path, pack: Path, tmp_path: Path) -> None:
    (pack / "tasks" / "sst2.petl.safetensors").write_bytes(b"not much")
    assert run("show", pack, "sst2").exit_code == 4
    damage(pack, "rte")
    assert run("decode", pack, "rte", tmp_path / "out", "--base", place / "base").exit_code == 4
    assert not (tmp_path / "out").exists()


def test_a_locked_pack_is_6(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0.05)
    with filelock.FileLock(pack / ".lock"):
        result = run("remove", pack, "sst2")
        assert (result.exit_code, run_json("gc", pack)[1]["error"]["type"]) == (6, "LockedError")
    assert "locked" in result.stderr
    assert run("remove", pack, "sst2").exit_code == 0


def test_a_newer_pack_is_7(pack: Path) -> None:
    (pack / "pack.json").write_text('{"format": "petlpack", "version": 2}', encoding="utf-8")
    result = run("list", pack)
    assert result.exit_code == 7
    assert "upgrade" in result.stderr


# Interrupts, broken pipes, full disks, bugs


@posix
def test_an_interrupt_that_python_ignores_is_raised_again() -> None:
    program = (
        "import sys, time\nfrom petlpack_cli import app, main\nclass Ends:\n    def __del__(self):\n"
        "        raise KeyboardInterrupt\ndef wait(**_):\n    Ends()\n"
        "    while True:\n        time.sleep(0.01)\n"
        "app.cli.main = wait\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@posix
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_an_interrupt_at_work_is_130_and_leaves_nothing_half_written(
    as_json: list[str], place: Path, pack: Path
) -> None:
    before = sorted(path.name for path in (pack / "tasks").iterdir())
    task: list[str | Path] = [place / "sst2", "--task", "again", "--base", place / "base"]
    with filelock.FileLock(pack / ".lock"):  # so that it cannot be done before it is interrupted
        process = subprocess.Popen(
            command_line("encode", *task, "--pack", pack, *as_json),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not list((pack / "tasks").glob(".tmp-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=50)
    assert process.returncode == 130
    if as_json:
        assert json.loads(stdout)["error"]["type"] == "Interrupted"
        assert stderr == ""
    else:
        assert (stdout, stderr) == ("", "interrupted\n")
    assert sorted(path.name for path in (pack / "tasks").iterdir()) == before


def test_an_interrupt_keeps_what_is_known_of_finished_tasks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = petlpack.encode

    def encode(run_dir: Path, **options: Any) -> list[petlpack.Encoded]:
        if run_dir.name == "rte":
            raise KeyboardInterrupt
        return original(run_dir, **options)

    monkeypatch.setattr(petlpack, "encode", encode)
    runs = [place / name for name in ("sst2", "rte", "adapter")]
    code, answer = run_json("encode", *runs, "--base", place / "base", "--pack", tmp_path / "q")
    assert (code, answer["interrupted"]) == (130, True)
    assert [task["name"] for task in answer["tasks"]] == ["sst2"]
    jsonschema.validate(answer, table(schema_version={"const": 1}, **SCHEMAS["encode"]))
    result = run("encode", *runs, "--base", place / "base", "--pack", tmp_path / "r")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert re.search(r"^sst2 +full fine-tune", result.stdout, re.MULTILINE)
    assert list(petlpack.open(tmp_path / "r")) == ["sst2"]


@posix
@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["list", "-q"], ["codecs"], ["verify"]])
def test_a_closed_pipe_is_silent(arguments: list[str], place: Path) -> None:
    given: list[str | Path] = [place / "p"] if arguments[0] != "codecs" else []
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command_line(*arguments, *given), env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["codecs"], ["codecs", "--json"], ["codecs", "-q"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_an_error(arguments: list[str], unbuffered: str) -> None:
    env = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command_line(*arguments), env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No space left on device: 'standard output'\nHint: ")
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"No space left on device: '.*q'", "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), r"Permission denied: '/x'", "permissions"),
        (
            OSError(errno.EROFS, "Read-only file system", f"/{ESC}"),
            r"Read-only file system: '/\\x1b\[31m'",
            "read-only",
        ),
        (MemoryError(), "not enough memory", "--jobs"),
        (ZeroDivisionError("oh\nno"), r"internal error: ZeroDivisionError: oh\\nno", "--debug and report it"),
        (AssertionError(), "internal error: AssertionError", "--debug and report it"),
    ],
)
def test_whatever_goes_wrong_is_one_line_and_a_hint(
    error: Exception, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(petlpack, "encode", fail)
    given: list[str | Path] = ["encode", "x", "--pack", tmp_path / "q"]
    result = run(*given)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(rf"Error: {message}\nHint: [^\n]*{hint}[^\n]*\n", result.stderr)
    code, answer = run_json(*given)
    assert (code, set(answer)) == (1, {"schema_version", "error"})
    for debug in (["--debug", *given], [*given, "--debug"]):
        result = run(*debug)
        assert result.exit_code == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert re.search(rf"^Error: {message}$", result.stderr, re.MULTILINE)
    result = run(*given, "y", "--debug")
    assert result.exit_code == 3
    assert result.stderr.count("Traceback (most recent call last)") == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_pack_is_an_error_that_names_the_file(place: Path, pack: Path) -> None:
    (pack / "tasks").chmod(0o500)
    try:
        result = run("encode", place / "sst2", "--task", "x", "--base", place / "base", "--pack", pack)
    finally:
        (pack / "tasks").chmod(0o700)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: Permission denied: '{pack}")


# What commands do


def test_encode_says_what_it_did_and_what_it_left_out(place: Path, tmp_path: Path) -> None:
    result = run("encode", place / "sst2", place / "adapter", "--base", place / "base", "--pack", tmp_path / "q")
    lines = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert lines[0] == ["Task", "Method", "Codec", "From", "To", "From / to"]
    assert lines[2][:3] == ["sst2", "full fine-tune", "ulp"]
    assert lines[3][:3] == ["adapter", "lora", "plain"]
    assert ["training state, not needed for inference", "2", "20 B"] in lines
    code, answer = run_json("encode", place / "rte", "--base", place / "base", "--pack", tmp_path / "q")
    assert code == 0
    (task,) = answer["tasks"]
    assert task["bytes"] == (tmp_path / "q" / "tasks" / "rte.petl.safetensors").stat().st_size
    assert {part["sha256"]: part["bytes"] for part in answer["shared"]}.items() <= {
        path.name.partition(".")[0]: path.stat().st_size for path in (tmp_path / "q" / "shared").iterdir()
    }.items()
    assert {(left["file"], left["bytes"]) for left in answer["left_out"]} == {
        ("optimizer.pt", 12),
        ("training_args.bin", 8),
        ("notes.txt", 2),
    }


def test_a_run_of_several_tasks_becomes_as_many(methods: Path, tmp_path: Path) -> None:
    code, answer = run_json("encode", methods / "mask", "--pack", tmp_path / "q", *MASK)
    assert code == 0
    assert [(task["name"], task["codec"], task["exact"]) for task in answer["tasks"]] == [
        ("mask.a", "mask", True),
        ("mask.b", "mask", True),
    ]
    assert {task["run"] for task in answer["tasks"]} == {str(methods / "mask")}
    for task in answer["tasks"]:
        assert task["bytes"] == (tmp_path / "q" / "tasks" / f"{task['name']}.petl.safetensors").stat().st_size
    stored = {path.name.partition(".")[0]: path.stat().st_size for path in (tmp_path / "q" / "shared").iterdir()}
    assert {part["sha256"]: part["bytes"] for part in answer["shared"]} == stored
    assert len(answer["shared"]) == len(stored) == 3  # template, tensors, config.json; each is told once
    left = [(row["run"], row["file"]) for row in answer["left_out"]]
    assert len(left) == len(set(left)), "a file that was left out once is told twice"
    lines = [re.split(r"\s{2,}", line.strip()) for line in run("show", tmp_path / "q", "mask.a").stdout.splitlines()]
    assert ["Layout", "propetl-t5"] in lines
    facts = run_json("show", tmp_path / "q", "mask.a")[1]
    assert facts["facts"]["options"] == METHOD_SETTINGS
    assert facts["facts"]["task"] == "a"
    assert facts["rule"]["kind"] == "adapter"
    assert facts["rule"]["settings"]["activation"] == "gelu_new"
    assert any(" or " in line for line in facts["rule"]["formula"])
    assert facts["tensors"]["stored"] == 2
    assert run_json("verify", tmp_path / "q", "mask.a", "--against", methods / "mask")[1]["damaged"] == 0
    named = run_json("encode", methods / "mask", "--pack", tmp_path / "q", "--task", "other", *MASK)[1]
    assert [task["name"] for task in named["tasks"]] == ["other.a", "other.b"]
    assert {path.name.partition(".")[0] for path in (tmp_path / "q" / "shared").iterdir()} == set(stored)


def test_a_setting_that_nothing_depends_on_is_warned_of_once_a_run(methods: Path, tmp_path: Path) -> None:
    given: list[str | Path] = ["encode", methods / "mask", methods / "merge", "--pack", tmp_path / "q", "--replace"]
    given += ["--set", "combine=or", "--set", "activation=gelu", "--set", "keep_ratio=0.3"]
    result = run(*given)
    assert result.exit_code == 0
    said = sorted(line for line in result.stderr.splitlines() if line.startswith("Warning: "))
    assert [re.findall(r"(mask|merge): .*--set ([a-z_]+)", line) for line in said] == [
        [("mask", "keep_ratio")],
        [("merge", "combine")],
        [("merge", "keep_ratio")],
    ]
    code, answer = run_json(*given)
    assert code == 0
    assert len(answer["warnings"]) == 3
    assert run(*given, "-q").stderr == ""


def test_what_has_no_rule_shows_none(place: Path) -> None:
    facts = run_json("show", place / "p", "sst2")[1]
    assert facts["rule"] is None
    assert facts["facts"]["layout"] == "transformers"
    assert "Rebuilt as" not in run("show", place / "p", "sst2").stdout


@pytest.mark.parametrize("task", METHOD_TASKS)
def test_decode_writes_for_other_libraries_and_says_what_is_lost(task: str, methods: Path, tmp_path: Path) -> None:
    given: list[str | Path] = ["decode", methods / "p", task]
    base: list[str | Path] = ["--base", methods / "t5"]
    code, whole = run_json(*given, tmp_path / "run", *base)
    assert (code, whole["to"], len(whole["notes"])) == (0, "run", int(task.startswith("mask")))
    code, answer = run_json(*given, tmp_path / "tensors", "--to", "safetensors")  # the rule needs no base
    assert (code, answer["to"]) == (0, "safetensors")
    assert [row["file"] for row in answer["files"]] == ["model.safetensors"]
    code, answer = run_json(*given, tmp_path / "hub", "--to", "adapterhub", *base)
    assert (code, answer["to"]) == (0, "adapterhub")
    assert {"adapter_config.json", "pytorch_adapter.bin"} <= {row["file"] for row in answer["files"]}
    loud, quiet = (
        run(*given, tmp_path / name, "--to", "adapterhub", *base, *q) for name, q in (("l", []), ("q", ["-q"]))
    )
    assert loud.stderr.count("Warning: ") == len(answer["notes"])
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert "bit for bit" not in loud.stdout
    assert bool(answer["notes"]) == task.startswith("hyper")


def test_a_sparse_fine_tune_of_a_density_is_not_exact_and_says_so(place: Path, tmp_path: Path) -> None:
    given: list[str | Path] = ["encode", place / "sst2", "--pack", tmp_path / "q", "--base", place / "base"]
    code, answer = run_json(*given, "--density", "0.05")
    assert code == 0
    (task,) = answer["tasks"]
    assert (task["codec"], task["exact"]) == ("sparse", False)
    facts = run_json("show", tmp_path / "q", "sst2")[1]
    assert facts["exact"] is False
    assert facts["facts"]["density"] == pytest.approx(0.05, rel=0.02)
    assert facts["facts"]["error"]
    result = run("decode", tmp_path / "q", "sst2", tmp_path / "out", "--base", place / "base")
    assert "bit for bit" not in result.stdout
    assert "exact to the bit" not in run("show", tmp_path / "q", "sst2").stdout


def test_encode_warns_on_stderr(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "sst2", tmp_path / "out" / "checkpoint-1")
    (tmp_path / "out" / "checkpoint-2").mkdir()
    (tmp_path / "out" / "checkpoint-2" / "config.json").write_text("{}", encoding="utf-8")
    given: list[str | Path] = [
        "encode",
        tmp_path / "out",
        "--base",
        place / "base",
        "--replace",
        "--pack",
        tmp_path / "q",
    ]
    assert run(*given).stderr.startswith(f"Warning: {tmp_path / 'out'}: skipped a half-written checkpoint")
    assert run(*given, "-q").stderr == ""
    assert "half-written" in run_json(*given)[1]["warnings"][0]["message"]


def test_decode_gives_the_run_back(place: Path, pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    code, answer = run_json("decode", pack, "sst2", out, "--base", place / "base", "--jobs", "1")
    assert code == 0
    assert {row["file"]: row["bytes"] for row in answer["files"]} == {
        path.name: path.stat().st_size for path in out.iterdir()
    }
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (place / "sst2" / file).read_bytes()
    assert answer["decoded_sha256"] == run_json("show", pack, "sst2")[1]["decoded_sha256"]


def test_list_is_by_name_or_the_biggest_first(pack: Path) -> None:
    names = [row["name"] for row in run_json("list", pack)[1]["tasks"]]
    assert names == sorted(names) == run("list", pack, "-q").stdout.split()
    sizes = [row["bytes"] for row in run_json("list", pack, "--sort", "bytes")[1]["tasks"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes == [row["bytes"] for row in run_json("list", pack, "--sort", "bytes", "--long")[1]["tasks"]]


def test_list_of_a_thousand_is_whole_and_in_order(pack: Path) -> None:
    octets = (pack / "tasks" / "sst2.petl.safetensors").read_bytes()
    names = sorted([f"task-{i:04}" for i in range(1000)] + ["sst2", "rte", "adapter", LONG, "x" * 25, "y" * 24])
    for name in names:
        (pack / "tasks" / f"{name}.petl.safetensors").write_bytes(octets)
    lines = run("list", pack).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:-2]] == names
    assert {line.rstrip()[-2:] for line in lines[2:-2]} == {"kB"}
    assert lines[-1].startswith("1,006 tasks")
    assert run("list", pack, "-q").stdout.split() == names


def test_long_names_are_folded_not_lost(place: Path, tmp_path: Path) -> None:
    run("encode", place / "sst2", "--task", LONG, "--base", place / "base", "--pack", tmp_path)
    for command in (["list"], ["list", "--long"], ["stats"]):
        result = run(*command, tmp_path, env={"COLUMNS": "80"})
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert LONG in "".join(line.split("  ")[0].strip() for line in lines)
        assert LONG in run(*command, tmp_path).stdout  # whole in a pipe


BAR = "".join(bar(part, 8, 1) for part in range(9))


@pytest.mark.parametrize("width", [10, 40, 60, 79, 80, 81, 82, 120])
@pytest.mark.parametrize("command", [["list"], ["list", "--long"], ["stats"], ["encode"]])
def test_numbers_stand_beside_the_name_of_their_task(
    command: list[str], width: int, place: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["q", "distilbert-sst2-seed42", "llama-lora-r16-alpaca-1", "distilbert-mnli-seed7", "x" * 24, "y" * 25]
    arguments: list[str | Path] = [*command, pack]
    if command == ["encode"]:
        (encoded,) = petlpack.encode(place / "sst2", tmp_path / "q", place / "base")
        monkeypatch.setattr(petlpack, "encode", lambda run, **_: [dataclasses.replace(encoded, name=run.name)])
        arguments = [*command, *names]
    octets = (pack / "tasks" / "sst2.petl.safetensors").read_bytes()
    for name in names:
        (pack / "tasks" / f"{name}.petl.safetensors").write_bytes(octets)
    lines = run(*arguments, env={"COLUMNS": str(width)}).stdout.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("\u2500")]
    shown: list[str] = []
    for line in lines[rules[0] + 1 : rules[1]]:
        line = line.rstrip(f"{BAR} ")
        name, *cells = re.split(r" {2,}", line)
        if cells:
            shown.append(name)
            assert not any("\u2026" in cell for cell in cells if re.match("[0-9.]", cell))
            assert re.search(r" \d+(\.\d)? k?B$|[0-9.]+x$|-$", line)
        else:
            shown[-1] += name
    assert {*names} <= {*shown} <= {*names, "sst2", "rte", "adapter"}
    if width >= 80:
        assert max(map(len, lines[: rules[1]])) <= width


def test_show_counts_what_is_unchanged(place: Path, tmp_path: Path) -> None:
    tuned = make_pair(3)[0]
    base = make_base()
    unchanged = "embeddings.word_embeddings.weight"
    write_run(tmp_path / "frozen", {**tuned, f"bert.{unchanged}": base[unchanged]}, {"_name_or_path": "a/base"})
    run("encode", tmp_path / "frozen", "--base", place / "base", "--pack", tmp_path / "q")
    answer = run_json("show", tmp_path / "q", "frozen")[1]
    assert answer["tensors"] == {"count": 13, "unchanged": 1, "aliases": 0, "stored": 12}
    assert answer["base"] == {"name": "a/base", "tensors": 11}
    assert answer["payload_bytes"] == sum(row["bytes"] for row in answer["sections"]) < answer["bytes"]
    assert answer["files"] == [{"file": "config.json", "bytes": (tmp_path / "frozen" / "config.json").stat().st_size}]
    text = run("show", tmp_path / "q", "frozen").stdout
    assert "1 unchanged from the base" in text
    assert "11 tensors of it; the run called it 'a/base'" in text
    assert run_json("show", place / "p", "adapter")[1]["base"] is None


def test_stats_add_up_and_fold_many_tasks(pack: Path) -> None:
    octets = (pack / "tasks" / "sst2.petl.safetensors").read_bytes()
    for i in range(30):
        (pack / "tasks" / f"copy-{i}.petl.safetensors").write_bytes(octets)
    answer = run_json("stats", pack)[1]
    on_disk = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())
    told = sum(row["bytes"]["total"] for row in answer["tasks"]) + sum(row["bytes"] for row in answer["shared"])
    assert answer["disk_bytes"] == on_disk == told + answer["other_bytes"]
    text = run("stats", pack).stdout
    assert f"{on_disk:,}" in text
    assert "13 more (--all)" in text
    assert "From 2 tasks on smaller than dense models, the base counted once.\n" in text
    assert "more (--all)" not in run("stats", pack, "--all").stdout


def test_verify_says_how_deep_it_went(place: Path, pack: Path) -> None:
    shallow = run("verify", pack).stdout
    assert "2 tasks: every byte checked.\n" in shallow
    assert "1 task: every byte checked and every weight decoded.\n" in shallow
    assert "--base" in shallow
    deep = run("verify", pack, "--base", place / "base").stdout
    assert "3 tasks: every byte checked and every weight decoded.\n" in deep
    assert "--base" not in deep
    given: list[str | Path] = ["verify", pack, "sst2", "--base", place / "base", "--against"]
    assert "1 task: every weight decoded, and equal to what the run gives.\n" in run(*given, place / "sst2").stdout
    assert run(*given, place / "rte").exit_code == 4


def test_remove_is_all_or_nothing_and_gc_frees_what_is_left(place: Path, pack: Path) -> None:
    assert run("remove", pack, "sst2", "cola").exit_code == 1
    assert len(petlpack.open(pack)) == 3
    code, answer = run_json("remove", pack, "sst2", "adapter", "sst2")
    assert (code, [row["name"] for row in answer["removed"]]) == (0, ["sst2", "adapter"])
    promised = run_json("gc", pack, "--dry-run")[1]
    assert len(promised["files"]) == 2
    assert all((pack / row["file"]).exists() for row in promised["files"])
    done = run_json("gc", pack)[1]
    assert (done["files"], done["dry_run"]) == (promised["files"], False)
    assert not any((pack / row["file"]).exists() for row in done["files"])
    assert run("gc", pack).stdout == "Nothing to delete.\n"
    assert run("verify", pack, "--base", place / "base").exit_code == 0


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


@pytest.mark.skipif(not (DEMO / "runs").is_dir(), reason="the demo's runs are not there")
def test_the_demo_runs_come_back(tmp_path: Path) -> None:
    runs = sorted(path for path in (DEMO / "runs").iterdir() if path.is_dir())
    code, answer = run_json("encode", *runs, "--base", DEMO / "base", "--pack", tmp_path / "p", "--level", "fast")
    assert code == 0
    assert {Path(task["run"]).name for task in answer["tasks"]} == {run.name for run in runs}
    assert {task["method"].split()[0] for task in answer["tasks"]} >= {
        "PROPETL",
        "AdaMix",
        "diff",
        "PHA",
        "full",
        "lora",
    }
    for task in answer["tasks"]:
        name, source = task["name"], DEMO / "runs" / Path(task["run"]).name
        code, decoded = run_json("decode", tmp_path / "p", name, tmp_path / name, "--base", DEMO / "base")
        assert code == 0
        if task["codec"] in ("ulp", "sparse", "plain"):  # of the others a task is not the whole run
            for row in decoded["files"]:
                assert (tmp_path / name / row["file"]).read_bytes() == (source / row["file"]).read_bytes()


# Terminals


def terminal(*arguments: str | Path, **env: str) -> str:
    """Run in a terminal of 80 columns; returns what it shows, stdout and stderr together."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command_line(*arguments),
        env={**ENVIRONMENT, "TERM": "xterm-256color", **env},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            octets = os.read(master, 65536)
        except OSError:
            break
        if not octets:
            break
        shown += octets
    os.close(master)
    process.wait(60)
    return shown.decode()


COLOR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


@posix
def test_a_terminal_gets_progress_and_quiet_does_not(place: Path, pack: Path) -> None:
    given: list[str | Path] = ["verify", pack, "--base", place / "base"]
    assert "━" in terminal(*given)
    assert COLOR.search(terminal(*given))
    assert not COLOR.search(terminal(*given, NO_COLOR="1"))
    assert "━" not in terminal(*given, "--quiet")
    assert "gc" in terminal("remove", pack, "sst2")
    assert "gc" not in terminal("remove", pack, "rte", "-q")


@posix
def test_hostile_names_reach_neither_terminal_nor_pipe(place: Path, tmp_path: Path) -> None:
    hostile = Path(shutil.copytree(place / "sst2", tmp_path / f"{ESC}run"))
    (hostile / f"{ESC}[link=evil]notes.txt").write_bytes(b"x")
    (hostile / "config.json").write_text(json.dumps({"_name_or_path": f"{ESC}[red]base\u202e"}), encoding="utf-8")
    adapter = write_adapter(tmp_path / "adapter", f"[red]{ESC}lo\nra")
    pack, base = tmp_path / f"{ESC}p", place / "base"
    results = [
        run("encode", hostile, adapter, hostile / "nothing", "--base", base, "--pack", pack),
        run("encode", hostile, "--task", "sst2", "--base", base, "--pack", pack),
        run("encode", hostile, "--task", f"{ESC}x", "--base", base, "--pack", pack),
        run("list", pack, "--long"),
        run("stats", pack),
        run("show", pack, "sst2"),
        run("show", pack, "adapter"),
        run("show", pack, f"{ESC}x"),
        run("decode", pack, "sst2", tmp_path / f"{ESC}out"),
        run("decode", pack, "sst2", tmp_path / f"{ESC}out", "--base", base),
        run("verify", pack, "sst2", "--base", base, "--against", f"{ESC}x"),
        run("remove", pack, f"{ESC}x"),
        run(f"{ESC}x"),
        run("list", f"--{ESC}x"),
    ]
    for result in results:
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
        assert "internal error" not in result.output
    assert "[red]" in results[6].stdout  # nor is it taken for rich's markup
    (pack / "tasks" / f"{ESC}evil.petl.safetensors").write_bytes(b"x")
    listed = run("list", pack).stdout
    assert "evil" not in listed  # no encoder gave that name, so it is no task
    assert "\x1b" not in listed


def test_json_keeps_names_as_they_are(place: Path, tmp_path: Path) -> None:
    name = f"caf\u00e9 [red]{ESC}" if os.name != "nt" else "caf\u00e9"
    source = Path(shutil.copytree(place / "sst2", tmp_path / name))
    answer = run_json("encode", source, "--task", "x", "--base", place / "base", "--pack", tmp_path / "q")[1]
    assert answer["tasks"][0]["run"] == str(source)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (438_000_000, "438.0 MB"),
        (14 * 10**9, "14.0 GB"),
        (5 * 10**19, "50000.0 PB"),
    ],
)
def test_sizes_are_decimal(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("before", "after", "text"), [(100, 50, "2.00x"), (100, 8, "12.5x"), (9000, 7, "1,286x"), (0, 5, "-"), (5, 0, "-")]
)
def test_ratios_have_three_digits(before: int, after: int, text: str) -> None:
    assert ratio(before, after) == text


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how the terminal that runs it is set up."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "PETLPACK_PACK"):
        monkeypatch.delenv(name, raising=False)
