"""PHA trains, is saved, packed and loaded: against the paper's formulas in numpy, and by finite differences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import petlpack
from petlpack.errors import RunError, UsageError
from petlpack.methods import pha
from tests.support import method_formulas as formulas
from tests.support.faults import SAVED_NORMS, skip_where
from tests.support.method_runs import Shape, write_pha

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = pha.Config(bottleneck=4, code=8, trunk=10, memory=6)
Tensors = Mapping[str, Any]


def bert(dropout: float = 0.1, **more: Any) -> Any:
    sizes = SMALL | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout} | more
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=32, **sizes))


def roberta(dropout: float = 0.1) -> Any:
    sizes = SMALL | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return RobertaForSequenceClassification(RobertaConfig(vocab_size=50, max_position_embeddings=40, **sizes))


def t5(dropout: float = 0.1) -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": dropout}
    return T5ForConditionalGeneration(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes))


MAKERS: dict[str, Callable[..., Any]] = {"bert": bert, "roberta": roberta, "t5": t5}
families = pytest.mark.parametrize("family", MAKERS)


def tasks_of(family: str) -> dict[str, int]:
    return {"sst2": 0, "rte": 0} if family == "t5" else {"sst2": 2, "rte": 3}


def based(family: str, tmp_path: Path) -> Any:
    """Return a model whose base stands in `tmp_path / "base"`."""
    torch.manual_seed(0)
    MAKERS[family]().save_pretrained(tmp_path / "base")
    return again(family, tmp_path)


def again(family: str, tmp_path: Path) -> Any:
    return type(MAKERS[family]()).from_pretrained(tmp_path / "base").eval()


def batch_of(model: Any, rows: int = 4, *, seed: int = 1) -> dict[str, Any]:
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (rows, 7), generator=made)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    labels = torch.randint(3, 50, (rows, 3), generator=made) if is_t5(model) else torch.arange(rows) % 2
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def is_t5(model: Any) -> bool:
    return bool(model.config.model_type == "t5")


def train(method: pha.Pha, steps: int = 6, lr: float = 1e-2) -> list[float]:
    """Train all tasks in turn, and return the losses."""
    model: Any = method.model.train()
    optimizer = torch.optim.AdamW(method.groups(lr), weight_decay=0.01)
    losses = []
    for step in range(steps):
        number = step % len(method.tasks)
        method.switch(list(method.tasks)[number])
        loss = model(**batch_of(model, seed=number)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def logits(method: pha.Pha, task: str) -> torch.Tensor:
    method.switch(task)
    with torch.no_grad():
        found: torch.Tensor = method.model(**batch_of(method.model)).logits
    return found


def shake(method: pha.Pha, size: float = 0.05) -> None:
    """Make every parameter of the method one that does something."""
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += size * torch.randn(parameter.shape, generator=made)


# What the generator makes


def as_reference(method: pha.Pha) -> dict[str, NDArray[Any]]:
    """Return the generator and the prototypes under the released code's names, whatever the stack is called."""
    tensors = {f"decoder.param_gen.{name}": tensor.numpy() for name, tensor in method.generator.state_dict().items()}
    return tensors | {"decoder.adapter_task_embedding.weight": torch.stack(list(method.prototypes)).detach().numpy()}


def test_adapters_are_generated_by_the_formula() -> None:
    method = pha.attach(bert(), pha.Config(bottleneck=4), {"sst2": 2, "rte": 2})
    shake(method)
    sizes = formulas.pha_floats(2, 16, 4, 2)
    trained = {name: sum(p.numel() for p in part.parameters()) for name, part in method.generator.named_children()}
    assert trained == {"layer_embed": sizes["layers"], "decoder": sizes["trunk"] + sizes["outputs"]}
    for row in range(2):
        made = method.generator(method.prototypes[row])
        assert len(made) == 2
        for layer, adapter in enumerate(made):
            wanted = formulas.pha_adapter(as_reference(method), row, layer)
            assert [tuple(part.shape) for part in adapter] == [(4, 16), (4,), (16, 4), (16,)]
            for part, exact in zip(adapter, wanted, strict=True):
                np.testing.assert_allclose(part.detach().numpy(), exact, atol=1e-6, rtol=1e-5)


