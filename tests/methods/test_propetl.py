from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from petlpack.encoding.encode import encode
from petlpack.errors import RunError, UsageError
from petlpack.methods import places, propetl, propetl_masks
from petlpack.methods.propetl import Config
from petlpack.pack import Pack
from tests.support import method_formulas as formulas

WIDTH, LAYERS, HEADS = 16, 2, 2
TASKS = {"sst2": 2, "rte": 3}
FAMILIES = ("bert", "roberta", "t5", "t5 classifier")
CASES = [(family, kind) for family in FAMILIES for kind in propetl.KINDS if kind != "prefix" or "t5" not in family]
FIRST = {"bert": "bert.encoder.layer.0", "roberta": "roberta.encoder.layer.0"}

IDS = torch.tensor([[5, 9, 11, 7, 12, 1], [8, 6, 1, 0, 0, 0], [13, 5, 5, 9, 1, 0], [20, 21, 22, 9, 6, 1]])
SEEN = (IDS != 0).long()
LABELS = torch.tensor([0, 1, 1, 0])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)


def new_model(family: str = "bert", **more: Any) -> Any:
    """Make a tiny model without dropout, its weights wide enough for logits that differ."""
    if family.startswith("t5"):
        config = transformers.T5Config(
            vocab_size=24, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=LAYERS, num_heads=HEADS,
            decoder_start_token_id=0, dropout_rate=0.0, classifier_dropout=0.0, num_labels=2, **more,
        )  # fmt: skip
        kind = "T5ForSequenceClassification" if family == "t5 classifier" else "T5ForConditionalGeneration"
    else:
        config = transformers.AutoConfig.for_model(
            family, vocab_size=24, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=32, max_position_embeddings=20, hidden_dropout_prob=0.0, initializer_range=0.2,
            attention_probs_dropout_prob=0.0, num_labels=2, **more,
        )  # fmt: skip
        kind = {"bert": "Bert", "roberta": "Roberta"}[family] + "ForSequenceClassification"
    return getattr(transformers, kind)(config)


def settings(kind: str = "adapter", **changes: Any) -> Config:
    return Config(**{"kind": kind, "keep": 0.4, "bottleneck": 4, "rank": 3, "length": 5, "hidden": 8, **changes})


def attached(family: str = "bert", kind: str = "adapter", several: bool = False, **changes: Any) -> Any:
    """Return the method on a new model; a T5 that generates has no heads."""
    tasks = {task: 0 if family == "t5" else labels for task, labels in TASKS.items()} if several else None
    return propetl.attach(new_model(family), settings(kind, **changes), task="mnli", tasks=tasks)


def batch_of(model: Any) -> dict[str, torch.Tensor]:
    generates = isinstance(model, transformers.T5ForConditionalGeneration)
    return {"input_ids": IDS, "attention_mask": SEEN, "labels": IDS if generates else LABELS}


def logits_of(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**batch_of(model)).logits
    return logits


