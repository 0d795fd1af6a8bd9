"""What all methods promise, whichever it is: how they stand on a model, leave it, and refuse."""

from __future__ import annotations

import copy
import itertools
import pickle
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertModel

from petlpack.errors import RunError, UsageError
from petlpack.methods import adamix, diff_pruning, pha, propetl
from tests.support.attached import (
    ATTACH,
    LOAD,
    NO_DROPOUT,
    SIZES,
    a_batch,
    every,
    logits_of,
    open_model,
    switched,
    train,
)


def finished(name: str, base: Path) -> Any:
    method = ATTACH[name](open_model(base))
    train(method)
    if name == "diff pruning":
        method.prune()
    return method


@every
def test_a_loop_that_says_nothing_of_modes_trains(name: str, base: Path, tmp_path: Path) -> None:
    model = open_model(base)
    assert not model.training  # as from_pretrained leaves it
    method = ATTACH[name](model)
    assert model.training
    before = logits_of(model)
    model.train()
    train(method)
    assert not torch.equal(logits_of(model), before)
    method.detach()
    assert not model.training


@every
def test_what_was_on_the_model_is_there_again(name: str, base: Path) -> None:
    model = open_model(base)
    state = {key: tensor.clone() for key, tensor in model.base_model.state_dict().items()}
    model.config.problem_type = "single_label_classification"
    model.forward = own = model.forward  # as accelerate wraps it
    keys = set(model.__dict__)
    method = ATTACH[name](model)
    train(method)
    method.detach()
    assert model.forward == own
    assert set(model.__dict__) == keys
    assert model.config.problem_type == "single_label_classification"
    assert all(parameter.requires_grad for parameter in model.parameters())
    now = model.base_model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[key].view(torch.uint8), tensor.view(torch.uint8)) for key, tensor in state.items())


@every
def test_a_model_with_a_method_is_neither_copied_nor_pickled(name: str, base: Path, tmp_path: Path) -> None:
    model = open_model(base)
    method = ATTACH[name](model)
    for refused in (
        lambda: copy.deepcopy(model),
        lambda: pickle.dumps(model),
        lambda: torch.save(model, tmp_path / "model.pt"),
        lambda: torch.save(torch.nn.Sequential(model), tmp_path / "model.pt"),
        lambda: pickle.dumps(method),
    ):
        with pytest.raises(UsageError, match="cannot be copied or pickled") as caught:
            refused()
        assert "method.save()" in str(caught.value.hint)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    method.detach()
    pickle.dumps(copy.deepcopy(model))


@every
def test_load_leaves_eval_mode_and_the_same_logits(name: str, base: Path, tmp_path: Path) -> None:
    method = finished(name, base)
    expected = logits_of(method.model)
    method.save(tmp_path / "run")
    model = open_model(base)
    LOAD[name.split()[0]](model, tmp_path / "run")
    assert not model.training
    assert torch.equal(logits_of(model), expected)


