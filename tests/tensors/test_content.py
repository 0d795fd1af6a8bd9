"""A file is told by its content: pointers, pages of errors, other formats, and weights under another format's name."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petlpack import RunError
from petlpack.tensors.checkpoint import open_checkpoint, open_saved
from petlpack.tensors.content import KINDS, PICKLE, SAFETENSORS, called, content_of
from tests.support.small_runs import weights, write_safetensors

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0f" * 32 + b"\nsize 438011432\n"


def archive_of(**files: bytes) -> bytes:
    """A zip archive of these files, `__` for a dot and `_in_` for a slash."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", ".").replace("_in_", "/"), content)
    return packed.getvalue()


def saved(array: np.ndarray[Any, Any]) -> bytes:
    """What numpy saves of an array."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


CONTENTS: dict[str, tuple[bytes, str, str]] = {
    "LFS": (LFS, "Git LFS pointer", "git lfs pull"),
    "LFS of old": (LFS.replace(b"git-lfs.github.com", b"hawser.github.com"), "Git LFS pointer", "git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s4380--0f0f.safetensors\n", "git-annex", "git annex get"),
    "DVC": (b"outs:\n- md5: 0f0f\n  size: 4380\n  path: model.safetensors\n", "DVC pointer", "dvc pull"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "HTML", "download"),
    "HTML with a mark": (b"\xef\xbb\xbf<HTML>", "HTML", "download"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML", "download"),
    "an answer": (b"Entry not found", "text", "download"),
    "an answer in JSON": (b'{"error": "Repository not found"}', "text", "download"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(40), "GGUF", "gguf_file"),
    "GGML": (b"tjgg\x03\0\0\0" + bytes(40), "GGML", "encode that model"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "from_tf=True"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(40), "Lite", "encode that model"),
    "NumPy": (saved(np.zeros(3)), "NumPy", "save_file"),
    "NumPy's archive": (archive_of(w__npy=saved(np.zeros(3))), "NumPy", "save_file"),
    "Keras": (archive_of(model__weights__h5=b"x", config__json=b"{}"), "Keras", "Keras"),
    "TorchScript": (archive_of(m_in_data__pkl=b"x", m_in_constants__pkl=b"x"), "TorchScript", "torch.jit.load"),
    "zip": (archive_of(model_in_config__json=b"{}"), "zip archive", "unpack"),
    "zeros": (bytes(4096), "file of zeros", "copy it again"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "archive", "unpack"),
    "tar": (b"model".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "archive", "unpack"),
}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "best.ckpt"])
@pytest.mark.parametrize("case", CONTENTS)
def test_what_is_no_weights_is_named_and_told_what_helps(tmp_path: Path, case: str, file: str) -> None:
    content, words, hint = CONTENTS[case]
    path = tmp_path / file
    path.write_bytes(content)
    for read in (open_checkpoint, open_saved):
        with pytest.raises(RunError, match=words) as caught:
            read(path)
        assert str(path) in caught.value.message
        assert caught.value.hint is not None
        assert hint in caught.value.hint


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors"])
def test_a_pickle_under_the_name_of_safetensors_is_told_its_own(tmp_path: Path, file: str, kind: str) -> None:
    path = tmp_path / file
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    else:
        torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(RunError, match="is a pickle, as torch") as caught:
        open_checkpoint(path)
    named = {"model.safetensors": "pytorch_model.bin", "adapter_model.safetensors": "adapter_model.bin"}[file]
    assert caught.value.hint == f"its name says otherwise: rename it, `mv {file} {named}`"


@pytest.mark.parametrize("file", ["pytorch_model.bin", "adapter_model.bin", "model.pt"])
def test_safetensors_under_the_name_of_a_pickle_are_told_their_own(tmp_path: Path, file: str) -> None:
    path = write_safetensors(tmp_path / file, {"a": weights("F32", (2, 2))})
    with pytest.raises(RunError, match="is a safetensors file") as caught:
        open_checkpoint(path)
    named = "adapter_model.safetensors" if file.startswith("adapter") else "model.safetensors"
    assert caught.value.hint == f"its name says otherwise: rename it, `mv {file} {named}`"


def test_weights_are_told_by_their_content(tmp_path: Path) -> None:
    assert content_of(write_safetensors(tmp_path / "a", {"a": weights("F32", (2, 2))})) is SAFETENSORS
    for new in (True, False):
        torch.save({"a": torch.zeros(2)}, tmp_path / "b", _use_new_zipfile_serialization=new)
        assert content_of(tmp_path / "b") is PICKLE
    for content in (b"", b"\0" * 40, b"hello", bytes(range(256))):
        (tmp_path / "c").write_bytes(content)
        assert content_of(tmp_path / "c") is None


def test_every_kind_says_what_to_do_and_can_be_found() -> None:
    assert all(kind.hint and (kind.starts or kind.names) for kind in KINDS)
    assert len({kind.what for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "model-Q4_K_M.gguf": "GGUF",
        "tf_model.h5": "HDF5",
        "flax_model.msgpack": "Flax",
        "model.onnx": "ONNX",
        "saved_model.pb": "TensorFlow checkpoint",
        "bert_model.ckpt.index": "TensorFlow checkpoint",
        "weights.npz": "MLX",
        "model.safetensors.dvc": "DVC",
        "__0_0.distcp": "DCP",
        "pytorch_model_fsdp_0": "FSDP",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt": "DeepSpeed",
        "latest_checkpointed_iteration.txt": "Megatron",
        "llama.nemo": "NeMo",
    }.items(),
)
def test_some_are_told_by_name(name: str, words: str) -> None:
    found = called(["config.json", name])
    assert found is not None
    assert found[0] == name
    assert words in found[1].what


def test_ordinary_files_are_of_no_kind() -> None:
    assert (
        called(["config.json", "model.safetensors", "pytorch_model.bin", "global_step_100", "trainer_state.json"])
        is None
    )
