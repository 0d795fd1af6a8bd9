"""What `stats` says of runs that were never packed: sums to the byte, equal means equal, and no pickle is opened."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import petlpack
from petlpack import BaseError, UsageError
from petlpack.analyze.survey import RunRow, Survey, survey
from petlpack.analyze.survey.equality import PAGE
from petlpack.analyze.survey.kinds import KINDS
from petlpack.records.facts import Score
from petlpack.store import is_pack
from petlpack.tensors.places import TRAINING
from petlpack.tensors.tensor import Tensor
from petlpack_cli.output import Output
from petlpack_cli.output.sizes import bar
from petlpack_cli.output.survey import BAR, conclusion, print_survey
from tests.support.method_runs import (
    write_adamix,
    write_adamix_nlg,
    write_adapterhub,
    write_base,
    write_diff_pruning,
    write_hyperformer,
    write_pha,
    write_propetl_roberta,
    write_propetl_t5,
)
from tests.support.small_runs import (
    TINY,
    make_base,
    make_pair,
    random_tensor,
    weights,
    write_pair,
    write_run,
    write_safetensors,
)

STATE = b"\x80\x04never unpickle this" * 50


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def look(*paths: Path, base: Path | None = None, jobs: int = 1) -> Survey:
    """Survey some paths, and check what is true of every survey."""
    found = survey(paths, base, jobs=jobs)
    assert found == survey(paths, base, jobs=3)
    assert [row.kind for row in found.kinds] == list(KINDS)
    assert sum(row.bytes for row in found.kinds) == found.disk_bytes
    assert sum(row.files for row in found.kinds) == found.files
    assert all(sum(run.bytes.values()) == run.total_bytes for run in found.runs)
    assert sum(run.total_bytes for run in found.runs) <= found.disk_bytes
    assert found.savings.total + found.savings.other_checkpoints <= found.disk_bytes
    tensors = found.tensors
    assert tensors.equal_to_base_bytes + tensors.duplicated_bytes <= tensors.bytes
    assert sum(run.equal_to_base_bytes for run in found.runs) <= tensors.equal_to_base_bytes
    assert sum(row.bytes for row in tensors.equal) == tensors.equal_to_base_bytes
    assert json.loads(json.dumps(found.to_json()))["savings"]["total"] == found.savings.total
    assert found.to_json()["problems"] == found.problems
    return found


def sizes(found: Survey | RunRow) -> dict[str, int]:
    """Return the kinds that take anything, with their bytes."""
    rows = found.bytes if isinstance(found, RunRow) else {row.kind: row.bytes for row in found.kinds}
    return {kind: nbytes for kind, nbytes in rows.items() if nbytes}


def put(path: Path, content: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return len(content)


def disk(*paths: Path) -> int:
    """Sum the regular files below some paths, each inode once, by another way than the survey's."""
    files = [file for path in paths for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum({(file.stat().st_dev, file.stat().st_ino): file.stat().st_size for file in files}.values())


# Kinds

KIND_OF = {
    "optimizer.pt": "training state",
    "scheduler.pt": "training state",
    "scaler.pt": "training state",
    "rng_state.pth": "training state",
    "rng_state_0.pth": "training state",
    "random_states_0.pkl": "training state",
    "training_args.bin": "training state",
    "optimizer.bin": "training state",
    "checkpoint-7/global_step7/mp_rank_00_model_states.pt": "training state",
    "checkpoint-7/global_step7/zero_pp_rank_0_mp_rank_00_optim_states.pt": "training state",
    "checkpoint-7/optimizer_0/__0_0.distcp": "training state",
    "checkpoint-7/latest": "training state",
    "checkpoint-7/zero_to_fp32.py": "training state",
    "checkpoint-7/model.safetensors": "other checkpoints",
    "checkpoint-7/pytorch_model_fsdp_0/__0_0.distcp": "other checkpoints",
    "pytorch_model_fsdp_0/__0_0.distcp": "other weights",
    "pytorch_model.bin": "other weights",
    "model.onnx": "other weights",
    "tf_model.h5": "other weights",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "special_tokens_map.json": "tokenizer",
    "vocab.txt": "tokenizer",
    "spiece.model": "tokenizer",
    "chat_template.jinja": "tokenizer",
    "additional_chat_templates/tool.jinja": "tokenizer",
    "generation_config.json": "config",
    "modules.json": "config",
    "1_Pooling/config.json": "config",
    "scheduler/scheduler_config.json": "config",
    "model.safetensors.index.json": "config",
    "args.yaml": "config",
    "trainer_state.json": "log",
    "all_results.json": "log",
    "train_results.json": "log",
    "eval_results_sst2.txt": "log",
    "runs/Nov21/events.out.tfevents.1": "log",
    "runs/Nov21/hparams.json": "log",
    "wandb/run-1/files/output.log": "log",
    "wandb/run-1/run-1.wandb": "log",
    "terminal_logs.txt": "log",
    "slurm-17.out": "log",
    ".cache/huggingface/download/model.safetensors.metadata": "cache",
    ".cache/huggingface/download/model.safetensors": "cache",
    "__pycache__/train.cpython-311.pyc": "cache",
    ".git/objects/aa/bb": "cache",
    ".ipynb_checkpoints/train.ipynb": "cache",
    "train.py": "code",
    "run.sh": "code",
    "README.md": "other",
    "notes": "other",
    "optimizer_sweep/notes": "other",
}


def test_every_file_has_one_kind_and_the_kinds_add_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_base())
    expected = Counter({"weights": (run / "model.safetensors").stat().st_size})
    expected["config"] += (run / "config.json").stat().st_size
    for i, (name, kind) in enumerate(KIND_OF.items()):
        content = b"[]" if name == "modules.json" else b"{}" if name.endswith(".json") else bytes([i])
        content += b" " * (1000 + 17 * i)
        expected[kind] += put(run / name, content)
    found = look(tmp_path)
    assert sizes(found) == expected
    assert found.disk_bytes == disk(tmp_path)
    assert [(row.path, sizes(row)) for row in found.runs] == [(str(run), expected)]