@every
def test_a_run_is_not_saved_over_the_base_or_beside_another(name: str, base: Path, tmp_path: Path) -> None:
    method = finished(name, base)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(UsageError, match="the directory of the base model"):
        method.save(base)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    other = "adamix" if name != "adamix" else "propetl"
    finished(other, base).save(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds other weights"):
        method.save(tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    method.save(tmp_path / "own")
    method.save(tmp_path / "own")  # over itself
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-5" / "model.safetensors").write_bytes(b"")
    method.save(tmp_path / "out")  # a Trainer's directory


@every
def test_numbers_that_are_not_finite_are_not_saved(name: str, base: Path, tmp_path: Path) -> None:
    method = finished(name, base)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(UsageError, match="NaN or infinite"):
        method.save(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("method", [propetl, pha])
@pytest.mark.parametrize("task", ["", "a.b", "type", "keys", "training", "forward", "a/b", "x" * 129])
def test_a_name_that_is_none_is_refused_before_anything_is_touched(method: Any, task: str, base: Path) -> None:
    model = open_model(base)
    keys, modes = set(model.__dict__), [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(UsageError, match="invalid task name"):
        method.attach(model, method.Config(bottleneck=4), tasks={"fine": 2, task: 2})
    assert set(model.__dict__) == keys
    assert [parameter.requires_grad for parameter in model.parameters()] == modes
    method.attach(model, method.Config(bottleneck=4), tasks={"fine": 2})


@pytest.mark.parametrize("labels", [0, -1, True, "2"])
def test_labels_that_the_model_has_no_use_for_are_refused(labels: Any, base: Path) -> None:
    with pytest.raises(UsageError, match="labels"):
        propetl.attach(open_model(base), propetl.Config(bottleneck=4), tasks={"sst2": labels})


WRONG_SETTINGS = [
    (propetl, "keep", "0.5", "in (0, 1], got '0.5'"),
    (propetl, "keep", True, "in (0, 1], got True"),
    (propetl, "alpha", "48", "a finite number other than 0, got '48'"),
    (propetl, "kind", ["lora"], "one of adapter, lora, prefix, got ['lora']"),
    (propetl, "rank", 2.0, "an integer >= 1, got 2.0"),
    (adamix, "alpha", None, "a finite number > 0, got None"),
    (adamix, "share_up", "no", "True or False, got 'no'"),
    (adamix, "activation", "swiglu", "one of gelu, gelu_new, relu, silu, tanh, got 'swiglu'"),
    (diff_pruning, "density", "5", "in (0, 1], got '5'"),
    (diff_pruning, "l0", "a", "a finite number >= 0, got 'a'"),
    (diff_pruning, "low", None, "a finite number < 0, got None"),
    (pha, "temperature", "a", "a finite number > 0, got 'a'"),
    (pha, "weight", float("inf"), "a finite number >= 0, got inf"),
    (pha, "bottleneck", True, "an integer >= 1, got True"),
    (pha, "code", "8\x1b", "an integer >= 1, got '8\\x1b'"),
]


@pytest.mark.parametrize(("method", "field", "value", "told"), WRONG_SETTINGS)
def test_a_wrong_setting_is_told_in_the_words_of_its_field(method: Any, field: str, value: Any, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        method.Config(**{field: value})
    assert caught.value.message == f"{field} must be {told}"
    assert caught.value.hint


def plain_module() -> torch.nn.Module:
    """A module with blocks like BERT's, and no config."""
    module = torch.nn.Module()
    module.bert = BertModel(BertConfig(vocab_size=40, **SIZES))
    return module


WRONG_CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "the class": (lambda m: propetl.attach(m, propetl.Config), "config must be a propetl.Config, got the class"),  # type: ignore[arg-type]
    "another's": (lambda m: adamix.attach(m, propetl.Config()), "an adamix.Config, got a propetl.Config"),  # type: ignore[arg-type]
    "a dict": (lambda m: diff_pruning.attach(m, {"density": 1}), "a diff_pruning.Config, got a dict"),  # type: ignore[arg-type]
    "nothing": (lambda m: pha.attach(m, None, {"one": 2}), "config must be a pha.Config, got None"),  # type: ignore[arg-type]
    "a list of tasks": (lambda m: propetl.attach(m, propetl.Config(), tasks=["a", "b"]), "tasks must map task names"),  # type: ignore[arg-type]
    "a list for pha": (lambda m: pha.attach(m, pha.Config(), ["a", "b"]), "got ['a', 'b']"),  # type: ignore[arg-type]
    "a number for a task": (lambda m: pha.attach(m, pha.Config(), {1: 2}), "invalid task name 1: use 1-128 of A-Z"),  # type: ignore[dict-item]
    "a number as the task": (lambda m: propetl.attach(m, propetl.Config(), task=1), "invalid task name 1"),  # type: ignore[arg-type]
    "a list as the probe": (lambda m: adamix.attach(m, adamix.Config(), probe=[1]), "probe must be a mapping"),  # type: ignore[arg-type]
    "a plain module": (lambda _: diff_pruning.attach(plain_module()), "got a Module without a config"),
    "a plain module, its blocks": (
        lambda _: adamix.attach(plain_module(), adamix.Config()),
        "model must be a Transformers model, got a Module without a config",
    ),
    "a name of a model": (lambda _: propetl.attach("bert", propetl.Config()), "got 'bert'"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_argument_is_told_before_anything_is_touched(case: str, base: Path) -> None:
    model = open_model(base)
    keys = set(model.__dict__)
    call, told = WRONG_CALLS[case]
    with pytest.raises(UsageError) as caught:
        call(model)
    assert told in caught.value.message
    assert caught.value.hint
    assert set(model.__dict__) == keys
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", LOAD)
def test_a_run_that_is_not_there_is_told_by_its_name(name: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for place, told in (("nope", "no directory"), ("file", "is not a directory"), ("empty", "empty")):
        with pytest.raises(RunError, match=told) as caught:
            LOAD[name](open_model(base), tmp_path / place)
        assert "save" in str(caught.value.hint)
        assert "permissions" not in str(caught.value.hint)


@pytest.mark.parametrize("name", ["adamix", "diff pruning", "pha"])
def test_a_training_forward_without_labels_is_told_once(name: str, base: Path) -> None:
    model = open_model(base)
    ATTACH[name](model)
    with pytest.warns(UserWarning, match="without labels"):
        model(input_ids=a_batch()["input_ids"]).logits.sum().backward()
    model(input_ids=a_batch()["input_ids"])  # a second warning would be an error here


@every
def test_a_forward_that_was_put_in_the_place_of_the_method_s_is_an_error_in_training(name: str, base: Path) -> None:
    """TRL's SFTTrainer calls the model's class's; PROPETL, which stands in the layers alone, trains by it."""
    model = open_model(base)
    method = ATTACH[name](model)
    own, model.forward = model.forward, types.MethodType(type(model).forward, model)
    if name.startswith("propetl"):
        model(**a_batch()).loss.backward()
    else:
        with pytest.raises(UsageError, match="forward was replaced after attach"):
            model(**a_batch())
    with torch.no_grad():
        model(**a_batch())
    model.forward = own
    train(method)


@pytest.mark.parametrize("saved", ["propetl", "adamix", "pha"])
def test_a_run_of_another_method_is_refused(saved: str, base: Path, tmp_path: Path) -> None:
    finished(saved, base).save(tmp_path / "run")
    for name, load in LOAD.items():
        if name != saved:
            model = open_model(base)
            with pytest.raises((RunError, UsageError)) as caught:
                load(model, tmp_path / "run")
            assert caught.value.hint
            ATTACH["adamix"](model)  # nothing was left on it


def test_a_run_of_a_deeper_model_is_refused(base: Path, tmp_path: Path) -> None:
    finished("propetl", base).save(tmp_path / "run")
    config = BertConfig(vocab_size=40, max_position_embeddings=16, **{**SIZES, "num_hidden_layers": 1})
    with pytest.raises(RunError, match="which the model does not have"):
        propetl.load(BertForSequenceClassification(config), tmp_path / "run")


# What docs/training.md says of training


def question() -> dict[str, torch.Tensor]:
    ids = a_batch()["input_ids"]
    return {"input_ids": ids, "start_positions": ids[:, 0] % 5, "end_positions": ids[:, 1] % 5}


@every
def test_questions_are_answered_by_all_but_adamix(name: str) -> None:
    config = BertConfig(vocab_size=40, max_position_embeddings=16, initializer_range=0.2, **SIZES, **NO_DROPOUT)
    torch.manual_seed(0)
    model = BertForQuestionAnswering(config)
    if name == "adamix":
        with pytest.raises(UsageError, match="BertForQuestionAnswering takes no labels"):
            ATTACH[name](model)
        return
    method = ATTACH[name](model)
    optimizer = torch.optim.AdamW(method.groups(lr=1e-2), weight_decay=0.0)
    losses = []
    for _ in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # without labels
            loss = model(**question()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]


def test_diff_pruning_has_a_rate_for_its_gates_and_no_weight_decay_in_its_own_groups_alone(base: Path) -> None:
    method = ATTACH["diff pruning"](open_model(base))
    own = torch.optim.AdamW(method.groups(lr=1e-3), weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in own.param_groups] == [(1e-3, 0.0), (0.1, 0.0)]
    plain = torch.optim.AdamW([p for p in method.model.parameters() if p.requires_grad], lr=1e-3)
    gate = method._stage.alpha[0]
    before = gate.detach().clone()
    method.model(**a_batch()).loss.backward()
    plain.step()
    assert 0 < float((gate.detach() - before).abs().max()) < 2e-3


def test_an_optimizer_made_before_prune_leaves_the_differences_as_they_are(base: Path) -> None:
    method = ATTACH["diff pruning"](open_model(base))
    optimizer = torch.optim.AdamW(method.groups(lr=1e-2), weight_decay=0.0)
    train(method)
    method.prune()
    before = method.differences()
    for made, same in ((optimizer, True), (torch.optim.AdamW(method.groups(lr=1e-2)), False)):
        method.model(**a_batch()).loss.backward()
        made.step()
        after = method.differences()
        assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("bert.")) == same


@every
def test_what_was_loaded_trains_on_in_train_mode(name: str, base: Path, tmp_path: Path) -> None:
    finished(name, base).save(tmp_path / "run")
    model = open_model(base)
    method = switched(LOAD[name.split()[0]](model, tmp_path / "run"))
    before = logits_of(model)
    model.train()
    train(method)
    assert not torch.equal(logits_of(model), before)


def test_micro_batches_have_propetl_s_gradients_of_one_batch(base: Path) -> None:
    batch = a_batch()
    found = []
    for cuts in ((0, 6), (0, 2, 6)):
        torch.manual_seed(0)
        method = ATTACH["propetl"](open_model(base))
        for first, last in itertools.pairwise(cuts):
            part = {key: tensor[first:last] for key, tensor in batch.items()}
            method.model(**part, num_items_in_batch=torch.tensor(6)).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    assert torch.allclose(*found, atol=1e-6)


# Diff pruning writes into the model's own weights


def test_diff_pruning_takes_no_state_dict_of_weights_alone(base: Path) -> None:
    method = ATTACH["diff pruning"](open_model(base))
    with pytest.raises(UsageError, match="only weights, but differences and gates") as caught:
        method.model.load_state_dict(open_model(base).state_dict())
    assert "load()" in str(caught.value.hint)


def test_the_base_model_alone_computes_with_the_last_step_s_weights(base: Path) -> None:
    method = finished("diff pruning", base)
    train(method, 2)
    model = method.model.eval()
    with torch.no_grad():
        first = model.bert(a_batch()["input_ids"]).last_hidden_state
        model(input_ids=a_batch()["input_ids"])
        assert torch.equal(first, model.bert(a_batch()["input_ids"]).last_hidden_state)


def test_nothing_trained_is_not_pruned(base: Path) -> None:
    method = ATTACH["diff pruning"](open_model(base))
    with pytest.raises(UsageError, match="nothing was trained"):
        method.prune()


def test_a_gradient_that_did_not_come_by_the_model_s_forward_is_refused(base: Path) -> None:
    model = open_model(base)
    ATTACH["diff pruning"](model)
    with pytest.raises(UsageError, match="gates were not sampled"):
        model.bert(a_batch()["input_ids"]).last_hidden_state.sum().backward()


def test_only_methods_are_in_the_package() -> None:
    import petlpack.methods

    assert {petlpack.methods.__getattr__(name).__name__ for name in petlpack.methods.__all__} == {
        f"petlpack.methods.{name}" for name in ("adamix", "diff_pruning", "pha", "propetl")
    }
    with pytest.raises(AttributeError, match="no attribute 'lora'"):
        petlpack.methods.__getattr__("lora")
