"""What the files of a pack are called (formats/pack.md)."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from petlpack.errors import UsageError, printable

SUFFIX = ".petl.safetensors"
MARK = "pack.json"
INVENTORY = "inventory.json"
RELEASED = ".released"
LOCK = ".lock"
TEMPORARY = ".tmp-"
DIRECTORIES = ("tasks", "shared")
"""The directories that a pack has of its own."""

_LONGEST = 128
"""Characters of a task's name."""

_TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_task_name(name: str) -> str:
    """Return a name that is safe as a file name on every system; raises UsageError for any other."""
    if not can_be_task(name):
        raise UsageError(
            f"invalid task name '{printable(str(name))}': use 1-128 of A-Z a-z 0-9 . _ -",
            hint="choose a name with --task (task= in Python) that does not start with a dot and is no Windows device "
            "name",
            code="task-name",
        )
    return name


def legal_task_name(text: str) -> str:
    """Return a name for a task that is called by any text, a directory's name for one; a legal name stays as it is.

    Letters lose their accents, what no task name has becomes one hyphen, and none of these, nor a dot, stands at the
    start. What is too long is cut; that, a Windows device name, and what has nothing left end in a digest of the text.
    """
    if can_be_task(text) and not text.startswith("-"):
        return text
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    name = re.sub(r"-*(?:[^A-Za-z0-9._-]+-*)+", "-", letters).lstrip(".-").rstrip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    if len(name) > _LONGEST:
        return f"{name[: _LONGEST - 9]}-{digest}"
    stem, dot, rest = name.partition(".")
    return name if can_be_task(name) else f"{stem or 'unnamed'}-{digest}{dot}{rest}"[:_LONGEST]


def task_file(name: str) -> str:
    """Return the file of a task, as `Store.files` names it."""
    return f"tasks/{name}{SUFFIX}"


def shared_file(sha256: str) -> str:
    """Return the file of a shared part, as `Store.files` names it."""
    return f"shared/{sha256}{SUFFIX}"


def is_own(name: str) -> bool:
    """Tell whether a file, as `Store.files` names it, is a pack's by its name: a part of it, or one being written."""
    folder, _, file = name.rpartition("/")
    if is_passing(name) or name in (MARK, INVENTORY):
        return True
    stem = file.removesuffix(SUFFIX) if file.endswith(SUFFIX) else ""
    return (folder == "tasks" and can_be_task(stem)) or (folder == "shared" and DIGEST.fullmatch(stem) is not None)


def is_passing(name: str) -> bool:
    """Tell whether a file, as `Store.files` names it, is what writers make and take away: lock, journal, drafts."""
    folder, _, file = name.rpartition("/")
    return name in (LOCK, RELEASED) or (file.startswith(TEMPORARY) and folder in ("", *DIRECTORIES))


def is_sealed_apart(name: str) -> bool:
    """Tell whether a file, as `Store.files` names it, is in no inventory: it comes and goes, or is the inventory."""
    return name == INVENTORY or is_passing(name)


def can_be_task(name: object) -> bool:
    """Tell whether a task can be called so."""
    return isinstance(name, str) and _TASK_NAME.fullmatch(name) is not None and _RESERVED.fullmatch(name) is None
