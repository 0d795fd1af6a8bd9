"""A method and what others do to a model: PEFT, compiling, several processes, a Trainer's checkpoints."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed
import torch.multiprocessing
import transformers

import petlpack
from petlpack.errors import PetlpackError, RunError, UsageError
from tests.support.small_models import METHODS, bert

BATCH = {"input_ids": torch.tensor([[4, 5, 6, 7], [8, 9, 4, 5]]), "labels": torch.tensor([0, 1])}
ONE_EACH = ("propetl lora", "adamix adapter", "diff pruning", "pha")
every = pytest.mark.parametrize("name", ONE_EACH)


def lora() -> Any:
    return peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])


peft_asks = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@every
@peft_asks
def test_a_model_under_peft_is_refused(name: str) -> None:
    model = peft.get_peft_model(bert(), lora())
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    for refused in (model, model.base_model.model):
        with pytest.raises(UsageError, match="has a PEFT adapter"):
            METHODS[name](refused)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    METHODS[name](model.unload()).detach()


@every
@peft_asks
def test_peft_put_on_a_method_is_an_error_in_the_first_step(name: str) -> None:
    model = bert()
    METHODS[name](model)
    tuned = peft.get_peft_model(model, lora()).train()
    with pytest.raises(UsageError, match="is frozen, while other parameters") as caught:
        tuned(**BATCH)
    assert "get_peft_model" in str(caught.value.hint)
    with torch.no_grad():
        tuned(**BATCH)


@peft_asks
def test_a_prompt_of_peft_before_a_frozen_method_is_an_error() -> None:
    """What trains is outside of the model."""
    sizes = {"vocab_size": 40, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    METHODS["propetl adapter"](model)
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).train()
    ids = torch.tensor([[4, 5, 6]])
    with pytest.raises(UsageError, match="is frozen"):
        tuned(input_ids=ids, labels=ids)


@pytest.mark.parametrize("name", ["adamix adapter", "diff pruning"])
@pytest.mark.parametrize("wrap", ["compile", "parallel"])
def test_a_wrapped_model_is_refused(name: str, wrap: str) -> None:
    model = bert()
    wrapped = torch.compile(model, backend="eager") if wrap == "compile" else torch.nn.DataParallel(model)
    with pytest.raises(UsageError, match="wraps BertForSequenceClassification"):
        METHODS[name](wrapped)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("name", ["propetl prefix", "adamix adapter"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, of torch.compile
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_compiled_model_knows_the_method_that_it_has(name: str) -> None:
    """Also the second one: what torch compiled knows the hooks that were there then."""
    model = bert().eval()
    compiled = torch.compile(model, backend="eager")

    def logits(run: Any) -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            found: torch.Tensor = run(input_ids=BATCH["input_ids"]).logits
        return found

    plain = logits(compiled)
    for _ in range(2):
        method = METHODS[name](model)
        for parameter in method.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with_method = logits(model)
        assert not torch.allclose(with_method, plain, atol=1e-3)
        assert torch.allclose(logits(compiled), with_method, atol=1e-5)
        head = method.head_tensors()
        method.detach()
        assert head
    torch.compiler.reset()


# Several processes


def _in_a_process(rank: int, name: str, directory: str) -> None:
    """Train three steps on data of each process's own, and note the parameters or the error."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    torch.save(_trained(rank, name), f"{directory}/{rank}.pt")
    gc.collect()  # DDP's reducer must go before the group does: torch may wait for itself for ever where it is the last
    torch.distributed.destroy_process_group()


def _trained(rank: int, name: str) -> Any:
    model = bert()
    try:
        method = METHODS[name](model)
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(method.groups(0.1))
        torch.manual_seed(rank)
        for step in range(3):
            ids = torch.randint(3, 24, (4, 5), generator=torch.Generator().manual_seed(10 * step + rank))
            parallel(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach() for parameter in method.parameters()]
    except PetlpackError as error:
        return str(error)


def in_two_processes(name: str, directory: Path) -> list[Any]:
    torch.multiprocessing.spawn(_in_a_process, (name, str(directory)), nprocs=2)
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(2)]


needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this torch has no gloo"
)


@pytest.mark.exhaustive(2)
@needs_gloo
@pytest.mark.parametrize("name", ["propetl lora", "adamix adapter"])
def test_processes_train_one_method(name: str, tmp_path: Path) -> None:
    """Each process draws its own experts; all have a gradient, and so agree on it without being told."""
    first, second = in_two_processes(name, tmp_path)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@needs_gloo
def test_diff_pruning_in_two_processes_is_refused(tmp_path: Path) -> None:
    for said in in_two_processes("diff pruning", tmp_path):
        assert said.startswith("diff pruning trains in 1 process, got 2")


# A Trainer saves the whole model, with the method on it


@pytest.mark.parametrize("name", ["propetl adapter", "propetl lora", "propetl prefix of tasks", "pha", "diff pruning"])
def test_a_model_that_was_saved_with_its_method_is_no_full_fine_tune(name: str, tmp_path: Path) -> None:
    model = bert()
    METHODS[name](model)
    model.save_pretrained(tmp_path / "run" / "checkpoint-5")
    with pytest.raises(RunError, match=r"is a model with (PROPETL|PHA|diff pruning) on it") as caught:
        petlpack.encode(tmp_path / "run", pack=tmp_path / "pack")
    assert "method.save(" in str(caught.value.hint)
    assert not (tmp_path / "pack").exists()
    with pytest.raises(RunError, match=r"is a model with (PROPETL|PHA|diff pruning) on it"):
        petlpack.encode(tmp_path / "run" / "checkpoint-5" / "model.safetensors", pack=tmp_path / "pack")