def test_bert_adds_the_adapter_to_the_feed_forward_before_the_norm() -> None:
    method = pha.attach(bert().eval(), CONFIG, {"sst2": 2, "rte": 2})
    method.model.eval()
    shake(method)
    method.switch("rte")
    layer: Any = method.model.bert.encoder.layer[1]
    seen: dict[str, Any] = {}
    layer.intermediate.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    layer.output.dense.register_forward_hook(lambda _m, _a, out: seen.update(ff=out))
    layer.output.LayerNorm.register_forward_pre_hook(lambda _m, args: seen.update(sum=args[0]))
    with torch.no_grad():
        method.model(**batch_of(method.model))
    x, ff, total = (seen[name].numpy().astype(np.float64) for name in ("x", "ff", "sum"))
    wanted = formulas.pha_feed_forward(x, x, ff, formulas.pha_adapter(as_reference(method), 1, 1))
    np.testing.assert_allclose(total, wanted, atol=1e-5)
    assert np.abs(total - x - ff).max() > 1e-2


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_t5_adds_the_adapter_of_the_normed_input(stack: str) -> None:
    method = pha.attach(t5().eval(), CONFIG, {"sst2": 0, "rte": 0})
    method.model.eval()
    shake(method)
    layer: Any = getattr(method.model, stack).block[1].layer[-1]
    seen: dict[str, Any] = {}
    layer.DenseReluDense.register_forward_hook(lambda _m, args, out: seen.update(n=args[0], ff=out))
    layer.register_forward_hook(lambda _m, args, out: seen.update(x=args[0], sum=out))
    with torch.no_grad():
        method.model(**batch_of(method.model))
    x, n, ff, total = (seen[name].numpy().astype(np.float64) for name in ("x", "n", "ff", "sum"))
    if stack == "decoder":
        adapter = formulas.pha_adapter(as_reference(method), 0, 1)
    else:
        state = {name: tensor.numpy().astype(np.float64) for name, tensor in layer.adapter_layer.state_dict().items()}
        parts = [state[f"adapter_{side}_manual.{part}"] for side in ("down", "up") for part in ("weight", "bias")]
        adapter = formulas.Generated(*parts)
    np.testing.assert_allclose(total, formulas.pha_feed_forward(x, n, ff, adapter), atol=1e-5)
    assert np.abs(total - x - ff).max() > 1e-2


@families
def test_training_starts_at_the_bases_function(family: str, tmp_path: Path) -> None:
    model = based(family, tmp_path)
    bare = model.base_model if family != "t5" else model
    states = "last_hidden_state" if family != "t5" else "logits"
    batch = batch_of(model)
    if family != "t5":
        del batch["labels"]
    with torch.no_grad():
        before = bare(**batch)[states]
        pha.attach(model, CONFIG, tasks_of(family))
        model.eval()
        assert torch.equal(bare(**batch)[states], before)


# The retriever's losses


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def numpy_instance_loss(vectors: NDArray[Any], others: NDArray[Any], temperature: float) -> float:
    """The mean over instances i and positives j != i of -log(exp s_ij / sum over k != i of exp s_ik)."""
    total, n = 0.0, len(vectors)
    for i in range(n):
        rest = [vectors[k] for k in range(n) if k != i] + list(others)
        below = sum(math.exp(cosine(vectors[i], other) / temperature) for other in rest)
        for j in range(n):
            if j != i:
                total -= math.log(math.exp(cosine(vectors[i], vectors[j]) / temperature) / below)
    return total / (n * (n - 1))


def numpy_prototype_loss(vectors: NDArray[Any], prototypes: NDArray[Any], row: int, temperature: float) -> float:
    """The mean of -log(exp s_row / sum over prototypes of exp s)."""
    total = 0.0
    for vector in vectors:
        shares = [math.exp(cosine(vector, prototype) / temperature) for prototype in prototypes]
        total -= math.log(shares[row] / sum(shares))
    return total / len(vectors)


