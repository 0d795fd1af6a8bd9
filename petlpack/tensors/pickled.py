"""What torch saved: state dicts, by themselves or inside of a checkpoint, read by torch's weights-only reader."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlpack.errors import RunError, printable
from petlpack.tensors.dtypes import DTYPES, Bits, DType
from petlpack.tensors.pinned import Pin, open_regular, pin_of
from petlpack.tensors.safetensors_file import Flat
from petlpack.tensors.tensor import Stored, Tensor, stored_as
from petlpack.tensors.torch_archive import Archive, Strided, archive_of
from petlpack.tensors.torch_reader import NotPlacedError, check_cost, load

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
    saved = _read(path, keys)
    tensors, beside, under = saved.tensors, saved.beside, saved.under
    warnings = []
    if under:
        others = f"; left out beside it: {_some(beside)}" if beside else ""
        warnings.append(f"'{path.name}' has its state dict under '{printable('.'.join(under))}'{others}")
    if saved.empty:
        warnings.append(f"'{path.name}': left out entries that are None or empty: {_some(saved.empty)}")
    stored = {name: _stored(value, name, saved) for name, value in tensors.items()}
    _check_expanded(tensors, path, saved.pin.state.nbytes)
    made: dict[object, Tensor] = {}
    for name, value in tensors.items():
        made.setdefault(_place(value, name), _tensor(value, stored[name], saved))
    shared = {name: made[_place(value, name)] for name, value in tensors.items()}
    return StateDict(shared, stored, tuple(warnings), saved.around)


AROUND = "around"
"""The key in a header's metadata for what stands around the state dict of a pickled file (formats/template.md)."""


def _around(loaded: object, under: Sequence[str]) -> str | None:
    """Return what was loaded as JSON, an empty object in the place of the state dict; None where JSON loses some."""
    if not under:
        return ""
    whole: Any = {}
    for depth in range(len(under) - 1, -1, -1):
        outer: Any = functools.reduce(lambda inside, key: inside[key], under[:depth], loaded)  # type: ignore[index]
        whole = {key: whole if key == under[depth] else value for key, value in dict.items(outer)}
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
    for device in ("meta", "cpu"):
        try:
            with open_regular(path) as file:
                check_cost(file, path, archive_of(file, pin_of(path, file)))
                return _has_tensor(load(file, path, device))
        except NotPlacedError:
            continue
        except (OSError, RunError):
            break
    return False


def _plain(value: object, depth: int = 0) -> Any:
    """Return dictionaries and tensors without what a pickle gave them as attributes, which may stand before methods."""
    import torch

    if isinstance(value, torch.Tensor):
        return torch.Tensor.detach(value)
    if isinstance(value, dict) and depth <= 2 * _DEEPEST:
        return {key: _plain(item, depth + 1) for key, item in dict.items(value)}
    return value


def _has_tensor(value: object, depth: int = 0) -> bool:
    """Tell whether there is a tensor in a value, or in dictionaries and lists inside of each other."""
    inside = dict.values(value) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return _is_tensor(value) or (depth < _DEEPEST and any(_has_tensor(item, depth + 1) for item in inside))


def _place(value: torch.Tensor, name: str) -> object:
    """Return what two names of one tensor have in common: its place in the file, or in memory, and how it is read.

    Nothing is one with no other.
    """
    if not value.numel():
        return name
    form = value.dtype, value.shape, value.stride(), value.is_conj(), value.is_neg()
    storage = value.untyped_storage()
    return getattr(storage, "_checkpoint_offset", None), storage.data_ptr(), value.storage_offset(), form


@dataclass(frozen=True)
class _Saved:
    """What a file holds: the tensors of its state dict, what is beside it and where it stands, and its empty entries.

    With an archive the tensors have no elements, which are read from the file; else all of them are in memory.
    """

    pin: Pin
    archive: Archive | None
    tensors: Mapping[str, torch.Tensor]
    beside: list[str]
    under: list[str]
    empty: list[str]
    around: str | None


def _read(path: Path, keys: tuple[str, ...]) -> _Saved:
    """Read a state dict without its elements where that can be, else with all of them; nothing is mapped."""
    with open_regular(path) as file:
        pin = pin_of(path, file)
        archive = archive_of(file, pin)
        check_cost(file, path, archive)
        if archive is not None and archive.in_order:
            with contextlib.suppress(NotPlacedError):
                return _found(load(file, path, "meta"), pin, archive, keys)
        saved = _found(load(file, path, "cpu"), pin, None, keys)
    pin.check()
    return saved


