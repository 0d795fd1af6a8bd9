"""What torch saved: state dicts, by themselves or inside of a checkpoint, read by torch's weights-only reader."""

from __future__ import annotations

import functools
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from petlpack.errors import RunError, printable
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.tensor import Stored, Tensor, stored_as

if TYPE_CHECKING:
    import torch

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "model_dict", "net", "network", "weights"),
    *("params",),
)
"""Under which keys training scripts save a model's state dict beside other things, the likeliest first."""

_NO_MODEL = ("optim", "lr_sched", "scheduler", "scaler", "rng", "hyper_parameters", "loops", "callbacks")
"""How the keys of what is no model begin, though there may be tensors in it."""

_DEEPEST = 4
"""Dictionaries inside of each other in which a state dict is looked for."""


@dataclass(frozen=True)
class StateDict:
    """The tensors of a state dict, each with its dtype and shape as a header of safetensors says them.

    Names of one tensor, in one place of memory, lead to one object.
    """

    tensors: Mapping[str, Tensor]
    stored: Mapping[str, Stored]
    warnings: tuple[str, ...]
    around: str | None = ""
    """What stands around the tensors as `AROUND` has it, empty where nothing does; None where JSON cannot tell."""

    @property
    def rows(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """What a header says of each tensor: dtype, shape, bytes."""
        return {name: (stored.dtype, stored.shape, self.tensors[name].nbytes) for name, stored in self.stored.items()}

    @property
    def needs_torch(self) -> bool:
        """Whether a tensor has a dtype that only torch knows, so that no safetensors file can hold it."""
        return any(stored.only_torch for stored in self.stored.values())


def read_state_dict(path: Path, *keys: str) -> StateDict:
    """Read the state dict that torch saved into a file, under one of `keys` where it is inside a dictionary.

    Nothing but tensors is loaded, and no code in the file runs. What is beside the state dict, and entries of it that
    are None or empty, are left out with a warning. Raises RunError that names the file, and what in it is no tensor.
    """
    loaded = _load(path)
    state, beside, under = _find_state(loaded, path, keys)
    tensors = {name: value for name, value in state.items() if _is_tensor(value)}
    warnings = []
    if under:
        others = f"; left out beside it: {_some(beside)}" if beside else ""
        warnings.append(f"'{path.name}' has its state dict under '{printable('.'.join(under))}'{others}")
    if empty := [name for name in state if name not in tensors]:
        warnings.append(f"'{path.name}': left out entries that are None or empty: {_some(empty)}")
    stored = {name: _stored(value, name, path) for name, value in tensors.items()}
    made: dict[object, Tensor] = {}
    for name, value in tensors.items():
        made.setdefault(_place(value, name), _tensor(value, stored[name]))
    around = _around(loaded, under) if not empty else None
    return StateDict(
        {name: made[_place(value, name)] for name, value in tensors.items()}, stored, tuple(warnings), around
    )


AROUND = "around"
"""The key in a header's metadata for what stands around the state dict of a pickled file (formats/template.md)."""


def _around(loaded: object, under: Sequence[str]) -> str | None:
    """Return what was loaded as JSON, an empty object in the place of the state dict; None where JSON loses some."""
    if not under:
        return ""
    whole: object = {}
    for depth in range(len(under) - 1, -1, -1):
        outer = functools.reduce(lambda inside, key: inside[key], under[:depth], loaded)  # type: ignore[index]
        whole = {key: whole if key == under[depth] else value for key, value in outer.items()}  # type: ignore[attr-defined]
    text = json.dumps({"under": list(under), "whole": whole}) if _is_plain(whole) else None
    return text if text is not None and len(text) <= _MOST_AROUND else None


_MOST_AROUND = 1 << 20
"""Characters of what stands around a state dict: settings and counts are few, lists of samples are none."""


def _is_plain(value: object, depth: int = 0) -> bool:
    """Tell whether JSON gives a value back as it is."""
    if type(value) in (dict, list) and depth > 2 * _DEEPEST:
        return False
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item, depth + 1) for key, item in value.items())
    if type(value) is list:
        return all(_is_plain(item, depth + 1) for item in value)
    if type(value) is int:
        return abs(value) < 1 << 63
    return value is None or type(value) in (str, bool) or (type(value) is float and math.isfinite(value))