def random(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "m"), [(2, 1), (4, 3), (3, 9)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_losses_are_infonce(n: int, m: int, temperature: float) -> None:
    vectors, others = random(n, 1), random(m, 2)
    found = pha.instance_loss(vectors, others, temperature).item()
    assert found == pytest.approx(numpy_instance_loss(vectors.numpy(), others.numpy(), temperature), rel=1e-9)
    found = pha.prototype_loss(vectors, others, m - 1, temperature).item()
    wanted = numpy_prototype_loss(vectors.numpy(), others.numpy(), m - 1, temperature)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_gradients_of_the_losses_are_those_of_finite_differences() -> None:
    vectors, others = random(4, 1).requires_grad_(), random(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, o: pha.instance_loss(v, o, 0.3), (vectors, others))
    assert torch.autograd.gradcheck(lambda v, o: pha.prototype_loss(v, o, 1, 0.3), (vectors, others))


def test_nothing_to_tell_apart_is_no_loss() -> None:
    vectors, none = random(4, 1).requires_grad_(), random(0, 2)
    assert pha.instance_loss(vectors, none, 0.1).item() == 0
    assert pha.instance_loss(vectors[:1], random(3, 2), 0.1).item() == 0
    assert pha.prototype_loss(vectors, random(1, 2), 0, 0.1).item() == pytest.approx(0, abs=1e-12)


def test_identical_vectors_have_finite_losses_and_gradients() -> None:
    vectors = torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    loss = pha.instance_loss(vectors, torch.ones(2, 5, dtype=torch.float64), 0.1)
    loss = loss + pha.prototype_loss(vectors, torch.ones(3, 5, dtype=torch.float64), 0, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(5) + math.log(3), rel=1e-12)
    assert torch.isfinite(vectors.grad).all()


@families
def test_the_loss_is_the_tasks_and_the_share_of_the_retrievers(family: str) -> None:
    """In training the batch's vectors are told from the other task's last ones; in evaluation nothing is added."""
    torch.manual_seed(0)
    model = MAKERS[family](dropout=0.0)
    method = pha.attach(model, CONFIG, tasks_of(family))
    shake(method)
    assert method.retriever is not None
    vectors = []
    method.retriever.register_forward_hook(lambda _m, _a, out: vectors.append(out.detach().double().numpy()))
    pooled = []
    method.retriever.register_forward_pre_hook(lambda _m, args: pooled.append(args[0]))
    extra = []
    for number, task in enumerate(tasks_of(family)):
        method.switch(task)
        batch = batch_of(model, 8, seed=number)
        with torch.no_grad():
            plain = model.eval()(**batch).loss.item()
            extra.append(model.train()(**batch).loss.item() - plain)
    table = torch.stack(list(method.prototypes)).detach().double().numpy()
    first, second = vectors
    wanted = [
        numpy_prototype_loss(first, table, 0, 0.1),
        numpy_prototype_loss(second, table, 1, 0.1) + numpy_instance_loss(second, first[-6:], 0.1),
    ]
    # a difference of losses in single precision
    assert extra == pytest.approx([0.1 * loss for loss in wanted], rel=1e-3, abs=1e-6)
    if family == "t5":
        states = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        torch.testing.assert_close(pooled[1][0], states[0, :5].mean(0))


# What trains


def grads(method: pha.Pha) -> set[str]:
    return {
        name for name, p in method.model.named_parameters() if p.grad is not None and bool((p.grad != 0).any().item())
    }


@families
def test_a_batch_of_a_task_reaches_its_row_and_head_alone(family: str, tmp_path: Path) -> None:
    model = based(family, tmp_path)
    method = pha.attach(model, pha.Config(4, 8, 10, weight=0), tasks_of(family))
    shake(method)
    method.switch("rte")
    model.train()(**batch_of(model)).loss.backward()
    found = grads(method)
    rows = {name for name in found if "adapter_task_embedding" in name}
    assert {name.rpartition(".")[2] for name in rows} == {"1"}
    assert not any(".sst2." in name for name in found)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found == {name for name in trained if not name.endswith("embedding.0") and ".sst2." not in name}


@families
def test_a_plain_loop_trains_the_method_and_the_head_alone(family: str, tmp_path: Path) -> None:
    model = based(family, tmp_path)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method = pha.attach(model, CONFIG, tasks_of(family))
    before = {id(p): p.detach().clone() for p in method.parameters()}
    losses = train(method, 60)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert all((p != before[id(p)]).any() for p in method.parameters())
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in base.items())


