from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import petlpack
from petlpack.errors import RunError, UsageError
from petlpack.layouts.registry import read_run
from petlpack.methods import diff_pruning
from petlpack.methods import diff_pruning_stages as gates
from petlpack.methods.diff_pruning import Config, DiffPruning
from petlpack.methods.heads import head_of
from tests.support.method_formulas import diff_pruned, hard_concrete
from tests.support.method_runs import Shape, base_config

SMALL = Shape()
CLASSES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "t5": "T5ForConditionalGeneration",
    "t5 classifier": "T5ForSequenceClassification",
}
ODD: dict[str, Any] = {"low": -0.3, "high": 1.2}
"""An interval whose ends are not each other's negatives, so that log(-l / r) is not 0."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)


def make_model(directory: Path, family: str = "bert", **changes: Any) -> Any:
    """Make a tiny model without dropout from a base that is written first, with a -0.0 in every tensor."""
    config = base_config(family.split()[0], SMALL) | {"num_labels": 3, "initializer_range": 0.2} | changes
    if family.startswith("t5"):
        config |= {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "dropout_rate": 0.0}
    else:
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
    model = getattr(transformers, CLASSES[family])(transformers.AutoConfig.for_model(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[2] = -0.0
    model.save_pretrained(directory)
    return open_model(directory, family)


def open_model(directory: Path, family: str = "bert") -> Any:
    model = getattr(transformers, CLASSES[family]).from_pretrained(directory)
    model.config._name_or_path = str(directory)
    return model


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return make_model(tmp_path / "base")


def a_batch(family: str = "bert", rows: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    """Draw inputs whose class is that of their first token."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randint(3, SMALL.vocab - 5, (rows, 6), generator=draw)
    labels = inputs[:, 0] % 3
    inputs[:, -1] = 1
    if family == "t5":
        labels = torch.stack([labels + 2, torch.full_like(labels, 1)], 1)
    return {"input_ids": inputs, "labels": labels}


def train(model: Any, groups: list[dict[str, Any]], steps: int = 15, family: str = "bert") -> list[float]:
    optimizer = torch.optim.AdamW(groups)
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


def bits_of(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone().view(torch.int32).numpy() for name, p in model.named_parameters()}


def base_names(model: Any) -> list[str]:
    head = head_of(model)
    return [n for n, _ in model.named_parameters() if n.split(".")[0] not in ("diff_pruning", head[0] if head else "")]


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def stage(method: DiffPruning) -> Any:
    return method._stage


