"""What of a model trains with a method: its head whatever that is called, and nothing else; all in single precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import petlpack
from petlpack.errors import UsageError
from petlpack.methods import adamix, diff_pruning, pha, propetl
from tests.support.attached import ATTACH, LOAD, SIZES, a_batch, every, logits_of, open_model, train
from tests.support.families import FAMILIES, batch_of

SMALL = {"vocab_size": 40, "max_position_embeddings": 16, "initializer_range": 0.2, **SIZES}


def quietly(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(*args, **kwargs)


def checkpointed(model: Any, **kwargs: Any) -> None:
    quietly(model.gradient_checkpointing_enable, kwargs or None)


# The head


class OwnHead(transformers.BertPreTrainedModel):  # type: ignore[misc] # transformers is Any here
    """A classifier of a user's own, whose head has a name of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.squeeze = nn.Linear(config.hidden_size, 8)
        self.out = nn.Linear(8, config.num_labels)
        self.post_init()

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        pooled = self.bert(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        logits = self.out(torch.tanh(self.squeeze(pooled)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)


@every
def test_a_head_of_any_name_trains_and_comes_back(name: str, base: Path, tmp_path: Path) -> None:
    method = ATTACH[name](quietly(OwnHead.from_pretrained, base, num_labels=2))
    before = method.head_tensors(method.task)
    assert set(before) == {f"{part}.{side}" for part in ("squeeze", "out") for side in ("weight", "bias")}
    train(method)
    assert not any(torch.equal(tensor, before[key]) for key, tensor in method.head_tensors(method.task).items())
    if name == "diff pruning":
        method.prune(0.5)
    method.save(tmp_path / "run")
    load = LOAD[name.split()[0]]
    fresh = quietly(OwnHead.from_pretrained, base, num_labels=2)
    load(fresh, tmp_path / "run")
    expected = logits_of(method.model)
    assert torch.equal(logits_of(fresh), expected)
    packed = petlpack.encode(tmp_path / "run", tmp_path / "pack", base)
    task = next(one.name for one in packed if one.name.endswith(method.task))
    petlpack.open(tmp_path / "pack")[task].decode(tmp_path / "back", base)
    fresh = quietly(OwnHead.from_pretrained, base, num_labels=2)
    loaded = load(fresh, tmp_path / "back")
    if method.task:
        loaded.switch(method.task)
    assert torch.equal(logits_of(fresh), expected)


@pytest.mark.parametrize(
    ("kind", "trains"),
    [
        ("BertForNextSentencePrediction", {"cls"}),
        ("BertForMaskedLM", set()),
        ("ModernBertForMaskedLM", set()),
        ("ModernBertForSequenceClassification", {"head", "classifier"}),
        ("BertForMultipleChoice", {"classifier"}),
        ("GPT2ForSequenceClassification", {"score"}),
        ("T5ForSequenceClassification", {"classification_head"}),
    ],
)
def test_what_is_beside_the_base_trains_but_not_what_predicts_its_tokens(kind: str, trains: set[str]) -> None:
    prefix = kind.partition("For")[0]
    sizes = FAMILIES[{"GPT2": "gpt2", "T5": "t5", "ModernBert": "modernbert"}.get(prefix, "bert")][2]
    config = getattr(transformers, f"{prefix}Config")(**sizes)
    model = quietly(lambda: getattr(transformers, kind)(config))  # importing a family warns, too
    propetl.attach(model, propetl.Config(kind="adapter", bottleneck=4, activation="gelu"))
    own = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert own - {"propetl"} == trains


# What is new without being a head


@every
def test_weights_that_the_base_s_checkpoint_lacks_are_refused(name: str, tmp_path: Path) -> None:
    transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path / "base")
    model = quietly(transformers.BertForSequenceClassification.from_pretrained, tmp_path / "base")
    with pytest.raises(UsageError, match=r"'bert\.pooler\.dense\.weight' is new .* does not have it") as error:
        ATTACH[name](model)
    assert "save_pretrained" in str(error.value.hint)
    model.save_pretrained(tmp_path / "whole")
    ATTACH[name](transformers.BertForSequenceClassification.from_pretrained(tmp_path / "whole"))


@pytest.mark.parametrize("method", [propetl, adamix])
def test_rows_that_were_added_to_the_embeddings_are_refused(method: Any, tmp_path: Path) -> None:
    sizes = FAMILIES["llama"][2]
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(42)
    with pytest.raises(UsageError, match=r"embed_tokens\.weight' is new .* has 40 rows of it, the model 42"):
        method.attach(model, method.Config(kind="lora", rank=2))


def test_tied_weights_have_one_name_of_several_in_a_checkpoint(tmp_path: Path) -> None:
    sizes = {**FAMILIES["qwen2"][2], "tie_word_embeddings": True}
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).save_pretrained(tmp_path / "base")
    adamix.attach(transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "base"), adamix.Config(kind="lora", rank=2))


def test_a_checkpoint_of_other_names_says_nothing(base: Path, tmp_path: Path) -> None:
    model = open_model(base)
    (tmp_path / "other").mkdir()
    petlpack_names = {"encoder": torch.zeros(3)}
    from safetensors.torch import save_file

    save_file(petlpack_names, tmp_path / "other" / "model.safetensors")
    model.config._name_or_path = str(tmp_path / "other")
    ATTACH["propetl"](model)


