"""Every method on every family of models: it works, whole way round, or it is refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import petlpack
from petlpack.errors import UsageError
from petlpack.methods import adamix, diff_pruning, pha, propetl
from petlpack.methods import diff_pruning_stages as gates
from tests.support.families import (
    ALL,
    CLASSIFIERS,
    DECODER,
    ENCODER,
    FAMILIES,
    METHODS,
    SIZES,
    batch_of,
    generates,
    opened,
    write_base,
)

_NO_PREFIX = "takes no prefix"
REFUSED = {
    **{(family, "propetl prefix"): _NO_PREFIX for family in FAMILIES if family not in ("bert", "roberta")},
}
CELLS = [(family, name) for family in FAMILIES for name in METHODS]
WORKING = [cell for cell in CELLS if cell not in REFUSED]
works = pytest.mark.parametrize(("family", "name"), WORKING)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a base of each family, without its head."""
    directory = tmp_path_factory.mktemp("bases")
    for family in ALL:
        write_base(directory, family)
    return directory


def logits_of(model: Any, family: str) -> torch.Tensor:
    model.eval()
    batch = batch_of(family, 9)
    if family != "t5":
        batch.pop("labels")
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


def train(method: Any, family: str, steps: int = 6) -> list[float]:
    optimizer = torch.optim.AdamW(method.groups(lr=1e-2), weight_decay=0.0)
    losses = []
    method.model.train()
    for step in range(steps):
        loss = method.model(**batch_of(family, step % 2)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def finished(bases: Path, family: str, name: str) -> Any:
    torch.manual_seed(2)
    method = METHODS[name][1](opened(bases, family), family)
    train(method, family)
    if name == "diff pruning":
        method.prune()
    return method


@pytest.mark.parametrize(("family", "name"), list(REFUSED))
def test_what_does_not_work_is_refused_with_the_reason(bases: Path, family: str, name: str) -> None:
    model = opened(bases, family)
    keys = set(model.__dict__)
    with pytest.raises(UsageError, match=REFUSED[family, name]) as caught:
        METHODS[name][1](model, family)
    assert caught.value.hint
    assert set(model.__dict__) == keys
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.exhaustive(5)
@works
def test_every_trainable_parameter_gets_a_gradient(bases: Path, family: str, name: str) -> None:
    method = METHODS[name][1](opened(bases, family), family)
    method.model.train()
    method.model(**batch_of(family)).loss.backward()
    others = _parts_of_other_tasks(method)
    if isinstance(method, diff_pruning.DiffPruning):  # of weights that the model does not read there is none
        plain = opened(bases, family).train()
        plain(**batch_of(family)).loss.backward()
        unread = {name for name, parameter in plain.named_parameters() if parameter.grad is None}
        stage = method._stage
        assert isinstance(stage, gates.Gates)
        pairs = zip(method._weights, stage.w, stage.alpha, strict=True)
        others = {id(own) for weight, *both in pairs if weight.name in unread for own in both}
    assert all(parameter.grad is not None for parameter in method.parameters() if id(parameter) not in others)
    assert sum(bool(p.grad.any()) for p in method.parameters() if p.grad is not None) >= 2


def _parts_of_other_tasks(method: Any) -> set[int]:
    others: list[Any] = []
    for task in list(method.tasks)[1:]:
        others += method.heads[task].parameters() if method.heads is not None else []
        if isinstance(method, pha.Pha):
            others.append(method.prototypes[method._row(task)])
        if isinstance(method, propetl.Propetl):
            others += method.network.tasks[task].parameters()
    return {id(parameter) for parameter in others}


@pytest.mark.exhaustive(5)
@works
def test_a_run_comes_back_from_its_directory_and_from_a_pack(
    bases: Path, family: str, name: str, tmp_path: Path
) -> None:
    method = finished(bases, family, name)
    expected = logits_of(method.model, family)
    assert not torch.equal(expected, logits_of(opened(bases, family), family))
    method.save(tmp_path / "run")
    task = next(iter(method.tasks), None)
    encoded = petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", base=bases / family)
    assert encoded[0].exact
    assert encoded[0].method.lower().startswith(name.split()[0])
    packed = next(one.name for one in encoded if task is None or one.name.endswith(task))
    petlpack.open(tmp_path / "pack")[packed].decode(tmp_path / "back", base=bases / family)
    for place in ("run", "back"):
        model = opened(bases, family, seed=7)  # what is new in it is drawn otherwise
        METHODS[name][0].load(model, tmp_path / place)
        assert torch.equal(logits_of(model, family), expected), place


@pytest.mark.exhaustive(5)
@works
def test_a_base_in_half_precision(bases: Path, family: str, name: str, tmp_path: Path) -> None:
    """The method's weights and the head's are in single precision, and what it computes comes back to the bit."""
    method = METHODS[name][1](opened(bases, family, torch.bfloat16), family)
    assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}
    before = logits_of(method.model, family)
    train(method, family)
    if name == "diff pruning":
        method.prune()
    expected = logits_of(method.model, family)
    assert expected.dtype == (torch.bfloat16 if generates(family) else torch.float32)
    assert expected.isfinite().all()
    assert not torch.equal(expected, before)
    method.save(tmp_path / "run")
    model = opened(bases, family, torch.bfloat16)
    METHODS[name][0].load(model, tmp_path / "run")
    assert torch.equal(logits_of(model, family), expected)


