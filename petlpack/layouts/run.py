"""What a layout reader returns: a run, read from its directory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petlpack.errors import RefusedError, RunError, printable
from petlpack.rules.modules import Dense, Module
from petlpack.tensors.foreign_json import read_value
from petlpack.tensors.safetensors_file import Header, build_header
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class LeftOut:
    """A file of a run that does not go into the pack, and why."""

    file: str
    nbytes: int
    why: str


@dataclass(frozen=True)
class Run:
    """A run as read: its module, the headers of its weight files, the files kept byte for byte, what is left out.

    A directory may hold several tasks; each is a run, with its own `task` name.
    """

    path: Path
    layout: str
    method: str
    module: Module
    headers: dict[str, Header]
    weight_bytes: int
    kept: Mapping[str, Path | bytes]
    left_out: tuple[LeftOut, ...]
    base_name: str | None
    warnings: tuple[str, ...] = ()
    task: str = ""
    """Which of the directory's tasks this is; empty where there is one."""
    name: str | None = None
    """What the task is called inside the names of tensors and files, which is a parameter of the template."""
    parts: tuple[tuple[str, ...], ...] = ()
    """Tensors that other tasks may share, a tuple for each shared part."""
    hints: Mapping[str, Tensor] = field(default_factory=dict)
    """Masks that stand in no file and help to code others: each goes into the first part, beside one of its kind."""
    on_base: bool = False
    """Whether the weight files hold the base's tensors, too."""
    omits_base: bool = False
    """Whether tensors that equal the base's are left out of what comes back."""
    width: int | None = None
    """Width of the hidden states that tensors without a module (prompts) are for, where the run says it."""
    has_widths: bool = True
    """Whether its tensors have sizes in common with the modules that they adapt, which then tell other bases."""
    note: str = ""
    """What who decodes the task has to know."""
    exact: bool = True
    """Whether the module is what was trained to the bit, and not computed from it with a rounding."""
    score: tuple[str, float] | None = None
    """The score that the run states of itself: metric and value."""
    figures: Mapping[str, int] = field(default_factory=dict)
    """Counts that only the run can tell: `trained` parameters, mask entries `kept`."""

    @property
    def whole(self) -> bool:
        """Whether its weight files are a whole model that was trained, and not a method on a frozen one."""
        return isinstance(self.module, Dense)

    @property
    def needs_base(self) -> bool:
        """Whether the run cannot be encoded without its base."""
        return self.on_base or self.whole


def left_out_tensors(file: str, what: str, sizes: Collection[int], why: str) -> LeftOut:
    """Return tensors of a weight file, with their bytes, as what does not go into the pack."""
    return LeftOut(f"{file}: {what} ({len(sizes)} tensor{'s' * (len(sizes) != 1)})", sum(sizes), why)


def headers_of(files: Mapping[str, Iterable[str]], tensors: Mapping[str, Tensor]) -> dict[str, Header]:
    """Return the header of each weight file from the names of its tensors, in their order."""
    rows = {name: (tensor.dtype.name, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
    return {file: build_header({name: rows[name] for name in names}, {}) for file, names in files.items()}


def row_of(table: Tensor, row: int) -> Tensor:
    """Return one row of a matrix as a matrix of one row."""
    width = table.shape[1]
    return Tensor(table.dtype, (1, width), lambda start, stop: table.read_flat(row * width + start, row * width + stop))


_JSON_HINT = "the file is corrupt or incomplete: copy it again, or save the run again"


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; raises RunError that names the file."""
    try:
        table = read_value(path)
    except FileNotFoundError as error:
        raise RunError(f"'{printable(str(path))}' is missing", hint="copy the run again, or save it again") from error
    except OSError as error:
        raise RunError(
            f"'{printable(str(path))}' cannot be read: {error.strerror}",
            hint="check its permissions, and the disk",
        ) from error
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"'{printable(str(path))}' is not JSON: {printable(str(error))}",
            hint=_JSON_HINT,
            code=error.code if isinstance(error, RefusedError) else None,
        ) from error
    if not isinstance(table, dict):
        raise RunError(f"'{printable(str(path))}' is not a JSON object", hint=_JSON_HINT)
    return table