def _found(loaded: object, pin: Pin, archive: Archive | None, keys: tuple[str, ...]) -> _Saved:
    """Return the state dict in what was loaded; raises NotPlacedError where the archive does not place a tensor."""
    state, beside, under = _find_state(_plain(loaded), pin.path, keys)
    tensors = {name: value for name, value in state.items() if _is_tensor(value)}
    if archive is not None and any(archive.place_of(value) is None for value in tensors.values()):
        raise NotPlacedError
    empty = [name for name in state if name not in tensors]
    return _Saved(pin, archive, tensors, beside, under, empty, None if empty else _around(loaded, under))


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
        if not _is_utf8(name):
            raise RunError(f"'{shown}' has an entry '{printable(name)}', which is no text in UTF-8", hint=hint)
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


def _is_utf8(name: str) -> bool:
    """Tell whether a name can stand in a header: half of a character has no bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_nothing(value: object) -> bool:
    """Tell whether an entry holds nothing: None, or an empty text, list, set or dictionary."""
    return value is None or (isinstance(value, (str, bytes, bytearray, list, tuple, set, dict)) and not value)


def _some(names: list[str]) -> str:
    """Name the first five of several entries."""
    return ", ".join(f"'{printable(name)}'" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _stored(value: torch.Tensor, name: str, saved: _Saved) -> Stored:
    """Return how a header says what a tensor is; raises RunError for one that has no bytes of its own."""
    import torch

    device = "cpu" if saved.archive is None else "meta"
    dense = value.layout == torch.strided and value.device.type == device and not value.is_quantized
    stored = stored_as(value.dtype, tuple(value.shape)) if dense else None
    if stored is None:
        raise RunError(
            f"'{printable(str(saved.pin.path))}' has an unsupported tensor '{printable(name)}': "
            f"{value.device.type} {value.layout} {value.dtype}",
            hint="only dense CPU tensors can be stored: make it dense (`to_dense`, `dequantize`), and save again",
        )
    return stored


_MOST_EXPANDED = 1 << 26
"""Bytes of a tensor that may be more than those of the storage that its strides go over."""

_MOST_VIEWED = 16
"""Bytes of all tensors for each of the file: a few that overlap are as they were meant."""


def _check_expanded(tensors: Mapping[str, torch.Tensor], path: Path, nbytes: int) -> None:
    """Raise RunError for tensors that repeat their elements so often that they are no weights, but a bomb."""
    repeated = {name: value for name, value in tensors.items() if _nbytes(value) > value.untyped_storage().nbytes()}
    whole = sum(map(_nbytes, repeated.values()))
    read = sum({_place(value, name): _nbytes(value) for name, value in tensors.items()}.values())
    if whole <= _MOST_EXPANDED < read - _MOST_VIEWED * nbytes:
        raise RunError(
            f"'{printable(str(path))}' has tensors of {read:,} bytes, many times the {nbytes:,} of the file: they are "
            "views of one another",
            hint="save them with their elements written out (`clone`), preferably as safetensors",
            code="archive-limit",
        )
    if whole > _MOST_EXPANDED:
        name = max(repeated, key=lambda name: _nbytes(repeated[name]))
        raise RunError(
            f"'{printable(str(path))}' has a tensor '{printable(name)}' of {_nbytes(repeated[name]):,} bytes, in a "
            f"storage of {repeated[name].untyped_storage().nbytes():,}: it repeats its elements",
            hint="save it with its elements written out (`clone`), preferably as safetensors",
            code="archive-limit",
        )


def _nbytes(value: torch.Tensor) -> int:
    return int(value.numel() * value.element_size())


def _tensor(value: torch.Tensor, stored: Stored, saved: _Saved) -> Tensor:
    """Wrap a torch tensor: of one without elements they are read from the file, piece by piece."""
    known = DTYPES.get(stored.dtype)
    if saved.archive is None:
        return _in_memory(value, known, saved.pin)
    start = saved.archive.place_of(value)
    assert start is not None, "tensors that are not placed are read with their elements"
    read = Strided(saved.pin, start, tuple(value.shape), value.stride(), value.element_size(), value.is_contiguous())
    if known is None:
        if not read.contiguous:
            return _in_bytes(read.octets(0, value.numel()))
        return Tensor(DTYPES["U8"], (_nbytes(value),), Flat(saved.pin, start, DTYPES["U8"]))
    return Tensor(known, tuple(value.shape), lambda start, stop: read.octets(start, stop).view(known.bits))


def _in_memory(value: torch.Tensor, known: DType | None, pin: Pin) -> Tensor:
    """Wrap a torch tensor whose elements are in memory; they are refused, too, where the file is another by then."""
    import torch

    flat = value.detach().resolve_conj().resolve_neg()
    if known is None:
        return _in_bytes(flat.contiguous().reshape(-1).view(torch.uint8).numpy())

    def read_flat(start: int, stop: int) -> Bits:
        pin.check()
        piece = flat.reshape(-1)[start:stop].contiguous()
        bits: Bits = piece.view(torch.uint8).numpy().view(known.bits)
        return bits

    return Tensor(known, tuple(value.shape), read_flat)


def _in_bytes(octets: Bits) -> Tensor:
    return Tensor.of(octets, DTYPES["U8"])
