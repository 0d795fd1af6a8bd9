"""Runs as the real libraries write them: they come back to the byte, and load to the same outputs to the bit."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

import petlpack
from petlpack import Encoded, RunError
from petlpack.layouts.files import sort_files
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.name_text import name_text
from petlpack.tensors.places import TRAINING
from tests.support.proof import files_of, quiet
from tests.support.small_runs import make_pair, weights, write_pair, write_run

OTHER = "other weights"
TRAINING_WHY = "training state, not needed for inference"
CONFIG = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "num_labels": 2,
}
LINKS = ("old.safetensors", "link")
"""Names that the tests give to links without a file."""
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def move(model: Any, seed: int, *, only_trained: bool = False) -> Any:
    """Change the weights as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and (parameter.requires_grad or not only_trained):
                parameter += (0.01 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return model.eval()


def outputs(model: Any) -> bytes:
    """What a model says, to the bit."""
    with quiet(), torch.no_grad():
        out = model.eval()(input_ids=IDS)
    first: torch.Tensor = out.logits if "logits" in out else out[0]
    octets: bytes = first.contiguous().view(torch.uint8).numpy().tobytes()
    return octets


def load(directory: Path, kind: str = "AutoModelForSequenceClassification") -> Any:
    with quiet():
        model, info = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"], info
    return model


@dataclass(frozen=True)
class Trip:
    """A run that went into a pack and came back."""

    encoded: Encoded
    out: Path

    @property
    def left_out(self) -> dict[str, tuple[int, str]]:
        """What was left out: bytes and reason by file."""
        return {file.file: (file.nbytes, file.why) for file in self.encoded.left_out}


def round_trip(run: Path, base: Path | None, place: Path, chosen: Path | None = None, **options: Any) -> Trip:
    """Encode and decode a run; check that every file came back to the byte or is listed as left out.

    `chosen` is the directory within the run whose weights count.
    """
    before = files_of(run) if run.is_dir() else {run.name: run.read_bytes()}
    (encoded,) = petlpack.encode(run, place / "pack", base, task="run", jobs=1, **options)
    out = petlpack.open(place / "pack")["run"].decode(place / "out", base, jobs=1).path
    assert (files_of(run) if run.is_dir() else {run.name: run.read_bytes()}) == before
    inside = f"{chosen.relative_to(run).as_posix()}/" if chosen is not None and chosen != run else ""
    back = files_of(out)
    trip = Trip(encoded, out)
    for name, content in back.items():
        if _full(name, inside, before) in before:
            assert content == before[_full(name, inside, before)], name
    accounted = {_full(name, inside, before) for name in back} | trip.left_out.keys()
    pickled = {name for name in before if name.endswith((".bin", ".bin.index.json")) and "training" not in name}
    whole = tuple(f"{name}/" for name in trip.left_out if (run / name).is_dir())
    before = {name: content for name, content in before.items() if not (whole and name.startswith(whole))}
    assert before.keys() - pickled <= accounted
    folders = {name.rstrip("/") for name in whole}
    assert accounted - before.keys() <= {"model.safetensors", "adapter_model.safetensors", *LINKS, *folders}
    for name, (nbytes, why) in trip.left_out.items():
        assert nbytes == len(before.get(name, b"")) or name in folders
        assert why
    for checked in petlpack.verify(place / "pack", base, against=run, task="run"):
        assert (checked.error, checked.depth) == (None, "compared")
    return trip


def _full(name: str, inside: str, before: dict[str, bytes]) -> str:
    """A file that came back is of the chosen directory, or else of the run's."""
    return f"{inside}{name}" if f"{inside}{name}" in before else name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    with quiet():
        transformers.BertModel(transformers.BertConfig(**CONFIG)).save_pretrained(directory)
    return directory


@pytest.fixture
def tuned(base: Path) -> Any:
    """A classifier on the base, its head new, all of it moved."""
    torch.manual_seed(1)
    with quiet():
        return move(transformers.BertForSequenceClassification.from_pretrained(base), 1)


# Transformers


def _save(model: Any, run: Path, **options: Any) -> Path:
    with quiet():
        model.save_pretrained(run, **options)
    return run


def test_save_pretrained_comes_back_and_loads(base: Path, tuned: Any, tmp_path: Path) -> None:
    run = _save(tuned, tmp_path / "run")
    trip = round_trip(run, base, tmp_path)
    assert {"config.json", "model.safetensors"} == set(files_of(trip.out))
    assert (trip.encoded.layout, trip.encoded.exact, trip.encoded.warnings) == ("transformers", True, ())
    assert outputs(load(trip.out)) == outputs(load(run)) == outputs(tuned)


def test_shards_come_back_with_their_index_and_load(base: Path, tuned: Any, tmp_path: Path) -> None:
    run = _save(tuned, tmp_path / "run", max_shard_size="2KB")
    names = set(files_of(run))
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    sharded_base = _save(load(base, "AutoModel"), tmp_path / "base", max_shard_size="3KB")
    for i, pretrained in enumerate((base, sharded_base)):
        trip = round_trip(run, pretrained, tmp_path / f"{i}")
        assert set(files_of(trip.out)) == names
        assert outputs(load(trip.out)) == outputs(tuned)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_fine_tune_in_another_dtype_than_its_base(base: Path, tuned: Any, tmp_path: Path, dtype: str) -> None:
    run = _save(tuned.to(getattr(torch, dtype)), tmp_path / "run")
    trip = round_trip(run, base, tmp_path)
    assert outputs(load(trip.out)) == outputs(tuned)


def test_tied_weights_and_resized_embeddings(base: Path, tmp_path: Path) -> None:
    with quiet():
        torch.manual_seed(1)
        model = transformers.BertForMaskedLM.from_pretrained(base)
        model.resize_token_embeddings(44)
    run = _save(move(model, 2), tmp_path / "run")
    trip = round_trip(run, base, tmp_path)
    assert outputs(load(trip.out, "AutoModelForMaskedLM")) == outputs(model)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Trainer leaves behind: checkpoint-5 and checkpoint-10 with training state, and no model at the root."""
    run = tmp_path_factory.mktemp("trained")
    data = [{"input_ids": [i % 40, 1, 2, 3], "labels": i % 2} for i in range(8)]
    with quiet():
        torch.manual_seed(1)
        model = transformers.BertForSequenceClassification.from_pretrained(base)
        arguments = transformers.TrainingArguments(
            output_dir=str(run),
            max_steps=10,
            save_steps=5,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
    assert {path.name for path in run.iterdir()} == {"checkpoint-5", "checkpoint-10"}
    return run


def test_a_trainer_run_with_its_model_at_the_root(base: Path, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for name in ("model.safetensors", "config.json", "training_args.bin", "trainer_state.json"):
        shutil.copyfile(trained / "checkpoint-10" / name, run / name)  # as save_model() and save_state() do
    trip = round_trip(run, base, tmp_path)
    assert set(files_of(trip.out)) == {"config.json", "model.safetensors"}
    expected = {
        name: path.stat().st_size
        for path in run.rglob("*")
        if path.name.startswith(TRAINING) and (name := path.relative_to(run).as_posix())
    }
    assert len(expected) == 9
    assert {name: nbytes for name, (nbytes, why) in trip.left_out.items() if why == TRAINING_WHY} == expected
    assert trip.left_out["checkpoint-5/model.safetensors"][1] == "another checkpoint"
    assert trip.left_out["trainer_state.json"][1] == "training log"
    assert outputs(load(trip.out)) == outputs(load(trained / "checkpoint-10"))


def test_the_highest_checkpoint_is_chosen_by_number(base: Path, trained: Path, tmp_path: Path) -> None:
    trip = round_trip(trained, base, tmp_path, trained / "checkpoint-10")
    assert trip.encoded.warnings == ()
    assert outputs(load(trip.out)) == outputs(load(trained / "checkpoint-10"))
    assert outputs(load(trip.out)) != outputs(load(trained / "checkpoint-5"))


@pytest.mark.parametrize("written", ["{run}/checkpoint-5", "C:\\runs\\x\\checkpoint-5", "./out/checkpoint-5/"])
def test_the_best_checkpoint_is_chosen_where_the_state_names_it(
    base: Path, trained: Path, tmp_path: Path, written: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    path = run / "checkpoint-10" / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    assert "best_model_checkpoint" in state
    path.write_text(json.dumps({**state, "best_model_checkpoint": written.format(run=run)}), encoding="utf-8")
    trip = round_trip(run, base, tmp_path, run / "checkpoint-5")
    assert outputs(load(trip.out)) == outputs(load(trained / "checkpoint-5"))


@pytest.mark.parametrize(
    ("steps", "best", "chosen"),
    [
        ((9, 10), None, 10),
        ((9, 10, 100), None, 100),
        ((2, 10, 9), "checkpoint-9", 9),
        ((9, 10), "checkpoint-11", 10),  # deleted by save_total_limit
        ((0, 1), None, 1),
    ],
)
def test_which_checkpoint_counts(tmp_path: Path, steps: tuple[int, ...], best: str | None, chosen: int) -> None:
    run = tmp_path / "run"
    for step in steps:
        checkpoint = write_run(run / f"checkpoint-{step}", make_pair(step, layers=1)[0])
        (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}), encoding="utf-8")
    (run / "checkpoint-x").mkdir()
    (run / "checkpoint-999").write_text("a file", encoding="utf-8")
    trip = round_trip(run, None, tmp_path, run / f"checkpoint-{chosen}", codec="plain")
    assert files_of(trip.out)["model.safetensors"] == files_of(run)[f"checkpoint-{chosen}/model.safetensors"]


def _without(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def _cut(part: float) -> Callable[[Path], None]:
    def cut(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])

    return cut


HALF_WRITTEN: dict[str, Callable[[Path], None]] = {
    "no weights": _without("model.safetensors"),
    "no config": _without("config.json"),
    "no weights' end": _cut(0.9),
    "no weights' beginning": _cut(0),
    "half a header": _cut(0.01),
}


@pytest.mark.parametrize("case", HALF_WRITTEN)
def test_a_half_written_checkpoint_is_skipped_with_a_warning(
    base: Path, trained: Path, tmp_path: Path, case: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    HALF_WRITTEN[case](run / "checkpoint-10")
    trip = round_trip(run, base, tmp_path, run / "checkpoint-5")
    (warning,) = trip.encoded.warnings
    assert "half-written" in warning
    assert "checkpoint-10" in warning
    assert outputs(load(trip.out)) == outputs(load(trained / "checkpoint-5"))
    HALF_WRITTEN[case](run / "checkpoint-5")
    with pytest.raises(RunError, match="has no complete checkpoint"):
        petlpack.encode(run, tmp_path / "none", base)
    assert not (tmp_path / "none").exists()


class _Poison:
    """Pickles as a call that writes a file."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._target,)


class _Opened:
    """Note what is opened, by whatever means Python has: patches are not seen by the pathlib of 3.10."""

    def __init__(self) -> None:
        self.names: list[str] | None = None
        sys.addaudithook(self._note)  # for good: there is no taking it back

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and self.names is not None:
            self.names.append(str(args[0]))

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[str]]:
        found: list[str] = []
        self.names = found
        try:
            yield found
        finally:
            self.names = None


