"""The probe: a method that is on a model and does nothing there is refused, whichever part of it is broken."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from petlpack.errors import UsageError
from petlpack.methods import adamix, diff_pruning, pha, propetl
from petlpack.methods.method import Method
from petlpack.methods.places import Argument, blocks, library_of
from tests.support.attached import switched
from tests.support.sampling import Sample
from tests.support.small_models import METHODS, TASKS, bert, t5

VERSION = f"transformers {transformers.__version__}"
MODELS: dict[str, Callable[[], Any]] = {"bert": bert, "t5": t5}
CASES = [(model, method) for model in MODELS for method in METHODS if not (model == "t5" and "prefix" in method)]
cases = pytest.mark.parametrize(("family", "name"), CASES)


def hooks_of(attach: Callable[[Any], Any], model: Any, monkeypatch: pytest.MonkeyPatch, broken: int = -1) -> int:
    """Attach a method, the `broken`-th of its hooks taken off at once, and return how many there are."""
    plain, count = Method.hook, 0

    def hook(self: Method, handle: Any) -> None:
        nonlocal count
        plain(self, handle)
        if count == broken:
            handle.remove()
        count += 1

    with monkeypatch.context() as patch:
        patch.setattr(Method, "hook", hook)
        attach(model).detach()
    return count


def looking_up(attach: Callable[[Any], Any], model: Any, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return which hooks of diff pruning draw the rows that an embedding looks up."""
    plain, hooks = Method.hook, list[Any]()

    def hook(self: Method, handle: Any) -> None:
        plain(self, handle)
        hooks.append(handle.hooks_dict_ref())

    with monkeypatch.context() as patch:
        patch.setattr(Method, "hook", hook)
        method = attach(model)
        tables = [module._forward_pre_hooks for module in model.modules() if type(module) is nn.Embedding]
        found = {i for i, there in enumerate(hooks) if any(there is table for table in tables)}
        method.detach()
    return found


def aside(model: Any) -> int:
    """Return how many of diff pruning's hooks a probe does not run: those of state dicts, optimizers, parts alone."""
    parts = {model.base_model, *([model.get_encoder()] if model.config.is_encoder_decoder else [])} - {model}
    return 4 + len(parts)


@pytest.mark.exhaustive(4)
@cases
def test_each_broken_hook_is_an_error_that_names_what_and_the_version(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch, sample: Sample
) -> None:
    model = MODELS[family]()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    count = hooks_of(METHODS[name], model, monkeypatch)
    assert count >= 2
    if "diff" in name:
        count -= aside(model)
    for broken in sample(range(count)):
        if broken in looking_up(METHODS[name], model, monkeypatch):  # then all rows are drawn, as for other weights
            hooks_of(METHODS[name], model, monkeypatch, broken)
            continue
        with pytest.raises(UsageError) as caught:
            hooks_of(METHODS[name], model, monkeypatch, broken)
        assert VERSION in caught.value.message, (broken, caught.value.message)
        assert caught.value.hint
        assert any(f"'{key}" in caught.value.message for key in ("bert", "encoder", "decoder", "classifier", "shared"))
    assert model.state_dict().keys() == state.keys()  # nothing was left on it
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["propetl adapter", "adamix adapter", "diff pruning", "pha"])
def test_a_forward_that_is_not_the_wrapped_one_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "_wrap_forward", lambda self: None)
    with pytest.raises(UsageError, match="does not run the forward that the method wrapped") as caught:
        METHODS[name](bert())
    assert VERSION in caught.value.message


# What another version of the library may do