@pytest.mark.parametrize("name", [name for name in ATTACH if name != "diff pruning"])
def test_what_of_the_base_is_made_to_train_is_refused(name: str, base: Path) -> None:
    method = ATTACH[name](open_model(base))
    for parameter_name, parameter in method.model.named_parameters():
        if parameter_name.endswith("LayerNorm.weight"):
            parameter.requires_grad_(True)
    with pytest.raises(UsageError, match=r"'bert\..*LayerNorm.weight' of the base model is trainable"):
        train(method, 1)


# Precision


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_head_on_a_base_in_half_precision_trains_in_single(
    name: str, dtype: torch.dtype, base: Path, tmp_path: Path
) -> None:
    model = open_model(base).to(dtype)
    method = ATTACH[name](model)
    train(method)
    trained = method.head_tensors(method.task)
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in trained.values())
    assert all(bool(parameter.isfinite().all()) for parameter in method.parameters())
    if name == "diff pruning":
        method.prune(0.5)
    method.save(tmp_path / "run")
    fresh = open_model(base).to(dtype)
    LOAD[name.split()[0]](fresh, tmp_path / "run")
    assert torch.equal(logits_of(fresh), logits_of(model))
    method.detach()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", [name for name in ATTACH if name != "diff pruning"])
def test_a_method_that_is_cast_with_the_model_is_refused_in_training(name: str, base: Path, tmp_path: Path) -> None:
    method = ATTACH[name](open_model(base))
    method.model.to(torch.bfloat16)
    with pytest.raises(UsageError, match="cast to half precision"):
        train(method, 1)
    if name == "pha":  # a run of it comes back in the precision that it is saved in
        return
    with pytest.raises(UsageError, match="cast to half precision"):
        method.save(tmp_path / "run")


def test_diff_pruning_is_not_cast(base: Path) -> None:
    method = ATTACH["diff pruning"](open_model(base))
    method.model.to(torch.bfloat16)
    with pytest.raises(UsageError, match=r"cast from torch\.float32 to torch\.bfloat16"):
        train(method, 1)


# What the loss is of


def test_a_problem_that_labels_do_not_tell_stays_that_of_every_task(base: Path) -> None:
    model = open_model(base)
    model.config.problem_type = "regression"
    method = propetl.attach(model, propetl.Config(bottleneck=4), tasks={"three": 3, "two": 2})
    method.switch("three")
    ids = a_batch()["input_ids"]
    output = model(input_ids=ids, labels=torch.linspace(0, 1, 18).view(6, 3))
    assert output.loss.item() == pytest.approx(
        torch.nn.functional.mse_loss(output.logits, torch.linspace(0, 1, 18).view(6, 3)).item()
    )


class MyLlama(transformers.LlamaForCausalLM):  # type: ignore[misc] # transformers is Any here
    """A model of next tokens under another name."""


def test_a_subclass_of_a_model_of_next_tokens_is_one() -> None:
    config = transformers.LlamaConfig(**FAMILIES["llama"][2])
    losses = []
    for kind in (transformers.LlamaForCausalLM, MyLlama):
        torch.manual_seed(0)
        model = kind(config)
        adamix.attach(model, adamix.Config(kind="lora", rank=2))
        for parameter in (p for n, p in model.named_parameters() if "experts_lora_B" in n):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        losses.append(model(**batch_of("llama")).loss.item())
    assert losses[0] == losses[1]


# Checkpoints


OTHERS: dict[str, Callable[[Any], Any]] = {
    "propetl": lambda model: propetl.attach(model, propetl.Config(bottleneck=4, keep=0.3)),
    "propetl of tasks": lambda model: propetl.attach(model, propetl.Config(bottleneck=4), tasks={"rte": 2, "sst2": 2}),
    "adamix": lambda model: adamix.attach(model, adamix.Config(bottleneck=4, activation="relu")),
    "pha": lambda model: pha.attach(model, pha.Config(bottleneck=4, code=8, trunk=8), tasks={"rte": 2, "sst2": 2}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_settings_or_tasks_is_refused(name: str, base: Path) -> None:
    method = ATTACH[name](open_model(base))
    train(method, 2)
    state = method.model.state_dict()
    with pytest.raises(UsageError, match="the checkpoint was trained with"):
        OTHERS[name](open_model(base)).model.load_state_dict(state, strict=False)
    again = ATTACH[name](open_model(base))
    again.model.load_state_dict(state)
    assert torch.equal(logits_of(again.model), logits_of(method.model))


def test_reentrant_checkpointing_of_pha_is_refused(base: Path) -> None:
    method = ATTACH["pha"](open_model(base))
    checkpointed(method.model, use_reentrant=True)
    with pytest.raises(UsageError, match="reentrant"):
        train(method, 1)


def test_checkpointed_layers_of_t5_draw_what_they_drew(tmp_path: Path) -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**{**FAMILIES["t5"][2], "dropout_rate": 0.1})
        )
        method = diff_pruning.attach(model, diff_pruning.Config(density=0.05))
        with torch.no_grad():
            for i, weight in enumerate(method._stage.w):
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
        if again:
            checkpointed(model)
        torch.manual_seed(5)
        model(**batch_of("t5")).loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in method._stage.w]))
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_was_probed_by_embeddings_trains_on_ids(base: Path) -> None:
    model = open_model(base)
    embedded = {"inputs_embeds": torch.randn(2, 3, 16)}
    method = diff_pruning.attach(model, diff_pruning.Config(density=0.05), probe=embedded)
    train(method, 2)