def test_training_state_is_never_opened(base: Path, trained: Path, tmp_path: Path) -> None:
    run, target = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "written by a pickle"
    poisoned = [path for path in run.rglob("*") if path.name.startswith(TRAINING)]
    assert {path.name for path in poisoned} == {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
    for path in poisoned:
        path.write_bytes(pickle.dumps(_Poison(target)))
    with _Opened().noting() as opened:
        trip_pack = tmp_path / "pack"
        petlpack.encode(run, trip_pack, base, task="run", jobs=1)
        petlpack.open(trip_pack)["run"].decode(tmp_path / "out", base)
        assert not [c for c in petlpack.verify(trip_pack, base, against=run, task="run") if c.error is not None]
    assert [name for name in opened if name.endswith("model.safetensors")]
    assert [name for name in opened if Path(name).name.startswith(TRAINING)] == []
    assert not target.exists()
    shutil.copytree(trained / "checkpoint-10", run, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pt*", "*.bin"))
    (run / "optimizer.pt").write_bytes(pickle.dumps(_Poison(target)))
    petlpack.encode(run, trip_pack, base, task="root")
    assert not target.exists()


# Which files are kept, and why the others are not


def _put(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


LOG, CACHE, RUNTIME = "training log", "a cache, or another program's own file", "the same model for another runtime"
REASONS = {
    **dict.fromkeys(("trainer_state.json", "eval_results.json", "result.json", "trainer_log.jsonl"), LOG),
    **dict.fromkeys(("runs/Jan01/events.out.tfevents.1.host.2.0", "runs/Jan01/hparams.yml", "train.log"), LOG),
    **dict.fromkeys(("events.out.tfevents.1.host.2.0", "wandb/run-1/files/code/train.py", "predictions.json"), LOG),
    ".DS_Store": CACHE,
    **dict.fromkeys(("optimizer.pt", "random_states_0.pkl", "global_step7/mp_rank_00_model_states.pt"), TRAINING_WHY),
    **dict.fromkeys(
        ("old/checkpoint-3/model.safetensors", "epoch_2/vocab.txt", "epoch=3-step=5.ckpt"), "another checkpoint"
    ),
    **dict.fromkeys(("tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "q4.gguf"), RUNTIME),
    "openvino/openvino_model.bin": RUNTIME,
    **dict.fromkeys(("pytorch_model.bin.index.json", "tf_model.h5.index.json"), "an index of files that are not kept"),
    **dict.fromkeys(("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "runs/2/model.safetensors"), OTHER),
}
CACHES = (".git", "__pycache__", "scripts/__pycache__", "sub/.ipynb_checkpoints")
"""Directories that are one entry each; `sub` has nothing else."""
COMING = (
    *("README.md", ".gitattributes", "modeling_mine.py", "scripts/train.py", "notes.txt", "spm.model", "LICENSE"),
    *(
        "model_head.pkl",
        "value_head.safetensors",
        "non_lora_trainables.bin",
        "2_Dense/pytorch_model.bin",
        "head.joblib",
    ),
    *("qformer_tokenizer/tokenizer.json", "model.fp16.safetensors", "log", "optimizer.json", "scheduler/config.json"),
    *("training_args.yaml", "onnx/config.json", "epoch.txt", "a b/\u00fc.txt", "results", "label map.csv"),
)


@pytest.mark.parametrize("checkpoint", ["", "checkpoint-10"])
def test_everything_comes_along_but_what_has_a_true_reason(tmp_path: Path, checkpoint: str) -> None:
    run = tmp_path / "run"
    chosen = write_run(run / checkpoint, make_pair(1, layers=1)[0])
    expected = {**REASONS, **dict.fromkeys(CACHES, CACHE)}
    index = b'{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}'
    _put(chosen, {name: index if name.endswith(".index.json") else b"{}" for name in (*REASONS, *COMING)})
    _put(chosen, {f"{name}/x": b"{}" for name in CACHES})
    trip = round_trip(run, None, tmp_path, chosen, codec="plain")
    inside = f"{checkpoint}/" if checkpoint else ""
    sizes = {name: len(index) if name.endswith(".index.json") else 2 for name in expected}
    assert trip.left_out == {f"{inside}{name}": (sizes[name], why) for name, why in expected.items()}
    others = sorted(f"{inside}{name}" for name, why in REASONS.items() if why == OTHER)
    odd = "model.fp16.safetensors, value_head.safetensors"
    assert trip.encoded.warnings == (
        f"left out other weights: {', '.join(others)}",
        f"kept as bytes what is no valid safetensors file: {odd}",
    )
    assert set(files_of(trip.out)) == {"config.json", "model.safetensors", *COMING}


NEEDED = (
    *("source.spm", "target.spm", "normalizer.json", "entity_vocab.json", "sentencepiece.model", "tekken.json"),
    *("video_preprocessor_config.json", "router_config.json", "bpe.codes", "vocab.bpe", "config_setfit.json"),
    *("additional_chat_templates/rag.jinja", "additional_chat_templates/tool_use.jinja"),
)


def test_files_of_every_tokenizer_and_processor_are_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_pair(1, layers=1)[0], files={name: name.encode() for name in NEEDED})
    trip = round_trip(run, None, tmp_path, codec="plain")
    assert set(files_of(trip.out)) == {"config.json", "model.safetensors", *NEEDED}
    assert trip.left_out == {}


@pytest.mark.parametrize("adapter", [False, True])
def test_a_checkpoint_takes_from_the_root_what_it_lacks(tmp_path: Path, adapter: bool) -> None:
    run, tensors = tmp_path / "run", make_pair(1, layers=1)[0]
    own = {"tokenizer_config.json": b"{}"}
    if adapter:
        own["adapter_config.json"] = b'{"peft_type": "LORA"}'
    weights_file = "adapter_model.safetensors" if adapter else "model.safetensors"
    chosen = write_run(run / "checkpoint-10", tensors, None if adapter else {}, own, weights_file)
    root = ("tokenizer.json", "tokenizer_config.json", "config.json", "additional_chat_templates/a.jinja")
    _put(run, {**dict.fromkeys(root, b'{"of": "the root"}'), "checkpoint-9/vocab.txt": b"of another"})
    trip = round_trip(run, None, tmp_path, chosen, codec="plain")
    from_root = {"tokenizer.json", "additional_chat_templates/a.jinja"}
    assert set(files_of(trip.out)) == {path.name for path in chosen.iterdir()} | from_root
    assert set(trip.left_out) == {"config.json", "tokenizer_config.json", "checkpoint-9/vocab.txt"}


def test_links_without_a_file_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_pair(1, layers=1)[0])
    (run / "old.safetensors").symlink_to("/nonexist")
    (run / "link").symlink_to(tmp_path)
    trip = round_trip(run, None, tmp_path, codec="plain")
    assert trip.left_out == {"old.safetensors": (0, "a broken link"), "link": (0, "a link to a directory")}
    assert trip.encoded.warnings == ("left out broken links: old.safetensors",)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors", "additional_chat_templates"])
def test_a_link_to_nothing_that_loading_needs_is_refused(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", make_pair(1, layers=1)[0])
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to("/nonexist")
    with pytest.raises(RunError, match=f"{name}' is a link to '/nonexist'") as caught:
        petlpack.encode(run, tmp_path / "pack", codec="plain")
    assert caught.value.hint


def test_a_pack_inside_a_run_is_one_entry(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_pair(1, layers=1)[0])
    _put(run, {"other/pack.json": b'{"format": "npm"}', "broken/pack.json": b"{"})
    petlpack.encode(run, run / "pack", codec="plain", task="first")
    nbytes = sum(len(content) for content in files_of(run / "pack").values())
    (second,) = petlpack.encode(run, tmp_path / "pack", codec="plain")
    assert {left.file: (left.nbytes, left.why) for left in second.left_out} == {
        "pack": (nbytes, "a pack"),
    }
    back = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out").path
    assert {"other/pack.json", "broken/pack.json"} < files_of(back).keys()
    assert second.warnings == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_named_as_a_pack_is_not_waited_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_pair()[0])
    (run / "other").mkdir()
    os.mkfifo(run / "other" / "pack.json")
    _, left_out = sort_files(run, run, [run / "model.safetensors"])
    assert [left.file for left in left_out] == ["other/pack.json"]


def test_the_names_in_a_weight_file_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all layouts that ask, and again after the file was replaced."""
    file = write_run(tmp_path / "run", make_pair()[0]) / "model.safetensors"
    text = name_text(file)
    assert b"word_embeddings" in text
    monkeypatch.setattr("petlpack.tensors.name_text.read_header", None)
    assert name_text(file) is text
    monkeypatch.undo()
    write_run(tmp_path / "run", {"other": weights("F32", (3,))})
    assert b"word_embeddings" not in name_text(file)
    file.unlink()
    assert name_text(file) == b""


# Pickled weights


def _bin(model: Any, run: Path, shards: int = 0) -> Path:
    """Write pytorch_model.bin, or shards of it, as Transformers did before version 5."""
    _save(model, run)
    (run / "model.safetensors").unlink()
    state = dict(model.state_dict())
    if not shards:
        torch.save(state, run / "pytorch_model.bin")
        return run
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = dict(list(state.items())[i::shards])
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save(part, run / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (run / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return run


def _check_tensors(path: Path, state: dict[str, Any]) -> None:
    """Check that a safetensors file has just these tensors, to the bit."""
    back = safetensors.torch.load_file(path)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert _octets(back[name]) == _octets(tensor)


def _octets(tensor: Any) -> bytes:
    octets: bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return octets


@pytest.mark.parametrize("shards", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pickled_weights_come_back_as_safetensors(
    base: Path, tuned: Any, tmp_path: Path, dtype: str, shards: int
) -> None:
    run = _bin(tuned.to(getattr(torch, dtype)), tmp_path / "run", shards)
    trip = round_trip(run, base, tmp_path)
    assert set(files_of(trip.out)) == {"config.json", "model.safetensors"}
    (warning,) = trip.encoded.warnings
    assert warning.endswith(" back as model.safetensors")
    assert warning.startswith("pytorch_model.bin comes" if not shards else "pytorch_model-00001-of-")
    _check_tensors(trip.out / "model.safetensors", tuned.state_dict())
    assert outputs(load(trip.out)) == outputs(tuned)


def test_pickled_tied_weights_take_no_bytes_twice(base: Path, tmp_path: Path) -> None:
    with quiet():
        torch.manual_seed(1)
        model = move(transformers.BertForMaskedLM.from_pretrained(base), 3)
    state = model.state_dict()
    tied = ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    assert len({state[name].data_ptr() for name in tied}) == 1
    trip = round_trip(_bin(model, tmp_path / "run"), base, tmp_path)
    _check_tensors(trip.out / "model.safetensors", state)
    task = petlpack.open(tmp_path / "pack")["run"]
    names = [slot.name for slot in task.template.slots]
    assert set(tied) in [{names[alias], names[other]} for alias, other in task.manifest.params["aliases"]]
    assert outputs(load(trip.out, "AutoModelForMaskedLM")) == outputs(model)


ODD_TENSORS = {
    "transposed": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
    "strided": torch.arange(12, dtype=torch.int16)[::3],
    "expanded": torch.ones(1, 2).expand(3, 2),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
    "bool": torch.tensor([True, False, True]),
    "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    "e4m3": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_odd_pickled_tensors_come_back_to_the_bit(tmp_path: Path, legacy: bool) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "pytorch_model.bin"
    # torch's weights-only reader knows no float8 in the format of before 1.6
    tensors = {name: tensor for name, tensor in ODD_TENSORS.items() if not (legacy and name == "e4m3")}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    trip = round_trip(tmp_path / "run", None, tmp_path, codec="plain")
    _check_tensors(trip.out / "model.safetensors", tensors)


# sentence-transformers


SENTENCE = {
    "modules.json": b'[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},'
    b' {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]\n',
    "config_sentence_transformers.json": b'{"__version__": {"sentence_transformers": "6.2.0"}, "prompts": {}}\n',
    "sentence_bert_config.json": b'{"max_seq_length": 256, "do_lower_case": false}\n',
    "1_Pooling/config.json": b'{"word_embedding_dimension": 8, "pooling_mode_mean_tokens": true}\n',
    "tokenizer.json": b'{"version": "1.0", "model": {"type": "WordPiece"}}\n' * 20,
    "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}\n',
    "special_tokens_map.json": b'{"cls_token": "[CLS]"}\n',
    "vocab.txt": "[PAD]\n[UNK]\nä\n".encode(),
    "README.md": b"# A model\n",
}


def test_sentence_transformers_come_back_with_all_that_loads_them(base: Path, tmp_path: Path) -> None:
    run = _save(move(load(base, "AutoModel"), 4), tmp_path / "run")
    for name, content in SENTENCE.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(content)
    trip = round_trip(run, base, tmp_path)
    assert trip.encoded.layout == "sentence-transformers"
    assert set(files_of(trip.out)) == SENTENCE.keys() | {"config.json", "model.safetensors"}
    assert trip.left_out == {}
    assert outputs(load(trip.out, "AutoModel")) == outputs(load(run, "AutoModel"))


def test_a_dense_module_of_sentence_transformers_is_not_lost(base: Path, tmp_path: Path) -> None:
    run = _save(move(load(base, "AutoModel"), 4), tmp_path / "run")
    paths = ("", "1_Pooling", "2_Dense")
    modules = [{"idx": i, "name": str(i), "path": path, "type": "x"} for i, path in enumerate(paths)]
    (run / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    write_run(run / "2_Dense", {"linear.weight": weights("F32", (4, 8))}, {"in_features": 8, "out_features": 4})
    trip = round_trip(run, base, tmp_path)
    assert "2_Dense/model.safetensors" in files_of(trip.out)
    assert trip.encoded.warnings == ()


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("1_Pooling/", {"1_Pooling/config.json", "1_Pooling/deep/x.txt"}),
        ("./1_Pooling//", {"1_Pooling/config.json", "1_Pooling/deep/x.txt"}),
        ("a/b", {"a/b/config.json"}),
        *((outside, set()) for outside in ("../run/1_Pooling", "/1_Pooling", "..", "/", ".", "1_Pool", "", 7, None)),
    ],
)
def test_the_directories_that_modules_json_names_are_kept_however_large(
    tmp_path: Path, written: Any, kept: set[str]
) -> None:
    run = write_run(tmp_path / "run", make_pair(1, layers=1)[0])
    (run / "modules.json").write_text(json.dumps([{"path": "", "type": "x"}, {"path": written}]), encoding="utf-8")
    parts = {"1_Pooling/config.json", "1_Pooling/deep/x.txt", "a/b/config.json", "a/c.txt"}
    _put(run, dict.fromkeys(parts, b"{}"))
    trip = round_trip(run, None, tmp_path, codec="plain", max_file=1)
    assert set(files_of(trip.out)) == {"config.json", "model.safetensors", "modules.json"} | kept
    assert set(trip.left_out) == parts - kept


def test_a_model_with_all_its_weights_in_modules_is_predicted_by_the_plain_base(tmp_path: Path) -> None:
    run, (tuned, near) = tmp_path / "run", make_pair(1, layers=1)
    base = write_run(tmp_path / "base", near)
    write_run(run / "0_Transformer", tuned)
    rows = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}, {"path": "1_Pooling"}]
    for modules in (rows, [{"path": "", "type": "Router"}]):
        (run / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        trip = round_trip(run, base, tmp_path / str(len(modules)))
        assert trip.encoded.layout == "sentence-transformers"
        template = petlpack.open(tmp_path / str(len(modules)) / "pack")["run"].template
        assert all(name.startswith("0_Transformer/") for name in template.base)
        assert len(template.base) == len(near)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 9, 10, 20, 50, 99, 100, 101, 1000, 10_000])
@pytest.mark.parametrize("kind", ["text", "random"])
def test_kept_files_of_every_size_come_back(tmp_path: Path, size: int, kind: str) -> None:
    run, base = write_pair(tmp_path, 1, layers=1)
    content = np.random.default_rng(size).bytes(size) if kind == "random" else (b'{"a": "b"} ' * size)[:size]
    (run / "added_tokens.json").write_bytes(content)
    trip = round_trip(run, base, tmp_path)
    assert (trip.out / "added_tokens.json").read_bytes() == content


# PEFT


Q_V = ["query", "value"]
ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=Q_V, task_type="SEQ_CLS"),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=Q_V, use_dora=True, task_type="SEQ_CLS"),
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a head of its own, for adapters."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**CONFIG))
    return _save(model, tmp_path_factory.mktemp("classifier"))


def _adapt(classifier: Path, kind: str) -> Any:
    torch.manual_seed(2)
    with quiet():
        return move(peft.get_peft_model(load(classifier), ADAPTERS[kind]()), 5, only_trained=True)


def _load_adapter(classifier: Path, directory: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return peft.PeftModel.from_pretrained(load(classifier), directory)


@pytest.mark.parametrize("peft_type", ["SUPERNOVA", "", "\x1b[31m", None, ["LORA"], 7])
def test_an_adapter_of_unknown_kind_is_kept_as_it_is(classifier: Path, tmp_path: Path, peft_type: Any) -> None:
    run = _save(_adapt(classifier, "lora"), tmp_path / "run")
    path = run / "adapter_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "peft_type": peft_type}
    path.write_text(json.dumps(config), encoding="utf-8")
    trip = round_trip(run, None, tmp_path)
    assert set(files_of(trip.out)) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert petlpack.open(tmp_path / "pack")["run"].method == str(peft_type).lower()


def test_adapters_under_another_name_stand_in_directories_of_their_own(classifier: Path, tmp_path: Path) -> None:
    with quiet():
        model = _adapt(classifier, "lora")
        model.add_adapter("other", ADAPTERS["dora"]())
        model.set_adapter("other")
        move(model, 6, only_trained=True)
    run = _save(model, tmp_path / "run")
    assert (run / "other" / "adapter_config.json").is_file()
    trip = round_trip(run, None, tmp_path)
    assert trip.encoded.method == "lora"
    assert "other/adapter_model.safetensors" in files_of(trip.out)
    assert trip.encoded.warnings == ()
    other = round_trip(run / "other", None, tmp_path / "second")
    assert set(files_of(other.out)) == {"adapter_config.json", "adapter_model.safetensors"}
    assert outputs(_load_adapter(classifier, other.out)) == outputs(model)


def test_a_pickled_adapter_comes_back_as_safetensors(classifier: Path, tmp_path: Path) -> None:
    model = _adapt(classifier, "lora")
    run = _save(model, tmp_path / "run")
    state = safetensors.torch.load_file(run / "adapter_model.safetensors")
    (run / "adapter_model.safetensors").unlink()
    torch.save(state, run / "adapter_model.bin")
    (run / "model.safetensors").write_bytes(b"of another run")
    trip = round_trip(run, None, tmp_path)
    assert trip.encoded.warnings == (
        "adapter_model.bin comes back as adapter_model.safetensors",
        "kept as bytes what is no valid safetensors file: model.safetensors",
    )
    assert "model.safetensors" in files_of(trip.out)
    _check_tensors(trip.out / "adapter_model.safetensors", state)
    assert outputs(_load_adapter(classifier, trip.out)) == outputs(model)


@pytest.mark.parametrize("at_root", [True, False])
def test_a_trainer_run_over_an_adapter(classifier: Path, tmp_path: Path, at_root: bool) -> None:
    run = tmp_path / "run"
    for step in (9, 10):
        model = move(_adapt(classifier, "lora"), step, only_trained=True)
        _save(model, run / f"checkpoint-{step}")
        (run / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"never read")
    if at_root:
        _save(model, run)
    trip = round_trip(run, None, tmp_path, run if at_root else run / "checkpoint-10")
    assert set(files_of(trip.out)) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert trip.encoded.warnings == ()
    assert trip.left_out["checkpoint-9/optimizer.pt"] == (10, TRAINING_WHY)
    assert outputs(_load_adapter(classifier, trip.out)) == outputs(model)


# Bare files, and headers that no library of today writes


def test_a_bare_file_comes_back(tmp_path: Path) -> None:
    run, base = write_pair(tmp_path, 1)
    bare = run / "model.safetensors"
    file = tmp_path / "bare" / "my weights-v2.safetensors"
    file.parent.mkdir()
    file.write_bytes(bare.read_bytes())
    for i, path in enumerate((file, file.parent)):
        trip = round_trip(path, base, tmp_path / f"{i}")
        assert files_of(trip.out) == {file.name: bare.read_bytes()}
        assert trip.encoded.layout == "safetensors"


def _file(rows: list[tuple[str, str, list[int], int]], text: str | None = None) -> bytes:
    """A safetensors file by hand: (name, dtype, shape, bytes) in the order of the data."""
    table: dict[str, Any] = {}
    offset = 0
    for name, dtype, shape, nbytes in rows:
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    header = (json.dumps(table) if text is None else text).encode()
    return len(header).to_bytes(8, "little") + header + np.random.default_rng(offset).bytes(offset)


ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}'
HEADERS = {
    "F4, two a byte": _file([("a.weight", "F4", [2, 8], 8), ("b.weight", "F32", [2, 2], 16)]),
    "F8_E8M0": _file([("a.scale", "F8_E8M0", [16], 16), ("a.weight", "F8_E4M3", [16], 16)]),
    "F6": _file([("a.weight", "F6_E2M3", [4], 3)]),
    "C64": _file([("a.weight", "C64", [3], 24)]),
    "from the future": _file([("a.weight", "POSIT16", [3], 6), ("b.weight", "POSIT16", [3], 6)]),
    "a scalar": _file([("a.weight", "F32", [], 4), ("b.weight", "BF16", [1], 2)]),
    "nothing": _file([("a.weight", "F32", [0, 5], 0), ("b.weight", "F32", [2], 8)]),
    "every dtype, oddly aligned": _file(
        [(f"x.{dtype.name}", dtype.name, [3], 3 * dtype.itemsize) for dtype in reversed(DTYPES.values())]
    ),
    "unpadded and spaced": _file([], '{ "a" : {"dtype":"F32", "shape":[2],\n "data_offsets":[0,8]} }') + bytes(8),
    "padded": _file([], '{"a":' + ENTRY % (0, 8) + "}" + " " * 100) + bytes(8),
    "data out of order": _file([], '{"a":' + ENTRY % (8, 16) + ',"b":' + ENTRY % (0, 8) + "}") + bytes(range(16)),
    "foreign names": _file([], '{"\\u00e4/\\n":' + ENTRY % (0, 8) + ',"日本":' + ENTRY % (8, 16) + "}") + bytes(16),
    "metadata": _file([], '{"a":' + ENTRY % (0, 8) + ',"__metadata__":{"format":"pt","note":"ü"}}') + bytes(8),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_and_dtypes_come_back_whatever_they_are(tmp_path: Path, case: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(HEADERS[case])
    trip = round_trip(tmp_path / "run", None, tmp_path, codec="plain")
    assert files_of(trip.out) == {"model.safetensors": HEADERS[case]}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(HEADERS[case])
    (adapter / "adapter_config.json").write_text('{"peft_type": "QUANTIZED", "inference_mode": true}', encoding="utf-8")
    assert (round_trip(adapter, None, tmp_path / "2").out / "adapter_model.safetensors").read_bytes() == HEADERS[case]


@pytest.mark.parametrize("codec", ["auto", "ulp", "sparse", "plain"])
def test_a_dtype_we_do_not_know_does_not_disturb_its_neighbours(tmp_path: Path, codec: str) -> None:
    _, base = write_pair(tmp_path, 0, layers=1, share=0.0)
    whole = (base / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8 : 8 + length])
    end = len(whole) - 8 - length
    name = "encoder.layer.0.intermediate.dense.weight"
    table[f"{name}_packed"] = {"dtype": "F4", "shape": [2, 8], "data_offsets": [end, end + 8]}
    header = json.dumps(table).encode()
    (tmp_path / "quantized").mkdir()
    content = len(header).to_bytes(8, "little") + header + whole[8 + length :] + bytes(range(8))
    (tmp_path / "quantized" / "model.safetensors").write_bytes(content)
    trip = round_trip(tmp_path / "quantized", base, tmp_path / "trip", codec=codec)
    assert files_of(trip.out) == {"model.safetensors": content}


# More than one model


def test_a_merged_model_beside_its_adapter_and_a_second_one_are_all_had(classifier: Path, tmp_path: Path) -> None:
    with quiet():
        model = _adapt(classifier, "lora")
        model.add_adapter("other", ADAPTERS["lora"]())
        move(model, 6, only_trained=True)
        model.save_pretrained(str(tmp_path / "run"))
        said = outputs(model)
        merged = model.merge_and_unload()
        merged.save_pretrained(str(tmp_path / "run"), max_shard_size="3KB")
    trip = round_trip(tmp_path / "run", classifier, tmp_path)
    out = files_of(trip.out)
    assert {
        "adapter_model.safetensors",
        "other/adapter_model.safetensors",
        "model.safetensors.index.json",
    } <= out.keys()
    assert outputs(_load_adapter(classifier, trip.out)) == said
    shutil.rmtree(trip.out / "other")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (trip.out / name).unlink()
    assert outputs(load(trip.out)) == outputs(merged)
    task = petlpack.open(tmp_path / "pack")["run"]
    merged_names = {name for name in task.template.base if name.startswith("model/")}
    assert len(merged_names) == len(merged.state_dict()) - ("bert.embeddings.position_ids" in merged.state_dict())
    assert sum(len(task.sources.slots[i].name) > 0 for i in task.sources.unchanged) > len(merged_names) // 2
