"""The weights of a directory, whatever files they are in: one safetensors file, shards, or a pickled `.bin`."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from petlpack.errors import RunError, printable
from petlpack.tensors.content import (
    OWN_FORMATS,
    PICKLE,
    READABLE,
    SAFETENSORS,
    TEXT,
    Kind,
    content_of,
    special_file,
)
from petlpack.tensors.file_names import is_file_name
from petlpack.tensors.foreign_json import read_value
from petlpack.tensors.pickled import AROUND, StateDict, read_state_dict
from petlpack.tensors.safetensors_file import (
    MOST_EMPTY,
    Header,
    MalformedError,
    build_header,
    file_tensor,
    read_pinned,
)
from petlpack.tensors.tensor import Stored, Tensor

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""How the names of files end that are read as what torch saved."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the header of each safetensors file that holds them, or would (`.bin`)."""

    headers: dict[str, Header]
    tensors: dict[str, Tensor]
    sources: tuple[Path, ...]
    warnings: tuple[str, ...] = ()
    """What a person should know of how the files were read."""
    components: tuple[Path, ...] = ()
    """Those of the sources, the last, that are none of the main weights."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files on disk."""
        return sum(path.stat().st_size for path in self.sources)


def find_weights(directory: Path, stem: str = "model", pickled: str = "pytorch_model") -> Path | None:
    """Return the file to give to `open_checkpoint`, by the order in which Transformers looks, or None.

    DeepSpeed's zero_to_fp32.py makes a directory where it is told a file: weights in one of such a name count, too.
    """
    named = _named_weights(directory) if stem == "model" else None
    if named is not None:
        return named
    names = (f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{pickled}.bin", f"{pickled}.bin.index.json")
    there = (name for name in names if _is_there(f"{directory}/{name}"))
    files = {name: directory / name for name in there}
    found = next((file for file in files.values() if file.is_file()), None)
    if found is not None:
        return found
    folders = (files[name] for name in (f"{stem}.safetensors", f"{pickled}.bin") if name in files)
    return next(filter(None, (find_weights(folder, stem, pickled) for folder in folders if folder.is_dir())), None)


def _is_there(path: str) -> bool:
    """Tell whether something stands at a path, as `Path.exists`, in a fifth of the time: every layout asks often."""
    try:
        os.stat(path)  # noqa: PTH116
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP):
            raise
        return False
    except ValueError:  # no path of a file system
        return False
    return True


def _named_weights(directory: Path) -> Path | None:
    """Return the safetensors file, or index of shards, that `transformers_weights` of a config names, if any."""
    config = directory / "config.json"
    try:
        name = read_value(config).get("transformers_weights") if config.is_file() else None
    except (
        OSError,
        ValueError,
        AttributeError,
        RecursionError,
    ):  # who reads it tells what is wrong
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
        checkpoint = _merge({name: _open_shard(path.parent, name) for name in shard_names(path)}, path)
        _check_weight_map(path, checkpoint)
        if path.name.endswith(".bin.index.json"):  # comes back as one file, which needs no index
            checkpoint = _in_one_file(checkpoint, path)
        return _gathered(checkpoint, path)
    return _gathered(_open_one(path), path)


_UNGATHERED = (0,)
"""The shape of a matrix that DeepSpeed's ZeRO-3 had put away when it was saved."""