def test_a_prefix_that_the_layer_ignores_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Transformers 5.24 ignored it, when it was given by its old name."""
    model = bert()
    attention = type(blocks(model)[0].attention)
    plain = attention.forward

    @functools.wraps(plain)
    def deaf(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(
            self, *args, **{key: None if key in ("cache", "past_key_values") else kwargs[key] for key in kwargs}
        )

    monkeypatch.setattr(attention, "forward", deaf)
    with pytest.raises(UsageError) as caught:
        METHODS["propetl prefix"](model)
    assert caught.value.message == (
        f"'bert.encoder.layer.0': the prefix does not change the layer's output ({VERSION}); the same holds for 1 more"
    )


def test_a_method_that_got_half_way_is_taken_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert()
    attention = type(blocks(model)[0].attention)
    plain, keys = attention.forward, set(model.__dict__)

    def without_cache(self: Any, hidden_states: Any, attention_mask: Any = None, **more: Any) -> Any:
        return plain(self, hidden_states, attention_mask, **more)

    monkeypatch.setattr(attention, "forward", without_cache)
    with pytest.raises(UsageError, match=r"takes no cache, only hidden_states, attention_mask, more"):
        METHODS["propetl prefix of tasks"](model)
    assert set(model.__dict__) == keys
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    METHODS["propetl adapter"](model)


@pytest.mark.parametrize("renamed", ["cache", "attention_mask"])
def test_an_argument_that_is_called_otherwise_is_an_error(renamed: str) -> None:
    class Other(nn.Module):  # type: ignore[misc]
        def forward(self, hidden_states: Any, mask: Any = None, memory: Any = None) -> Any: ...

    with pytest.raises(UsageError, match=f"takes no {renamed}, only hidden_states, mask, memory"):
        Argument(Other(), renamed, "past_key_values")


@pytest.mark.parametrize("newer", [False, True])
def test_an_argument_is_put_where_the_call_has_it(newer: bool) -> None:
    class Old(nn.Module):  # type: ignore[misc]
        def forward(self, hidden_states: Any, attention_mask: Any = None, past_key_values: Any = None) -> Any: ...

    class New(nn.Module):  # type: ignore[misc]
        def forward(self, hidden_states: Any, attention_mask: Any = None, cache: Any = None, **more: Any) -> Any: ...

    cache = Argument(New() if newer else Old(), "cache", "past_key_values")
    name = "cache" if newer else "past_key_values"
    assert cache.name == name
    assert cache.put(7, (1,), {"attention_mask": 2}) == ((1,), {"attention_mask": 2, name: 7})
    assert cache.put(7, (1,), {name: None}) == ((1,), {name: 7})
    assert cache.put(7, (1, 2, None), {}) == ((1, 2, 7), {})
    assert (cache.get((1, 2, 3), {}), cache.get((1,), {name: 4}), cache.get((1,), {})) == (3, 4, None)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", ["propetl adapter", "pha"])
def test_layers_may_be_called_by_names(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method computes the same where a version gives by name what others give by position."""
    model = MODELS[family]()
    output = type(blocks(model)[0].output)
    plain, names = output.__call__, ["hidden_states"] if family == "t5" else ["hidden_states", "input_tensor"]
    outputs = []
    for named in (False, True):
        if named:
            monkeypatch.setattr(
                output, "__call__", lambda self, *args: plain(self, **dict(zip(names, args, strict=True)))
            )
        torch.manual_seed(3)
        method = METHODS[name](model)
        for parameter in method.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.eval()
        ids = torch.tensor([[4, 5, 6]])
        outputs.append(model(input_ids=ids, **({"labels": ids} if family == "t5" else {})).logits)
        method.detach()
    assert torch.equal(*outputs)


# When it runs


@pytest.mark.parametrize("name", ["propetl adapter of tasks", "pha"])
def test_a_hook_that_somebody_took_off_is_an_error_at_the_next_switch(name: str) -> None:
    method = METHODS[name](bert())
    method.switch("rte")
    method.switch("sst2")
    method._hooks[-1].remove()
    labels = method.model.num_labels
    with pytest.raises(UsageError, match=VERSION):
        method.switch("rte")
    assert (method.task, method.model.num_labels) == ("sst2", labels)
    with pytest.raises(UsageError, match=VERSION):
        method.probe()


