"""The weights of a directory, whatever files they are in: one safetensors file, shards, or a pickled `.bin`."""

from __future__ import annotations

import functools
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from petlpack.errors import RunError, printable
from petlpack.tensors.dtypes import Bits, dtype_named
from petlpack.tensors.safetensors_file import Header, MalformedError, build_header, file_tensor, read_header
from petlpack.tensors.tensor import TORCH_NAMES, Tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the header of each safetensors file that holds them, or would (`.bin`)."""

    headers: dict[str, Header]
    tensors: dict[str, Tensor]
    sources: tuple[Path, ...]
    components: tuple[Path, ...] = ()
    """Those of the sources, the last, that are none of the main weights."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files on disk."""
        return sum(path.stat().st_size for path in self.sources)


def find_weights(directory: Path, stem: str = "model", pickled: str = "pytorch_model") -> Path | None:
    """Return the file to give to `open_checkpoint`, by the order in which Transformers looks, or None."""
    named = _named_weights(directory) if stem == "model" else None
    if named is not None:
        return named
    names = (f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{pickled}.bin", f"{pickled}.bin.index.json")
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _named_weights(directory: Path) -> Path | None:
    """Return the safetensors file, or index of shards, that `transformers_weights` of a config names, if any."""
    config = directory / "config.json"
    try:
        name = json.loads(config.read_bytes()).get("transformers_weights") if config.is_file() else None
    except (
        OSError,
        ValueError,
        AttributeError,
        RecursionError,
    ):  # whoever reads the config tells what is wrong with it
        return None
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        return None
    if name != PurePosixPath(name).name or "\\" in name:
        return None
    return directory / name if (directory / name).is_file() else None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a `.safetensors` file, a `.bin` file or an `.index.json` of shards; reads headers only.

    Raises RunError that names the file: unreadable, truncated, a shard missing, listed twice or outside the directory.
    """
    if path.name.endswith(".index.json"):
        checkpoint = _merge([_open_one(shard) for shard in shards_of(path)], path)
        _check_weight_map(path, checkpoint)
        if path.name.endswith(".bin.index.json"):  # comes back as one safetensors file, which needs no index
            name = _as_safetensors(path.name.removesuffix(".index.json"))
            return replace(checkpoint, headers=_built_header(name, checkpoint.tensors))
        return checkpoint
    return _open_one(path)


def _open_one(path: Path) -> Checkpoint:
    try:
        if path.suffix in (".bin", ".pt", ".pth"):
            return _open_pickled(path)
        header = read_header(path)
    except OSError as error:
        raise _unread(path, error) from error
    except MalformedError as error:
        raise RunError(
            error.message,
            hint="the file is corrupt or incomplete: copy it again, or use another checkpoint",
            code=error.code,
        ) from error
    tensors = {name: file_tensor(path, header, name) for name in header.entries}
    return Checkpoint({path.name: header}, tensors, (path,))


def _unread(path: Path, error: OSError) -> RunError:
    """Return what to say of a file that the operating system does not read: nothing is known of its bytes."""
    return RunError(
        f"'{printable(str(path))}' cannot be read: {error.strerror or error}",
        hint="check the file's permissions"
        if isinstance(error, PermissionError)
        else "check the path, and the disk that the file is on",
    )


_INDEX_HINT = "an index maps each tensor to a shard next to it: copy it again, or save the model again"


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"'{printable(str(index))}' is not a valid shard index: {error!r}", hint=_INDEX_HINT) from error
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise RunError(f"'{printable(str(index))}': weight_map must map tensor names to file names", hint=_INDEX_HINT)
    return weight_map


def shards_of(index: Path) -> list[Path]:
    """Return the shards that an index names; raises RunError for one that is missing, or not a plain file beside it."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if name != PurePosixPath(name).name or "\\" in name or not name.isprintable() or name.startswith("."):
            raise RunError(
                f"'{printable(str(index))}' lists shard '{printable(name)}', which is not a plain file name",
                hint="shards must be files in the directory of the index",
            )
        if not (index.parent / name).is_file():
            raise RunError(
                f"'{printable(str(index))}' lists shard '{name}', but the file is missing",
                hint="copy the missing shard, or delete the half-written checkpoint",
            )
    return [index.parent / name for name in names]


def _merge(parts: list[Checkpoint], index: Path) -> Checkpoint:
    headers: dict[str, Header] = {}
    tensors: dict[str, Tensor] = {}
    for part in parts:
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            (file,) = part.headers
            raise RunError(
                f"'{printable(str(index))}': tensor '{printable(min(twice))}' is in two shards, the second is '{file}'",
                hint="a shard was probably copied under two names: delete one copy",
            )
        headers |= part.headers
        tensors |= part.tensors
    return Checkpoint(headers, tensors, tuple(path for part in parts for path in part.sources))


def _check_weight_map(index: Path, checkpoint: Checkpoint) -> None:
    """Check that an index names tensors, and that every one is in the shards."""
    weight_map = _weight_map(index)
    if not weight_map:
        raise RunError(f"'{printable(str(index))}' lists no tensor", hint=_INDEX_HINT)
    missing = sorted(weight_map.keys() - checkpoint.tensors.keys())
    if missing:
        raise RunError(
            f"'{printable(str(index))}' lists tensor '{printable(missing[0])}', but no shard has it",
            hint="the index and the shards are from different checkpoints: copy both again",
        )


MOST_NAMES = 1 << 24
"""Bytes of a pickle that are looked at for names: those of a hundred thousand tensors."""


def name_text(path: Path) -> bytes:
    """Return a text in which the names of a weight file's tensors stand, without reading a pickle as one.

    It is the header of a safetensors file, or the pickle of what torch saved, whose names are plain text. Empty for a
    file that is neither. Every layout asks for the same file, which is read once.
    """
    try:
        status = path.stat()
        return _name_text(path, status.st_ino, status.st_mtime_ns, status.st_size)
    except (MalformedError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return b""


@functools.lru_cache(maxsize=4)  # few, for the text of a pickle may be of MOST_NAMES
def _name_text(path: Path, _inode: int, _mtime_ns: int, _size: int) -> bytes:
    """Read the text of a file in one state of it; what is raised is not remembered."""
    if path.suffix == ".safetensors":
        return read_header(path).text.encode()
    if path.suffix == ".json":  # an index of shards
        return path.read_bytes()
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(MOST_NAMES)
    with zipfile.ZipFile(path) as archive:
        inside = next((name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"), None)
        if inside is None:
            return b""
        with archive.open(inside) as pickle:
            return pickle.read(MOST_NAMES)


def open_saved(path: Path, *keys: str, name: str | None = None) -> Checkpoint:
    """Open a state dict that torch saved, under one of `keys` where it is inside a dictionary; or a safetensors file.

    The header of what torch saved is that of a file `name`, by default of its own name: torch saves what comes back,
    too. Raises RunError that names the file.
    """
    if path.suffix == ".safetensors":
        return open_checkpoint(path)
    if path.suffix == ".json":  # shards come back as one file
        merged = open_checkpoint(path)
        return replace(merged, headers=_built_header("model.safetensors", merged.tensors))
    loaded = _load_pickled(path)
    inside = next(
        (loaded[key] for key in keys if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)), loaded
    )
    tensors = _state_dict(inside, path)
    return Checkpoint(_built_header(name or path.name, tensors), tensors, (path,))


def _open_pickled(path: Path) -> Checkpoint:
    tensors = _state_dict(_load_pickled(path), path)
    return Checkpoint(_built_header(_as_safetensors(path.name), tensors), tensors, (path,))


def _as_safetensors(name: str) -> str:
    """Return what a pickled weight file is called as safetensors, where Transformers looks for it."""
    changed = PurePosixPath(name).with_suffix(".safetensors").name
    return changed.removeprefix("pytorch_") if changed.startswith("pytorch_model") else changed


def _load_pickled(path: Path) -> object:
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
    except PermissionError as error:
        raise _unread(path, error) from error
    except Exception as error:  # on bytes that are no pickle, torch's reader fails in every way there is
        cut = is_cut(path)
        what = "truncated" if cut else "not a plain state dict"
        raise RunError(
            f"'{printable(str(path))}' is {what}: {printable(_reason(error))}",
            hint="copy the file again, or use another checkpoint"
            if cut
            else "a pickle can run code, so only tensors are loaded from it: save the run as safetensors",
        ) from error


def is_cut(path: Path) -> bool:
    """Tell whether a file begins as the archives do that torch saves, and does not end as one; reads no pickle."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK" and not zipfile.is_zipfile(path)
    except OSError:
        return False


def _reason(error: Exception) -> str:
    """Return the first line of what torch says, without its advice to read a pickle that may carry code."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return "it contains objects other than tensors" if "weights_only" in first else first


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    import torch

    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise RunError(
            f"'{printable(str(path))}' is not a state dict of named tensors",
            hint="save only the model's state dict, preferably as safetensors",
        )
    return {name: _torch_tensor(value, path) for name, value in loaded.items()}


def _built_header(file: str, tensors: dict[str, Tensor]) -> dict[str, Header]:
    """Return the header of the safetensors file that pickled tensors come back as."""
    rows = {name: (tensor.dtype.name, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
    return {file: build_header(rows, {"format": "pt"})}


def _torch_tensor(value: torch.Tensor, path: Path) -> Tensor:
    """Wrap a torch tensor, whose memory stays mapped to its file until a piece is read."""
    import torch

    names = {getattr(torch, torch_name): name for name, torch_name in TORCH_NAMES.items()}
    if value.dtype not in names or value.layout != torch.strided or value.device.type != "cpu":
        raise RunError(
            f"'{printable(str(path))}' has an unsupported tensor: {value.device.type} {value.layout} {value.dtype}",
            hint="only dense CPU tensors with a dtype that safetensors supports can be stored",
        )
    dtype = dtype_named(names[value.dtype])
    flat = value.detach()

    def read_flat(start: int, stop: int) -> Bits:
        piece = flat.reshape(-1)[start:stop].contiguous()
        bits: Bits = piece.view(torch.uint8).numpy().view(dtype.bits)
        return bits

    return Tensor(dtype, tuple(value.shape), read_flat)