def with_around(state: dict[str, torch.Tensor], around: str | None) -> object:
    """Return a state dict with what stood around it; by itself where `around` is no such text."""
    try:
        table = json.loads(around or "")
        place, (*outer, last) = table["whole"], table["under"]
        for key in outer:
            place = place[key]
        if place[last] == {}:
            place[last] = state
            return table["whole"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return state


def holds_more(path: Path) -> bool:
    """Tell whether a file that is no plain state dict has tensors all the same; runs no code from it."""
    try:
        return _has_tensor(_load(path))
    except (OSError, RunError):
        return False


def _has_tensor(value: object, depth: int = 0) -> bool:
    """Tell whether there is a tensor in a value, or in dictionaries and lists inside of each other."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return _is_tensor(value) or (depth < _DEEPEST and any(_has_tensor(item, depth + 1) for item in inside))


def _place(value: torch.Tensor, name: str) -> object:
    """Return what two names of one tensor have in common: memory, and how it is read. Nothing is one with no other."""
    if not value.numel():
        return name
    form = value.dtype, value.shape, value.stride(), value.is_conj(), value.is_neg()
    return value.untyped_storage().data_ptr(), value.storage_offset(), form


def _load(path: Path) -> object:
    """Read what torch saved by torch's weights-only reader, which runs no code from the file."""
    try:
        import torch
    except ImportError as error:
        raise RunError(
            f"'{printable(str(path))}' is a pickled state dict, but torch is not installed",
            hint="pip install 'petlpack[torch]' torch==2.13.0, or save the run as safetensors",
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise
    except Exception as error:  # on bytes that are no pickle, torch's reader fails in every way there is
        cut = is_cut(path)
        what = "truncated" if cut else f"not a plain state dict: {printable(_reason(error))}"
        raise RunError(
            f"'{printable(str(path))}' is {what}",
            hint="copy the file again, or use another checkpoint"
            if cut
            else "a pickle can run code, so only tensors are loaded from it: load it where you trust it, and save the "
            "state dict as safetensors",
        ) from error


def is_cut(path: Path) -> bool:
    """Tell whether a file begins as the archives do that torch saves, and does not end as one; reads no pickle."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK" and not zipfile.is_zipfile(path)
    except OSError:
        return False


_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
"""How torch says which class a pickle asks for."""


def _reason(error: Exception) -> str:
    """Return the first line of what torch says, without its advice to read a pickle that may carry code."""
    text = str(error)
    if "weights_only" in text or "Weights only" in text:
        found = _OBJECT.search(text)
        return "it contains objects other than tensors" + (f" ({found[1]})" if found else "")
    if "PytorchStreamReader" in text:  # which goes on with what its own developers should do
        return "its archive is damaged"
    return next(iter(text.strip().splitlines()), "") or type(error).__name__


def _find_state(loaded: object, path: Path, keys: tuple[str, ...]) -> tuple[Mapping[str, object], list[str], list[str]]:
    """Return the state dict in what was loaded, what is beside it, and the keys under which it stands.

    A dictionary that holds state dicts is one of `keys`, then of WRAPPERS, away from it; of other names, where there
    is one alone.
    """
    beside: list[str] = []
    under: list[str] = []
    while isinstance(loaded, Mapping):
        inside = [key for key, value in loaded.items() if isinstance(key, str) and _may_be_model(key, value)]
        named = [key for key in (*keys, *WRAPPERS) if key in inside]
        direct = any(map(_is_tensor, loaded.values()))
        if not named and (direct or not inside):
            break
        if not named and len(inside) > 1:
            raise RunError(
                f"'{printable(str(path))}' holds several state dicts: {_some(inside)}",
                hint="save the one that is the model by itself: torch.save(model.state_dict(), 'pytorch_model.bin')",
            )
        chosen = (named or inside)[0]
        beside += [str(key) for key in loaded if key != chosen]
        under.append(chosen)
        loaded = loaded[chosen]
    return _checked(loaded, path), beside, under


def _may_be_model(key: str, value: object) -> bool:
    return not key.lower().startswith(_NO_MODEL) and _holds_tensors(value)


def _holds_tensors(value: object, depth: int = 0) -> bool:
    """Tell whether a value is a dictionary of names with a tensor in it, or in one inside of it."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    if any(map(_is_tensor, value.values())):
        return True
    return depth < _DEEPEST and any(_holds_tensors(item, depth + 1) for item in value.values())


def _checked(loaded: object, path: Path) -> Mapping[str, object]:
    """Return a state dict, all of whose entries are tensors, or hold nothing; raises RunError for anything else."""
    shown = printable(str(path))
    hint = "save only the model's state dict, preferably as safetensors"
    if not isinstance(loaded, Mapping):
        raise RunError(f"'{shown}' is not a state dict of named tensors: it is a {type(loaded).__name__}", hint=hint)
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise RunError(
                f"'{shown}' is not a state dict of named tensors: it has an entry {printable(repr(name))}", hint=hint
            )
        if not _is_tensor(value) and not _is_nothing(value):
            raise RunError(
                f"'{shown}' is not a state dict of named tensors: entry '{printable(name)}' is a "
                f"{type(value).__name__}",
                hint=hint,
            )
    if loaded and not any(map(_is_tensor, loaded.values())):
        raise RunError(f"'{shown}' is not a state dict of named tensors: no entry is a tensor", hint=hint)
    return loaded


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _is_nothing(value: object) -> bool:
    """Tell whether an entry holds nothing: None, or an empty text, list, set or dictionary."""
    return value is None or (isinstance(value, (str, bytes, bytearray, list, tuple, set, dict)) and not value)


def _some(names: list[str]) -> str:
    """Name the first five of several entries."""
    return ", ".join(f"'{printable(name)}'" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _stored(value: torch.Tensor, name: str, path: Path) -> Stored:
    """Return how a header says what a tensor is; raises RunError for one that has no bytes of its own."""
    import torch

    dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    stored = stored_as(value.dtype, tuple(value.shape)) if dense else None
    if stored is None:
        raise RunError(
            f"'{printable(str(path))}' has an unsupported tensor '{printable(name)}': "
            f"{value.device.type} {value.layout} {value.dtype}",
            hint="only dense CPU tensors can be stored: make it dense (`to_dense`, `dequantize`), and save again",
        )
    return stored


def _tensor(value: torch.Tensor, stored: Stored) -> Tensor:
    """Wrap a torch tensor, whose memory stays mapped to its file until a piece is read."""
    import torch

    flat = value.detach().resolve_conj().resolve_neg()
    known = DTYPES.get(stored.dtype)
    if known is None:
        octets = flat.contiguous().reshape(-1).view(torch.uint8)
        return Tensor(DTYPES["U8"], (octets.numel(),), lambda start, stop: octets[start:stop].numpy())

    def read_flat(start: int, stop: int) -> Bits:
        piece = flat.reshape(-1)[start:stop].contiguous()
        bits: Bits = piece.view(torch.uint8).numpy().view(known.bits)
        return bits

    return Tensor(known, tuple(value.shape), read_flat)
