"""The command line in this process and in others, what it prints as JSON, and packs of damage or of another version."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from petlpack import container
from petlpack.exports.registry import EXPORTS
from petlpack_cli.app import cli
from tests.support.small_runs import METHOD_SETTINGS, weights, write_run

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
DEMO = ROOT / "benchmarks" / "demo"
LONG = "a-task-whose-name-is-as-long-as-names-may-be-" + "x" * 83
ESC = "\x1b[31m"
posix = pytest.mark.skipif(os.name == "nt", reason="signals, terminals and such file names are POSIX")


def write_adapter(directory: Path, peft_type: str) -> Path:
    tensors = {"base_model.model.encoder.layer.0.attention.self.query.lora_A.weight": weights("F32", (4, 16), 1)}
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
    data = [container.EncodedSection(row.name, row.coder, row.dtype, row.count, sections.read(row)) for row in rows]
    with path.with_suffix(".new").open("wb") as file:
        container.write(
            file,
            [row.name for row in rows],
            opened.nbytes + 10_000,
            iter(data),
            lambda _: dataclasses.replace(opened.manifest, **changes),
        )
    path.with_suffix(".new").replace(path)


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


TEXTS = {"type": "array", "items": TEXT}
ERROR = table(type=TEXT, code=TEXT, message=TEXT, hint=maybe(TEXT))
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
            base=maybe(table(name=TEXT, path=TEXT, sha256=SHA256)),
        ),
        "shared": rows(sha256=SHA256, bytes=NUMBER),
        "left_out": rows(run=TEXT, file=TEXT, bytes=NUMBER, why=TEXT),
        "warnings": rows(run=TEXT, message=TEXT),
        "failed": rows(run=TEXT, type=TEXT, code=TEXT, message=TEXT, hint=maybe(TEXT)),
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
        "failed": rows(run=TEXT, type=TEXT, code=TEXT, message=TEXT, hint=maybe(TEXT)),
    },
    "decode": {
        "task": TEXT,
        "out": TEXT,
        "to": {"enum": list(EXPORTS)},
        "notes": {"type": "array", "items": TEXT},
        "codec": TEXT,
        "exact": YES,
        "decoded_sha256": SHA256,
        "files": FILES,
        "bytes": NUMBER,
        "seconds": SECONDS,
    },
    "list": {"pack": TEXT, "tasks": rows(name=TEXT, bytes=NUMBER), "foreign": {"type": "array", "items": TEXT}},
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
        "base": maybe(
            table(name=maybe(TEXT), tensors=NUMBER, path=maybe(TEXT), sha256=maybe(SHA256), needed=YES),
        ),
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
        "damaged": {"type": "object", "additionalProperties": ERROR},
    },
    "verify": {
        "pack": TEXT,
        "checked": rows(
            name=TEXT,
            kind={"enum": ["task", "shared", "sealed"]},
            depth={"enum": ["bytes", "decoded", "compared"]},
            notes={"type": "array", "items": TEXT},
            ok=YES,
            error=maybe(ERROR),
        ),
        "damaged": NUMBER,
        "foreign": TEXTS,
        "unexplained": TEXTS,
    },
    "remove": {"pack": TEXT, "removed": rows(name=TEXT, bytes=NUMBER), "bytes": NUMBER, "warnings": TEXTS},
    "gc": {
        **{"pack": TEXT, "dry_run": YES, "files": FILES, "bytes": NUMBER, "unexplained": FILES, "warnings": TEXTS},
    },
    "seal": {"pack": TEXT, "files": NUMBER, "bytes": NUMBER, "sha256": SHA256},
    "codecs": {"codecs": rows(id=TEXT, description=TEXT)},
    "survey": {
        **{"disk_bytes": NUMBER, "linked_bytes": NUMBER, "files": NUMBER},
        "kinds": rows(kind=TEXT, bytes=NUMBER, files=NUMBER),
        "runs": rows(
            path=TEXT,
            layout=maybe(TEXT),
            method=maybe(TEXT),
            total_bytes=NUMBER,
            bytes={"type": "object", "additionalProperties": NUMBER},
            checkpoints=NUMBER,
            base=maybe(TEXT),
            is_base=YES,
            equal_to_base_bytes=NUMBER,
            duplicated_bytes=NUMBER,
            score=maybe(table(metric=TEXT, value={"type": "number"})),
            problem=maybe(ERROR),
        ),
        "packs": rows(path=TEXT, bytes=NUMBER),
        "tensors": table(
            bytes=NUMBER,
            equal_to_base_bytes=NUMBER,
            duplicated_bytes=NUMBER,
            pickled_bytes=NUMBER,
            other_format_bytes=NUMBER,
            equal=rows(name=TEXT, bytes=NUMBER, copies=NUMBER, in_adapters=NUMBER),
        ),
        "duplicates": rows(file_bytes=NUMBER, extra_bytes=NUMBER, files={"type": "array", "items": TEXT}),
        "duplicate_bytes": NUMBER,
        "savings": table(
            training_state=NUMBER,
            duplicate_files=NUMBER,
            equal_to_base=NUMBER,
            duplicate_tensors=NUMBER,
            other_checkpoints=NUMBER,
            total=NUMBER,
        ),
        "unreadable": {"type": "object", "additionalProperties": ERROR},
        "problems": NUMBER,
        "error": maybe(ERROR),
    },
}
COST = table(bytes=NUMBER, bytes_per_task=NUMBER, monthly=maybe(SECONDS), transfer=maybe(SECONDS))
SCHEMAS["forecast"] = {
    **SCHEMAS["stats"],
    "forecast": table(
        rows=rows(tasks=NUMBER, days=maybe(SECONDS), pack=COST, lora=maybe(COST), dense=maybe(COST)),
        tasks_now=NUMBER,
        error=maybe(SECONDS),
        price_per_gb_month=maybe(SECONDS),
        egress_per_gb=maybe(SECONDS),
        growth_per_day=maybe(SECONDS),
    ),
}
"""What --json prints, besides "schema_version"."""


def load(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


MASK = [option for setting in METHOD_SETTINGS.items() for option in ("--set", "=".join(setting))]
"""Options with which the run of codec mask is encoded."""


LOSSY_ULP = ["--density", "0.1", "--codec", "ulp"]
METHOD_TASKS = {"mask.a": "mask", "mask.b": "mask", "hyper.a": "hyper", "hyper.b": "hyper", "merge": "merge"}