def test_a_task_is_probed_when_it_is_first_switched_to(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = []
    plain = propetl.Propetl._probe

    def noting(self: Any, run: Callable[[], Any]) -> None:
        probes.append(self.task)
        plain(self, run)

    monkeypatch.setattr(propetl.Propetl, "_probe", noting)
    method = METHODS["propetl adapter of tasks"](bert())
    for task in ("rte", "sst2", "rte"):
        method.switch(task)
    assert probes == ["sst2", "rte"]


@pytest.mark.parametrize("name", ["propetl prefix", "adamix lora", "diff pruning", "pha"])
def test_load_probes_what_it_has_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS[name](bert())
    if name == "diff pruning":
        method._stage.w[5].data.fill_(0.1)
        method.prune()
    method.save(tmp_path / "run")
    load = {"propetl": propetl, "adamix": adamix, "diff": diff_pruning, "pha": pha}[name.split()[0]].load
    load(bert(), tmp_path / "run")
    model, probes = bert(), 0
    keys, plain = set(model.__dict__), Method.probe

    def second_fails(self: Method, batch: Any = None) -> None:
        nonlocal probes
        probes += 1
        if probes == 2:
            for handle in self._hooks if name == "diff pruning" else self._hooks[-1:]:
                handle.remove()
        plain(self, batch)

    monkeypatch.setattr(Method, "probe", second_fails)
    with pytest.raises(UsageError, match=VERSION):
        load(model, tmp_path / "run")
    assert probes == 2
    assert set(model.__dict__) == keys


# What it leaves, and what it takes


@cases
def test_a_probe_leaves_no_trace(family: str, name: str) -> None:
    method = switched(METHODS[name](MODELS[family]()))
    model = method.model
    inputs = torch.tensor([[4, 5, 6, 7]])
    labels = {"labels": inputs if family == "t5" else torch.tensor([1])}
    optimizer = torch.optim.SGD(method.groups(lr=0.1))
    model(input_ids=inputs, **labels).loss.backward()
    optimizer.step()
    model(input_ids=inputs, **labels).loss.backward()
    next(iter(model.modules())).train()
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    dropout.eval()

    def seen() -> dict[str, Any]:
        own = [*method.parameters(), *model.parameters()]
        return {
            "values": [parameter.detach().clone() for parameter in own],
            "gradients": [None if parameter.grad is None else parameter.grad.clone() for parameter in own],
            "trained": [parameter.requires_grad for parameter in own],
            "modes": [module.training for module in model.modules()],
            "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
            "random": torch.get_rng_state(),
        }

    state = model.state_dict()  # diff pruning writes its medians
    before = seen()
    method.probe()
    after = seen()
    assert state.keys() == model.state_dict().keys()
    for what in ("values", "gradients"):
        for old, new in zip(before[what], after[what], strict=True):
            assert (old is None) == (new is None)
            assert old is None or torch.equal(old, new)
    assert torch.equal(before["random"], after["random"])
    assert all(before[what] == after[what] for what in ("trained", "modes", "hooks"))


@cases
def test_a_method_is_probed_with_its_parameters_frozen_and_without_gradients(family: str, name: str) -> None:
    with torch.no_grad():
        method = METHODS[name](MODELS[family]())
        if "diff" not in name:
            method.model.requires_grad_(False)
        method.probe()


@pytest.mark.parametrize("name", ["propetl adapter of tasks", "pha"])
def test_a_server_switches_in_inference_mode(name: str) -> None:
    method = METHODS[name](bert())
    with torch.inference_mode():
        method.switch("rte")
        assert method.model(input_ids=torch.tensor([[4, 5, 6]])).logits.shape == (1, 3)
        method.probe({"input_ids": torch.tensor([[4, 5, 6]])})


def test_weights_that_were_made_in_inference_mode_are_refused() -> None:
    model = bert()
    with torch.inference_mode(), pytest.raises(UsageError, match="created in inference mode"):
        METHODS["propetl adapter"](model)
    METHODS["propetl adapter"](model)


@pytest.mark.parametrize(
    "kind",
    ["BertModel", "BertForTokenClassification", "BertForQuestionAnswering", "BertForMultipleChoice", "BertForMaskedLM"],
)
@pytest.mark.parametrize("name", ["propetl prefix", "propetl lora", "diff pruning"])
def test_models_for_other_tasks_are_probed(kind: str, name: str) -> None:
    METHODS[name](bert(kind)).detach()


class NeedsMore(transformers.BertForSequenceClassification):  # type: ignore[misc]
    """A model that does not run on tokens alone."""

    def forward(self, input_ids: Any, scale: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


@pytest.mark.parametrize("method", [propetl, adamix, diff_pruning, pha])
def test_a_model_that_runs_on_other_inputs_is_probed_with_a_batch(method: Any, tmp_path: Path) -> None:
    model = NeedsMore(bert().config)
    tasks = {"tasks": TASKS} if method is pha else {}
    config = method.Config() if method is diff_pruning else method.Config(bottleneck=4)
    with pytest.raises(UsageError, match=r"does not run on the method's probe: TypeError: .*scale") as caught:
        method.attach(model, config, **tasks)
    assert "probe=batch" in str(caught.value.hint)
    batch = {"input_ids": torch.tensor([[4, 5, 6]]), "scale": 1.0}
    attached = method.attach(model, config, **tasks, probe=batch)
    attached.probe()
    if method is pha:
        attached.switch("rte")
    if method is diff_pruning:
        attached._stage.w[5].data.fill_(0.1)
        attached.prune()
    attached.save(tmp_path / "run")
    attached.detach()
    method.load(model, tmp_path / "run", probe=batch)


def test_a_model_without_tokens_says_what_to_give() -> None:
    config = transformers.ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    model = transformers.ResNetForImageClassification(config).eval()
    with pytest.raises(UsageError, match="takes no tokens") as caught:
        diff_pruning.attach(model)
    assert "probe=batch" in str(caught.value.hint)


def test_what_norms_count_in_training_is_left_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    model = transformers.ResNetForImageClassification(config).eval()
    images = {"pixel_values": torch.randn(3, 1, 32, 32)}
    model.save_pretrained(tmp_path / "base")
    before = model(**images).logits
    method = diff_pruning.attach(model, diff_pruning.Config(density=0.05), probe=images)
    assert torch.equal(model.eval()(**images).logits, before)
    optimizer = torch.optim.AdamW(method.groups(1e-2), weight_decay=0.0)
    for _ in range(3):
        model.train()(**images, labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    method.prune()
    expected = model.eval()(**images).logits
    method.save(tmp_path / "run")
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "base")
    diff_pruning.load(again, tmp_path / "run", probe=images)
    assert torch.equal(again(**images).logits, expected)


def test_a_probe_s_labels_are_another_task_s() -> None:
    batch = {"input_ids": torch.tensor([[4, 5, 6]]), "labels": torch.tensor([2])}
    method = propetl.attach(bert(), propetl.Config(bottleneck=4), tasks={"a": 3, "b": 2}, probe=batch)
    method.switch("b")


def test_a_model_of_the_user_s_own_is_named_without_a_version() -> None:
    class Own(nn.Module):  # type: ignore[misc]
        pass

    assert library_of(Own()) == __name__.partition(".")[0]
    assert library_of(nn.Linear(1, 1)) == f"torch {metadata.version('torch')}"