def spread(method: DiffPruning, seed: int = 5) -> None:
    """Give stage 1 differences and gates all over their range."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w, alpha in zip(stage(method).w, stage(method).alpha, strict=True):
            w.copy_(torch.randn(w.shape, generator=draw, dtype=w.dtype) * 0.1)
            alpha.copy_(torch.randn(w.shape, generator=draw, dtype=w.dtype) * 2)
        if stage(method).groups is not None:
            groups = stage(method).groups
            groups.copy_(torch.rand(groups.shape, generator=draw, dtype=groups.dtype) + 0.2)


# The mathematics


@pytest.mark.parametrize("ends", [{}, ODD])
def test_a_gate_is_the_papers(model: Any, ends: dict[str, Any]) -> None:
    gates = stage(diff_pruning.attach(model, Config(**ends)))
    alpha = torch.linspace(-8, 8, 4001)
    torch.manual_seed(3)
    _, z = gates._gate(alpha)
    torch.manual_seed(3)
    u = torch.empty_like(alpha).uniform_()
    expected = hard_concrete(alpha.numpy(), u.numpy(), **ends)
    np.testing.assert_allclose(z.numpy(), expected, atol=2e-6)
    assert (expected == 0).sum() > 500 < (expected == 1).sum()
    assert ((expected > 0) & (expected < 1)).sum() > 300


@pytest.mark.parametrize("ends", [{}, ODD])
def test_a_gate_is_open_with_the_probability_that_l0_counts(model: Any, ends: dict[str, Any]) -> None:
    config = Config(**ends)
    gates = stage(diff_pruning.attach(model, config))
    for alpha in (-2.0, 0.0, 1.5):
        _, z = gates._gate(torch.full((200_000,), alpha))
        expected = 1 / (1 + np.exp(-(alpha - np.log(-config.low / config.high))))
        assert float((z > 0).float().mean()) == pytest.approx(expected, abs=0.005)  # over four standard errors


@pytest.mark.parametrize("structured", [True, False])
def test_expected_l0_and_its_gradient(model: Any, structured: bool) -> None:
    method = diff_pruning.attach(model.double(), Config(structured=structured, **ODD))
    assert method.size == sum(model.get_parameter(name).numel() for name in base_names(model))
    spread(method)
    gates = stage(method)
    shift = np.log(0.3 / 1.2)
    expected = 0.0
    for i, alpha in enumerate(gates.alpha):
        group = 1 / (1 + np.exp(-(gates.groups[i].item() - shift))) if structured else 1.0
        expected += group * (1 / (1 + np.exp(-(alpha.detach().numpy() - shift)))).sum()
    loss = method.expected_l0()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    (3 * loss).backward()
    places = [(gates.alpha[0], 7), (gates.alpha[5], 2), *([(gates.groups, 1)] if structured else [])]
    for tensor, place in places:
        found = slope_of(lambda: 3 * method.expected_l0().item(), tensor, place)
        assert tensor.grad.view(-1)[place].item() == pytest.approx(found, rel=1e-5)


def slope_of(function: Any, tensor: Any, place: int, step: float = 1e-6) -> float:
    """Return the central difference of a function by one entry of a tensor."""
    flat = tensor.data.view(-1)
    at = flat[place].item()
    values = []
    for moved in (at + step, at - step):
        flat[place] = moved
        values.append(function())
    flat[place] = at
    return float((values[0] - values[1]) / (2 * step))


@pytest.mark.parametrize(
    ("family", "structured"), [("bert", True), ("bert", False), ("t5", True), ("t5 classifier", False)]
)
def test_gradients_are_the_slopes_of_the_loss(tmp_path: Path, family: str, structured: bool) -> None:
    """At fixed u the loss, with its L0, is a function of w and the gates; every kind of tensor, gates at both ends."""
    model = make_model(tmp_path, family).double()
    method = diff_pruning.attach(model, Config(structured=structured, l0=1e-3, **ODD))
    spread(method)
    model.train()

    def loss() -> torch.Tensor:
        torch.manual_seed(4)
        found: torch.Tensor = model(**a_batch(family)).loss
        return found

    loss().backward()
    gates = stage(method)
    # T5's norms compute in float32, whatever the model's dtype
    step, rel, near = (1e-6, 2e-4, 3e-8) if family == "bert" else (1e-3, 0.02, 2e-4)
    used = a_batch(family)["input_ids"].unique().tolist()
    seen = {"0": 0, "1": 0, "between": 0, "gate": 0}
    for i, weight in list(enumerate(method._weights))[::5]:
        whole = torch.zeros_like(weight.start)
        z = gates.z[i].clone()
        if weight.tables:
            assert len(gates.rows[i].unique()) == len(gates.rows[i])  # T5's encoder and decoder ask for the same ones
            whole[gates.rows[i]] = z
            if weight.start.shape[0] == SMALL.vocab:
                assert set(used) <= set(gates.rows[i].tolist()) != set(range(SMALL.vocab))
                row = gates.rows[i][0].item()
                z, whole = z[:1], torch.full_like(weight.start, -1)
                whole[row] = z[0]
        else:
            whole = z
        flat = whole.reshape(-1)
        for kind, found in {"0": flat == 0, "1": flat == 1, "between": (flat > 0) & (flat < 1)}.items():
            places = found.nonzero().reshape(-1)[:1].tolist()
            for place in places:
                for tensor in (gates.w[i], gates.alpha[i]):
                    gradient = tensor.grad.reshape(-1)[place].item()
                    slope = slope_of(lambda: loss().item(), tensor, place, step)
                    assert gradient == pytest.approx(slope, rel=rel, abs=near), (weight.name, kind)
                seen[kind] += abs(gates.w[i].grad.reshape(-1)[place].item()) > 1e-9
        if structured and 0 < gates.group_z[i] < 1:
            slope = slope_of(lambda: loss().item(), gates.groups, i, step)
            assert gates.groups.grad[i].item() == pytest.approx(slope, rel=rel, abs=near), weight.name
            seen["gate"] += 1
    assert seen["0"] == 0  # a closed gate gives w no gradient
    assert seen["1"] > 3 < seen["between"]
    assert not structured or seen["gate"] > 3


def test_theta_is_p0_plus_z_w(model: Any) -> None:
    method = diff_pruning.attach(model, Config(structured=False))
    spread(method)
    gates = stage(method)
    model.train()
    model(**a_batch())
    for i, weight in enumerate(method._weights):
        rows = slice(None) if not weight.tables else gates.rows[i]
        w, start = gates.w[i].detach()[rows].numpy(), weight.start[rows].numpy()
        np.testing.assert_array_equal(
            weight.theta.detach()[rows].numpy(), diff_pruned(start, w, gates.z[i].numpy()), err_msg=weight.name
        )
    model.eval()
    model(**a_batch())
    for i, weight in enumerate(method._weights):
        alpha = gates.alpha[i].detach().numpy()
        median = hard_concrete(alpha, np.full(alpha.shape, 0.5))
        expected = diff_pruned(weight.start.numpy(), gates.w[i].detach().numpy(), median)
        np.testing.assert_allclose(weight.theta.detach().numpy(), expected, atol=1e-6, err_msg=weight.name)


def test_rows_that_no_text_uses_stay_the_bases(model: Any) -> None:
    method = diff_pruning.attach(model, Config(l0=0.0))
    train(model, method.groups(0.01))
    word = method.differences()["bert.embeddings.word_embeddings.weight"]
    used = torch.cat([a_batch(seed=step)["input_ids"] for step in range(4)]).unique()
    unused = [row for row in range(SMALL.vocab) if row not in used.tolist()]
    assert unused
    assert not word[unused].any()
    assert word[used].any(dim=1).all()


def test_two_batches_add_up(model: Any) -> None:
    """Gradient accumulation: each batch with its own gates."""
    method = diff_pruning.attach(model, Config(l0=1e-3))
    spread(method)
    model.train()
    trained = method.parameters()
    sums = [torch.zeros_like(parameter) for parameter in trained]
    for seed in (1, 2):
        torch.manual_seed(seed)
        model(**a_batch(seed=seed)).loss.backward()
        for total, parameter in zip(sums, trained, strict=True):
            total += parameter.grad
            parameter.grad = None
    for seed in (1, 2):
        torch.manual_seed(seed)
        model(**a_batch(seed=seed)).loss.backward()
    for total, parameter in zip(sums, trained, strict=True):
        torch.testing.assert_close(parameter.grad, total)
    assert sum(total.abs().sum() for total in sums) > 0


def test_two_forwards_before_backward_are_refused(model: Any) -> None:
    diff_pruning.attach(model, Config())
    model.train()
    first = model(**a_batch()).loss
    model(**a_batch())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_more_pressure_leaves_fewer(tmp_path: Path) -> None:
    shares = []
    for number, l0 in enumerate((0.0, 1e-4, 1e-2)):
        torch.manual_seed(0)
        model = make_model(tmp_path / str(number))
        method = diff_pruning.attach(model, Config(l0=l0, gate_lr=0.3))
        train(model, method.groups(1e-3), steps=25)
        shares.append(method.expected_l0().item() / method.size)
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.5


# What trains


@pytest.mark.parametrize("family", CLASSES)
def test_all_three_stages(tmp_path: Path, family: str) -> None:
    model = make_model(tmp_path, family)
    start, names = bits_of(model), base_names(model)
    before = logits_of(model, family)
    method = diff_pruning.attach(model, Config(density=0.05, l0=1e-6))
    assert torch.equal(logits_of(model, family), before)
    losses = train(model, method.groups(0.01), steps=30, family=family)
    assert losses[-1] < 0.8 * losses[0]
    differences = method.differences()
    method.prune()
    count = round(0.05 * method.size)
    kept = stage(method)
    assert len(kept.w) == count == sum(map(len, kept.places))
    flat = torch.cat([differences[name].reshape(-1) for name in names]).abs().numpy()
    sizes = np.sort(flat)
    chosen = torch.cat([kept.places[i] + at for i, at in enumerate(starts_of(model, names))]).numpy()
    assert np.array_equal(np.sort(flat[chosen]), sizes[-count:])
    masked = {name: np.ones(start[name].size, bool) for name in names}
    for name, places in zip(names, kept.places, strict=True):
        masked[name][places] = False
    pruned = bits_of(model)
    losses = train(model, method.groups(0.01), steps=20, family=family)
    assert losses[-1] < losses[0]
    logits_of(model, family)
    tuned = bits_of(model)
    moved = 0
    for name in names:
        assert np.array_equal(tuned[name].ravel()[masked[name]], start[name].ravel()[masked[name]]), name
        moved += (tuned[name] != pruned[name]).sum()
    assert moved > 0.5 * count
    for i, weight in enumerate(method._weights):
        places = kept.places[i]
        w = kept.w.detach()[kept.part[i]].numpy()
        expected = diff_pruned(weight.start.view(-1)[places].numpy(), w, np.ones(len(w)))
        np.testing.assert_array_equal(weight.theta.detach().view(-1)[places].numpy(), expected)
    head = head_of(model)
    assert head is None or all(not np.array_equal(tuned[n], start[n]) for n in start if n.startswith(head[0]))


def starts_of(model: Any, names: list[str]) -> list[int]:
    ends = np.cumsum([0, *(model.get_parameter(name).numel() for name in names)])
    return [int(end) for end in ends[:-1]]


def test_groups_give_the_gates_their_own_rate(model: Any) -> None:
    method = diff_pruning.attach(model, Config(gate_lr=0.2))
    slow, fast = method.groups(1e-3)
    count = len(base_names(model))
    assert (slow["lr"], slow["weight_decay"], len(slow["params"])) == (1e-3, 0.0, count + 2)
    assert (fast["lr"], fast["weight_decay"], len(fast["params"])) == (0.2, 0.0, count + 1)
    listed = {id(p) for group in (slow, fast) for p in group["params"]}
    assert listed == {id(p) for p in method.parameters()}
    assert {id(p) for p in model.classifier.parameters()} <= listed
    spread(method)
    method.prune()
    (only,) = method.groups(1e-4)
    assert [tuple(p.shape) for p in only["params"]] == [(round(0.005 * method.size),), (3, 16), (3,)]


def test_no_schedule_changes_the_gates_rate(model: Any) -> None:
    method = diff_pruning.attach(model, Config(l0=1.0))
    optimizer = torch.optim.AdamW(method.groups(1e-3))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    used: list[list[float]] = []
    optimizer.register_step_post_hook(lambda *_: used.append([group["lr"] for group in optimizer.param_groups]))
    model.train()
    gate = stage(method).alpha[5]
    for _ in range(3):
        model(**a_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert used == [[1e-3, 0.1], [5e-4, 0.1], [2.5e-4, 0.1]]
    assert torch.allclose(gate, torch.tensor(5 - 3 * 0.1), rtol=1e-3)  # each step is the whole rate
    method.detach()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert used[-1] == [0.0, 0.0]


def test_largest_keeps_the_first_of_equals() -> None:
    sizes = torch.tensor([1.0, 3, 2, 2, 0, 2, 3])
    assert diff_pruning.largest(sizes, 4).tolist() == [1, 2, 3, 6]
    assert diff_pruning.largest(sizes, 0).tolist() == []
    assert diff_pruning.largest(torch.zeros(5), 2).tolist() == [0, 1]


def test_pruning_goes_on_from_what_stage_3_has(model: Any) -> None:
    method = diff_pruning.attach(model, Config(density=0.05, l0=1e-6))
    start = bits_of(model)
    train(model, method.groups(0.01))
    method.prune()
    train(model, method.groups(0.01))
    before, head = method.differences(), bits_of(model)["classifier.weight"]
    method.prune(0.01)
    count = round(0.01 * method.size)
    now = bits_of(model)
    assert sum((now[name] != start[name]).sum() for name in base_names(model)) <= count == len(stage(method).w)
    assert np.array_equal(now["classifier.weight"], head)
    for name in base_names(model):
        found = method.differences()[name]
        assert torch.equal(found[found != 0], before[name][found != 0])
    train(model, method.groups(0.01), steps=2)
    method.prune(0.005)  # of what stage 3 has: fewer of the same
    assert method.density == 0.005
    assert int(method.expected_l0()) == round(0.005 * method.size)


def test_randomness_is_torchs(tmp_path: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = make_model(tmp_path / "base")
        method = diff_pruning.attach(model, Config(alpha=1.0))
        torch.manual_seed(seed)
        train(model, method.groups(0.01), steps=3)
        found.append(method.differences()["bert.pooler.dense.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_eval_is_deterministic_and_its_loss_the_tasks(model: Any) -> None:
    method = diff_pruning.attach(model, Config(alpha=0.0, l0=1.0))
    spread(method)
    assert torch.equal(logits_of(model), logits_of(model))
    output = model(**a_batch())
    expected = torch.nn.functional.cross_entropy(output.logits, a_batch()["labels"])
    assert output.loss.item() == pytest.approx(expected.item())
    model.train()
    assert model(**a_batch()).loss.item() > 0.1 * method.expected_l0().item() > 100
    with_tuple = model(**a_batch(), return_dict=False)
    assert with_tuple[0].item() > 100
    with pytest.warns(UserWarning, match="without labels"):
        assert model(a_batch()["input_ids"]).loss is None


def test_a_state_dict_holds_what_eval_mode_computes_with(model: Any) -> None:
    method = diff_pruning.attach(model, Config(alpha=1.0))
    train(model, method.groups(0.01), steps=2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits_of(model)
    method.detach()
    left = model.load_state_dict(state, strict=False)
    assert all(name.startswith("diff_pruning.") for name in left.unexpected_keys)
    assert torch.equal(logits_of(model), expected)


def a_trainer(method: DiffPruning, out: Path, **arguments: Any) -> Any:
    rows = [{name: tensor[i] for name, tensor in a_batch(rows=16).items()} for i in range(16)]
    said = transformers.TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **arguments,
    )
    optimizer = torch.optim.AdamW(method.groups(0.01))
    return transformers.Trainer(method.model, said, train_dataset=rows, eval_dataset=rows, optimizers=(optimizer, None))


@pytest.mark.parametrize("stages", [1, 3])
def test_trainer(tmp_path: Path, stages: int) -> None:
    model = make_model(tmp_path / "base")
    method = diff_pruning.attach(model, Config(density=0.05, l0=1e-5))
    if stages == 3:
        train(model, method.groups(0.01), steps=3)
        method.prune()
    batch = a_batch(rows=16)
    often = {"logging_steps": 1, "eval_steps": 3, "eval_strategy": "steps", "gradient_accumulation_steps": 2}
    trainer = a_trainer(method, tmp_path / "out", max_steps=6, save_steps=3, **often)
    trainer.train()
    log = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert log[-1] < log[0]
    evaluated = trainer.evaluate()["eval_loss"]
    model.eval()
    assert evaluated == pytest.approx(model(**batch).loss.item(), rel=1e-4)
    saved = open_model(tmp_path / "out" / "checkpoint-6")
    assert torch.equal(logits_of(saved), logits_of(model))
    assert [name for name in saved.state_dict() if "diff_pruning" in name] == []


def resuming(tmp_path: Path, stages: int, out: str, checkpoint: Path | None = None) -> tuple[Any, DiffPruning]:
    """Train four steps with a checkpoint after two, or go on from one."""
    model = open_model(tmp_path / "base")
    torch.manual_seed(2)
    method = diff_pruning.attach(model, Config(density=0.05, l0=1e-5))
    if checkpoint is not None:
        method.resume(checkpoint)
    elif stages == 3:
        train(model, method.groups(0.01), steps=3)
        method.prune(0.03)
    trainer = a_trainer(method, tmp_path / out, max_steps=4, save_steps=2)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return model, method


@pytest.mark.parametrize("stages", [1, 3])
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path, stages: int) -> None:
    make_model(tmp_path / "base")
    first, straight = resuming(tmp_path, stages, "straight")
    second, resumed = resuming(tmp_path, stages, "resumed", tmp_path / "straight" / "checkpoint-2")
    assert same(bits_of(first), bits_of(second))
    own = [dict(method._own.state_dict()) for method in (straight, resumed)]
    assert own[0].keys() == own[1].keys()
    assert all(torch.equal(tensor, own[1][name]) for name, tensor in own[0].items())
    assert straight.density == resumed.density == (0.05 if stages == 1 else 0.03)
    for method in (straight, resumed):
        method.prune()
    assert same(bits_of(first), bits_of(second))
    assert torch.equal(logits_of(first), logits_of(second))


def test_a_state_of_another_stage_or_base_is_refused(tmp_path: Path, model: Any) -> None:
    method = diff_pruning.attach(model, Config(density=0.05, l0=1e-5))
    early = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, method.groups(0.01))
    method.prune()
    late = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match="does not match the method: stage") as caught:
        model.load_state_dict(early)
    assert "resume(CHECKPOINT)" in str(caught.value.hint)
    method.prune(0.01)
    with pytest.raises(UsageError, match="does not match the method: stage"):
        model.load_state_dict(late)
    model.save_pretrained(tmp_path / "checkpoint")
    other = make_model(tmp_path / "other")
    with pytest.raises(RunError, match=r"'.*' in the state dict is not the base plus") as refused:
        diff_pruning.attach(other, Config(density=0.05)).resume(tmp_path / "checkpoint")
    assert "model.safetensors" in str(refused.value)
    with pytest.raises(RunError, match="no weights"):
        method.resume(tmp_path)


def test_on_a_base_in_half_precision_differences_and_gates_are_in_single(tmp_path: Path) -> None:
    dtype = torch.bfloat16
    make_model(tmp_path / "base")
    model = open_model(tmp_path / "base").to(dtype)
    method = diff_pruning.attach(model, Config(density=0.05, l0=1e-5))
    assert {parameter.dtype for parameter in method._own.parameters()} == {torch.float32}
    spread(method)
    i = next(i for i, weight in enumerate(method._weights) if weight.name.endswith("query.weight"))
    weight, own = method._weights[i], stage(method)
    model.train()
    model(**a_batch()).loss.backward()
    z = own.z[i] * own.group_z[i]
    expected = (weight.start.float() + own.w[i] * z).to(dtype)
    assert torch.equal(weight.theta, expected)
    assert own.w[i].grad.dtype == torch.float32
    train(model, method.groups(0.01), steps=3)
    method.prune()
    train(model, method.groups(0.01), steps=3)
    method.save(tmp_path / "run")
    fresh = open_model(tmp_path / "base").to(dtype)
    fresh.classifier.load_state_dict(model.classifier.state_dict())
    loaded = diff_pruning.load(fresh, tmp_path / "run")
    assert torch.equal(logits_of(fresh), logits_of(model))
    train(fresh, loaded.groups(1e-3), steps=2)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("family", CLASSES)
def test_detach_leaves_the_model_as_it_was(tmp_path: Path, family: str, stages: int) -> None:
    model = make_model(tmp_path, family)
    next(model.parameters()).requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    start, keys, config = bits_of(model), {*vars(model)}, model.config.to_dict()
    hooks = hook_count(model)
    before = logits_of(model, family)
    head = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.split(".")[0] in HEADS}
    method = diff_pruning.attach(model, Config(l0=1e-6))
    train(model, method.groups(0.01), steps=3, family=family)
    if stages == 3:
        method.prune()
        train(model, method.groups(0.01), steps=3, family=family)
    assert not torch.equal(logits_of(model, family), before)
    method.detach()
    model.load_state_dict(head, strict=False)  # the head has trained, as a head does
    assert same(bits_of(model), start)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(
        parameter.grad is None for name, parameter in model.named_parameters() if name.split(".")[0] not in HEADS
    )
    assert ({*vars(model)}, hook_count(model)) == (keys, hooks)
    assert model.config.to_dict() | {"problem_type": None} == config | {"problem_type": None}
    assert torch.equal(logits_of(model, family), before)
    diff_pruning.attach(model).detach()


HEADS = ("classifier", "classification_head")


def hook_count(model: Any) -> int:
    modules = sum(len(module._forward_pre_hooks) + len(module._state_dict_pre_hooks) for module in model.modules())
    return modules + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


# Runs


def trained(directory: Path, family: str = "bert", density: float = 0.05) -> tuple[Any, DiffPruning]:
    model = make_model(directory, family)
    method = diff_pruning.attach(model, Config(density=density, l0=1e-6, structured=family != "roberta"))
    train(model, method.groups(0.01), steps=6, family=family)
    method.prune()
    train(model, method.groups(0.01), steps=3, family=family)
    return model, method


@pytest.mark.parametrize("family", CLASSES)
def test_saved_packed_decoded_and_loaded_logits_are_the_same(tmp_path: Path, family: str) -> None:
    model, method = trained(tmp_path / "base", family)
    expected = logits_of(model, family)
    run = tmp_path / "run"
    method.save(run)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "model.safetensors"]
    (encoded,) = petlpack.encode(run, tmp_path / "pack")
    assert (encoded.layout, encoded.method, encoded.exact, encoded.warnings) == (
        "diff-pruning",
        "diff pruning",
        True,
        (),
    )
    decoded = tmp_path / "decoded"
    petlpack.open(tmp_path / "pack")["run"].decode(decoded)
    start = open_model(tmp_path / "base", family)
    tuned = load_file(run / "model.safetensors")
    names = base_names(start)
    changed = sum(int((tuned[n].view(torch.int32) != start.get_parameter(n).view(torch.int32)).sum()) for n in names)
    assert 0.8 * round(0.05 * method.size) < changed <= round(0.05 * method.size)
    for directory in (run, decoded):
        assert torch.equal(logits_of(open_model(directory, family), family), expected)
        fresh = open_model(tmp_path / "base", family)
        bits = bits_of(fresh)
        loaded = diff_pruning.load(fresh, directory)
        assert torch.equal(logits_of(fresh, family), expected)
        assert (loaded.density, loaded.config.structured) == (0.05, family != "roberta")
        assert len(stage(loaded).w) == changed
        train(fresh, loaded.groups(0.01), steps=2, family=family)
        assert not torch.equal(logits_of(fresh, family), expected)
        loaded.detach()
        assert same({n: bits_of(fresh)[n] for n in names}, {n: bits[n] for n in names})


def test_a_pack_holds_no_more_than_the_density(tmp_path: Path) -> None:
    """Of a model large enough to count: the places take what a random mask of that density does."""
    model = make_model(tmp_path / "base", vocab_size=6000, hidden_size=32, intermediate_size=128)
    method = diff_pruning.attach(model, Config())
    with torch.no_grad():
        for w in stage(method).w:
            w.normal_(std=1e-3)
    method.prune()
    method.save(tmp_path / "run")
    (encoded,) = petlpack.encode(tmp_path / "run", tmp_path / "pack")
    count = round(0.005 * method.size)
    entropy = 0.0454  # bits of an entry at 0.5 %
    assert encoded.nbytes < entropy * method.size / 8 + 4 * count + 4000
    assert encoded.nbytes > entropy * method.size / 8 + 2 * count


def test_a_theta_that_no_difference_gives_is_loaded_as_it_is(tmp_path: Path) -> None:
    model, method = trained(tmp_path / "base")
    method.save(tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    tuned = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = base_names(model)[0]
    fresh = open_model(tmp_path / "base")
    places = (tuned[name] != fresh.get_parameter(name)).reshape(-1).nonzero().reshape(-1)[:2]
    values = torch.tensor([1e-30, -0.0])
    tuned[name].view(-1)[places] = values
    save_file(tuned, file, {"format": "pt"})
    diff_pruning.load(fresh, tmp_path / "run")
    found = fresh.get_parameter(name).detach().view(-1)[places]
    assert torch.equal(found.view(torch.int32), values.view(torch.int32))


def test_safetensors_beside_a_config_that_says_so(tmp_path: Path) -> None:
    model, method = trained(tmp_path / "base")
    method.save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["diff_pruning"] == {"density": 0.05, "structured": True}
    expected = logits_of(model)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    model.config.save_pretrained(tmp_path / "other")
    (run,) = read_run(tmp_path / "other")
    assert run.layout == "transformers"
    shutil.copy(tmp_path / "run" / "config.json", tmp_path / "other" / "config.json")
    (encoded,) = petlpack.encode(tmp_path / "other", tmp_path / "pack")
    assert (encoded.layout, encoded.method) == ("diff-pruning", "diff pruning")
    petlpack.open(tmp_path / "pack")["other"].decode(tmp_path / "decoded")
    assert sorted(path.name for path in (tmp_path / "decoded").iterdir()) == ["config.json", "model.safetensors"]
    fresh = open_model(tmp_path / "base")
    diff_pruning.load(fresh, tmp_path / "decoded")
    assert torch.equal(logits_of(fresh), expected)
    (tmp_path / "other" / "config.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        read_run(tmp_path / "other")


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"density": 0.0}, r"density must be .*, got 0\.0"),
        ({"density": 1.5}, r"density must be .*, got 1\.5"),
        ({"l0": -1.0}, r"l0 must be .*, got -1\.0"),
        ({"gate_lr": 0.0}, r"gate_lr must be .*, got 0\.0"),
        ({"low": 0.0}, r"low must be .*, got 0\.0"),
        ({"high": 1.0}, r"high must be .*, got 1\.0"),
        ({"alpha": float("nan")}, r"alpha must be .*, got nan"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        Config(**values)
    assert refused.value.hint


def test_saving_before_pruning_is_refused(model: Any, tmp_path: Path) -> None:
    method = diff_pruning.attach(model)
    with pytest.raises(UsageError, match="stage 1 are dense") as refused:
        method.save(tmp_path / "run")
    assert "prune()" in str(refused.value.hint)
    assert not (tmp_path / "run").exists()


def test_differences_that_cannot_be_pruned_are_refused(model: Any) -> None:
    method = diff_pruning.attach(model)
    with pytest.raises(UsageError, match="all differences are 0"):
        method.prune()
    with torch.no_grad():
        stage(method).w[0][0] = float("nan")
    with pytest.raises(UsageError, match="differences are NaN or infinite"):
        method.prune()
    with pytest.raises(UsageError, match=r"density must be .*, got 2"):
        method.prune(2)
    with pytest.raises(UsageError, match="already has a method attached"):
        diff_pruning.attach(model)
    assert isinstance(stage(method), gates.Gates)  # nothing was begun


def test_runs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, method = trained(tmp_path / "base")
    run = tmp_path / "run"
    method.save(run)
    other = make_model(tmp_path / "other")
    start = bits_of(other)
    with pytest.raises(RunError, match=r"model.safetensors' changes .* weights of the model, but a density of 0"):
        diff_pruning.load(other, run)
    assert same(bits_of(other), start)  # and it has no method: it can get one
    with pytest.raises(RunError, match=r"of shape \[40, 16\], but the model expects \[40, 32\]"):
        diff_pruning.load(make_model(tmp_path / "wide", hidden_size=32), run)
    with pytest.raises(RunError, match=r"in torch.float32, but the model has it in torch.bfloat16"):
        diff_pruning.load(make_model(tmp_path / "half").to(torch.bfloat16), run)
    with pytest.raises(RunError, match="has no 'roberta"):
        diff_pruning.load(make_model(tmp_path / "roberta", "roberta"), run)
    config = json.loads((run / "config.json").read_text())
    (run / "model.safetensors").unlink()
    with pytest.raises(RunError, match="has no weights"):
        diff_pruning.load(other, run)
    (run / "config.json").write_text(json.dumps({**config, "diff_pruning": 1}))
    with pytest.raises(RunError, match="has no 'diff_pruning'"):
        diff_pruning.load(other, run)