@pytest.mark.parametrize("name", [name for name in KIND_OF if name != "modules.json"])
def test_a_kind_alone(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", make_base(layers=1), None)
    before = sizes(look(run))
    nbytes = put(run / name, b"{}" if name.endswith(".json") else b"\x00" * 77)
    after = sizes(look(run))
    assert Counter(after) == Counter(before) + Counter({KIND_OF[name]: nbytes})


def test_a_directory_without_a_run_has_kinds_all_the_same(tmp_path: Path) -> None:
    put(tmp_path / "a" / "data.csv", b"1,2")
    put(tmp_path / "optimizer.pt", STATE)
    found = look(tmp_path)
    assert (sizes(found), found.runs) == ({"other": 3, "training state": len(STATE)}, ())
    assert conclusion(found) == "No run here: 2 files of 1.1 kB."


# Pickles


class Bomb:
    """Whoever unpickles it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "unpickled")


def test_no_pickle_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    base = write_base(tmp_path / "base", TINY)
    written = {
        "adapter": write_adapterhub(tmp_path / "adapter", "a", TINY).path,
        "propetl": write_propetl_roberta(tmp_path / "propetl", "sst2", TINY).path,
        "adamix": write_adamix(tmp_path / "adamix", TINY, full=True).path,
        "diff": write_diff_pruning(tmp_path / "diff", base.path).path,
        "pha": write_pha(tmp_path / "pha", ["a"], TINY, embed=4, trunk=6, code=4).path,
    }
    for name in ("training_args.bin", "optimizer.pt", "extra.bin", "checkpoint-5/pytorch_model.bin", "mag0.1.pt"):
        path = written["adamix"] / name
        path.parent.mkdir(exist_ok=True)
        torch.save(Bomb(tmp_path / "exploded"), path)
        put(path.with_suffix(".old.bin"), pickle.dumps(Bomb(tmp_path / "exploded")))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was opened")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    found = look(tmp_path)
    assert not (tmp_path / "exploded").exists()
    assert {row.path for row in found.runs} == {str(path) for path in (base.path, *written.values())}
    pickled = [file for file in tmp_path.rglob("*") if file.suffix in (".bin", ".pt", ".pth")]
    weight_files = [file for file in pickled if not file.name.startswith(TRAINING)]
    assert found.tensors.pickled_bytes == sum(file.stat().st_size for file in weight_files)
    assert sum(row.bytes["training state"] for row in found.runs) == sum(
        file.stat().st_size for file in {*pickled} - {*weight_files}
    )


# Which weights count

METHOD_RUNS: dict[str, tuple[Callable[[Path], Any], str, str, set[str]]] = {
    "propetl": (
        lambda path: write_propetl_roberta(path, "sst2", TINY),
        "propetl",
        "PROPETL",
        {"sst2/pytorch_adapter.bin", "sst2/adapter_mask.bin", "sst2/pytorch_model_head.bin"},
    ),
    "propetl-t5": (
        lambda path: write_propetl_t5(path, ["a", "b"], TINY),
        "propetl-t5",
        "PROPETL",
        {"propetl_weight.bin"},
    ),
    "adamix": (lambda path: write_adamix(path, TINY), "adamix", "AdaMix", {"pytorch_model_expert_soup.bin"}),
    "adamix-nlg": (lambda path: write_adamix_nlg(path, TINY), "adamix", "AdaMix", {"model.1000.pt"}),
    "pha": (lambda path: write_pha(path, ["a"], TINY, embed=4, trunk=6, code=4), "pha", "PHA", {"pytorch_model.bin"}),
    "hyperformer": (
        lambda path: write_hyperformer(path, ["a"], TINY),
        "hyperformer",
        "HyperFormer",
        {"pytorch_model.bin"},
    ),
    "adapterhub": (
        lambda path: write_adapterhub(path, "a", TINY, use_safetensors=True),
        "adapterhub",
        "adapter",
        {"adapter.safetensors", "model_head.safetensors"},
    ),
    "adapterhub-lora": (
        lambda path: write_adapterhub(path, "a", TINY, kind="lora", head=False),
        "adapterhub",
        "lora",
        {"pytorch_adapter.bin"},
    ),
}


@pytest.mark.parametrize("name", METHOD_RUNS)
def test_the_weights_of_a_method(tmp_path: Path, name: str) -> None:
    write, layout, method, files = METHOD_RUNS[name]
    write(tmp_path / "run")
    put(tmp_path / "run" / "extra.bin", b"\x01" * 99)
    found = look(tmp_path)
    (row,) = found.runs
    assert (row.path, row.layout, row.method, row.problem) == (str(tmp_path / "run"), layout, method, None)
    assert row.bytes["weights"] == sum((tmp_path / "run" / file).stat().st_size for file in files)
    assert row.bytes["other weights"] == 99


def test_they_are_those_that_encode_takes(tmp_path: Path) -> None:
    """A root without weights, its best checkpoint, its highest one that is complete: as `encode` reports them."""
    tuned, base = make_pair()
    write_run(tmp_path / "base", base)
    run = tmp_path / "run"
    for step in (5, 10, 100):
        write_run(run / f"checkpoint-{step}", {**tuned, "step": weights("F32", (step,))})
    path = run / "checkpoint-100" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    def stored() -> int:
        (row,) = look(run).runs
        (encoded,) = petlpack.encode(run, tmp_path / "pack", tmp_path / "base", jobs=1, replace=True)
        assert row.bytes["weights"] == encoded.source_bytes
        return encoded.source_bytes

    assert stored() == (run / "checkpoint-10" / "model.safetensors").stat().st_size
    (row,) = look(run).runs
    assert row.problem is not None
    assert "checkpoint-100" in row.problem.message
    assert (row.checkpoints, row.bytes["other checkpoints"]) == (
        3,
        path.stat().st_size + (run / "checkpoint-5" / "model.safetensors").stat().st_size,
    )
    state = {"best_model_checkpoint": str(run / "checkpoint-5"), "log_history": [{"eval_accuracy": 0.5}]}
    (run / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    assert stored() == (run / "checkpoint-5" / "model.safetensors").stat().st_size
    assert look(run).runs[0].score == Score("accuracy", 0.5)
    write_run(run, tuned)
    assert stored() == (run / "model.safetensors").stat().st_size


def test_a_tree_of_runs_at_any_depth(tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "deep" / "er" / "b", tmp_path / "a" / "inner" / "c"]
    for seed, run in enumerate(runs):
        write_run(run, make_pair(seed)[0])
        write_run(run / "checkpoint-5", make_pair(seed + 10)[0], files={"optimizer.pt": STATE})
    write_safetensors(tmp_path / "loose" / "one.safetensors", make_base())
    write_safetensors(tmp_path / "two" / "one.safetensors", make_base(1))
    write_safetensors(tmp_path / "two" / "other.safetensors", make_base(2))
    found = look(tmp_path)
    assert {row.path for row in found.runs} == {str(path) for path in (*runs, tmp_path / "loose")}
    assert {row.layout for row in found.runs} == {"transformers", "safetensors"}
    for row in found.runs[:3]:
        assert (row.checkpoints, row.bytes["training state"]) == (1, len(STATE))
    assert sizes(found)["other weights"] == sum(
        (tmp_path / "two" / f"{name}.safetensors").stat().st_size for name in ("one", "other")
    )


def test_a_path_given_twice_or_nested_counts_once(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name, make_pair(ord(name))[0])
        write_run(tmp_path / name / "checkpoint-5", make_pair(ord(name) + 9)[0])
    found = look(tmp_path)
    assert look(tmp_path / "a" / "checkpoint-5", tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "b") == found
    assert look(tmp_path / "a", tmp_path / "b").disk_bytes == found.disk_bytes == disk(tmp_path)
    file = tmp_path / "a" / "model.safetensors"
    alone = look(file)
    assert (alone.runs[0].path, sizes(alone)) == (str(file), {"weights": file.stat().st_size})
    checkpoint = look(tmp_path / "a" / "checkpoint-5")
    assert (len(checkpoint.runs), "other checkpoints" in sizes(checkpoint)) == (1, False)


def test_shards_and_modules_are_weights_and_a_second_format_is_not(tmp_path: Path) -> None:
    base = list(make_base().items())
    run = tmp_path / "run"
    shards = {f"model-0000{i}-of-00002.safetensors": dict(base[i - 1 :: 2]) for i in (1, 2)}
    for name, part in shards.items():
        write_safetensors(run / name, part)
    index = {"weight_map": {tensor: name for name, part in shards.items() for tensor in part}}
    put(run / "model.safetensors.index.json", json.dumps(index).encode())
    modules = [{"path": "", "type": "st.Transformer"}, {"path": "2_Dense", "type": "st.Dense"}]
    put(run / "modules.json", json.dumps(modules).encode())
    write_safetensors(run / "2_Dense" / "model.safetensors", {"linear.weight": weights("F32", (4, 4))})
    put(run / "pytorch_model.bin", b"PK")
    (row,) = look(tmp_path).runs
    files = [*(run / name for name in shards), run / "2_Dense" / "model.safetensors"]
    assert row.bytes["weights"] == sum(file.stat().st_size for file in files)
    assert row.bytes["other weights"] == 2
    (run / "model-00002-of-00002.safetensors").unlink()
    (row,) = look(tmp_path).runs
    assert row.problem is not None
    assert "missing" in row.problem.message


# Links


def test_hard_links_count_once_and_are_no_duplicates(tmp_path: Path) -> None:
    write_run(tmp_path / "a", make_base())
    (tmp_path / "b").mkdir()
    for name in ("model.safetensors", "config.json"):
        os.link(tmp_path / "a" / name, tmp_path / "b" / name)
    found = look(tmp_path)
    assert found.disk_bytes == disk(tmp_path) == disk(tmp_path / "a")
    assert (found.files, found.duplicates, found.tensors.duplicated_bytes) == (2, (), 0)
    assert sorted(row.total_bytes for row in found.runs) == [0, found.disk_bytes]


def test_links_count_nothing_inside_and_their_target_outside(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tree" / "run", make_base())
    outside = write_run(tmp_path / "outside", make_base(1), files={"big": bytes(999)})
    before = look(tmp_path / "tree")
    (run / "again.safetensors").symlink_to(run / "model.safetensors")
    (run / "loop").symlink_to(run / "loop")
    (run / "up").symlink_to(tmp_path, target_is_directory=True)
    (run / "gone").symlink_to(tmp_path / "nothing")
    (run / "vocab.txt").symlink_to(tmp_path / "nothing")
    (run / "loop.bin").symlink_to(run / "loop.bin")
    found = look(tmp_path / "tree")
    assert (found.disk_bytes, found.linked_bytes, found.kinds) == (before.disk_bytes, 0, before.kinds)
    assert {Path(path).name for path in found.unreadable} == {"vocab.txt", "loop.bin"}  # loading needs them
    assert found.runs[0].problem is not None
    (run / "vocab.txt").unlink()
    (run / "loop.bin").unlink()
    assert look(tmp_path / "tree").runs[0].problem is None
    (run / "one").symlink_to(outside / "big")
    (run / "two").symlink_to(outside / "big")
    found = look(tmp_path / "tree")
    assert (found.disk_bytes, found.linked_bytes) == (before.disk_bytes + 999, 999)
    (tmp_path / "alias").symlink_to(tmp_path / "tree", target_is_directory=True)
    assert look(tmp_path / "alias").disk_bytes == found.disk_bytes  # a given path is followed


def test_a_download_of_the_hub_is_known_by_its_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--model"
    kept = write_run(tmp_path / "kept", make_base(), files={"tokenizer.json": b"{}", "optimizer.pt": STATE})
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in kept.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.name.encode()).hexdigest()
        put(blob, file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    put(repository / "refs" / "main", b"abc")
    plain = sizes(look(kept))
    for path, beside in ((repository, {"other": 3}), (snapshot, {})):
        found = look(path)
        assert sizes(found) == {**plain, **beside}
        assert [(row.path, row.bytes["weights"]) for row in found.runs] == [(str(snapshot), plain["weights"])]
        assert found.linked_bytes == (0 if path is repository else found.disk_bytes)


# Files that are equal


def test_equal_files_are_one_group_and_one_byte_makes_another(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    middle = bytearray(content)
    middle[len(content) // 3 + 12345] ^= 1
    for name, bytes_ in (
        ("a", content),
        ("b", content),
        ("c/d", content),
        ("e", bytes(middle)),
        ("f", b""),
        ("g", b""),
    ):
        put(tmp_path / name, bytes_)
    found = look(tmp_path)
    (group,) = found.duplicates
    assert group.files == tuple(str(tmp_path / name) for name in ("a", "b", "c/d"))
    assert (group.file_bytes, group.extra_bytes) == (len(content), 2 * len(content))
    assert found.duplicate_bytes == found.savings.duplicate_files == found.savings.total == 2 * len(content)


SIZES = st.sampled_from([1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 8 * PAGE, 8 * PAGE + 1, 9 * PAGE, 40 * PAGE])


@settings(max_examples=60)
@given(st.lists(st.tuples(SIZES, st.lists(st.floats(0, 1, exclude_max=True), max_size=1)), max_size=6))
def test_equal_is_what_a_digest_of_everything_says(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[int, list[float]]]
) -> None:
    """Files of few sizes that differ in one byte at any place, or in none."""
    tree = tmp_path_factory.mktemp("tree")
    put(tree / "seed", b"!")
    expected: dict[bytes, set[str]] = {}
    for i, (nbytes, flips) in enumerate(files):
        content = bytearray(nbytes)
        for at in flips:
            content[int(at * nbytes)] ^= 1
        put(tree / f"f{i}", bytes(content))
        expected.setdefault(bytes(content), set()).add(str(tree / f"f{i}"))
    found = look(tree)
    assert {frozenset(group.files) for group in found.duplicates} == {
        frozenset(group) for group in expected.values() if len(group) > 1
    }
    shutil.rmtree(tree)


def test_what_a_run_needs_is_kept_before_training_state(tmp_path: Path) -> None:
    tuned = make_pair()[0]
    run = write_run(tmp_path / "run", tuned)
    nbytes = (run / "model.safetensors").stat().st_size
    for name in ("checkpoint-5/model.safetensors", "second.safetensors", "optimizer.pt"):
        (run / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(run / "model.safetensors", run / name)
    found = look(tmp_path)
    assert found.duplicates[0].files[0] == str(run / "model.safetensors")
    assert found.duplicates[0].files[-1] == str(run / "optimizer.pt")
    assert (found.duplicate_bytes, found.savings.total) == (3 * nbytes, 3 * nbytes)
    assert (found.savings.training_state, found.savings.duplicate_files) == (nbytes, 2 * nbytes)


# Tensors


def nbytes_of(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_tensors_equal_to_the_base_by_name_bits_and_dtype(tmp_path: Path) -> None:
    tuned, base = make_pair()
    words, query = "embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"
    other = "encoder.layer.1.attention.self.query.weight"
    tuned[f"bert.{words}"] = base[words]
    tuned[f"bert.{query}"] = base[query]
    tuned[f"bert.{other}"] = Tensor.of(base[other].bits(), weights("I32", (1,)).dtype)  # the bits, as other numbers
    bits = base["encoder.layer.1.intermediate.dense.weight"].bits().copy()
    bits.reshape(-1)[bits.size // 2] ^= 1
    tuned["bert.encoder.layer.1.intermediate.dense.weight"] = Tensor.of(bits, base[query].dtype)
    write_run(tmp_path / "base", base)
    run = write_run(tmp_path / "tree" / "run", tuned)
    assert look(run).tensors.equal_to_base_bytes == 0  # it names no base
    found = look(run, base=tmp_path / "base")
    assert found.tensors.bytes == nbytes_of(*tuned.values())
    assert [(row.name, row.bytes, row.copies, row.in_adapters) for row in found.tensors.equal] == [
        (f"bert.{words}", base[words].nbytes, 1, 0),
        (f"bert.{query}", base[query].nbytes, 1, 0),
    ]
    assert found.savings.equal_to_base == nbytes_of(base[words], base[query])
    for given_base in (tmp_path / "base" / "model.safetensors", petlpack.Base(tmp_path / "base")):
        assert survey([run], given_base, jobs=1).tensors == found.tensors
    write_run(run, tuned, {"_name_or_path": str(tmp_path / "base")})
    named = look(run)
    assert (named.tensors, named.runs[0].base) == (found.tensors, str(tmp_path / "base"))
    again = write_run(tmp_path / "tree" / "again", tuned, {"_name_or_path": str(tmp_path / "none")})
    assert look(again).runs[0].base is None


def test_a_base_in_the_tree_is_no_duplicate_of_its_runs(tmp_path: Path) -> None:
    tuned, base = make_pair(prefix="")
    words = "embeddings.word_embeddings.weight"
    write_run(tmp_path / "zz-base", base)
    for name in "ab":
        write_run(tmp_path / name, {**tuned, words: base[words], "own": random_tensor("F32", (5,), ord(name))})
    found = look(tmp_path, base=tmp_path / "zz-base")
    assert {row.path: row.is_base for row in found.runs} == {
        str(tmp_path / "a"): False,
        str(tmp_path / "b"): False,
        str(tmp_path / "zz-base"): True,
    }
    assert found.savings.equal_to_base == 2 * base[words].nbytes
    moved = [tensor for name, tensor in tuned.items() if name != words]
    assert found.savings.duplicate_tensors == nbytes_of(*moved)
    (own,) = (row for row in found.runs if row.is_base)
    assert (own.base, own.equal_to_base_bytes, own.duplicated_bytes) == (None, 0, 0)


def test_duplicated_tensors_of_a_file_of_checkpoints_and_of_runs(tmp_path: Path) -> None:
    tied = weights("F32", (20, 16), 1)
    frozen = weights("F32", (30, 16), 2)
    for i, place in enumerate(("a", "a/checkpoint-5", "b")):
        tensors = {"embed": tied, "head": tied, "frozen": frozen, "own": weights("F32", (9, 9), 10 + i)}
        write_run(tmp_path / place, tensors, None)
    found = look(tmp_path)
    assert found.tensors.duplicated_bytes == 5 * tied.nbytes + 2 * frozen.nbytes
    assert found.savings.duplicate_tensors == found.savings.total == found.tensors.duplicated_bytes


def test_overlaps_are_counted_once(tmp_path: Path) -> None:
    """A file that is there twice, tensors that are the base's, and tied ones of those, and training state."""
    base = make_base()
    words = base["embeddings.word_embeddings.weight"]
    tuned = {**make_pair(3, prefix="")[0], "embeddings.word_embeddings.weight": words, "decoder": words}
    write_run(tmp_path / "base", base)
    tree = tmp_path / "tree"
    for name in "ab":
        write_run(tree / name, tuned, files={"optimizer.pt": STATE})
    model, config = (tree / "a" / name for name in ("model.safetensors", "config.json"))
    shutil.copyfile(model, tree / "b" / "model.safetensors")  # the library orders metadata at random
    found = look(tree, base=tmp_path / "base")
    saved = found.savings
    assert saved.training_state == 2 * len(STATE)
    assert saved.duplicate_files == model.stat().st_size + config.stat().st_size
    assert saved.equal_to_base == words.nbytes
    assert saved.duplicate_tensors == words.nbytes  # `decoder` has no namesake, but the base has its bits
    assert found.tensors.equal_to_base_bytes == 2 * words.nbytes
    assert found.tensors.duplicated_bytes == nbytes_of(*tuned.values())
    assert found.tensors.bytes == 2 * nbytes_of(*tuned.values())


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([3, 1024, 1025, 9000]), st.integers(0, 2)), max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_duplicated_tensors_are_what_a_digest_of_everything_says(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[tuple[int, int]]]
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    seen: set[tuple[int, int]] = set()
    duplicated = 0
    for i, tensors in enumerate(files):
        named = {}
        for j, (count, flip) in enumerate(tensors):
            bits = np.zeros(count, np.uint32)
            bits[count // 3] = flip
            named[f"t{j}"] = Tensor.of(bits, weights("F32", (1,)).dtype)
            duplicated += 4 * count if (count, flip) in seen else 0
            seen.add((count, flip))
        write_safetensors(tree / f"{i}" / "model.safetensors", named)
    assert look(tree).tensors.duplicated_bytes == duplicated
    shutil.rmtree(tree)


# What the libraries write


def test_an_adapter_that_carries_the_embeddings_of_its_base(tmp_path: Path) -> None:
    """The complaint: modules_to_save makes an adapter as large as its model, and most of it is the base's."""
    import peft
    import transformers

    config = transformers.BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with quiet():
        transformers.BertModel(config).save_pretrained(tmp_path / "base")
        for name in ("a", "b"):
            model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
            lora = peft.LoraConfig(
                task_type="SEQ_CLS",
                r=2,
                init_lora_weights=False,
                target_modules=["query"],
                modules_to_save=["word_embeddings", "classifier"],
            )
            peft.get_peft_model(model, lora).save_pretrained(tmp_path / "runs" / name)
    found = look(tmp_path / "runs")
    (words,) = (row for row in found.tensors.equal)
    assert words.name.endswith("embeddings.word_embeddings.weight")
    assert (words.bytes, words.copies, words.in_adapters) == (2 * 400 * 16 * 4, 2, 2)
    assert {(row.layout, row.method, row.base) for row in found.runs} == {("peft", "lora", str(tmp_path / "base"))}
    assert all(row.equal_to_base_bytes == 400 * 16 * 4 for row in found.runs)
    assert found.savings.equal_to_base == words.bytes


def test_what_trainer_leaves(tmp_path: Path) -> None:
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    run = tmp_path / "run"
    data = [{"input_ids": [i % 40, 1, 2, 3], "labels": i % 2} for i in range(8)]
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(1)
        arguments = transformers.TrainingArguments(
            output_dir=str(run),
            max_steps=4,
            eval_steps=2,
            save_steps=2,
            eval_strategy="steps",
            metric_for_best_model="accuracy",
            load_best_model_at_end=True,
            per_device_train_batch_size=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            model=transformers.BertForSequenceClassification(config),
            args=arguments,
            train_dataset=data,
            eval_dataset=data,
            compute_metrics=lambda _: {"accuracy": 0.75},
        )
        trainer.train()
        trainer.save_model()
        trainer.save_state()
    found = look(run)
    (row,) = found.runs
    states = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
    named = [file for file in run.rglob("*") if file.name in states]
    assert len(named) == 9
    assert row.bytes["training state"] == found.savings.training_state == sum(file.stat().st_size for file in named)
    assert row.bytes["weights"] == (run / "model.safetensors").stat().st_size
    assert row.bytes["other checkpoints"] == 2 * row.bytes["weights"]
    assert (row.checkpoints, row.score, row.problem) == (2, Score("accuracy", 0.75), None)
    assert str(run / "checkpoint-2" / "model.safetensors") in found.duplicates[0].files  # the best one, at the root
    assert sizes(row).keys() == {"weights", "other checkpoints", "training state", "config", "log"}
    assert found.disk_bytes == disk(run)


# Packs


def test_a_pack_is_not_looked_into(tmp_path: Path) -> None:
    run, base = write_pair(tmp_path)
    petlpack.encode(run, tmp_path / "tree" / "pack", base, jobs=1)
    for path in (tmp_path / "tree", tmp_path / "tree" / "pack"):
        found = look(path)
        assert (sizes(found), found.runs) == ({"pack": disk(tmp_path / "tree")}, ())
        assert [(row.path, row.bytes) for row in found.packs] == [(str(tmp_path / "tree" / "pack"), found.disk_bytes)]
    put(tmp_path / "tree" / "pack.json", b'{"format": "another"}')
    assert len(look(tmp_path / "tree").packs) == 1


@pytest.mark.parametrize("mark", [b"", b"{", b"[1]", b'{"format": "petlpack"', b'{"format": "petl"}'])
def test_a_pack_with_a_spoilt_mark_is_one_to_all(tmp_path: Path, mark: bytes) -> None:
    run, base = write_pair(tmp_path)
    pack = run / "pack"
    petlpack.encode(run, pack, base, jobs=1)
    (pack / "pack.json").write_bytes(mark)
    assert is_pack(pack)
    (done,) = petlpack.encode(run, tmp_path / "other", base, jobs=1)
    assert [(left.file, left.why) for left in done.left_out] == [("pack", "a pack")]
    assert [row.path for row in look(run).packs] == [str(pack)]
    with pytest.raises(UsageError, match="is a directory of a pack"):
        survey([pack / "tasks"])
    (pack / "pack.json").unlink()
    assert not is_pack(pack)


@pytest.mark.parametrize("inside", ["tasks/run.petl.safetensors", "tasks", "shared"])
def test_a_part_of_a_pack_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    run, base = write_pair(tmp_path)
    petlpack.encode(run, tmp_path / "d.pack", base, task="run", jobs=1)
    monkeypatch.chdir(tmp_path)
    for path in (Path("d.pack", inside), tmp_path / "d.pack" / inside):
        with pytest.raises(UsageError, match=f"{inside}' is a (file|directory) of a pack") as caught:
            survey([run, path])
        name = "run" if inside.endswith("run.petl.safetensors") else "NAME"
        assert f"`petlpack stats {path.parents[inside.count('/')]}`" in str(caught.value.hint)
        assert f"with --task {name} one task" in str(caught.value.hint)
    if inside != "tasks" and inside != "shared":
        copied = shutil.copy(tmp_path / "d.pack" / inside, tmp_path / "copied.petl.safetensors")
        with pytest.raises(UsageError, match="is a file of a pack"):
            survey([copied])
    below = write_run(tmp_path / "d.pack" / "runs" / "mine", make_base())  # beside its parts anything may stand
    assert look(below).runs[0].path == str(below)


# Bad input


@pytest.mark.parametrize("name", ["missing", "file/below", "nul\0"])
def test_a_missing_path(tmp_path: Path, name: str) -> None:
    put(tmp_path / "file", b"")
    with pytest.raises(UsageError, match="no run at '") as caught:
        survey([tmp_path / "file", tmp_path / name])
    assert caught.value.hint


def test_nothing_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    with pytest.raises(UsageError, match="empty' is empty"):
        survey([tmp_path / "empty"])
    with pytest.raises(UsageError, match="no path"):
        survey([])


@pytest.mark.parametrize("case", ["missing", "empty", "pickled", "cut"])
def test_a_base_that_is_none(tmp_path: Path, case: str) -> None:
    run, base = write_pair(tmp_path)
    model = base / "model.safetensors"
    if case in ("pickled", "empty"):
        model.unlink()
    if case == "pickled":
        put(base / "pytorch_model.bin", STATE)
    if case == "cut":
        model.write_bytes(model.read_bytes()[:-1])
    place = tmp_path / "none" if case == "missing" else base
    with pytest.raises(BaseError) as caught:
        survey([run], place)
    assert caught.value.hint
    write_run(run, make_pair()[0], {"_name_or_path": str(place)})
    found = look(run)
    assert found.runs[0].base is None
    assert list(found.unreadable) == ([] if case == "missing" else [str(base)])


BROKEN: dict[str, Callable[[Path], object]] = {
    "cut": lambda run: put(run / "model.safetensors", (run / "model.safetensors").read_bytes()[:-1]),
    "empty": lambda run: put(run / "model.safetensors", b""),
    "no header": lambda run: put(run / "model.safetensors", b"\xff" * 100),
    "config": lambda run: put(run / "config.json", b"{"),
    "adapter config": lambda run: (
        put(run / "adapter_config.json", b"[" * 99_999),
        put(run / "adapter_model.safetensors", b"x"),
    ),
    "modules": lambda run: put(run / "modules.json", b'{"a": 1}'),
    "state": lambda run: (run / "model.safetensors").rename(run / "old") and put(run / "checkpoint-5" / "latest", b""),
    "adapter name": lambda run: put(run / "adapter_config.json", b'{"config": "pfeiffer", "name": []}'),
    "another file": lambda run: put(run / "second.safetensors", b"\x00"),
    "only half a checkpoint": lambda run: put(run / "checkpoint-5" / "model.safetensors", b"half"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_one_broken_run_does_not_stop_the_rest(tmp_path: Path, case: str) -> None:
    good = write_run(tmp_path / "good", make_pair(1)[0])
    run = write_run(tmp_path / "bad", make_pair(2)[0])
    BROKEN[case](run)
    found = look(tmp_path)
    rows = {row.path: row for row in found.runs}
    assert rows.keys() == {str(good), str(run)}
    assert rows[str(good)].problem is None
    assert rows[str(run)].problem
    assert found.disk_bytes == disk(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    before = look(write_run(tmp_path / "run", make_base()))
    for name in ("pack.json", "adapter_config.json", "eval_results.json", "modules.json", "second.safetensors"):
        os.mkfifo(tmp_path / "run" / name)
    assert look(tmp_path / "run") == before


def test_a_loose_broken_file_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors", b"short")
    put(tmp_path / "b.safetensors", b"short, too")
    found = look(tmp_path)
    assert (found.runs, sizes(found)) == ((), {"other weights": 15})
    assert found.unreadable.keys() == {str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")}


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", make_base())
    put(run / "closed" / "file", b"secret")
    open_folder = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return open_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = survey([tmp_path])
    assert {path: one.message for path, one in found.unreadable.items()} == {str(run / "closed"): "Permission denied"}
    assert found.runs[0].problem is not None
    assert found.runs[0].problem.message == f"'{run / 'closed'}' cannot be read: Permission denied"
    assert found.disk_bytes == sum((run / name).stat().st_size for name in ("model.safetensors", "config.json"))


def test_what_vanishes_or_shrinks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        put(tmp_path / name, bytes(50_000))
    put(tmp_path / "gone", b"!")
    lstat = Path.lstat

    def vanish(path: Path) -> os.stat_result:
        if path.name == "gone":
            path.unlink(missing_ok=True)
        status = lstat(path)
        if path.name == "b":
            os.truncate(path, 100)
        return status

    monkeypatch.setattr(Path, "lstat", vanish)
    found = survey([tmp_path])
    assert found.duplicates[0].files == (str(tmp_path / "a"), str(tmp_path / "c"))
    (problem,) = found.unreadable.values()
    assert (list(found.unreadable), problem.message) == ([str(tmp_path / "b")], "became shorter while it was read")
    assert found.files == 3


def test_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = make_pair()[0]
    names = ["\x1b[31mred", "new\nline", "-rf", "[bold]", "*"]
    for name in names:
        write_run(tmp_path / name, tuned)
    for name in names[1:]:
        shutil.copyfile(tmp_path / names[0] / "model.safetensors", tmp_path / name / "model.safetensors")
    raw = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    write_run(Path(raw), {"\x1b[31m": weights("F32", (3,))})
    found = look(tmp_path)
    assert len(found.runs) == len(names) + 1
    put(tmp_path / names[0] / "second.safetensors", b"")
    found = look(tmp_path)
    Output(True, False, False).json(found.to_json())
    answer = json.loads(capsys.readouterr().out)  # in which a lone surrogate is escaped
    assert {row["path"] for row in answer["runs"]} == {raw, *(str(tmp_path / name) for name in names)}
    (copies,) = (row["files"] for row in answer["duplicates"] if row["files"][0].endswith("model.safetensors"))
    assert set(copies) == {str(tmp_path / name / "model.safetensors") for name in names}
    print_survey(Output(False, False, False), found, None)
    printed = capsys.readouterr()
    assert "Error: " in printed.err
    for text in (printed.out, printed.err):
        assert "\x1b" not in text
        assert "\udcff" not in text
    assert "\\x1b[31mred" in printed.out


# Printing


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tuned, base = make_pair()
    tuned["bert.embeddings.word_embeddings.weight"] = base["embeddings.word_embeddings.weight"]
    write_run(tmp_path / "base", base)
    config = {"_name_or_path": str(tmp_path / "base")}
    results = json.dumps({"eval_matthews_correlation": 0.6123456}).encode()
    for name in ("cola", "rte", "sst2"):
        state = {"optimizer.pt": name.encode() * 9999, "eval_results.json": results, "tokenizer.json": bytes(5000)}
        tensors = {**tuned, "own": random_tensor("F32", (40, 40), len(name))}
        write_run(tmp_path / "tree" / name, tensors, config, state)
    put(tmp_path / "tree" / "rte" / "broken.safetensors", b"")
    put(tmp_path / "tree" / "rte" / "extra.bin", bytes(70))
    return tmp_path / "tree"


@pytest.mark.parametrize("most", [None, 1])
def test_printed_at_80_columns(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = look(tree)
    print_survey(Output(False, False, False), found, most)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.split("  ")[0] for line in lines[2 : 2 + len(sizes(found))]]
    assert first == sorted(sizes(found), key=lambda kind: -sizes(found)[kind])
    assert re.search(rf"all files +{found.files} .*{found.disk_bytes:,} +100.0%", printed.out)
    assert ("(--all)" in printed.out) == (most == 1)
    assert "bert.embeddings.word_embeddings.weight" in printed.out
    assert "0.6123" in printed.out
    assert "70 B of pickled weights were not inspected" in printed.out
    assert f"Error: {tree / 'rte'}: '{tree / 'rte' / 'broken.safetensors'}' is 0 bytes" in printed.err
    text = " ".join(printed.out.split())
    assert text.endswith(
        f"3 runs take {found.disk_bytes / 1000:.1f} kB, of which "
        f"{found.savings.training_state / 1000:.1f} kB is training state that inference does not need, "
        f"{(found.savings.duplicate_files + found.savings.duplicate_tensors) / 1000:.1f} kB is stored twice and "
        f"{found.savings.equal_to_base / 1000:.1f} kB equals the base; 1 run cannot be read in full; "
        "`petlpack plan` measures what packing would take."
    )
    print_survey(Output(False, True, False), found, most)
    quieter = capsys.readouterr()
    assert (quieter.err, "petlpack plan" in quieter.out) == (printed.err, False)


def test_bars_are_as_long_as_the_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    put(tmp_path / "a.py", bytes(7500))
    put(tmp_path / "vocab.txt", bytes(2499))
    put(tmp_path / "notes", bytes(1))
    print_survey(Output(False, False, False), look(tmp_path), None)
    bars = [line.rstrip().rpartition("%")[2].strip() for line in capsys.readouterr().out.splitlines()[2:5]]
    assert bars == ["█" * (BAR * 3 // 4), "█" * (BAR // 4), "▏"]


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", "██▌"), ("ascii", "###"), ("cp437", "###")])
def test_bars_where_stdout_has_no_blocks(monkeypatch: pytest.MonkeyPatch, encoding: str, expected: str) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert (bar(2.5, 10), bar(0, 10)) == (expected, "")


def test_names_and_metrics_are_whole_at_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for i, metric in enumerate(("accuracy", "matthews_correlation")):
        results = json.dumps({f"eval_{metric}": 0.5}).encode()
        run = write_run(
            tmp_path / f"seed-{i}" / "roberta-lr-3e-5", make_pair(i)[0], files={"eval_results.json": results}
        )
        put(run / "optimizer.pt", bytes(900_000))
    print_survey(Output(False, False, False), look(tmp_path), None)
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Scores: (.*, )?matthews_correlation \(mcc\)", printed)
    assert "accuracy (acc)" in printed
    for i, metric in enumerate(("acc", "mcc")):
        assert re.search(rf"seed-{i}/roberta-lr-3e-5 full [^a-z]*( [kM]?B [^a-z]*)* .*{metric} 0\.5", printed)


def scored(path: Path, **results: float) -> None:
    text = json.dumps({f"eval_{metric}": value for metric, value in results.items()})
    write_run(path, make_pair(len(path.name))[0], files={"eval_results.json": text.encode()})


def printed_of(capsys: pytest.CaptureFixture[str], found: Survey, most: int | None = None, *, quiet: bool) -> str:
    """Return what people get on stdout, on one line."""
    print_survey(Output(False, quiet, False), found, most)
    return " ".join(capsys.readouterr().out.split())


def test_scores_of_several_metrics_or_scales_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored(tmp_path / "a", accuracy=0.9)
    scored(tmp_path / "bb", accuracy=0.8)
    text = printed_of(capsys, look(tmp_path), quiet=False)
    assert ("Scores: accuracy." in text, "acc 0" in text, "as a share" in text) == (True, False, False)
    scored(tmp_path / "ccc", accuracy=88)
    for quiet in (False, True):
        text = printed_of(capsys, look(tmp_path), quiet=quiet)
        assert "Some runs report accuracy on a scale of 0 to 1, others apparently 0 to 100." in text
    scored(tmp_path / "ccc", rougeL=88)
    text = printed_of(capsys, look(tmp_path), quiet=True)
    assert all(cell in text for cell in ("acc 0.9", "acc 0.8", "rougeL 88"))
    assert "as a share" not in text


def test_rows_of_equal_tensors_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {f"layer.{i}.weight": random_tensor("F32", (i + 1,), i) for i in range(30)}
    write_run(tmp_path / "base", base)
    for name in "ab":
        own = {"own": random_tensor("F32", (9,), ord(name))}
        write_run(tmp_path / "runs" / name, {**base, **own}, {"_name_or_path": str(tmp_path / "base")})
    found = look(tmp_path / "runs")
    assert [(row.bytes, row.copies) for row in found.tensors.equal] == [(8 * (30 - i), 2) for i in range(30)]
    few = printed_of(capsys, found, 20, quiet=True)
    shown, rest = sum(8 * (30 - i) for i in range(8)), sum(8 * (30 - i) for i in range(8, 30))
    assert f"22 more (--all) 44 {rest / 1000:.1f} kB" in few
    assert f"all of them 60 {(shown + rest) / 1000:.1f} kB" in few
    every = printed_of(capsys, found, quiet=True)
    assert all(f"layer.{i}.weight" in every for i in range(30))
    assert "(--all)" not in every


def test_other_checkpoints_are_told_apart_from_the_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each set of equal files and tensors one is kept that is not in them, so that they can go besides."""
    shared = weights("F32", (30, 16), 2)
    for i, place in enumerate(("run", "run/checkpoint-5", "run/checkpoint-7")):
        tensors = {"shared": shared, "own": weights("F32", (9, 9), 10 + i)}
        write_run(tmp_path / place, tensors, None)
    model = tmp_path / "run" / "model.safetensors"
    put(tmp_path / "run" / "checkpoint-9" / "model.safetensors", model.read_bytes())
    put(tmp_path / "run" / "checkpoint-9" / "twin.bin", b"PK")
    put(tmp_path / "loose.bin", b"PK")
    found = look(tmp_path)
    size_of = model.stat().st_size
    assert found.duplicates[0].files[0] == str(model)
    assert {group.files[0] for group in found.duplicates} == {str(model), str(tmp_path / "loose.bin")}
    assert found.savings.duplicate_files == size_of + 2
    assert found.savings.duplicate_tensors == 2 * shared.nbytes
    assert sizes(found)["other checkpoints"] == 3 * size_of + 2
    assert found.savings.other_checkpoints == 2 * (size_of - shared.nbytes)
    assert found.to_json()["savings"]["other_checkpoints"] == found.savings.other_checkpoints
    text = printed_of(capsys, found, quiet=True)
    assert f"other checkpoints besides: {found.savings.other_checkpoints} B, if only the best is wanted" in text
    assert "files stored twice (hard links would do)" in text
    shutil.rmtree(tmp_path / "run" / "checkpoint-9")
    (tmp_path / "loose.bin").unlink()
    for place in ("run", "run/checkpoint-5", "run/checkpoint-7"):
        write_run(tmp_path / place, {"own": weights("F32", (9, 9), len(place + place[-1:]) + ord(place[-1]))}, None)
    found = look(tmp_path)
    assert found.savings.total == 0
    assert "other checkpoints: " in printed_of(capsys, found, quiet=True)


def test_of_equal_tensors_one_outside_of_other_checkpoints_is_kept(tmp_path: Path) -> None:
    shared = weights("F32", (30, 16), 2)
    write_run(tmp_path / "a", {"own": weights("F32", (9, 9), 1)}, None)
    step = write_run(tmp_path / "a" / "checkpoint-5", {"shared": shared, "own": weights("F32", (9, 9), 3)}, None)
    write_run(tmp_path / "b", {"shared": shared}, None)
    found = look(tmp_path)
    assert {Path(row.path).name: row.duplicated_bytes for row in found.runs} == {"a": shared.nbytes, "b": 0}
    assert found.savings.duplicate_tensors == shared.nbytes
    assert found.savings.other_checkpoints == (step / "model.safetensors").stat().st_size - shared.nbytes


def test_problems_are_named_and_counted_also_where_it_is_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look(write_run(tmp_path / "good", make_pair()[0])).problems == 0
    for i in range(12):
        write_run(tmp_path / f"bad-{i}", make_pair(i)[0])
        put(tmp_path / f"bad-{i}" / "model.safetensors", b"")
    put(tmp_path / "two" / "a.safetensors", b"short")
    put(tmp_path / "two" / "b.safetensors", b"short, too")
    found = look(tmp_path)
    assert found.problems == 14
    assert len(found.unreadable_outside) == 2
    assert "; 12 runs and 2 others cannot be read in full; `petlpack plan`" in conclusion(found)
    for quiet in (False, True):
        print_survey(Output(False, quiet, False), found, 20)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 4
        assert re.match(r"Error: .*bad-0, .*bad-1, .* and 4 more: 'model.safetensors' is 0 bytes", told[0])
        assert told[1].startswith(f"Error: {tmp_path / 'two' / 'a.safetensors'}: ")
        assert told[-1].startswith("Hint: ")
    print_survey(Output(False, True, False), found, None)
    assert " more" not in capsys.readouterr().err
    assert conclusion(look(tmp_path / "two")).endswith("; 2 paths cannot be read in full.")


def test_every_field_is_in_the_docs(tree: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split("\n## `petlpack survey RUN_DIR...`")[1].split("\n## ")[0]
    answer = look(tree).to_json()
    nested = [answer["tensors"], answer["savings"], answer["runs"][0], answer["tensors"]["equal"][0]]
    fields = [name for table in (answer, *nested, answer["duplicates"][0]) for name in table]
    assert [name for name in fields if f'"{name}"' not in section] == []


def test_many_problems_are_cut_without_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(11):
        put(tmp_path / f"run-{i}" / "model.safetensors", bytes(i))
    print_survey(Output(False, True, False), look(tmp_path), 20)
    told = capsys.readouterr().err
    assert "run-10, " in told  # three that are long enough to have no header
    assert "Error: 1 more cannot be read (--all)\n" in told
    assert "1 files" not in told + conclusion(look(tmp_path))


def test_a_closed_file_of_a_run_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "new\nline", make_base())
    open_folder = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return open_folder(path)

    (run / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    found = survey([tmp_path])
    assert (found.problems, list(found.unreadable)) == (1, [str(run / "closed")])
    print_survey(Output(False, False, False), found, 20)
    assert capsys.readouterr().err.count("Permission denied") == 1


# What `encode` says of the same files

ADAPTERS = {
    "peft": ("base_model.model.layers.0.q.lora_A.weight", "base_model.model.layers.0.q.lora_B.weight"),
    "kohya": ("lora_unet_down_0.lora_down.weight", "lora_unet_down_0.lora_up.weight"),
    "diffusers": ("unet.down.0.to_q.lora.down.weight", "unet.down.0.to_q.lora.up.weight"),
    "lycoris": ("lora_unet_down_0.hada_w1_a", "lora_unet_down_0.hada_w1_b"),
}


@pytest.mark.parametrize("writer", ADAPTERS)
@pytest.mark.parametrize("place", ["file", "directory"])
def test_an_adapter_without_a_config_is_called_as_encode_calls_it(place: str, writer: str, tmp_path: Path) -> None:
    down, up = ADAPTERS[writer]
    tensors = {down: weights("F32", (2, 8), 1), up: weights("F32", (8, 2), 2)}
    run = write_run(tmp_path / "run", tensors, None, {}, "lora.safetensors")
    path = run / "lora.safetensors" if place == "file" else run
    (encoded,) = petlpack.encode(path, tmp_path / "pack")
    (row,) = survey([path]).runs
    assert row.method == encoded.method != "full fine-tune"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1000\n"
POINTERS = {
    "model.safetensors": (LFS, "a Git LFS pointer"),
    "pytorch_model.bin": (LFS, "a Git LFS pointer"),
    "model.safetensors.dvc": (b"outs:\n- md5: 0\n  path: model.safetensors\n", "a DVC pointer"),
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_pointer_in_the_place_of_weights_is_told_as_encode_tells_it(name: str, tmp_path: Path) -> None:
    content, said = POINTERS[name]
    put(tmp_path / "run" / name, content)
    put(tmp_path / "run" / "config.json", b"{}")
    with pytest.raises(petlpack.RunError, match=said) as refused:
        petlpack.encode(tmp_path / "run", tmp_path / "pack", tmp_path)
    problem = survey([tmp_path / "run"]).runs[0].problem
    assert problem is not None
    assert said in problem.message
    assert problem.hint == refused.value.hint


def test_a_pointer_to_data_makes_no_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_pair(1)[0])
    put(tmp_path / "data" / "rows.csv.dvc", POINTERS["model.safetensors.dvc"][0])
    assert [row.path for row in survey([tmp_path]).runs] == [str(tmp_path / "run")]


@pytest.mark.parametrize("place", ["checkpoint", "other name", "cache"])
def test_a_base_is_found_where_encode_finds_it(place: str, tmp_path: Path) -> None:
    run, base = write_pair(tmp_path, share=0.0)
    wanted = survey([run], base).tensors.equal_to_base_bytes
    moved = {"checkpoint": "trained/checkpoint-7", "cache": "models--org--name/snapshots/0a1b", "other name": "trained"}
    (tmp_path / moved[place]).parent.mkdir(parents=True, exist_ok=True)
    base = base.rename(tmp_path / moved[place])
    if place == "other name":
        (base / "model.safetensors").rename(base / "weights.safetensors")
    where = tmp_path / moved[place].partition("/")[0]
    assert survey([run], where).tensors.equal_to_base_bytes == wanted > 0


def test_of_several_bases_each_run_is_compared_with_its_own(tmp_path: Path) -> None:
    for name, seed, width in (("one", 0, 16), ("twin", 7, 16), ("wide", 3, 32)):
        base = make_base(seed, width=width)
        write_run(tmp_path / "models" / name, base)
        write_run(tmp_path / "runs" / f"of-{name}", {**base, "pooler.dense.weight": weights("F32", (width, width), 5)})
    found = survey([tmp_path / "runs"], tmp_path / "models")
    assert {Path(row.path).name: Path(str(row.base)).name for row in found.runs} == {
        f"of-{name}": name for name in ("one", "twin", "wide")
    }
    each = [survey([tmp_path / "runs" / f"of-{name}"], tmp_path / "models" / name) for name in ("one", "twin", "wide")]
    assert found.tensors.equal_to_base_bytes == sum(one.tensors.equal_to_base_bytes for one in each) > 0