def train(method: Any, steps: int = 6, lr: float = 3e-2) -> list[float]:
    """Train in a plain loop, the tasks in turn; return the losses."""
    optimizer = torch.optim.Adam(method.groups(lr))
    losses = []
    method.model.train()
    for step in range(steps):
        if method.tasks:
            method.switch(list(method.tasks)[step % len(method.tasks)])
        loss = method.model(**batch_of(method.model)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def numbers(tensor: torch.Tensor) -> Any:
    return tensor.detach().numpy()


# Masks


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 16), (16, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_a_mask_keeps_the_largest_scores_and_of_equal_ones_the_later(
    shape: tuple[int, int], keep: float, ties: bool
) -> None:
    scores = torch.randn(shape)
    scores = (scores * 2).round() / 2 if ties else scores
    mask = propetl.top_mask(scores, keep)
    assert np.array_equal(numbers(mask), formulas.mask_of_scores(numbers(scores), keep))
    assert mask.sum() == propetl.kept_count(scores.numel(), keep) == formulas.kept_count(scores.numel(), keep)


@pytest.mark.parametrize("how", ["or", "and", "add"])
def test_masks_are_combined_and_hand_their_gradient_to_both(how: str) -> None:
    task, layer = torch.tensor([0.0, 0, 1, 1], requires_grad=True), torch.tensor([0.0, 1, 0, 1], requires_grad=True)
    made = propetl.COMBINE[how](task, layer)
    assert np.array_equal(numbers(made), formulas.combine_masks(how, [numbers(task), numbers(layer)]))
    made.sum().backward()
    own, other = numbers(task), numbers(layer)
    slopes = {"or": (1 - other, 1 - own), "and": (other, own), "add": (np.ones(4), np.ones(4))}[how]
    assert np.array_equal(numbers(task.grad), slopes[0])
    assert np.array_equal(numbers(layer.grad), slopes[1])


def test_scores_start_kaiming_uniform_and_differ_by_layer_and_task() -> None:
    method = attached(several=True, bottleneck=8)
    drawn = [*method.network.layers, *method.network.tasks.values()]
    assert len({tuple(numbers(scores["down"])[0]) for scores in drawn}) == LAYERS + len(TASKS)
    for side, fan_in in (("down", WIDTH), ("up", 8)):
        sizes = torch.cat([scores[side].detach().abs().flatten() for scores in drawn])
        assert 0.9 * fan_in**-0.5 < sizes.max() <= fan_in**-0.5
        assert sizes.mean() == pytest.approx(fan_in**-0.5 / 2, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "several", "combine"),
    [("adapter", False, "or"), ("lora", False, "or"), ("prefix", False, "or")]
    + [("adapter", True, combine) for combine in propetl.COMBINE]
    + [("lora", True, "or"), ("prefix", True, "or")],
)
def test_a_scores_gradient_is_the_loss_s_slope_through_its_size(
    monkeypatch: pytest.MonkeyPatch, kind: str, several: bool, combine: str
) -> None:
    method: Any = attached(kind=kind, several=several, combine=combine, activation="gelu")
    method.model.double()
    if several:
        method.switch("sst2")
    for prototype in method.network.prototype.values():
        prototype.data.normal_(std=0.5)
    model, own = method.model, method.network.tasks["sst2"] if several else {}
    model(**batch_of(model)).loss.backward()
    scores = [scores for group in (*method.network.layers, own) for scores in dict(group).values()]
    masks = {float(score.detach().abs().sum()): propetl.top_mask(score, method.keep) for score in scores}
    monkeypatch.setattr(propetl_masks, "top_mask", lambda sizes, keep: masks[float(sizes.sum())])
    for score in scores:
        mask, signs = masks[float(score.detach().abs().sum())], score.detach().sign().flatten()
        for place in torch.randint(mask.numel(), (3,)).tolist():
            expected = slope(model, mask, place) * float(signs[place])
            assert float(score.grad.flatten()[place]) == pytest.approx(expected, rel=1e-4, abs=1e-8)
        assert score.grad.abs().max() > 0
        assert set(signs.tolist()) == {-1.0, 1.0}


def test_a_known_mask_is_recovered() -> None:
    """Half of the scores start below 0, and have to find their way as well."""
    weight, wanted = torch.randn(24, 32), propetl.top_mask(torch.randn(24, 32), 0.5)
    scores = torch.nn.Parameter(torch.empty(24, 32).uniform_(-1, 1) * 32**-0.5)
    optimizer = torch.optim.Adam([scores], 1e-2)
    for _ in range(400):
        x = torch.randn(64, 32)
        difference = x @ (weight * (propetl.learned_mask(scores, 0.5) - wanted)).T
        difference.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (propetl.top_mask(scores, 0.5) == wanted).float().mean() >= 0.95


@pytest.mark.parametrize("kind", propetl.KINDS)
def test_a_base_in_half_precision_has_a_method_in_single(kind: str) -> None:
    method: Any = propetl.attach(new_model().bfloat16(), settings(kind), task="mnli")
    assert {parameter.dtype for parameter in method.network.parameters()} == {torch.float32}
    losses = train(method, 12)
    assert losses[-1] < losses[0]
    assert logits_of(method.model).dtype == torch.float32  # a head trains in single precision, too


def test_a_loaded_mask_can_be_trained_on(tmp_path: Path) -> None:
    method = attached(activation="gelu")
    method.save(tmp_path)
    again: Any = propetl.load(new_model(), tmp_path)
    again.model.train()
    again.model(**batch_of(again.model)).loss.backward()
    for scores in again.network.layers.parameters():
        assert torch.isfinite(scores.grad).all()
        assert (scores.grad != 0).float().mean() > 0.9
        assert scores.abs().min() > 0


def slope(model: Any, tensor: torch.Tensor, place: int, step: float = 1e-5) -> float:
    """Return the slope of the loss in one entry of a tensor, from the differences of two losses."""
    losses: list[float] = []
    value: float = tensor.view(-1)[place].item()
    for moved in (value + step, value - step):
        tensor.view(-1)[place] = moved
        with torch.no_grad():
            losses.append(model(**batch_of(model)).loss.item())
    tensor.view(-1)[place] = value
    return (losses[0] - losses[1]) / (2 * step)