def test_the_generator_gets_rates_of_its_own() -> None:
    method = pha.attach(bert(), CONFIG, {"sst2": 2, "rte": 2})
    rates = {id(parameter): group["lr"] for group in method.groups(8e-3) for parameter in group["params"]}
    assert rates.keys() == {id(parameter) for parameter in method.parameters()}
    net = method.generator.decoder
    of = {"weight_up": net.weight_up.weight, "norm": net.LayerNorm.bias, "trunk": net.linear1.weight}
    of |= {"layers": method.generator.layer_embed.weight, "prototype": method.prototypes[1]}
    wanted = {"weight_up": 1e-3, "norm": 1e-3, "trunk": 8e-4, "layers": 8e-4, "prototype": 8e-3}
    assert {name: rates[id(parameter)] for name, parameter in of.items()} == pytest.approx(wanted)
    method.add_task("cola", 2, like="rte", freeze_generator=True)
    (group,) = method.groups(8e-3)
    assert (len(group["params"]), group["lr"]) == (3, 8e-3)


def test_the_seed_decides_everything_that_is_random() -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = bert()
        torch.manual_seed(seed)
        found.append(train(pha.attach(model, CONFIG, {"sst2": 2, "rte": 2}), 4))
    assert found[0] == found[1] != found[2]


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """A data set of one batch's rows."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: tensor[i] for name, tensor in self.batch.items()}


@families
def test_trainer_trains_and_its_checkpoint_is_loaded(family: str, tmp_path: Path) -> None:
    model = based(family, tmp_path)
    method = pha.attach(model, CONFIG, tasks_of(family))
    method.switch("rte")
    args = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_steps=20,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = Rows(batch_of(model, 8))
    trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before
    wanted = logits(method, "rte")
    shake(method)
    assert not torch.equal(logits(method, "rte"), wanted)
    saved = load_file(tmp_path / "out" / "checkpoint-20" / "model.safetensors")
    skip_where(SAVED_NORMS, lambda: saved[f"{method.stack}.param_gen.decoder.LayerNorm.weight"])
    trainer._load_from_checkpoint(str(tmp_path / "out" / "checkpoint-20"))
    assert torch.equal(logits(method, "rte"), wanted)


@families
def test_detach_leaves_the_model_as_it_was(family: str, tmp_path: Path) -> None:
    model = based(family, tmp_path)
    model.base_model.get_input_embeddings().weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    batch = batch_of(model)
    labels = {} if family != "t5" else {"labels": batch["labels"]}
    inputs = {"input_ids": batch["input_ids"]} | labels
    before, attributes, said = model(**inputs).logits, set(vars(model)), model.config.to_dict()
    method = pha.attach(model, CONFIG, tasks_of(family))
    train(method)
    method.add_task("cola", 0 if family == "t5" else 4, [batch])
    train(method)
    model.config.problem_type = said.get("problem_type")  # the model's own loss notes it
    method.detach()
    assert torch.equal(model(**inputs).logits, before)
    assert set(vars(model)) == attributes
    assert model.config.to_dict() == said
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    pha.attach(model, CONFIG, tasks_of(family))


# Runs and packs


@families
def test_a_run_and_what_its_pack_gives_back_compute_the_same_bits(family: str, tmp_path: Path) -> None:
    method = pha.attach(based(family, tmp_path), CONFIG, tasks_of(family))
    shake(method)
    train(method)
    method.save(tmp_path / "run")
    encoded = petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
    assert [one.layout for one in encoded] == ["pha", "pha"]
    assert not any(one.warnings for one in encoded)
    saved = pha.load(again(family, tmp_path), tmp_path / "run")
    assert saved.config == CONFIG
    assert saved.tasks == method.tasks
    for task in method.tasks:
        packed = petlpack.open(tmp_path / "pack")[f"run.{task}"]
        packed.decode(tmp_path / task)
        decoded = pha.load(again(family, tmp_path), tmp_path / task)
        assert decoded.tasks == {task: method.tasks[task]}
        assert decoded.retriever is None
        wanted = logits(method, task)
        assert torch.equal(logits(saved, task), wanted)
        assert torch.equal(logits(decoded, task), wanted)
        assert torch.isfinite(torch.tensor(train(decoded))).all()  # it goes on without the retriever
        head = packed.template.head
        assert head == {f"heads.{task}.{name}" for name in method.head_tensors(task)}
    assert not torch.equal(*(logits(method, task)[:, :2] for task in method.tasks))


@families
def test_the_pack_rebuilds_the_adapters_at_their_places(family: str, tmp_path: Path) -> None:
    method = pha.attach(based(family, tmp_path), CONFIG, tasks_of(family))
    shake(method)
    method.save(tmp_path / "run")
    petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
    rebuilt = petlpack.open(tmp_path / "pack")["run.rte"].rebuild()
    assert rebuilt is not None
    assert rebuilt.kind == "adapter"
    assert rebuilt.settings["form"] == "parallel"
    assert rebuilt.head.keys() == {f"heads.rte.{name}" for name in method.head_tensors("rte")}
    for layer in range(2):
        place = {
            "bert": f"bert.encoder.layer.{layer}.output",
            "roberta": f"roberta.encoder.layer.{layer}.output",
            "t5": f"decoder.block.{layer}.layer.2",
        }[family]
        wanted = formulas.pha_adapter(as_reference(method), 1, layer)
        for name, exact in zip(("down.weight", "down.bias", "up.weight", "up.bias"), wanted, strict=True):
            np.testing.assert_allclose(rebuilt.tensors[f"{place}.{name}"].numpy(), exact, atol=1e-6, rtol=1e-6)
    manual = {f"encoder.block.{layer}.layer.1.down.weight" for layer in range(2)}
    assert {name for name in rebuilt.tensors if name in manual} == (manual if family == "t5" else set())


def test_the_generator_is_one_part_of_all_tasks(tmp_path: Path) -> None:
    method = pha.attach(based("bert", tmp_path), CONFIG, {"sst2": 2, "rte": 2, "cola": 2})
    shake(method)
    method.save(tmp_path / "run")
    petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
    pack = petlpack.open(tmp_path / "pack")
    parts = {tuple(pack[f"run.{task}"].manifest.shared[1:]) for task in method.tasks}
    assert len(parts) == 1
    own = {slot.name: slot.size for slot in pack["run.rte"].sources.slots if slot.part is None}
    assert own == {
        "bert.encoder.adapter_task_embedding.weight": 8,
        "heads.rte.classifier.weight": 32,
        "heads.rte.classifier.bias": 2,
    }


@pytest.mark.parametrize("keep", [False, True])
def test_the_retriever_is_kept_on_request(tmp_path: Path, keep: bool) -> None:
    method = pha.attach(based("bert", tmp_path), CONFIG, {"sst2": 2, "rte": 2})
    shake(method)
    method.save(tmp_path / "run")
    petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", settings={"keep_retriever": keep})
    petlpack.open(tmp_path / "pack")["run.sst2"].decode(tmp_path / "sst2")
    decoded = pha.load(again("bert", tmp_path), tmp_path / "sst2")
    batch = batch_of(method.model)
    if keep:
        assert decoded.nearest([batch])["sst2"] == pytest.approx(method.nearest([batch])["sst2"], rel=1e-6)
        assert decoded.config == CONFIG
    else:
        with pytest.raises(UsageError, match="no retriever"):
            decoded.nearest([batch])


def test_a_model_without_a_head_has_only_its_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = BertModel(BertConfig(vocab_size=50, max_position_embeddings=32, **SMALL)).eval()
    method = pha.attach(model, CONFIG, {"sst2": 0, "rte": 0})
    method.model.eval()
    shake(method)
    method.switch("rte")
    batch = {name: tensor for name, tensor in batch_of(model).items() if name != "labels"}
    wanted = model(**batch).last_hidden_state
    assert method.nearest([batch]).keys() == {"sst2", "rte"}
    method.save(tmp_path / "run")
    petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
    task = petlpack.open(tmp_path / "pack")["run.rte"]
    assert task.template.head == frozenset()
    task.decode(tmp_path / "rte")
    method.detach()
    pha.load(model, tmp_path / "rte")
    assert torch.equal(model(**batch).last_hidden_state, wanted)


def test_a_run_of_the_released_code_is_loaded(tmp_path: Path) -> None:
    """Its file holds the whole T5, dead adapters and prototypes in an order of their own."""
    shape = Shape(width=16, layers=2, bottleneck=4)
    written = write_pha(tmp_path / "run", ["sst2", "rte", "cola"], shape, seed=3)
    method = pha.load(t5(), tmp_path / "run")
    assert list(method.tasks) == json.loads((tmp_path / "run" / "config.json").read_text())["tasks"]
    assert method.config == pha.Config(bottleneck=4)
    adapter = method.generator(method.prototypes[2])[1]
    for part, exact in zip(adapter, formulas.pha_adapter(written.tensors, 2, 1), strict=True):
        np.testing.assert_allclose(part.detach().numpy(), exact, atol=1e-6)
    for name in ("encoder.block.1.layer.1.adapter_layer.adapter_up_manual.weight", "decoder.mlp.2.bias"):
        np.testing.assert_array_equal(method.model.state_dict()[name].numpy(), written.tensors[name])


def test_t5_generates_with_the_adapters_of_its_task() -> None:
    torch.manual_seed(0)
    model = t5().eval()
    method = pha.attach(model, CONFIG, {"sst2": 0, "rte": 0})
    method.model.eval()
    shake(method)
    inputs = {name: tensor for name, tensor in batch_of(model).items() if name != "labels"}
    for task in ("sst2", "rte"):
        method.switch(task)
        with torch.no_grad():
            made = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            whole = model(**inputs, decoder_input_ids=made.sequences[:, :-1]).logits
        steps = torch.stack(made.logits, 1)
        torch.testing.assert_close(steps, whole[:, : steps.shape[1]], atol=1e-5, rtol=1e-4)


# New tasks


def test_the_nearest_prototype_is_that_of_the_cosine() -> None:
    torch.manual_seed(0)
    model = bert().eval()
    method = pha.attach(model, CONFIG, {"sst2": 2, "rte": 2, "cola": 2})
    shake(method)
    batch = batch_of(model)
    seen: list[NDArray[Any]] = []
    assert method.retriever is not None
    handle = method.retriever.register_forward_hook(lambda _m, _a, out: seen.append(out.detach().numpy()))
    model.train()
    found = method.nearest([batch, batch_of(model, 3, seed=5)])
    assert model.training
    handle.remove()
    vectors = np.concatenate(seen)
    assert len(vectors) == 7
    wanted = {
        task: np.mean([cosine(vector, row.detach().numpy()) for vector in vectors])
        for task, row in zip(method.tasks, method.prototypes, strict=True)
    }
    assert found == pytest.approx(wanted, abs=1e-5)
    assert list(found) == sorted(wanted, key=lambda task: -wanted[task])
    method.switch("cola")  # whatever the task is
    assert method.nearest([batch, batch_of(model, 3, seed=5)]) == found


@families
def test_training_draws_a_prototype_to_its_tasks_instances(family: str, tmp_path: Path) -> None:
    """Two tasks of other words: each one's examples find their own prototype."""
    model = based(family, tmp_path)
    method = pha.attach(model, pha.Config(4, 8, 10, weight=1.0), tasks_of(family))
    optimizer = torch.optim.AdamW(method.parameters(), 3e-2)

    def words(number: int, seed: int) -> dict[str, Any]:
        batch = batch_of(model, 8, seed=seed)
        return batch | {"input_ids": batch["input_ids"] % 4 + 5 + 4 * number}

    model.train()
    for step in range(50):
        method.switch(list(method.tasks)[step % 2])
        model(**words(step % 2, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for number, task in enumerate(method.tasks):
        assert next(iter(method.nearest([words(number, 100)]))) == task


@families
def test_a_new_task_starts_at_its_nearest_and_moves_itself_alone(family: str, tmp_path: Path) -> None:
    model = based(family, tmp_path)
    method = pha.attach(model, pha.Config(4, 8, 10, weight=1e-3), tasks_of(family))
    shake(method, 0.2)
    train(method)
    old = {task: logits(method, task) for task in method.tasks}
    method.save(tmp_path / "old")
    batch = batch_of(model, seed=9)
    near = next(iter(method.nearest([batch])))
    row = method.prototypes[list(method.tasks).index(near)].detach().clone()
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert method.add_task("cola", 0 if family == "t5" else 4, [batch], freeze_generator=True) == near
    assert method.task == "cola"
    assert torch.equal(method.prototypes[2], row)
    optimizer = torch.optim.AdamW(method.parameters(), 5e-2, weight_decay=0.1)
    before = model(**batch).loss.item()
    for _ in range(30):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.eval()(**batch).loss.item() < before
    assert not torch.equal(method.prototypes[2], row)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert all(torch.equal(logits(method, task), old[task]) for task in old)

    method.save(tmp_path / "new", tasks=["cola"])
    petlpack.encode(tmp_path / "old", pack=tmp_path / "pack")
    (encoded,) = petlpack.encode(tmp_path / "new", pack=tmp_path / "pack")
    pack = petlpack.open(tmp_path / "pack")
    assert encoded.nbytes < 2048
    assert pack["new"].manifest.shared[1:] == pack["old.rte"].manifest.shared[1:]
    pack["new"].decode(tmp_path / "decoded")
    wanted = logits(method, "cola")
    assert torch.equal(logits(pha.load(again(family, tmp_path), tmp_path / "decoded"), "cola"), wanted)
    method.save(tmp_path / "all")
    whole = pha.load(again(family, tmp_path), tmp_path / "all")
    assert list(whole.tasks) == ["sst2", "rte", "cola"]
    assert torch.equal(logits(whole, "cola"), wanted)


def test_a_new_task_may_train_everything_and_start_where_told(tmp_path: Path) -> None:
    method = pha.attach(based("bert", tmp_path), CONFIG, {"sst2": 2, "rte": 3})
    shake(method)
    trained = {id(parameter) for parameter in method.parameters()}
    assert method.add_task("cola", 4, like="sst2") == "sst2"
    assert torch.equal(method.prototypes[2], method.prototypes[0])
    assert trained < {id(parameter) for parameter in method.parameters()}
    assert len(method.parameters()) == len(trained) + 3  # its row, its head's weight and bias
    assert logits(method, "cola").shape == (4, 4)
    train(method)
    assert not torch.equal(method.prototypes[2], method.prototypes[0])


# What is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bottleneck": 0}, r"bottleneck must be .*, got 0"),
        ({"code": 1.5}, r"code must be .*, got 1\.5"),
        ({"trunk": -1}, r"trunk must be .*, got -1"),
        ({"memory": 0}, r"memory must be .*, got 0"),
        ({"temperature": 0.0}, r"temperature must be .*, got 0\.0"),
        ({"weight": -0.1}, r"weight must be .*, got -0\.1"),
        ({"weight": math.nan}, r"weight must be .*, got nan"),
    ],
)
def test_settings_that_no_run_has_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        pha.Config(**changes)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("family", "tasks", "told"),
    [
        ("bert", {}, "at least one task, got {}"),
        ("bert", {"a.b": 2}, "invalid task name 'a.b'"),
        ("bert", {"a": 2, "b": 0}, "task 'b' must be .*, got 0"),
        ("bert", {"a": -2}, "task 'a' must be .*, got -2"),
        ("t5", {"a": 2}, "task 'a' must be 0, got 2"),
    ],
)
def test_tasks_that_a_model_cannot_have_are_refused(family: str, tasks: dict[str, int], told: str) -> None:
    model = MAKERS[family]()
    with pytest.raises(UsageError, match=told):
        pha.attach(model, CONFIG, tasks)
    pha.attach(model, CONFIG, tasks_of(family))  # the model is as it was