def _gathered(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return a checkpoint, with a warning where weights of it are empty; raises RunError where most matrices are.

    A tensor without elements is legal in its own shape, `[0, 7]`: that of a matrix that was not gathered is `[0]`.
    """
    _check_names(checkpoint, path)
    empty = [name for name, tensor in checkpoint.tensors.items() if tensor.shape == _UNGATHERED]
    weights = [name for name in empty if name.rpartition(".")[2].endswith("weight")]
    if not weights:
        return checkpoint
    whole = sum(len(tensor.shape) > 1 and tensor.size > 0 for tensor in checkpoint.tensors.values())
    if len(empty) > whole:
        raise RunError(
            f"'{printable(str(path))}' has {len(empty):,} weights of shape [0], like '{printable(weights[0])}', and "
            f"{whole:,} matrices that are whole: they were not gathered when the model was saved",
            hint="merge the DeepSpeed checkpoint with its zero_to_fp32.py, or save again with "
            "`stage3_gather_16bit_weights_on_model_save` set to true",
        )
    warning = f"{len(empty):,} weights have shape [0], like '{printable(weights[0])}': a ZeRO-3 save loses them so"
    return replace(checkpoint, warnings=(*checkpoint.warnings, warning))


_LONGEST_NAME = 1 << 12
"""Characters of a tensor's name: what is told by its parts takes time that grows with their square."""


def _check_names(checkpoint: Checkpoint, path: Path) -> None:
    """Raise RunError for names that are longer than any model's, and for a file of tensors without elements."""
    longest = max(checkpoint.tensors, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        raise RunError(
            f"'{printable(str(path))}' has a tensor '{printable(longest[:40])}...', whose name has {len(longest):,} "
            f"characters, at most {_LONGEST_NAME:,} are read",
            hint="no model has such names: save it again",
        )
    empty = sum(not tensor.size for tensor in checkpoint.tensors.values())
    if empty > MOST_EMPTY:
        raise RunError(
            f"'{printable(str(path))}' has {empty:,} tensors without an element, at most {MOST_EMPTY:,} are read",
            hint="no model has as many: save it again",
        )


def within(checkpoint: Checkpoint, folder: PurePosixPath) -> Checkpoint:
    """Return a checkpoint whose files, where they come back under their own names, stand in a folder of the run."""
    own = {source.name for source in checkpoint.sources}
    headers = {
        (folder / file).as_posix() if PurePosixPath(file).name in own else file: header
        for file, header in checkpoint.headers.items()
    }
    return replace(checkpoint, headers=headers)


def _open_shard(directory: Path, name: str) -> Checkpoint:
    """Open a shard by its name in the index, which may lead to a folder: it comes back there."""
    shard, folder = _open_one(directory / name), PurePosixPath(name).parent
    return replace(shard, headers={(folder / file).as_posix(): header for file, header in shard.headers.items()})


def _open_one(path: Path) -> Checkpoint:
    try:
        refuse_other_content(path)
        if path.suffix in PICKLED:
            return _open_pickled(path)
        header, pin = read_pinned(path)
    except OSError as error:
        raise _unread(path, error) from error
    except MalformedError as error:
        raise RunError(
            error.message,
            hint="the file is corrupt or incomplete: copy it again, or use another checkpoint",
            code=error.code,
        ) from error
    tensors = {name: file_tensor(pin, header, name) for name in header.entries}
    return Checkpoint({path.name: header}, tensors, (path,))


def refuse_other_content(path: Path) -> None:
    """Raise RunError for a file that is something else than its name says, or no weights; reads its first bytes."""
    special = special_file(path)
    if special is not None:
        raise RunError(f"'{printable(str(path))}' is {special}, not a file", hint="pass a file or a directory")
    if path.suffix in PICKLED and not path.stat().st_size:
        raise RunError(f"'{printable(str(path))}' is 0 bytes", hint="the file is incomplete: copy it again")
    kind = content_of(path)
    if path.suffix in OWN_FORMATS and kind in (None, TEXT):
        raise RunError(
            f"'{printable(str(path))}' is no weight file: its name ends in {path.suffix}",
            hint="pass the model's directory, or its weight file",
        )
    if kind is None or kind is (PICKLE if path.suffix in PICKLED else SAFETENSORS):
        return
    raise RunError(f"'{printable(str(path))}' is {kind.what}", hint=_hint(path, kind))


def _hint(path: Path, kind: Kind) -> str:
    """Return what to do with a file of some kind: one that only has the wrong name is told the right one."""
    if kind not in READABLE:
        return kind.hint
    model = path.stem.removeprefix("pytorch_") if kind is SAFETENSORS else path.stem
    name = (
        f"{model}.safetensors" if kind is SAFETENSORS else "pytorch_model.bin" if model == "model" else f"{model}.bin"
    )
    return f"its name says otherwise: rename it, `mv {printable(path.name)} {printable(name)}`"


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
        weight_map = read_value(index)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"'{printable(str(index))}' is not a valid shard index: {error!r}", hint=_INDEX_HINT) from error
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise RunError(f"'{printable(str(index))}': weight_map must map tensor names to file names", hint=_INDEX_HINT)
    return weight_map


def shards_of(index: Path) -> list[Path]:
    """Return the shards that an index names; raises RunError as `shard_names`."""
    return [index.parent / name for name in shard_names(index)]


def shard_names(index: Path) -> list[str]:
    """Return the names of shards in an index; raises RunError for one that is missing, or no file below the index."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if not is_file_name(name) or any(part.startswith(".") for part in PurePosixPath(name).parts):
            raise RunError(
                f"'{printable(str(index))}' lists shard '{printable(name)}', which is not a plain file name",
                hint="shards must be files in the directory of the index, or in folders there",
            )
        if not (index.parent / name).is_file():
            raise RunError(
                f"'{printable(str(index))}' lists shard '{name}', but the file is missing",
                hint="copy the missing shard, or delete the half-written checkpoint",
            )
    return names


def _merge(shards: Mapping[str, Checkpoint], index: Path) -> Checkpoint:
    """Put shards together; of a tensor that is in several the index says which counts, as Transformers loads it."""
    weight_map = _weight_map(index)
    owners: dict[str, str] = {}
    for file, part in shards.items():
        for name in part.tensors:
            owner = owners.setdefault(name, file)
            if owner != file and weight_map.get(name) not in (owner, file):
                raise RunError(
                    f"'{printable(str(index))}': tensor '{printable(name)}' is in two shards, the second is '{file}', "
                    "and the index names neither",
                    hint="a shard was probably copied under two names: delete one copy",
                )
            owners[name] = weight_map[name] if owner != file else owner
    kept = [_only(part, {name for name in part.tensors if owners[name] == file}) for file, part in shards.items()]
    headers = {file: header for part in kept for file, header in part.headers.items()}
    if len(headers) < len(kept):
        again = next(
            file for file, count in Counter(file for part in kept for file in part.headers).items() if count > 1
        )
        raise RunError(
            f"'{printable(str(index))}' lists two shards that would both come back as '{printable(again)}'",
            hint="save the model again, all of it as safetensors",
        )
    return Checkpoint(
        headers=headers,
        tensors={name: tensor for part in kept for name, tensor in part.tensors.items()},
        sources=tuple(path for part in kept for path in part.sources),
        warnings=tuple(warning for part in kept for warning in part.warnings),
    )


def _only(part: Checkpoint, names: Collection[str]) -> Checkpoint:
    """Return a shard without the tensors that the index takes from another one."""
    stale = part.tensors.keys() - names
    if not stale:
        return part
    (file, header), count = next(iter(part.headers.items())), len(stale)
    rows = {
        name: (entry.dtype, entry.shape, entry.stop - entry.start)
        for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].start, item[1].stop))
        if name in names
    }
    warning = (
        f"left out of '{part.sources[0].name}' what the index takes from other shards: '{printable(min(stale))}'"
        + (f" and {count - 1:,} more" if count > 1 else "")
    )
    return replace(
        part,
        headers={file: build_header(rows, header.metadata)},
        tensors={name: tensor for name, tensor in part.tensors.items() if name in names},
        warnings=(*part.warnings, warning),
    )


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


def open_saved(path: Path, *keys: str, name: str | None = None, whole: bool = False) -> Checkpoint:
    """Open a state dict that torch saved, under one of `keys` where it is inside a dictionary; or a safetensors file.

    The header of what torch saved is that of a file `name`, by default of its own name: torch saves what comes back,
    too. Of a `whole` file its metadata has what stands around the tensors. Raises RunError that names the file, also
    where that cannot be said of a whole one.
    """
    if path.suffix == ".safetensors":
        return open_checkpoint(path)
    if path.suffix == ".json":  # shards come back as one file
        return _in_one_file(open_checkpoint(path), path)
    try:
        refuse_other_content(path)
        state = read_state_dict(path, *keys)
        if whole and (state.around is None or (state.around and AROUND in state.tensors)):  # a key for ties, too
            raise RunError("; ".join(state.warnings))
        metadata = {AROUND: state.around} if whole and state.around else {}
        return _gathered(_checkpoint_of(state, name or path.name, path, metadata), path)
    except OSError as error:
        raise _unread(path, error) from error


def _in_one_file(checkpoint: Checkpoint, index: Path) -> Checkpoint:
    """Return the shards of an index as the one file that they come back as: pickled where only torch knows a dtype."""
    entries = {name: entry for header in checkpoint.headers.values() for name, entry in header.entries.items()}
    rows = {
        name: (entries[name].dtype, entries[name].shape, tensor.nbytes) for name, tensor in checkpoint.tensors.items()
    }
    pickled = any(Stored(entry.dtype, entry.shape).only_torch for entry in entries.values())
    file = _one_file(index.name, pickled=pickled)
    return replace(checkpoint, headers={file: build_header(rows, {"format": "pt"})})


def _open_pickled(path: Path) -> Checkpoint:
    """Open what torch saved: it comes back as safetensors, or pickled where only torch knows a dtype of it."""
    state = read_state_dict(path)
    return _checkpoint_of(state, _one_file(path.name, pickled=state.needs_torch), path)


def _one_file(name: str, *, pickled: bool) -> str:
    """Return what a weight file, or the shards of one, come back as, where Transformers looks for it."""
    stem = PurePosixPath(name.removesuffix(".index.json")).stem
    if pickled:
        return "pytorch_model.bin" if stem == "model" else f"{stem}.bin"
    return f"{stem.removeprefix('pytorch_') if stem.startswith('pytorch_model') else stem}.safetensors"


def _checkpoint_of(state: StateDict, file: str, path: Path, metadata: Mapping[str, str] | None = None) -> Checkpoint:
    header = build_header(state.rows, {"format": "pt", **(metadata or {})})
    return Checkpoint({file: header}, dict(state.tensors), (path,), state.warnings)
