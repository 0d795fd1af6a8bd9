"""What may not be read is told as that, by every command, and is no damage."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import run, run_json

DENIED: set[str] = set()
"""Names of files that may not be opened."""


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pack, the base and a run, of which some files may not be opened: root may open all others."""
    for name in ("p", "base", "sst2"):
        shutil.copytree(place / name, tmp_path / name)
    DENIED.clear()
    real, really = Path.open, builtins.open

    def refuse(path: Any) -> None:
        if isinstance(path, (str, Path)) and Path(path).name in DENIED:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def open_path(path: Path, *arguments: Any, **others: Any) -> Any:
        refuse(path)
        return real(path, *arguments, **others)

    def open_file(path: Any, *arguments: Any, **others: Any) -> Any:
        refuse(path)
        return really(path, *arguments, **others)

    opened = os.open

    def open_descriptor(path: Any, *arguments: Any, **others: Any) -> int:
        refuse(path)
        return opened(path, *arguments, **others)

    monkeypatch.setattr(os, "open", open_descriptor)
    monkeypatch.setattr(Path, "open", open_path)
    monkeypatch.setattr(builtins, "open", open_file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        *(
            "verify p",
            "verify p rte --base base",
            "list p --long",
            "stats p",
            "stats p --by task",
            "show p rte",
            "gc p",
        ),
        "decode p rte out --base base",
    ],
)
def test_a_task_that_may_not_be_read_is_not_called_damaged(here: Path, command: str) -> None:
    DENIED.add("rte.petl.safetensors")
    result = run(*command.split())
    assert result.exit_code == 1
    told = (result.stdout + result.stderr).replace("\n", " ")
    assert "Permission denied: 'p/tasks/rte.petl.safetensors'" in told.replace("\\", "/")
    assert "check the permissions" in told
    assert "amaged" not in told
    assert "Damage in 0" not in told


def test_verify_counts_what_may_not_be_read_apart(here: Path) -> None:
    DENIED.add("rte.petl.safetensors")
    code, answer = run_json("verify", "p")
    assert (code, answer["damaged"]) == (1, 0)
    (error,) = [row["error"] for row in answer["checked"] if row["error"] is not None]
    assert error["code"] == "os"
    text = run("verify", "p").stdout
    assert "1 part could not be compared or read: see above; that is no damage." in text
    assert "No damage in " in text


def test_a_run_to_compare_with_that_may_not_be_read_is_no_damage(here: Path) -> None:
    DENIED.add("model.safetensors")
    result = run("verify", "p", "adapter", "--against", "sst2")
    assert result.exit_code == 1
    assert "cannot be read: Permission denied" in result.stderr
    assert "amage" not in result.output


@pytest.mark.parametrize("command", ["encode sst2 --base base --pack new", "plan sst2 --base base"])
def test_weights_that_may_not_be_read_are_told_as_that(here: Path, command: str) -> None:
    DENIED.add("model.safetensors")
    result = run(*command.split())
    assert result.exit_code == 5  # the base is opened first
    assert "cannot be read: Permission denied" in result.stderr
    assert "Hint: check the file's permissions" in result.stderr
    assert not (here / "new").exists()


def test_the_best_checkpoint_is_not_passed_by_because_it_may_not_be_read(here: Path) -> None:
    for number, name in ((1, "model.safetensors"), (2, "pytorch_model.bin")):
        shutil.copytree(here / "sst2", here / "steps" / f"checkpoint-{number}")
        (here / "steps" / f"checkpoint-{number}" / "model.safetensors").rename(
            here / "steps" / f"checkpoint-{number}" / name
        )
    DENIED.add("pytorch_model.bin")
    result = run("encode", "steps", "--base", "base", "--pack", "new")
    assert result.exit_code == 1
    assert "checkpoint-2/pytorch_model.bin' cannot be read: Permission denied" in result.stderr.replace("\\", "/")