def test_a_task_that_is_not_there_or_there_already_is_refused(tmp_path: Path) -> None:
    method = pha.attach(based("bert", tmp_path), CONFIG, {"sst2": 2})
    for call, told in (
        (lambda: method.switch("rte"), "no task 'rte'"),
        (lambda: method.add_task("sst2", 2, like="sst2"), "'sst2' already exists"),
        (lambda: method.add_task("rte", 2, like="cola"), "no task 'cola'"),
        (lambda: method.add_task("rte", 0, like="sst2"), "labels of task 'rte' must be .*, got 0"),
        (lambda: method.add_task("rte", 2), "no examples"),
        (lambda: method.save(tmp_path / "run", tasks=["rte"]), "no task 'rte'"),
        (lambda: method.save(tmp_path / "run", tasks=[]), "no task to save"),
    ):
        with pytest.raises(UsageError, match=told):
            call()
    assert list(method.tasks) == ["sst2"]


def break_config(run: Path, **changes: Any) -> None:
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def break_tensors(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = run / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda run: (run / "config.json").unlink(), "config.json' is missing"),
    "no weights": (lambda run: (run / "model.safetensors").unlink(), "model.safetensors' is missing"),
    "no tasks": (lambda run: break_config(run, tasks=None), "does not list the tasks"),
    "no json": (lambda run: (run / "config.json").write_text("{"), "does not list the tasks"),
    "no prototypes": (
        lambda run: break_tensors(run, lambda t: t.pop("bert.encoder.adapter_task_embedding.weight")),
        "no 'adapter_task_embedding.weight'",
    ),
    "no trunk": (
        lambda run: break_tensors(run, lambda t: t.pop("bert.encoder.param_gen.decoder.linear2.bias")),
        "no 'bert.encoder.param_gen.decoder.linear2.bias'",
    ),
    "no generator": (
        lambda run: break_tensors(run, lambda t: t.pop("bert.encoder.param_gen.decoder.weight_up.bias")),
        "has no '.*weight_up.bias'",
    ),
    "no head": (
        lambda run: break_tensors(run, lambda t: t.pop("heads.rte.classifier.bias")),
        "has no 'heads.rte.classifier.bias'",
    ),
    "another head": (
        lambda run: break_config(run, task_labels={"sst2": 2, "rte": 4}),
        r"of shape \[3, 16\], .* \[4, 16\]",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_run_is_refused_and_the_model_left_alone(what: str, tmp_path: Path) -> None:
    method = pha.attach(based("bert", tmp_path), CONFIG, tasks_of("bert"))
    method.save(tmp_path / "run")
    damage, told = BROKEN[what]
    damage(tmp_path / "run")
    model = again("bert", tmp_path)
    with pytest.raises(RunError, match=told) as caught:
        pha.load(model, tmp_path / "run")
    assert caught.value.hint
    pha.attach(model, CONFIG, tasks_of("bert"))


def test_a_run_is_refused_on_another_model(tmp_path: Path) -> None:
    pha.attach(based("bert", tmp_path), CONFIG, tasks_of("bert")).save(tmp_path / "run")
    with pytest.raises(RunError, match=r"generator at 'bert\.encoder', but RobertaFor.* has it at 'roberta\.encoder'"):
        pha.load(roberta(), tmp_path / "run")
    with pytest.raises(RunError, match=r"weight_up.weight' of shape \[64, 8\], .* \[128, 8\]"):
        pha.load(bert(hidden_size=32), tmp_path / "run")


READ: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "another kind": (lambda run: break_config(run, encoder_adapter="generated"), ("encoder_adapter", "'pro-hyper'")),
    "another width": (lambda run: break_config(run, hidden_size=32), ("hidden_size 32", "16")),
    "other layers": (lambda run: break_config(run, num_hidden_layers=3), ("num_hidden_layers 3", "2")),
    "no place": (lambda run: break_config(run, adapter_place="encoder"), ("adapter_place", "got 'encoder'")),
    "a head without a task": (
        lambda run: break_tensors(run, lambda t: t.update({"heads.cola.classifier.bias": torch.zeros(2)})),
        ("heads.cola.classifier.bias", "sst2, rte"),
    ),
    "a task without a head": (
        lambda run: break_tensors(run, lambda t: [t.pop(f"heads.rte.classifier.{n}") for n in ("weight", "bias")]),
        ("none for task 'rte'",),
    ),
}


@pytest.mark.parametrize("what", READ)
def test_a_run_whose_files_disagree_is_not_packed(what: str, tmp_path: Path) -> None:
    pha.attach(based("bert", tmp_path), CONFIG, tasks_of("bert")).save(tmp_path / "run")
    damage, told = READ[what]
    damage(tmp_path / "run")
    with pytest.raises(RunError) as caught:
        petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
    assert all(part in caught.value.message for part in told), caught.value.message
    assert caught.value.hint


def test_a_run_that_was_moved_to_half_precision_comes_back_in_it(tmp_path: Path) -> None:
    model = based("bert", tmp_path)
    method = pha.attach(model, CONFIG, {"sst2": 2, "rte": 2})
    shake(method)
    model.to(torch.bfloat16).eval()
    expected = logits(method, "rte")
    method.save(tmp_path / "run")
    other = again("bert", tmp_path).to(torch.bfloat16)
    assert torch.equal(logits(pha.load(other, tmp_path / "run"), "rte"), expected)