@pytest.mark.parametrize("kind", propetl.KINDS)
def test_a_prototype_s_gradient_is_the_masked_sum_over_its_layers(kind: str) -> None:
    method: Any = propetl.attach(new_model(), settings(kind, activation="gelu", hidden=0), tasks={"sst2": 2})
    method.model.double()
    made: dict[tuple[str, int], torch.Tensor] = {}
    real = method.weight

    def recorded(side: str, layer: int) -> torch.Tensor:
        weight = made[side, layer] = real(side, layer)
        if weight.requires_grad:
            weight.retain_grad()
        return weight

    method.weight = recorded
    model = method.model
    model(**batch_of(model)).loss.backward()
    gradients = {key: weight.grad for key, weight in made.items()}
    sides = {side for side, _ in made}
    assert sides == set(method.network.layers[0].keys())
    for side in sides:
        prototype = method.network.prototype[side]
        parts = [gradients[side, layer] * method.mask(side, layer) for layer in range(LAYERS)]
        assert torch.allclose(prototype.grad, sum(parts), rtol=1e-9, atol=1e-12)
        for place in torch.randint(prototype.numel(), (3,)).tolist():
            expected = slope(model, prototype.data, place)
            assert float(prototype.grad.flatten()[place]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


# Where it stands


def dense(method: Any, side: str, layer: int) -> Any:
    """Return a layer's matrix from prototype and scores, by the formulas alone."""
    mask = formulas.mask_of_scores(numbers(method.network.layers[layer][side]), method.keep)
    if method.tasks:
        own = formulas.mask_of_scores(numbers(method.network.tasks[method.task][side]), method.keep)
        mask = formulas.combine_masks(method.config.combine, [own, mask])  # type: ignore[assignment]
    return formulas.masked(numbers(method.network.weight(side)), mask)


def record(module: Any) -> list[tuple[Any, Any]]:
    """Return a list to which a module's inputs and outputs go, as the hooks before this one leave them."""
    calls: list[tuple[Any, Any]] = []
    module.register_forward_hook(lambda _module, args, out: calls.append((args[0].detach(), out.detach())))
    return calls


@pytest.mark.parametrize("several", [False, True])
def test_an_adapter_stands_behind_the_feed_forward_s_norm(several: bool) -> None:
    method = attached(several=several, scaling=0.5)
    for weight in method.network.prototype.values():
        weight.data.normal_(std=0.5)
    block = method.blocks[1]
    calls = record(block.output.LayerNorm)
    logits_of(method.model)
    norm = [numbers(block.output.LayerNorm.weight), numbers(block.output.LayerNorm.bias), 1e-12]
    bias = [numbers(method.network.prototype[f"{side}_bias"]) for side in ("down", "up")]
    entering = numbers(calls[0][0])
    x = formulas.layer_norm(entering, *norm)
    added = formulas.bottleneck(x, dense(method, "down", 1), bias[0], dense(method, "up", 1), bias[1], formulas.relu)
    expected = formulas.layer_norm(entering + 0.5 * added, *norm)
    assert np.allclose(numbers(calls[0][1]), expected, atol=1e-5)
    assert not np.allclose(expected, x, atol=0.1)


@pytest.mark.parametrize("layer", [1, 3])
def test_an_adapter_of_t5_gets_the_feed_forward_s_output_and_the_block_s_input(layer: int) -> None:
    model = new_model("t5")
    plain = record(model.encoder.block[1].layer[1].DenseReluDense)
    plain_too = record(model.decoder.block[1].layer[2].DenseReluDense)
    method: Any = propetl.attach(model, settings(), task="xsum")
    for weight in method.network.prototype.values():
        weight.data.normal_(std=0.5)
    block = method.blocks[layer]
    changed, whole = record(block.feed_forward), record(block.output)
    logits_of(model)
    before, after = whole[-1]
    y = numbers((plain if layer == 1 else plain_too)[-1][1])
    bias = [numbers(method.network.prototype[f"{side}_bias"]) for side in ("down", "up")]
    expected = formulas.propetl_t5_adapter(
        y, numbers(before), dense(method, "down", layer), bias[0], dense(method, "up", layer), bias[1]
    )
    assert np.allclose(numbers(changed[0][1]), expected, atol=1e-4)
    assert np.allclose(numbers(after), numbers(before) + expected, atol=1e-4)
    assert not np.allclose(expected, y, atol=0.1)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_lora_adds_alpha_by_r_b_a(family: str) -> None:
    model = new_model(family)
    names = ("q", "v") if family == "t5" else ("query", "value")
    attention = places.blocks(model)[1].attention
    plain = {name: record(getattr(attention, name)) for name in names}
    method: Any = propetl.attach(model, settings("lora", alpha=7.0), task="mnli")
    changed = {name: record(getattr(attention, name)) for name in names}
    logits_of(model)
    for name in names:
        a, b = (dense(method, f"{name}_lora_{part}", 1) for part in "AB")
        (x, y), (_, out) = plain[name][-1], changed[name][-1]
        assert np.allclose(numbers(out), numbers(y) + numbers(x) @ formulas.lora_delta(a, b, 7.0).T, atol=1e-5)
        assert not torch.allclose(out, y, atol=1e-3)
    query, value = (method.network.prototype[f"{name}_lora_A"] for name in names)
    assert not torch.equal(query, value)


def attention_by_hand(method: Any, hidden: Any, seen: Any, layer: int) -> Any:
    """Return softmax(Q [Pk; K]^T / sqrt d) [Pv; V] of one batch, the padding masked, the prefix never."""
    attention = method.blocks[layer].attention
    per_head = WIDTH // HEADS

    def projected(name: str) -> Any:
        linear = getattr(attention, name)
        states = hidden @ numbers(linear.weight).T + numbers(linear.bias)
        return states.reshape(*hidden.shape[:2], HEADS, per_head).transpose(0, 2, 1, 3)

    mask = formulas.mask_of_scores(numbers(method.network.layers[layer]["prefix"]), method.keep)
    prefix = formulas.prefix_of_layer(numbers(method.network.weight("prefix")), mask, HEADS)
    own = np.broadcast_to(prefix[:, None], (2, len(hidden), *prefix.shape[1:]))
    keys, values = (np.concatenate([own[i], projected(name)], 2) for i, name in enumerate(("key", "value")))
    scores = projected("query") @ keys.transpose(0, 1, 3, 2) / np.float32(per_head**0.5)
    scores[..., prefix.shape[2] :] += np.where(seen[:, None, None, :], 0, -1e9).astype(np.float32)
    return (formulas.softmax(scores) @ values).transpose(0, 2, 1, 3).reshape(hidden.shape)


@pytest.mark.parametrize(
    ("how", "form"), [("sdpa", "none"), ("sdpa", "bool"), ("sdpa", "added"), ("eager", "none"), ("eager", "added")]
)
def test_a_prefix_stands_in_front_of_keys_and_values(how: str, form: str) -> None:
    method: Any = propetl.attach(new_model(attn_implementation=how), settings("prefix"), task="mnli")
    hidden, seen = torch.randn(*IDS.shape, WIDTH), SEEN.bool() if form != "none" else torch.ones_like(SEEN).bool()
    wide = seen[:, None, None, :].expand(-1, 1, IDS.shape[1], -1)
    masks = {"none": None, "bool": wide, "added": torch.where(wide, 0.0, torch.finfo(torch.float32).min)}
    out = method.blocks[1].attention(hidden, attention_mask=masks[form])[0]
    assert np.allclose(numbers(out), attention_by_hand(method, numbers(hidden), numbers(seen), 1), atol=1e-5)
    method.detach()
    plain = method.blocks[1].attention(hidden, attention_mask=masks[form])[0]
    assert not torch.allclose(plain, out, atol=1e-3)


def test_a_prefix_is_visible_in_a_mask_of_two_dimensions() -> None:
    method = attached(kind="prefix")
    seen: list[torch.Tensor] = []

    def stop(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append(kwargs["attention_mask"])
        return args, {**kwargs, "attention_mask": None}

    method.blocks[0].attention.register_forward_pre_hook(stop, with_kwargs=True)
    method.blocks[0].attention(torch.randn(*IDS.shape, WIDTH), attention_mask=SEEN)
    assert torch.equal(seen[0], torch.cat([torch.ones(len(IDS), 5, dtype=SEEN.dtype), SEEN], 1))


@pytest.mark.parametrize("how", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", propetl.KINDS)
def test_padding_changes_nothing(kind: str, how: str) -> None:
    method: Any = propetl.attach(new_model(attn_implementation=how), settings(kind), task="mnli")
    train(method, 2)
    whole = logits_of(method.model)
    with torch.no_grad():
        alone = method.model(input_ids=IDS[1:2, :3], attention_mask=SEEN[1:2, :3]).logits
    assert torch.allclose(alone[0], whole[1], atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [case for case in CASES if case[1] != "prefix"])
def test_training_starts_near_the_base(family: str, kind: str) -> None:
    model = new_model(family)
    before = logits_of(model)
    propetl.attach(model, Config(kind=kind, bottleneck=4))  # a LoRA of the default rank: alpha / rank is large else
    after = logits_of(model)
    assert not torch.equal(before, after)
    assert (after - before).abs().max() < 0.25 * before.std()


# Training


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_plain_loop_trains_the_method_and_the_head_alone(family: str, kind: str, several: bool) -> None:
    method = attached(family, kind, several)
    model = method.model
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = train(method, 16)
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == wanted
    assert {name.split(".")[0] for name in wanted} <= {"propetl", "classifier", "classification_head", "task_heads"}
    scores = [name for name in wanted if ".layers." in name or ".tasks." in name]
    flipped = [
        not torch.equal(*(propetl.top_mask(state[name], method.keep) for state in (start, model.state_dict())))
        for name in scores
    ]
    assert any(flipped)


def test_a_task_s_batch_trains_its_own_mask_and_head_and_the_layers_masks() -> None:
    method = attached(several=True)
    method.switch("rte")
    model = method.model
    loss = model(**batch_of(model))
    assert loss.logits.shape == (len(IDS), 3)
    loss.loss.backward()
    having = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name in having if ".tasks." in name} == {f"propetl.tasks.rte.{side}" for side in ("down", "up")}
    assert {name.split(".")[1] for name in having if name.startswith("task_heads.")} == {"rte"}
    assert {name for name in having if ".layers." in name} == {
        f"propetl.layers.{layer}.{side}" for layer in range(LAYERS) for side in ("down", "up")
    }


@pytest.mark.parametrize("kind", propetl.KINDS)
def test_the_seed_makes_the_run(kind: str) -> None:
    model, logits = new_model(), []
    for _ in range(2):
        torch.manual_seed(7)
        method = propetl.attach(model, settings(kind), tasks=TASKS)
        train(method, 4)
        logits.append(logits_of(model))
        method.detach()
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("family", "kind", "several"),
    [("bert", "adapter", True), ("roberta", "lora", False), ("bert", "prefix", False), ("t5", "adapter", False)],
)
@pytest.mark.filterwarnings(
    "ignore:mtime may not be reliable:UserWarning"
)  # Transformers 5.0 and 5.1, of its own files
def test_trainer_trains_it_and_saves_checkpoints(tmp_path: Path, family: str, kind: str, several: bool) -> None:
    method = attached(family, kind, several)
    if several:
        method.switch("sst2")
    model = method.model
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [{key: tensor[i] for key, tensor in batch_of(model).items()} for i in range(len(IDS))]
    arguments = transformers.TrainingArguments(
        tmp_path, per_device_train_batch_size=4, max_steps=12, save_steps=6, logging_steps=6, learning_rate=3e-2,
        report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, weight_decay=0.0,
        lr_scheduler_type="constant", save_total_limit=1,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    frozen = {name for name in start if not name.startswith(("propetl.", "task_heads.", "classif"))}
    assert frozen
    assert all(torch.equal(model.state_dict()[name], start[name]) for name in frozen)
    assert (tmp_path / "checkpoint-12" / "model.safetensors").is_file()
    expected = trainer.evaluate()["eval_loss"]
    model.eval()
    assert model(**batch_of(model)).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_detach_leaves_the_model_as_it_was(family: str, kind: str, several: bool) -> None:
    model = new_model(family)
    next(model.parameters()).requires_grad_(False)

    def seen() -> dict[str, Any]:
        return {
            "state": {name: numbers(tensor).tobytes() for name, tensor in model.state_dict().items()},
            "train": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            "attributes": {f"{name} {key}" for name, module in model.named_modules() for key in vars(module)},
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "config": model.config.to_json_string(),
        }

    logits = logits_of(model)  # first: with labels, Transformers notes in the config what they are
    before = seen()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tasks = {task: 0 if family == "t5" else labels for task, labels in TASKS.items()} if several else None
    method = propetl.attach(model, settings(kind), tasks=tasks)
    assert seen() != before
    train(method, 2)
    method.detach()
    after = seen()
    if not several and family != "t5":  # the head of one task is the model's own, and trained
        trained = {name for name in after["state"] if after["state"][name] != before["state"][name]}
        assert trained
        assert all(name.startswith(("classifier.", "classification_head.")) for name in trained)
        model.load_state_dict(state)
        after = seen()
    assert after == before
    assert torch.equal(logits_of(model), logits)


# Files


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_run_comes_back_from_its_directory_and_from_a_pack(
    tmp_path: Path, family: str, kind: str, several: bool
) -> None:
    torch.manual_seed(1)
    method = attached(family, kind, several, scaling=0.75, alpha=5.0, combine="add" if family == "roberta" else "or")
    model = method.model
    model.config._name_or_path = str(tmp_path / "base")
    train(method)
    method.save(tmp_path / "run")
    tasks = [*method.tasks] or [""]
    logits, matrices = {}, {}
    for task in tasks:
        if task:
            method.switch(task)
        logits[task], matrices[task] = logits_of(model), rebuilt(method)
    method.detach()
    single = several is False and "t5" not in family
    done = encode(tmp_path / "run", tmp_path / "pack")
    assert [one.layout for one in done] == ["propetl" if single else "propetl-t5"] * len(tasks)
    pack = Pack(tmp_path / "pack")
    for one, task in zip(done, tasks, strict=True):
        assert one.exact
        assert not one.warnings
        assert one.name == f"run.{task}".rstrip(".")
        assert [left.file for left in one.left_out if "mask scores" not in left.file] == []
        packed = pack[one.name]
        assert packed.template.base_name == str(tmp_path / "base")
        packed.decode(tmp_path / f"decoded-{task}")
        assert torch.equal(loaded_logits(new_like(model), tmp_path / "run", task), logits[task])
        assert torch.equal(loaded_logits(new_like(model), tmp_path / f"decoded-{task}", task), logits[task])
        made = packed.rebuild()
        assert made is not None
        assert made.kind == kind
        check_rebuilt(made.tensors, matrices[task], exact=kind != "prefix" or several)
        assert len(made.head) == {"t5": 0, "bert": 2}.get(family, 4)
        assert made.settings.get("scaling", 0) == {"adapter": 0.75, "lora": 5.0 / 3, "prefix": 0}[kind]
        form = "t5-output" if "t5" in family else "pfeiffer"
        assert kind != "adapter" or made.settings["form"] == form
        assert kind != "adapter" or made.settings["activation"] == ("gelu_new" if "t5" in family else "relu")
    if several:
        assert len(done[0].shared.keys() & done[1].shared.keys()) >= 1


def new_like(model: Any) -> Any:
    """Return a model of the same base weights, the head another."""
    made = type(model)(copy.deepcopy(model.config))
    made.load_state_dict(model.state_dict())
    for name, parameter in made.named_parameters():
        if name.startswith("classif"):
            parameter.data.normal_()
    return made


def loaded_logits(model: Any, directory: Path, task: str) -> torch.Tensor:
    method = propetl.load(model, directory)
    if task:
        method.switch(task)
    return logits_of(model)


def rebuilt(method: Any) -> dict[str, torch.Tensor]:
    """Return every matrix as it acts in the model, by the names of a rule's outputs."""
    made = {}
    for layer, block in enumerate(method.blocks):
        for side in method.network.layers[layer]:
            weight = method.weight(side, layer).detach()
            if method.config.kind == "adapter":
                made[f"{block.output_name}.{side}.weight"] = weight
                made[f"{block.output_name}.{side}.bias"] = method.network.prototype[f"{side}_bias"].detach()
            elif method.config.kind == "lora":
                name, _, part = side.partition("_")
                made[f"{block.attention_name}.{name}.{part}"] = weight
            else:
                made[f"{block.attention_name}.prefix"] = weight
    return made


def check_rebuilt(found: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], *, exact: bool) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if exact:
            assert found[name].bits().tobytes() == numbers(tensor).tobytes()
        else:  # a network makes the prefix: in float64 and rounded once, here in float32
            assert np.allclose(found[name].numpy(), numbers(tensor), atol=1e-6)


def test_a_model_without_a_head_keeps_its_run(tmp_path: Path) -> None:
    model = new_model().bert
    method = propetl.attach(model, settings(), task="sst2")
    method.network.prototype["up"].data.normal_()
    model.eval()
    out = model(IDS)[0]
    method.save(tmp_path / "run")
    encode(tmp_path / "run", tmp_path / "pack")
    Pack(tmp_path / "pack")["run"].decode(tmp_path / "decoded")
    method.detach()
    assert not torch.equal(model(IDS)[0], out)
    propetl.load(model, tmp_path / "decoded")
    assert torch.equal(model(IDS)[0], out)


@pytest.mark.parametrize("several", [False, True])
def test_training_goes_on_from_a_saved_run(tmp_path: Path, several: bool) -> None:
    method = attached(several=several)
    train(method, 12)
    last = [train(method, 1)[0] for _ in range(2)][-1]
    method.save(tmp_path)
    method.detach()
    method = propetl.load(method.model, tmp_path)
    start = [propetl.top_mask(scores["down"], method.keep) for scores in method.network.layers]
    again = train(method, 24)
    assert min(again[-2:]) < last
    now = [propetl.top_mask(scores["down"], method.keep) for scores in method.network.layers]
    assert not all(torch.equal(*pair) for pair in zip(start, now, strict=True))


def test_names_are_the_reference_s_in_files_that_are_no_pickles(tmp_path: Path) -> None:
    method: Any = propetl.attach(new_model("roberta"), settings(), task="mnli")
    method.save(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    names = {"adapter_config.json", "adapter.safetensors", "adapter_mask.safetensors"}
    names |= {"model_head.safetensors", "head_config.json"}
    assert files == {"config.json", *(f"mnli/{name}" for name in names)}
    weights = load_file(tmp_path / "mnli" / "adapter.safetensors")
    masks = load_file(tmp_path / "mnli" / "adapter_mask.safetensors")
    place = f"{FIRST['roberta']}.output"
    assert len(weights) == 4 * LAYERS
    assert len({(tensor.shape, tensor.numpy().tobytes()) for tensor in weights.values()}) == 4
    assert torch.equal(weights[f"{place}.adapters.mnli.adapter_down.0.weight"], method.network.prototype["down"])
    scores = numbers(method.network.layers[0]["down"])
    mask = masks[f"{place}.adapters_mask.mnli.down_mask"]
    assert mask.dtype == torch.bool
    assert np.array_equal(mask.numpy(), formulas.mask_of_scores(scores, 0.4).T)


def test_a_run_of_tasks_says_what_it_is(tmp_path: Path) -> None:
    method = attached(several=True, combine="and")
    method.save(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "propetl_config.json").read_text())
    assert about == {
        "activation": "relu", "bottleneck": 4, "combine": "and", "form": "pfeiffer", "keep_ratio": 0.4,
        "kind": "adapter", "scaling": 1.0, "tasks": TASKS,
    }  # fmt: skip
    tensors = load_file(tmp_path / "run" / "propetl_weight.safetensors")
    first = f"{FIRST['bert']}.output.adapter_controller"
    assert torch.equal(tensors[f"{first}.adapters.common_adapter.up_sampler.weight"], method.network.prototype["up"])
    for owner, scores in (("rte", method.network.tasks["rte"]), ("layer", method.network.layers[0])):
        own = formulas.mask_of_scores(numbers(scores["up"]), 0.4)
        assert np.array_equal(tensors[f"{first}.mask_scores.{owner}_up_mask.param"].numpy(), own)
    encode(tmp_path / "run", tmp_path / "pack")
    Pack(tmp_path / "pack")["run.rte"].decode(tmp_path / "rte")
    assert json.loads((tmp_path / "rte" / "propetl_config.json").read_text()) == {**about, "tasks": {"rte": 3}}


# Bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "ia3"}, "'ia3'"),
        ({"keep": 0.0}, r"keep must be .*, got 0"),
        ({"keep": 1.5}, r"keep must be .*, got 1\.5"),
        ({"bottleneck": 0}, r"bottleneck must be .*, got 0"),
        ({"rank": 2.5}, r"rank must be .*, got 2\.5"),
        ({"length": -1}, r"length must be .*, got -1"),
        ({"hidden": -1}, r"hidden must be .*, got -1"),
        ({"combine": "xor"}, "'xor'"),
        ({"activation": "selu"}, "'selu'"),
        ({"scaling": float("nan")}, r"scaling must be .*, got nan"),
        ({"alpha": float("inf")}, "alpha must be .*, got inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(**changes)
    assert re.search(told, caught.value.message)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("family", "kind", "more", "told"),
    [
        ("t5", "prefix", {}, "takes no prefix"),
        ("bert", "adapter", {"task": "a.b"}, "'a.b'"),
        ("bert", "adapter", {"task": "layer"}, "'layer'"),
        ("bert", "adapter", {"tasks": {"layer": 2}}, "'layer'"),
        ("bert", "adapter", {"tasks": {}}, "tasks must name at least one task, got {}"),
    ],
)
def test_what_cannot_be_attached_is_refused_and_leaves_the_model(
    family: str, kind: str, more: dict[str, Any], told: str
) -> None:
    model = new_model(family)
    with pytest.raises(UsageError) as caught:
        propetl.attach(model, settings(kind), **more)
    assert told in caught.value.message
    assert caught.value.hint
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_prefix_of_one_task_needs_its_network() -> None:
    with pytest.raises(UsageError, match=r"hidden must be .*, got 0"):
        propetl.attach(new_model(), settings("prefix", hidden=0))


def test_defaults_are_the_paper_s() -> None:
    model = new_model()
    for kind, tasks, keep in (("adapter", None, 0.5), ("lora", None, 0.1), ("prefix", None, 0.1), ("lora", TASKS, 0.3)):
        method: Any = propetl.attach(model, Config(kind=kind), tasks=tasks)
        assert method.keep == keep
        assert method.config.alpha / method.config.rank == 1.5
        method.detach()
    config = transformers.BertConfig(vocab_size=9, num_hidden_layers=1, intermediate_size=8)
    wide: Any = propetl.attach(transformers.BertModel(config), Config())
    assert wide.network.prototype["down"].shape == (64, 768)


def _set(name: str, value: Any) -> Any:
    def change(path: Path) -> None:
        table = json.loads(path.read_text())
        target = table["config"] if name in table.get("config", {}) else table
        target[name] = value
        path.write_text(json.dumps(table))

    return change


def _tensor(part: str, make: Any) -> Any:
    def change(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        name = next(name for name in tensors if part in name)
        made = make(tensors.pop(name))
        save_file(tensors if made is None else {**tensors, name: made}, path)

    return change


HYBRID, ONE = "propetl_weight.safetensors", "mnli/adapter.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("mnli/adapter_config.json", Path.unlink, "has 0 adapters"),
        ("mnli/adapter_config.json", lambda path: path.write_text("{"), "adapter_config.json"),
        ("mnli/adapter_config.json", lambda path: path.write_text("[]"), "not a JSON object"),
        ("mnli/adapter_config.json", _set("sparsity", None), "sparsity must be of type float, got None"),
        ("mnli/adapter_config.json", _set("sparsity", 7), "keep must be in (0, 1], got 7"),
        ("mnli/adapter_config.json", _set("sparsity", 0.5), "keeps 26 entries, but keep_ratio=0.5 needs 32"),
        ("mnli/adapter_config.json", _set("reduction_factor", 2.0), "of shape [4, 16], but the model expects [8, 16]"),
        ("mnli/adapter_mask.safetensors", Path.unlink, "adapter_mask.safetensors"),
        ("mnli/adapter_mask.safetensors", lambda path: path.write_bytes(b"no"), "adapter_mask.safetensors"),
        ("mnli/adapter_mask.safetensors", _tensor("layer.1.output.adapters_mask.mnli.up", lambda _: None), "has no"),
        (ONE, _tensor("layer.1.output.adapters.mnli.adapter_up.w", lambda t: t + 1), "differs from"),
        ("mnli/model_head.safetensors", _tensor("classifier.weight", lambda t: t[:1]), "of shape [1, 16]"),
        ("propetl_config.json", Path.unlink, "propetl_config.json"),
        ("propetl_config.json", _set("kind", "ia3"), "kind must be one of adapter, lora, prefix, got 'ia3'"),
        ("propetl_config.json", _set("combine", "xor"), "xor"),
        ("propetl_config.json", _set("tasks", ["sst2"]), "tasks must be of type dict, got ['sst2']"),
        ("propetl_config.json", _set("tasks", {"sst2": "2"}), "tasks must map task names to numbers of labels"),
        (HYBRID, _tensor("rte_up_mask", lambda _: None), "rte_up_mask"),
        (HYBRID, _tensor("heads.rte.classifier.bias", lambda _: None), "heads.rte.classifier.bias"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_and_leaves_the_model(
    tmp_path: Path, file: str, change: Any, told: str
) -> None:
    method = attached(several="/" not in file)
    method.save(tmp_path)
    method.detach()
    change(tmp_path / file)
    state = set(method.model.state_dict())
    with pytest.raises(RunError) as caught:
        propetl.load(method.model, tmp_path)
    assert told in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint
    assert set(method.model.state_dict()) == state
    assert not hasattr(method.model, "_petl_method")


@pytest.mark.parametrize("kind", ["adapter", "lora"])
def test_a_run_of_another_model_is_refused(tmp_path: Path, kind: str) -> None:
    attached("bert", kind).save(tmp_path)
    with pytest.raises(RunError, match="has no 'roberta"):
        propetl.load(new_model("roberta"), tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("kind", "ia3"), "kind 'ia3'"),
        (_set("combine", "none"), "has masks of layers"),
        (_set("combine", None), "combine None"),
        (_set("keep_ratio", 2), "keep_ratio 2"),
        (_set("scaling", "one"), "scaling 'one'"),
        (_set("form", "other"), "form 'other'"),
        (_set("enable", [1, 0, 1]), "enable [1, 0, 1]"),
        (_set("kind", "lora"), "alpha None"),
        (_set("kind", "prefix"), "has no prefix"),
        (_set("kind", ["adapter"]), "kind ['adapter']"),
        (_set("tasks", {"sst2": 2}), "masks of rte, sst2"),
    ],
)
def test_a_pack_takes_no_config_that_makes_no_sense(tmp_path: Path, change: Any, told: str) -> None:
    attached(several=True).save(tmp_path / "run")
    change(tmp_path / "run" / "propetl_config.json")
    with pytest.raises(RunError) as caught:
        encode(tmp_path / "run", tmp_path / "pack")
    assert told in caught.value.message
    assert caught.value.hint


def test_what_the_run_says_is_not_contradicted(tmp_path: Path) -> None:
    attached(several=True).save(tmp_path / "run")
    for said in ({"combine": "and"}, {"activation": "gelu"}):
        with pytest.raises(UsageError, match="the run says"):
            encode(tmp_path / "run", tmp_path / "pack", settings=said)
