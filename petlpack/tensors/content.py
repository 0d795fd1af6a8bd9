"""What a file is by its content, whatever its name says; nothing is unpickled to find out.

`KINDS` is the one table of contents that are no weights as this library reads them, and of files and directories that
only a conversion makes weights: what each is called, and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from petlpack.tensors.pinned import open_regular, special_kind
from petlpack.tensors.safetensors_file import MAX_HEADER


@dataclass(frozen=True)
class Kind:
    """One kind of content: what it is, what a person does about it, and how it is told.

    `starts` are (offset, bytes) of which one stands in the file, `names` are what a file or directory is called whose
    bytes say nothing, as regular expressions.
    """

    what: str
    hint: str
    starts: tuple[tuple[int, bytes], ...] = ()
    names: tuple[str, ...] = ()
    is_state: bool = False
    """Whether it is the state of a training that has to be merged before it is a model."""
    is_archive: bool = False
    """Whether its name may say more: formats are archives of another name."""

    def is_called(self, name: str) -> bool:
        """Tell whether a file of this name, or of this name and that of its directory, is of this kind."""
        return any(re.fullmatch(pattern, name) for pattern in self.names)


SAFETENSORS = Kind("a safetensors file", "rename it: its name has to end in .safetensors")
PICKLE = Kind(
    "a pickle, as torch.save writes it",
    "rename it: its name has to end in .bin",
    ((0, b"\x80\x02"), (0, b"\x80\x03"), (0, b"\x80\x04"), (0, b"\x80\x05")),
)
READABLE = (SAFETENSORS, PICKLE)
"""What is read as weights, where the name agrees."""

_AGAIN = "the download failed, and what came is no weights: log in if the model is gated, and download the file again"
_DEEPSPEED = "merge it with `python zero_to_fp32.py . OUT_DIR` in that directory, then encode the merged model"
_MEGATRON = "convert it to Transformers' format with Megatron-Bridge (`export_ckpt`), then encode what it wrote"
_TENSORFLOW = (
    "convert it with Transformers 4: `AutoModel.from_pretrained(DIR, from_tf=True).save_pretrained(OUT_DIR)`, "
    "with the class of the model in the place of AutoModel"
)
_FLAX = _TENSORFLOW.replace("from_tf", "from_flax")
_SOURCE = "it was made from a model in PyTorch's format for inference only: encode that model"

POINTERS = (
    Kind(
        "a Git LFS pointer, not the file that it stands for",
        "run `git lfs pull` in the clone: it downloads the file",
        ((0, b"version https://git-lfs.github.com/spec/"), (0, b"version https://hawser.github.com/spec/")),
    ),
    Kind(
        "a git-xet pointer, not the file that it stands for",
        "run `git xet pull` in the clone",
        ((0, b"# xet version"),),
    ),
    Kind(
        "a git-annex pointer, not the file that it stands for",
        "run `git annex get FILE` in the clone",
        ((0, b"/annex/objects/"),),
    ),
    Kind(
        "a DVC pointer, not the file that it stands for",
        "run `dvc pull` in the repository: it downloads the file",
        ((0, b"outs:\n"), (0, b"outs:\r\n")),
        (r".+\.dvc",),
    ),
)

LARGEST_POINTER = 1 << 10
"""Bytes of a file that stands for another one."""

_POINTER_HEAD = 64
"""Bytes at the start of a file by which a pointer is told."""

_STATES = (
    Kind(
        "an FSDP checkpoint",
        "merge it with `accelerate merge-weights DIR/pytorch_model_fsdp_0 OUT_DIR`, then encode the merged model",
        names=(r"pytorch_model_fsdp_\d+", r"fsdp_model_\d+", r"model_world_size_\d+_rank_\d+\.pt"),
        is_state=True,
    ),
    Kind(
        "a DeepSpeed checkpoint",
        _DEEPSPEED,
        names=(
            *(r"zero_pp_rank_.*", r"(bf16_|fp16_)?zero_pp_rank_.*", r"mp_rank_\d+_model_states\.pt"),
            *(r"layer_\d+-model_\d+-model_states\.pt", r"zero_to_fp32\.py", r"global_step\d+/.*_states\.pt", "latest"),
        ),
        is_state=True,
    ),
    Kind(
        "a Megatron checkpoint",
        _MEGATRON,
        names=(
            *(r"latest_checkpointed_iteration\.txt", r"model_optim_rng\.pt", r"mp_rank_\d+(_\d+)*/model_optim_rng\.pt"),
            *(
                r"[^/]+/mp_rank_\d+(_\d+)*",
                r"tp_rank_\d+_pp_rank_\d+",
                r"mp_rank_\d+(_\d+)*",
                r"iter_\d{7}/(mp_rank_.*|.*\.distcp|metadata\.json)",
            ),
        ),
        is_state=True,
    ),
    Kind(
        "a checkpoint of torch.distributed (DCP)",
        "merge it with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR pytorch_model.bin`, "
        "then encode the directory with that file",
        names=(r".+\.distcp", r"[^/]+/.+\.distcp"),
        is_state=True,
    ),
    Kind(
        "a checkpoint of Orbax (JAX)",
        "restore it with Orbax, and save the arrays by name with safetensors.flax.save_file",
        names=(r"_CHECKPOINT_METADATA", r"ocdbt\.process_\d+", r"manifest\.ocdbt", r"_METADATA"),
        is_state=True,
    ),
)

_FORMATS = (
    Kind(
        "a GGUF file, a format of llama.cpp",
        "encode the model that it was made from, or write its dequantised weights with Transformers: "
        "`AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE).save_pretrained(OUT_DIR)`",
        ((0, b"GGUF"), (0, b"FUGG")),
        (r".+\.gguf",),
    ),
    Kind(
        "a GGML file, an old format of llama.cpp", _SOURCE, ((0, b"lmgg"), (0, b"tjgg"), (0, b"fmgg")), (r".+\.ggml",)
    ),
    Kind(
        "an HDF5 file, as TensorFlow and Keras write it",
        _TENSORFLOW,
        ((0, b"\x89HDF\r\n\x1a\n"),),
        (r".+\.(h5|hdf5)",),
    ),
    Kind(
        "a Keras model",
        "encode the model in PyTorch's format that it was made from, or load it with Keras and save its arrays by name",
        names=(r".+\.keras",),
    ),
    Kind(
        "a TensorFlow checkpoint",
        _TENSORFLOW,
        names=(r"saved_model\.pb", r".+\.ckpt(-\d+)?\.(index|meta|data-\d+-of-\d+)", r"variables/variables\.index"),
    ),
    Kind("a Flax checkpoint in MessagePack", _FLAX, names=(r".+\.msgpack", r".+\.msgpack\.index\.json")),
    Kind("a TensorFlow Lite model", _SOURCE, ((4, b"TFL3"),), (r".+\.tflite",)),
    Kind("an ONNX model", _SOURCE, names=(r".+\.onnx(_data)?", r".+\.onnx\.data")),
    Kind("an OpenVINO model", _SOURCE, names=(r"openvino_.*\.(xml|bin)",)),
    Kind("a Core ML model", _SOURCE, names=(r".+\.(mlmodel|mlpackage|mlmodelc)",)),
    Kind("a TensorRT engine", _SOURCE, ((0, b"ftrt"),), (r".+\.(engine|plan|trt)",)),
    Kind("an ExecuTorch program", _SOURCE, ((4, b"ET12"),), (r".+\.pte",)),
    Kind(
        "a NeMo archive",
        "export it with NeMo (`nemo.collections.llm.export_ckpt(..., target='hf')`), then encode what it wrote",
        names=(r".+\.nemo", r"model_weights\.ckpt"),
    ),
    Kind(
        "a NumPy file, as MLX and NumPy write arrays",
        "write the arrays by name with safetensors.numpy.save_file: numpy.load reads them",
        ((0, b"\x93NUMPY"),),
        (r".+\.np[yz]",),
    ),
)

TORCHSCRIPT = Kind(
    "a TorchScript program", "save its weights: `torch.save(torch.jit.load(FILE).state_dict(), 'pytorch_model.bin')`"
)
NUMPY = _FORMATS[-1]
KERAS = next(kind for kind in _FORMATS if kind.is_called("model.keras"))
ZIP = Kind(
    "a zip archive", "unpack it, and encode the directory that was packed", ((0, b"PK\x03\x04"), (0, b"PK\x05\x06"))
)

_PLAIN = (
    Kind(
        "a compressed archive",
        "unpack it, and encode the directory that was packed",
        (
            *((0, b"\x1f\x8b\x08"), (0, b"\x28\xb5\x2f\xfd"), (0, b"\xfd7zXZ\x00"), (0, b"BZh9"), (0, b"7z\xbc\xaf")),
            *((0, b"Rar!\x1a"), (257, b"ustar")),
        ),
        (r".+\.(tar|tgz|tar\.\w+|zip|7z|rar)",),
        is_archive=True,
    ),
    Kind("a PDF document", _AGAIN, ((0, b"%PDF-"),)),
    Kind(
        "a page of HTML or XML",
        _AGAIN,
        ((0, b"<!doctype html"), (0, b"<html"), (0, b"<head"), (0, b"<?xml"), (0, b"<!--")),
    ),
)
TEXT = Kind("a text file", _AGAIN)
ZEROS = Kind("a file of zeros", "the disk was full, or the machine stopped, when it was written: copy it again")

OWN_FORMATS = {
    *(".json", ".jsonl", ".txt", ".md", ".py", ".yaml", ".yml", ".pkl", ".pickle", ".joblib", ".html", ".xml", ".pdf")
}
"""How the names of files end that are what they are called, and no weights."""

KINDS = (*POINTERS, *_STATES, *_FORMATS, *_PLAIN)
"""Kinds of content that are no weights as they are; the first that fits counts."""

_HEAD = 512
"""Bytes at the start of a file that tell its kind."""

_LEAST_ZEROS = 64
"""Zeros at the start of a file that say that nothing was written."""

LARGEST_TEXT = 1 << 16
"""Bytes of a text in the place of weights: the answer of a server is shorter."""


def content_of(path: Path) -> Kind | None:
    """Return what a file is by its first bytes; None where they say nothing. Raises OSError."""
    with open_regular(path) as file:
        head = file.read(_HEAD)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return SAFETENSORS
    if len(head) >= _LEAST_ZEROS and not any(head):
        return ZEROS
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for kind in (*KINDS, PICKLE):
        if any(head[offset : offset + len(start)] == start for offset, start in kind.starts):
            return kind
        if any(text.startswith(start) for _, start in kind.starts if start.startswith(b"<")):
            return kind
    if any(head.startswith(start) for _, start in ZIP.starts):
        return _inside_zip(path)
    return TEXT if _is_text(head) and path.stat().st_size <= LARGEST_TEXT else None


def pointer_of(path: Path) -> Kind | None:
    """Return what a file is that only stands for another one, told by its first bytes; raises OSError."""
    with open_regular(path) as file:
        head = file.read(_POINTER_HEAD)
    starts = ((kind, start) for kind in POINTERS for _, start in kind.starts)
    return next((kind for kind, start in starts if head.startswith(start)), None)


BAD_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError)
"""What reading an archive raises where it is none: also for names that say that they are UTF-8, and are not."""


def is_archive(file: BinaryIO) -> bool:
    """Tell whether an opened file ends as a zip archive of one disk does; one that says it has several is none."""
    try:
        return zipfile.is_zipfile(file)
    except BAD_ZIP:
        return False


@contextlib.contextmanager
def opened_archive(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Lend the archive in an opened file; raises what is in BAD_ZIP, also for a record that begins before the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place that is none
            raise
        raise zipfile.BadZipFile(str(error)) from error


def _inside_zip(path: Path) -> Kind | None:
    """Return what a zip archive holds: torch, Keras and NumPy save one; None for one that was cut."""
    try:
        with open_regular(path) as file, opened_archive(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except BAD_ZIP:
        return None
    if "constants.pkl" in names:
        return TORCHSCRIPT
    if "data.pkl" in names:
        return PICKLE
    if "model.weights.h5" in names:
        return KERAS
    return NUMPY if any(name.endswith(".npy") for name in names) else ZIP


def _is_text(head: bytes) -> bool:
    """Tell whether bytes are a text for people: words, not a lone number or a word of a code."""
    try:
        text = head.decode("utf-8", "strict" if len(head) < _HEAD else "ignore").strip()
    except UnicodeDecodeError:
        return False
    return " " in text and all(character.isprintable() or character in "\r\n\t" for character in text)


def called(names: Iterable[str], kinds: Iterable[Kind] = KINDS) -> tuple[str, Kind] | None:
    """Return the first name that is enough to tell what a file or directory is, and its kind; None without one."""
    listed = sorted(names)
    return next(((name, kind) for kind in kinds for name in listed if kind.is_called(name)), None)


_LINES = {"latest", "latest_checkpointed_iteration.txt"}
"""Files of a name that may be anything's: as a directory or a link, they say nothing."""

_MOST_NAMES = 10_000
"""Names that are looked at, of a directory and of those in it."""


def names_in(path: Path) -> list[str]:
    """Return the names of what is in a directory, and of what is in directories there, as `folder/name`."""
    return list(itertools.islice(_each_name(path), _MOST_NAMES))


def _each_name(path: Path) -> Iterator[str]:
    for entry in sorted(path.iterdir()):
        is_folder = entry.is_dir()
        if entry.name not in _LINES or not (is_folder or entry.is_symlink()):
            yield entry.name
        if is_folder and not entry.is_symlink():
            yield from (f"{entry.name}/{inside.name}" for inside in sorted(entry.iterdir()))


def special_file(path: Path) -> str | None:
    """Return what a path is that is neither file nor directory; None for these. Raises OSError, nothing is opened."""
    return special_kind(path.stat().st_mode)
