from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import petlpack
from petlpack.errors import RunError, UsageError
from petlpack.methods import adamix
from petlpack.methods.adamix import Config
from petlpack.rules.arithmetic import average
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor
from tests.support import method_formulas as formulas
from tests.support.method_runs import Shape, base_config, write_adamix, write_adamix_nlg

SOUP = "pytorch_model_expert_soup.safetensors"
SMALL = Shape()
LABELS = 3
KINDS = ("adapter", "lora")
CLASSES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "t5": "T5ForConditionalGeneration",
    "t5 classifier": "T5ForSequenceClassification",
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)


def settings(kind: str = "adapter", **changes: Any) -> Config:
    return Config(**{"kind": kind, "bottleneck": 4, "rank": 2, **changes})


def write_base(directory: Path, family: str = "bert", **changes: Any) -> Path:
    """Write a tiny model, drawn wide enough for logits that differ."""
    config = base_config(family.split()[0], SMALL) | {"num_labels": LABELS, "initializer_range": 0.2} | changes
    if family.startswith("t5"):
        config |= {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    made = transformers.AutoConfig.for_model(**config)
    getattr(transformers, CLASSES[family])(made).save_pretrained(directory)
    return directory


def open_base(directory: Path, family: str = "bert", **changes: Any) -> Any:
    """Open it; the dropouts are 0 unless changed."""
    dropout = {"dropout_rate": 0.0, "classifier_dropout": 0.0}
    if not family.startswith("t5"):
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return getattr(transformers, CLASSES[family]).from_pretrained(directory, **dropout | changes)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return open_base(write_base(tmp_path / "base"))


def a_batch(family: str = "bert", rows: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    """Draw inputs whose class is that of their first token; for T5 that generates, three labels of which one counts."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randint(3, SMALL.vocab, (rows, 6), generator=draw)
    labels = inputs[:, 0] % LABELS
    inputs[:, -1] = 1
    if family == "t5":
        labels = torch.stack([labels + 2, torch.full_like(labels, 1), torch.full_like(labels, -100)], 1)
    return {"input_ids": inputs, "labels": labels}


def train(model: Any, method: adamix.AdaMix, steps: int = 20, family: str = "bert", lr: float = 0.02) -> list[float]:
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    model.train()
    losses = []
    for step in range(steps):
        loss = model(**a_batch(family, seed=step % 4)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits_of(model: Any, family: str = "bert") -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**a_batch(family, seed=9)).logits
    return logits


class Routes:
    """What each pass took, seen from the experts themselves: `taken[i]` is the i-th call's (place, side, expert)."""

    def __init__(self, model: nn.Module) -> None:
        self.taken: list[tuple[str, str, int]] = []
        self.rows: list[int] = []
        for name, module in model.named_modules():
            place, found, rest = name.partition(".ExpertSoup.MoA_")
            if found and rest[1:].startswith(".deepspeed_experts."):
                module.register_forward_hook(self._note(place, rest[0], int(rest.rpartition(".")[2])))

    def _note(self, place: str, side: str, expert: int) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[torch.Tensor], _out: torch.Tensor) -> None:
            self.taken.append((place, side, expert))
            self.rows.append(len(args[0]))

        return note


def chi_square(counts: Any) -> float:
    """Return Pearson's statistic against equal counts."""
    counts = np.asarray(counts, float)
    expected = counts.mean()
    return float(((counts - expected) ** 2 / expected).sum())


# 99.99 % quantiles of chi-square by degrees of freedom: a few dozen are looked at
CHI = {3: 21.11, 15: 44.26}


# The mathematics


def test_a_route_is_uniform_and_one_for_the_batch() -> None:
    side = adamix.MixtureSoup(4, 3, 1)
    for number, expert in enumerate(side.deepspeed_experts):
        nn.init.zeros_(expert.weight)
        nn.init.constant_(expert.bias, number)
    counts = np.zeros(4)
    for _ in range(4000):
        out = side(torch.zeros(2, 2, 3), True, False)
        assert (out == out[0, 0]).all()
        counts[int(out[0, 0])] += 1
    assert chi_square(counts) < CHI[3]
    assert (side(torch.zeros(2, 3), False, False) == 1.5).all()


def test_routes_of_passes_layers_and_sides_are_independent(model: Any) -> None:
    adamix.attach(model, settings(share_up=False))
    model.train()
    routes = Routes(model)
    batch = a_batch(rows=2)
    number = 320
    for _ in range(number):
        model(**batch)
    assert len(routes.taken) == number * 8  # two passes, two layers, two sides, one expert each
    assert set(routes.rows) == {2}
    sides = [f"bert.encoder.layer.{layer}.output {side}" for _ in "ab" for layer in range(2) for side in "AB"]
    assert [f"{place} {side}" for place, side, _ in routes.taken] == sides * number
    table = np.array([expert for *_, expert in routes.taken]).reshape(number, 8)
    for column in table.T:
        assert chi_square(np.bincount(column, minlength=4)) < CHI[3]
    for one, other in ((0, 4), (0, 2), (0, 1), (3, 7), (1, 6)):
        assert chi_square(np.bincount(4 * table[:, one] + table[:, other], minlength=16)) < CHI[15], (one, other)
    for lag in (1, 2):  # nor does a step's route tell the next one's
        after = 4 * table[:-lag, 0] + table[lag:, 0]
        assert chi_square(np.bincount(after, minlength=16)) < CHI[15]


def divergence(a: Any, b: Any) -> float:
    """Return KL(A || B) of logits, input by input and class by class."""
    total = 0.0
    for row_a, row_b in zip(a.tolist(), b.tolist(), strict=True):
        p, q = ([math.exp(value) / sum(map(math.exp, row)) for value in row] for row in (row_a, row_b))
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    return total / len(a)


def half_divergence(a: Any, b: Any) -> float:
    return divergence(a, b) / 2


def kl_by_hand(a: Any, b: Any) -> float:
    return half_divergence(a, b) + half_divergence(b, a)


def differences(function: Callable[[], float], parameter: torch.Tensor, every: int = 1) -> torch.Tensor:
    """Return a function's gradient by central differences, of every n-th entry."""
    flat, step = parameter.data.view(-1), 1e-5
    made = torch.zeros_like(flat)
    for at in range(0, len(flat), every):
        kept = flat[at].item()
        flat[at] = kept + step
        above = function()
        flat[at] = kept - step
        made[at] = (above - function()) / (2 * step)
        flat[at] = kept
    return made[::every]


def test_the_consistency_is_the_symmetric_kl() -> None:
    a, b = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in "ab")
    value = adamix.symmetric_kl(a, b)
    assert value.item() == pytest.approx(kl_by_hand(a, b), rel=1e-12)
    assert adamix.symmetric_kl(b, a).item() == pytest.approx(value.item(), rel=1e-12)
    assert adamix.symmetric_kl(a, a).item() == 0
    value.backward()
    for logits, target in ((a, b.detach().clone()), (b, a.detach().clone())):
        assert logits.grad is not None
        expected = differences(functools.partial(half_divergence, target, logits.detach()), logits)
        torch.testing.assert_close(logits.grad.view(-1), expected, rtol=1e-7, atol=1e-9)
    half = adamix.symmetric_kl(a.detach().bfloat16(), b.detach().bfloat16())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_the_loss_is_the_first_pass_s_and_the_consistency(tmp_path: Path, family: str) -> None:
    model = open_base(write_base(tmp_path / "base", family), family)
    method = adamix.attach(model, settings())
    train(model, method, 5, family)
    passes: list[torch.Tensor] = []
    last = model.lm_head if family == "t5" else model.classifier
    last.register_forward_hook(lambda _module, _args, out: passes.append(out.detach()))
    batch = a_batch(family)
    output = model(**batch)
    first, second = passes
    assert torch.equal(output.logits, first)
    assert not torch.equal(first, second)
    counted = batch["labels"] != -100
    plain = nn.functional.cross_entropy(first[counted], batch["labels"][counted])
    expected = plain.item() + kl_by_hand(first[counted], second[counted])
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() > plain.item() + 1e-4
    passes.clear()
    loss, logits, *_ = model(**batch, return_dict=False)
    expected = nn.functional.cross_entropy(passes[0][counted], batch["labels"][counted]).item()
    assert torch.equal(logits, passes[0])
    assert loss.item() == pytest.approx(expected + kl_by_hand(passes[0][counted], passes[1][counted]), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_loss_is_that_of_differences(
    model: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass comes nearer to the other as it stands."""
    method = adamix.attach(model, settings(kind, experts=2, share_up=kind == "adapter"))
    train(model, method, 4)  # so that no factor is zero
    model.double()
    batch = a_batch(rows=3)

    def loss() -> Any:
        torch.manual_seed(4)
        return model(**batch).loss

    targets: list[torch.Tensor] = []
    plain = adamix.symmetric_kl

    def noting(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        targets.extend(logits.detach() for logits in (a, b))
        return plain(a, b)

    def held(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.tensor(divergence(targets[0], b) + divergence(targets[1], a), dtype=torch.float64) / 2

    monkeypatch.setattr(adamix, "symmetric_kl", noting)
    loss().backward()
    monkeypatch.setattr(adamix, "symmetric_kl", held)
    place = "ExpertSoup" if kind == "adapter" else "attention.self.query.experts_lora"
    found = {name: p for name, p in model.named_parameters() if "layer.0" in name and place in name}
    taken = {name: p for name, p in found.items() if p.grad is not None and p.grad.any()}
    assert len(taken) >= 3
    for name, parameter in taken.items():
        every = 1 + parameter.numel() // 8
        with torch.no_grad():
            expected = differences(lambda: float(loss()), parameter, every)
        assert parameter.grad is not None
        assert expected.any(), name
        torch.testing.assert_close(parameter.grad.view(-1)[::every], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("experts", [1, 2, 3, 4, 5])
def test_the_merge_is_the_average_bit_for_bit(experts: int) -> None:
    drawn = [torch.randn(7, 5) for _ in range(experts)]
    merged = adamix.merge(drawn, torch.zeros(experts))
    expected = formulas.merge_experts([expert.numpy() for expert in drawn], np.zeros(experts, "f4"))
    assert np.array_equal(merged.numpy().view("u4"), expected.view("u4"))
    tensors = [Tensor.of(expert.numpy().view("u4"), DTYPES["F32"]) for expert in drawn]
    for scores in (torch.zeros(experts), torch.randn(experts)):
        own = average(tensors, Tensor.of(scores.numpy().view("u4"), DTYPES["F32"])).numpy()
        assert np.array_equal(adamix.merge(drawn, scores).numpy().view("u4"), own.view("u4"))
    one = np.asarray([expert.numpy() for expert in drawn]).mean(0)
    assert np.allclose(adamix.merge(drawn, torch.zeros(experts)).numpy(), one, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_a_merged_layer_is_the_reference_s(activation: str) -> None:
    soup = adamix.ExpertSoup(6, settings(experts=3, share_up=False, activation=activation))
    for parameter in soup.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    x = torch.randn(4, 6)
    down, up = (
        [(expert.weight.detach().numpy(), expert.bias.detach().numpy()) for expert in side.deepspeed_experts]
        for side in (soup.MoA_A, soup.MoA_B)
    )
    known = {"gelu": formulas.gelu, "gelu_new": formulas.gelu_tanh, "relu": formulas.relu}
    zeros = np.zeros(3, "f4")
    expected = formulas.adamix_layer(x.numpy(), down, up, zeros, zeros, known[activation])
    assert np.allclose(soup(x, False).detach().numpy(), expected, atol=1e-5)


def test_the_adapter_stands_before_dropout_residual_and_norm(model: Any) -> None:
    """BertOutput by hand: norm(adapter(dense(x)) + residual)."""
    adamix.attach(model, settings())
    end = model.bert.encoder.layer[0].output
    for parameter in end.ExpertSoup.parameters():
        nn.init.normal_(parameter)
    model.eval()
    inner, residual = torch.randn(2, 3, SMALL.inner), torch.randn(2, 3, SMALL.width)
    y = nn.functional.linear(inner, end.dense.weight, end.dense.bias)
    expected = end.LayerNorm(end.ExpertSoup(y, False) + residual)
    assert torch.equal(end(inner, residual), expected)
    assert not torch.allclose(expected, end.LayerNorm(y + residual), atol=1e-2)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_lora_adds_alpha_over_r_times_b_a(tmp_path: Path, family: str) -> None:
    base = write_base(tmp_path / "base", family)
    model, merged = open_base(base, family), open_base(base, family)
    adamix.attach(model, settings("lora", experts=3, share_up=False, rank=2, alpha=6.0))
    state = model.state_dict()
    places = [name.removesuffix(".lora_expert_score_weight") for name in state if name.endswith("score_weight")]
    assert len(places) == (4 if family == "bert" else 8)
    assert {place.rpartition(".")[2] for place in places} == ({"query", "value"} if family == "bert" else {"q", "v"})
    for place in places:
        sides = []
        for side in "AB":
            for e in range(3):
                state[f"{place}.experts_lora_{side}.{e}"].normal_(std=0.3)
            sides.append([state[f"{place}.experts_lora_{side}.{e}"].numpy() for e in range(3)])
        a, b = (formulas.merge_experts(side, np.zeros(3, "f4")) for side in sides)
        merged.state_dict()[f"{place}.weight"].add_(torch.from_numpy(formulas.lora_delta(a, b, 6.0)))
    head = {k: v for k, v in model.state_dict().items() if k.startswith("classifier")}
    merged.load_state_dict(head, strict=False)
    torch.testing.assert_close(logits_of(model, family), logits_of(merged, family), rtol=1e-4, atol=1e-4)


def gpt2(directory: Path, **changes: Any) -> Any:
    """Return AdaMix LoRA on a GPT-2 of the sizes that the reference's runs of tests have, all factors drawn."""
    config = transformers.GPT2Config(**base_config("gpt2", SMALL), initializer_range=0.2)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory / "base")
    model = transformers.GPT2LMHeadModel.from_pretrained(directory / "base")
    method = adamix.attach(model, settings("lora", rank=SMALL.rank, **changes))
    for name, tensor in method.tensors().items():
        if not name.endswith("score_weight"):
            tensor.normal_(std=0.3)
    return method


@pytest.mark.parametrize(("share_up", "share_down"), [(True, False), (False, True), (False, False)])
def test_a_lora_on_gpt2_has_the_names_and_shapes_of_the_reference(
    tmp_path: Path, share_up: bool, share_down: bool
) -> None:
    method = gpt2(tmp_path, experts=3, share_up=share_up, share_down=share_down)
    written = write_adamix_nlg(tmp_path / "run", experts=3, share_a=share_down, share_b=share_up, ddp_prefix=False)
    assert {name: tuple(tensor.shape) for name, tensor in method.tensors().items()} == {
        name: array.shape for name, array in written.tensors.items()
    }


def test_a_lora_on_gpt2_changes_query_and_value_as_the_reference_does(tmp_path: Path) -> None:
    method = gpt2(tmp_path, experts=3, share_up=False, alpha=6.0)
    state = {name: tensor.numpy() for name, tensor in method.tensors().items()}
    inputs = {"input_ids": a_batch()["input_ids"]}
    expected = method.model.eval()(**inputs).logits
    merged = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    for layer in range(SMALL.layers):
        place = f"transformer.h.{layer}.attn.c_attn"
        a, b = ([state[f"{place}.experts_lora_{side}.{e}"] for e in range(3)] for side in "AB")
        delta = formulas.adamix_lora_delta(a, b, np.zeros(3, "f4"), 6.0)
        merged.state_dict()[f"{place}.weight"].add_(torch.from_numpy(delta))
    torch.testing.assert_close(merged.eval()(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    method.save(tmp_path / "run")
    (encoded,) = petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", base=tmp_path / "base")
    packed = petlpack.open(tmp_path / "pack")[encoded.name]
    rebuilt = packed.rebuild()
    assert rebuilt is not None
    assert rebuilt.settings == {"scaling": 6.0 / SMALL.rank, "enable": [True, False, True]}
    packed.decode(tmp_path / "hub", base=tmp_path / "base", to="adapterhub")
    assert json.loads((tmp_path / "hub" / "adapter_config.json").read_text())["config"]["attn_matrices"] == ["q", "v"]


def test_a_pass_on_gpt2_takes_one_expert_for_query_and_value(tmp_path: Path) -> None:
    """The expert that was drawn has a gradient in the ranks of both, the others in none."""
    method = gpt2(tmp_path, experts=4, consistency=False)
    ids = torch.randint(3, SMALL.vocab, (2, 6))
    method.model.train()(input_ids=ids, labels=ids).loss.backward()
    for block in method.model.transformer.h:
        moved = [int(expert.grad.any(1).sum()) for expert in block.attn.c_attn.experts_lora_A]
        assert sorted(moved) == [0, 0, 0, 2 * SMALL.rank]


def test_under_autocast_a_lora_leaves_the_dtype_of_what_it_changes(model: Any) -> None:
    adamix.attach(model, settings("lora"))
    attention, seen = model.bert.encoder.layer[0].attention.self, set()
    for projection in (attention.query, attention.key):
        projection.register_forward_hook(lambda _module, _args, out: seen.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(**a_batch()).loss.backward()
    assert seen == {torch.bfloat16}


# Training


def test_the_start_is_the_base_or_near_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", initializer_range=0.02)
    before = logits_of(open_base(base))
    for kind in KINDS:
        model = open_base(base)
        adamix.attach(model, settings(kind))
        state = model.state_dict()
        if kind == "lora":
            assert torch.equal(logits_of(model), before)
            continue
        torch.testing.assert_close(logits_of(model), before, rtol=0, atol=1e-3)
        side = "bert.encoder.layer.0.output.ExpertSoup.MoA_A.deepspeed_experts"
        drawn = [state[f"{side}.{e}.weight"] for e in range(4)]
        assert not any(torch.equal(drawn[0], other) for other in drawn[1:])
        assert torch.stack(drawn).std().item() == pytest.approx(0.02, rel=0.2)
        assert not any(state[f"{side}.{e}.bias"].any() for e in range(4))


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_was_drawn_has_a_gradient(model: Any, kind: str) -> None:
    adamix.attach(model, settings(kind, share_up=False))
    routes = Routes(model)
    for name, parameter in model.named_parameters():
        if "experts_lora_B" in name:
            nn.init.normal_(parameter)
    model.train()
    model(**a_batch()).loss.backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    head = {"classifier.weight", "classifier.bias"}
    assert head <= graded
    if kind == "adapter":
        taken = {f"{place}.ExpertSoup.MoA_{side}.deepspeed_experts.{e}" for place, side, e in routes.taken}
        assert {name.rpartition(".")[0] for name in graded - head} == taken
    else:
        sides = {name.rpartition(".")[0] for name in graded - head}
        assert len(sides) == 8  # two layers, query and value, A and B
        assert all(1 <= sum(name.startswith(f"{side}.") for name in graded) <= 2 for side in sides)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("idle", [True, False])
def test_experts_that_are_not_drawn_have_zeros_or_nothing(model: Any, kind: str, idle: bool) -> None:
    method = adamix.attach(model, settings(kind, idle_gradients=idle))
    model.train()
    model(**a_batch()).loss.backward()
    experts = [
        parameter for name, parameter in model.named_parameters() if "expert" in name and parameter.requires_grad
    ]
    assert all(parameter.grad is not None for parameter in experts) == idle
    assert not all(parameter.grad is not None and parameter.grad.any() for parameter in experts)
    before = [parameter.detach().clone() for parameter in experts]
    drawn = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in experts]
    torch.optim.AdamW(method.groups(1e-2), weight_decay=0.0).step()  # a first step, without momentum
    moved = [not torch.equal(*pair) for pair in zip(before, experts, strict=True)]
    assert moved == drawn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [1, 4])
def test_a_plain_loop_trains_the_method_and_the_head_alone(model: Any, kind: str, experts: int) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method = adamix.attach(model, settings(kind, experts=experts))
    start = {name: tensor.clone() for name, tensor in method.tensors().items()}
    losses = train(model, method, 100)
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    state = model.state_dict()
    moved = {name for name in start if not torch.equal(start[name], state[name])}
    assert moved == {name for name in start if not name.endswith("score_weight")}
    same = {name for name in before if torch.equal(before[name], state[name])}
    assert before.keys() - same == {"classifier.weight", "classifier.bias"}


def test_training_is_reproduced_by_a_seed(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        model = open_base(tmp_path / "base", hidden_dropout_prob=0.1)
        method = adamix.attach(model, settings())
        train(model, method, 5)
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(("changes", "passes"), [({}, 2), ({"consistency": False}, 1), ({"experts": 1}, 1)])
def test_a_step_costs_two_passes_and_of_one_expert_one(model: Any, changes: dict[str, Any], passes: int) -> None:
    adamix.attach(model, settings(**changes))
    calls: list[int] = []
    model.bert.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    model(**a_batch())
    assert len(calls) == passes
    with nullcontext() if passes == 1 and "experts" in changes else pytest.warns(UserWarning, match="without labels"):
        model(input_ids=a_batch()["input_ids"])
    assert len(calls) == passes + 1
    model.eval()
    model(**a_batch())
    assert len(calls) == passes + 2


@pytest.mark.parametrize("kind", KINDS)
def test_one_expert_is_a_plain_module(model: Any, kind: str) -> None:
    """It draws nothing, and trains on what it computes at inference."""
    adamix.attach(model, settings(kind, experts=1))
    torch.nn.init.normal_(model.classifier.weight)
    before = torch.get_rng_state()
    model.train()
    loss = model(**a_batch(seed=9)).loss
    assert torch.equal(torch.get_rng_state(), before)
    expected = nn.functional.cross_entropy(logits_of(model), a_batch(seed=9)["labels"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_eval_is_merged_whatever_ran_before(tmp_path: Path, family: str) -> None:
    model = open_base(write_base(tmp_path / "base", family), family)
    method = adamix.attach(model, settings())
    train(model, method, 5, family)
    batch = a_batch(family)
    routes = Routes(model)
    encoder = model.get_encoder() if family == "t5" else model.bert
    trained = [encoder(batch["input_ids"])[0] for _ in range(3)]  # in training mode, without the model's forward
    assert not routes.taken
    model(**batch)
    assert routes.taken
    model.eval()
    routes.taken.clear()
    assert all(torch.equal(encoder(batch["input_ids"])[0], out) for out in trained)
    output = model(**batch)
    assert not routes.taken
    counted = batch["labels"] != -100
    plain = nn.functional.cross_entropy(output.logits[counted], batch["labels"][counted])
    assert output.loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert torch.equal(logits_of(model, family), logits_of(model, family))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_blocks_draw_the_same_again(model: Any, kind: str) -> None:
    method = adamix.attach(model, settings(kind, share_up=False))
    train(model, method, 3)
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(8)
        model.zero_grad()
        model(**a_batch()).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_half_precision_trains(tmp_path: Path, kind: str) -> None:
    model = open_base(write_base(tmp_path / "base"), dtype=torch.bfloat16)
    method = adamix.attach(model, settings(kind))
    losses = train(model, method, 10)
    assert all(math.isfinite(loss) for loss in losses)
    assert {tensor.dtype for tensor in method.tensors().values()} == {torch.float32}
    assert logits_of(model).dtype == torch.float32  # a head trains in single precision, too


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_trainer_trains_saves_and_evaluates(tmp_path: Path, family: str) -> None:
    model = open_base(write_base(tmp_path / "base", family), family)
    method = adamix.attach(model, settings("adapter" if family == "bert" else "lora"))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = a_batch(family, rows=16)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=6,
        save_steps=3,
        logging_steps=1,
        eval_steps=3,
        eval_strategy="steps",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    log = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert log[-1] < log[0]
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved <= {*method.tensors(), *method.head_tensors()}
    assert {*method.head_tensors()} <= moved
    evaluated = trainer.evaluate()["eval_loss"]
    model.eval()
    assert evaluated == pytest.approx(model(**batch).loss.item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_detach_leaves_the_model_as_it_was(tmp_path: Path, family: str, kind: str) -> None:
    model = open_base(write_base(tmp_path / "base", family), family)
    next(model.parameters()).requires_grad_(False)
    model(**a_batch(family))  # with the first labels Transformers notes in the config what they are

    def seen() -> dict[str, object]:
        parts = {f"{name} {key}" for name, module in model.named_modules() for key in module.__dict__}
        hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
        return {
            "parts": parts,
            "hooks": hooks,
            "grads": {name: p.requires_grad for name, p in model.named_parameters()},
            "forward": "forward" in model.__dict__,
            "config": model.config.to_dict(),
        }

    before, logits = seen(), logits_of(model, family)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method = adamix.attach(model, settings(kind))
    assert seen() != before
    model(**a_batch(family))
    method.detach()
    assert seen() == before
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits_of(model, family), logits)
    adamix.attach(model, settings(kind))  # and it can be attached again


# Saving and loading

RUNS = [
    ("bert", settings()),
    ("bert", settings("lora")),
    ("bert", settings(experts=1)),
    ("bert", settings("lora", experts=1)),
    ("bert", settings(experts=3, share_up=False, activation="relu")),
    ("bert", settings("lora", experts=3, share_up=False, share_down=True, alpha=3.0)),
    ("roberta", settings(share_up=False, share_down=True, activation="gelu_new")),
    ("roberta", settings("lora", share_up=False)),
    ("t5", settings()),
    ("t5", settings("lora", experts=5)),
    ("t5 classifier", settings(experts=2)),
    ("t5 classifier", settings("lora", experts=2)),
]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # that PEFT asks
@pytest.mark.parametrize(("family", "config"), RUNS)
def test_a_saved_run_is_encoded_decoded_and_loaded_to_the_bit(tmp_path: Path, family: str, config: Config) -> None:
    base = write_base(tmp_path / "base", family)
    model = open_base(base, family)
    method = adamix.attach(model, config)
    train(model, method, 6, family)
    trained = logits_of(model, family)
    method.save(tmp_path / "run")
    (encoded,) = petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
    assert (encoded.layout, encoded.codec, encoded.exact) == ("adamix", "merge", True)
    assert not encoded.warnings
    task = petlpack.open(tmp_path / "pack")["run"]
    task.decode(tmp_path / "decoded")
    for directory, experts in (("run", config.experts), ("decoded", 1)):
        other = open_base(base, family)
        loaded = adamix.load(other, tmp_path / directory)
        assert loaded.config.kind == config.kind
        assert loaded.config.experts == experts
        assert torch.equal(logits_of(other, family), trained)
    assert not torch.equal(logits_of(open_base(base, family), family), trained)
    rebuilt = task.rebuild()
    assert rebuilt is not None
    assert rebuilt.kind == config.kind
    if config.kind == "adapter":
        assert rebuilt.settings == {"activation": config.activation, "scaling": 1.0, "form": "output"}
    else:
        assert rebuilt.settings == {"scaling": config.alpha / config.rank}
        task.decode(tmp_path / "peft", to="peft")
        from_peft = open_base(base, family)
        from_peft.load_state_dict(method.head_tensors(), strict=False)
        peft.PeftModel.from_pretrained(from_peft, tmp_path / "peft")
        torch.testing.assert_close(logits_of(from_peft, family), trained, rtol=1e-4, atol=1e-4)
    head = {name for name in task.state_dict() if name.startswith("classif")}
    assert {*method.head_tensors()} == head


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_loaded_trains_on_as_what_was_saved(tmp_path: Path, kind: str) -> None:
    base = write_base(tmp_path / "base")
    model, other = open_base(base), open_base(base)
    config = settings(kind, experts=3, share_up=False, share_down=True, consistency=False)
    method = adamix.attach(model, config)
    train(model, method, 3)
    method.save(tmp_path / "run")
    loaded = adamix.load(other, tmp_path / "run")
    assert (loaded.config.counts, loaded.config.consistency) == (config.counts, False)
    losses = []
    for one, on in ((model, method), (other, loaded)):
        torch.manual_seed(3)
        losses.append(train(one, on, 3))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["", "checkpoint-3"])
def test_a_model_that_was_saved_with_the_method_on_it_is_refused(tmp_path: Path, kind: str, place: str) -> None:
    model = open_base(write_base(tmp_path / "base"))
    adamix.attach(model, settings(kind))
    model.save_pretrained(tmp_path / "run" / place)
    for said in ({}, {"inference_level": "3"}):
        with pytest.raises(RunError, match="is a model with AdaMix on it") as caught:
            petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", base=tmp_path / "base", settings=said)
        assert "method.save(DIRECTORY)" in str(caught.value.hint)


def test_all_experts_can_be_kept(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    model = open_base(base)
    method = adamix.attach(model, settings())
    train(model, method, 3)
    method.save(tmp_path / "run")
    petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", settings={"keep_experts": True})
    petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "decoded")
    other = open_base(base)
    assert adamix.load(other, tmp_path / "decoded").config.experts == 4
    assert torch.equal(logits_of(other), logits_of(model))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_run_of_the_reference_code_is_loaded(tmp_path: Path, family: str) -> None:
    written = write_adamix(tmp_path / "run", SMALL, family=family, experts=3, seed=3)
    model = open_base(write_base(tmp_path / "base", family, num_labels=SMALL.labels), family)
    method = adamix.load(model, tmp_path / "run")
    assert method.config == Config("adapter", 3, SMALL.bottleneck)
    state = model.state_dict()
    assert all(
        np.array_equal(state[name].numpy(), array)
        for name, array in written.files["pytorch_model_expert_soup.bin"].items()
    )


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "prefix"}, "prefix"),
        ({"experts": 0}, r"experts must be .*, got 0"),
        ({"experts": 2.0}, r"experts must be .*, got 2\.0"),
        ({"bottleneck": -1}, r"bottleneck must be .*, got -1"),
        ({"rank": True}, r"rank must be .*, got True"),
        ({"alpha": float("inf")}, r"alpha must be .*, got inf"),
        ({"alpha": 0}, r"alpha must be .*, got 0"),
        ({"alpha": "16"}, r"alpha must be .*, got '16'"),
        ({"activation": "swiglu"}, "swiglu"),
        ({"share_down": True}, "4 experts"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        settings(**changes)
    assert caught.value.hint


def test_models_that_cannot_have_it(model: Any) -> None:
    with pytest.raises(UsageError, match="BertModel takes no labels"):
        adamix.attach(model.bert, settings())
    adamix.attach(model, settings())
    with pytest.raises(UsageError, match="already has a method attached"):
        adamix.attach(model, settings())


def _several_outputs(tmp_path: Path, labels: int, consistency: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    kind = "regression" if labels == 1 else "multi_label_classification"
    model = open_base(write_base(tmp_path / "base", num_labels=labels, problem_type=kind))
    adamix.attach(model, settings(consistency=consistency))
    targets = torch.rand((8,) if labels == 1 else (8, labels))
    return model.train(), {"input_ids": a_batch()["input_ids"], "labels": targets}


def test_several_labels_at_once_have_no_distribution_to_compare(tmp_path: Path) -> None:
    model, batch = _several_outputs(tmp_path, LABELS, consistency=False)
    model(**batch).loss.backward()
    model, batch = _several_outputs(tmp_path, LABELS, consistency=True)
    with pytest.raises(UsageError, match="one class") as caught:
        model(**batch)
    assert caught.value.hint == "attach with consistency=False"


@pytest.mark.parametrize("consistency", [True, False])
def test_a_regression_has_its_own_loss_alone(tmp_path: Path, consistency: bool) -> None:
    model, batch = _several_outputs(tmp_path, 1, consistency)
    output = model(**batch)
    assert output.loss.item() == pytest.approx(((output.logits.view(-1) - batch["labels"]) ** 2).mean().item())
    output.loss.backward()


def edit(run: Path, **changes: Any) -> None:
    about = json.loads((run / "config.json").read_text(encoding="utf-8")) | changes
    about = {name: value for name, value in about.items() if value is not None}
    (run / "config.json").write_text(json.dumps(about), encoding="utf-8")


def drop(run: Path, part: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(run / SOUP).items() if part not in name}
    save_file(tensors, run / SOUP)


def insert(run: Path, name: str) -> None:
    save_file({**load_file(run / SOUP), name: torch.zeros(2)}, run / SOUP)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda run: (run / SOUP).unlink(), SOUP),
    "no config": (lambda run: (run / "config.json").unlink(), r"config\.json"),
    "no number": (lambda run: edit(run, num_experts=None), r"config\.json' has no num_experts"),
    "no size": (lambda run: edit(run, adapter_size=None), r"config\.json' has no adapter_size"),
    "no activation": (
        lambda run: edit(run, adapter_activation=None, hidden_act=None),
        r"config\.json' has no adapter_activation",
    ),
    "another activation": (lambda run: edit(run, adapter_activation="swiglu"), r"config\.json': .*swiglu"),
    "random routes": (lambda run: edit(run, inference_level=1), r"config\.json': inference_level must be 3 .*, got 1"),
    "fewer experts": (
        lambda run: edit(run, num_experts=2),
        r"score_weight' of shape \[4\], but the model expects \[2\]",
    ),
    "another size": (lambda run: edit(run, adapter_size=5), r"of shape \[4, 16\], but the model expects \[5, 16\]"),
    "no head": (lambda run: drop(run, "classifier"), r"has no 'classifier\.weight'"),
    "half of it": (lambda run: drop(run, "layer.1"), "has no 'bert.encoder.layer.1"),
    "more than it": (lambda run: insert(run, "more"), "has 'more', which the model does not have"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_runs_that_do_not_fit(tmp_path: Path, model: Any, name: str) -> None:
    spoil, said = REFUSED[name]
    method = adamix.attach(model, settings())
    method.save(tmp_path / "run")
    method.detach()
    with torch.no_grad():
        model.classifier.weight.add_(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(tmp_path / "run")
    with pytest.raises(RunError, match=said) as caught:
        adamix.load(model, tmp_path / "run")
    assert caught.value.hint
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)  # its head with them
    adamix.attach(model, settings())  # nothing was left on it


def test_a_run_does_not_fit_other_labels(tmp_path: Path, model: Any) -> None:
    adamix.attach(model, settings()).save(tmp_path / "run")
    other = open_base(write_base(tmp_path / "other", num_labels=5))
    with pytest.raises(RunError, match=r"classifier\.\w+' of shape \[3.*expects \[5"):
        adamix.load(other, tmp_path / "run")


# What the reader takes from config.json


def test_the_reader_takes_the_activation_that_the_run_says(tmp_path: Path, model: Any) -> None:
    adamix.attach(model, settings(activation="relu")).save(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["hidden_act"] == "gelu"
    with pytest.raises(UsageError, match="setting activation is gelu, but the run says activation is relu"):
        petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", settings={"activation": "gelu"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_r": 0}, "lora_alpha 32.0 and lora_r 0"),
        ({"lora_alpha": "x"}, "lora_alpha x and lora_r 2"),
        ({"lora_alpha": 10**400}, "lora_r 2"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_r": None}, "does not say its scaling"),
    ],
)
def test_the_reader_refuses_a_scaling_that_is_none(
    tmp_path: Path, model: Any, changes: dict[str, Any], said: str
) -> None:
    adamix.attach(model, settings("lora")).save(tmp_path / "run")
    edit(tmp_path / "run", **changes)
    with pytest.raises(RunError, match=said):
        petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