@pytest.mark.exhaustive(5)
@works
def test_checkpointing_and_accumulation_change_no_gradient(bases: Path, family: str, name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        method = METHODS[name][1](opened(bases, family), family)
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                method.model.gradient_checkpointing_enable({"use_reentrant": False})
        method.model.train()
        torch.manual_seed(3)
        for seed in range(2):
            method.model(**batch_of(family, seed)).loss.backward()
        gradients.append([p.grad.clone() if p.grad is not None else None for p in method.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain is None) == (checkpointed is None)
        assert plain is None or torch.allclose(plain, checkpointed, atol=1e-6)


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "gemma", "bert", "gpt2", "modernbert", "distilbert", "deberta-v2"]
)
@pytest.mark.parametrize("name", ["propetl lora", "adamix lora"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # that PEFT asks
def test_a_lora_is_merged_by_peft(bases: Path, family: str, name: str, tmp_path: Path) -> None:
    """Trained, packed, decoded for PEFT, merged into the base: the same logits."""
    torch.manual_seed(2)
    method = METHODS[name][1](opened(bases, family), family)
    losses = train(method, family, 50)
    assert losses[-1] < losses[0]
    expected = logits_of(method.model, family)
    method.save(tmp_path / "run")
    (encoded,) = petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", base=bases / family)
    petlpack.open(tmp_path / "pack")[encoded.name].decode(tmp_path / "peft", base=bases / family, to="peft")
    adapted: Any = peft.PeftModel.from_pretrained(opened(bases, family), str(tmp_path / "peft"))
    merged = adapted.merge_and_unload()
    plain = logits_of(opened(bases, family), family)
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert torch.allclose(logits_of(merged, family), expected, atol=1e-5)


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("name", ["propetl lora", "propetl lora of tasks", "adamix lora"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # that PEFT asks
@pytest.mark.filterwarnings("error:.*missing adapter keys:UserWarning")
def test_a_classifier_goes_to_peft_with_its_head(bases: Path, family: str, name: str, tmp_path: Path) -> None:
    if name == "propetl lora of tasks":
        method = of_two_tasks(bases, family, name)
        expected = logits_by_task(method, family, method.tasks)
    else:
        method = finished(bases, family, name)
        expected = {"run": logits_of(method.model, family)}
    method.save(tmp_path / "run")
    for encoded in petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", base=bases / family):
        task = encoded.name.rpartition(".")[2]
        decoded = petlpack.open(tmp_path / "pack")[encoded.name].decode(tmp_path / "peft" / task, to="peft")
        assert decoded.notes == ()
        model = opened(bases, family, seed=7, num_labels=expected[task].shape[1])
        adapted: Any = peft.PeftModel.from_pretrained(model, str(tmp_path / "peft" / task))
        assert adapted.peft_config["default"].task_type == "SEQ_CLS"
        assert torch.equal(logits_of(adapted, family), expected[task])
        assert torch.allclose(logits_of(adapted.merge_and_unload(), family), expected[task], atol=5e-5, rtol=0)


FRONTS = {"distilbert": "pre_classifier", "deberta-v2": "pooler"}
of_tasks = pytest.mark.parametrize("name", ["propetl lora of tasks", "pha"])


def of_two_tasks(bases: Path, family: str, name: str) -> Any:
    """Return a method trained on both of its tasks, by turns."""
    torch.manual_seed(2)
    method = METHODS[name][1](opened(bases, family), family)
    for task in ("one", "two", "one"):
        method.switch(task)
        train(method, family, 3)
    return method


def logits_by_task(method: Any, family: str, tasks: Iterable[str]) -> dict[str, torch.Tensor]:
    found = {}
    for task in tasks:
        method.switch(task)
        found[task] = logits_of(method.model, family)
    return found


@pytest.mark.parametrize("family", FRONTS)
@of_tasks
def test_each_task_has_its_own_of_what_stands_in_front_of_the_head(
    bases: Path, family: str, name: str, tmp_path: Path
) -> None:
    method = of_two_tasks(bases, family, name)
    front = FRONTS[family]
    one, two = (
        {key: tensor for key, tensor in method.head_tensors(task).items() if key.startswith(front)}
        for task in method.tasks
    )
    assert one.keys() == two.keys() != set()
    assert not any(torch.equal(one[key], two[key]) for key in one)
    expected = logits_by_task(method, family, ["one", "two"])
    method.save(tmp_path / "run")
    loaded = METHODS[name][0].load(opened(bases, family), tmp_path / "run")
    found = logits_by_task(loaded, family, ["two", "one"])
    assert all(torch.equal(found[task], expected[task]) for task in expected)
    for encoded in petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", base=bases / family):
        packed = petlpack.open(tmp_path / "pack")[encoded.name]
        task = encoded.name.rpartition(".")[2]
        assert packed.template.head == {f"heads.{task}.{key}" for key in method.head_tensors(task)}
        packed.decode(tmp_path / task, base=bases / family)
        alone = METHODS[name][0].load(opened(bases, family), tmp_path / task)
        assert torch.equal(logits_of(alone.model, family), expected[task])


@pytest.mark.parametrize("family", FRONTS)
@of_tasks
def test_what_stands_in_front_of_the_head_is_back_after_detach(bases: Path, family: str, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in opened(bases, family).state_dict().items()}
    method = of_two_tasks(bases, family, name)
    method.detach()
    after = method.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert all(parameter.requires_grad for parameter in method.model.parameters())


@pytest.mark.parametrize("family", FRONTS)
def test_a_new_task_takes_a_copy_of_what_stands_in_front_of_the_head(bases: Path, family: str) -> None:
    method = of_two_tasks(bases, family, "pha")
    expected = logits_by_task(method, family, ["one", "two"])
    method.add_task("three", 4, like="two", freeze_generator=True)
    like, new = (method.head_tensors(task) for task in ("two", "three"))
    front = [key for key in new if key.startswith(FRONTS[family])]
    assert front
    assert all(torch.equal(new[key], like[key]) for key in front)
    train(method, family, 3)
    assert not any(torch.equal(method.head_tensors("three")[key], new[key]) for key in new)
    found = logits_by_task(method, family, ["one", "two"])
    assert all(torch.equal(found[task], expected[task]) for task in expected)


def test_a_model_whose_norms_stand_behind_both_is_refused() -> None:
    config = transformers.Olmo2Config(**DECODER)
    with pytest.raises(UsageError, match="no transformer blocks of a known kind"):
        METHODS["propetl adapter"][1](transformers.Olmo2ForCausalLM(config), "llama")


@pytest.mark.parametrize("name", ["propetl lora", "adamix lora"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # that Transformers 5.0 calls
def test_a_lora_is_not_put_on_a_matrix_whose_outputs_are_ordered_by_heads(name: str) -> None:
    sizes = {"vocab_size": 40, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = transformers.GPTBigCodeForCausalLM(transformers.GPTBigCodeConfig(**sizes, multi_query=False))
    with pytest.raises(UsageError, match="has query and value in one matrix"):
        METHODS[name][1](model, "gpt2")


IMAGES = {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
OF_IMAGES: dict[str, tuple[Any, Any]] = {
    "propetl lora": (propetl, propetl.Config(kind="lora", rank=4)),
    "propetl adapter": (propetl, propetl.Config(bottleneck=4)),
    "adamix adapter": (adamix, adamix.Config(bottleneck=4)),
    "adamix lora": (adamix, adamix.Config(kind="lora", rank=2)),
    "diff pruning": (diff_pruning, diff_pruning.Config(density=0.05)),
    "pha": (pha, pha.Config(bottleneck=4, code=8, trunk=8)),
}


def test_layers_that_are_built_otherwise_are_not_left_out() -> None:
    sizes = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    config = transformers.Qwen3NextConfig(**{**DECODER, "num_hidden_layers": 4}, **sizes, **experts)
    with pytest.raises(UsageError, match=r"4 layers in 'model\.layers', of which 3 differ"):
        propetl.attach(transformers.Qwen3NextForCausalLM(config), propetl.Config())


def test_a_prefix_is_not_put_on_a_decoder_behind_an_encoder() -> None:
    sizes = {key: value for key, value in ENCODER.items() if key != "num_labels"}
    decoder = transformers.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    model = transformers.EncoderDecoderModel(
        encoder=transformers.BertModel(transformers.BertConfig(**sizes)), decoder=transformers.BertLMHeadModel(decoder)
    )
    with pytest.raises(UsageError, match=_NO_PREFIX):
        METHODS["propetl prefix"][1](model, "bert")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adamix_compares_the_positions_whose_next_token_has_a_label(
    bases: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(bases, family)
    adamix.attach(model, adamix.Config(bottleneck=4))
    seen: list[torch.Tensor] = []
    plain = adamix.symmetric_kl

    def noting(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(a)
        return plain(a, b)

    monkeypatch.setattr(adamix, "symmetric_kl", noting)
    output = model.train()(input_ids=torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[-100, -100, -100, 8]]))
    assert torch.equal(seen[0], output.logits[:, 2])


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images_are_classified(name: str, tmp_path: Path) -> None:
    """A model of images runs on no tokens: the probe is given a batch."""
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    torch.manual_seed(0)
    base = transformers.ViTModel(transformers.ViTConfig(**sizes, **SIZES))
    if not any(name.endswith(".mlp") for name, _ in base.named_modules()):
        pytest.skip(f"transformers {transformers.__version__}: ViT's blocks are of an older kind, which is refused")
    base.save_pretrained(tmp_path / "base")

    def fresh() -> Any:
        torch.manual_seed(1)
        return transformers.ViTForImageClassification.from_pretrained(tmp_path / "base", num_labels=2)

    module, config = OF_IMAGES[name]
    tasks = {"tasks": {"one": 2}} if module is pha else {}
    method = module.attach(fresh(), config, **tasks, probe=IMAGES)
    optimizer = torch.optim.AdamW(method.groups(1e-2), weight_decay=0.0)
    losses = []
    for _ in range(15):
        loss = method.model(**IMAGES, labels=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]
    if name == "diff pruning":
        method.prune()
    method.model.eval()
    expected = method.model(**IMAGES).logits
    method.save(tmp_path / "run")
    (encoded,) = petlpack.encode(tmp_path / "run", pack=tmp_path / "pack", base=tmp_path / "base")
    petlpack.open(tmp_path / "pack")[encoded.name].decode(tmp_path / "back", base=tmp_path / "base")
    model = fresh()
    module.load(model, tmp_path / "back", probe=IMAGES)
    assert torch.equal(model(**IMAGES).logits, expected)
