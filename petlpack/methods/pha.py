"""PHA: one network generates every task's adapters from the task's prototype, a row of numbers.

"Prototype-based HyperAdapter for Sample-Efficient Multi-task Tuning" (Zhao, Fu and He 2023); names of tensors
and what the paper leaves open as in Bumble666/PHA (modeling/adapter_t5.py, third_party/trainers/t5_trainer.py).

    method = pha.attach(model, pha.Config(), {"sst2": 2, "rte": 2})
    for task, batch in batches:
        method.switch(task)
        model(**batch).loss.backward()
    method.save("runs/glue")
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import NOT_NEGATIVE, POSITIVE, whole
from petlpack.methods.attachment import loading, put_on
from petlpack.methods.files import stated_in
from petlpack.methods.heads import check_task, new_head
from petlpack.methods.losses import loss_of, with_loss
from petlpack.methods.method import Method
from petlpack.methods.pha_files import fill, find_run, write_run
from petlpack.methods.pha_generator import Adapter, HyperNetwork, SharedAdapter
from petlpack.methods.pha_retriever import Memory, Retriever, instance_loss, prototype_loss
from petlpack.methods.places import Argument, Block, blocks
from petlpack.methods.probe import no_effect, parameters_of
from petlpack.methods.settings import check_all, check_config, check_tasks

__all__ = ["Config", "Pha", "attach", "instance_loss", "load", "prototype_loss"]

_RULES = {
    "bottleneck": (whole(1), "bottleneck is the width of an adapter"),
    "code": (whole(1), "code is the length of a prototype"),
    "trunk": (whole(1), "trunk is the width of the generator's hidden layer"),
    "temperature": (POSITIVE, "temperature divides the retriever's cosines"),
    "weight": (NOT_NEGATIVE, "weight scales the retriever's losses; 0 leaves the retriever out"),
    "memory": (whole(1), "memory is the number of retriever vectors kept for each task"),
}


@dataclass(frozen=True)
class Config:
    """Sizes and the retriever's losses; the defaults are the released code's, whose batches need no memory."""

    bottleneck: int = 64
    """Width of an adapter."""
    code: int = 64
    """Length of a prototype, of a layer's code, and of what the trunk and the retriever make."""
    trunk: int = 128
    """Width of the trunk's and the retriever's hidden layer."""
    temperature: float = 0.1
    weight: float = 0.1
    """Share of the retriever's losses in the loss; with 0 there is no retriever."""
    memory: int = 64
    """Retriever vectors of each task that are remembered as the other tasks' negatives."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        check_all(self, _RULES)


class Pha(Method):
    """PHA on a model.

    A T5 with a decoder has its decoder's adapters generated, and in the encoder adapters that all tasks share; an
    encoder alone has all its adapters generated. Adapters stand parallel to the feed-forward.
    """

    def __init__(self, model: nn.Module, config: Config, tasks: Mapping[str, int]) -> None:
        """Install what `attach` says."""
        self.config = config
        check_tasks(tasks, empty='PHA needs a prototype for each task: tasks={"sst2": 2}')
        self.shared_blocks, self.blocks = _stacks(model)
        super().__init__(model, tasks)
        first = self.blocks[0]
        self.place = first.output_name.replace(".0.", ".{layer}.", 1)
        """Where the generated adapters stand, with `{layer}` for the number of the layer."""
        self.stack = first.stack
        """`decoder`, `bert.encoder`: what the names of the method's tensors begin with."""
        self._adapters: list[Adapter] = []
        self._states: torch.Tensor | None = None
        stack = model.get_submodule(self.stack)
        self.generator = HyperNetwork(config, len(self.blocks), first.width)
        self.add(stack, "param_gen", self.generator)
        self.prototypes = nn.ParameterList(torch.randn(config.code) for _ in tasks)
        """A parameter for each task, so that no optimizer moves the rows of tasks that do not train."""
        self.add(stack, "adapter_task_embedding", self.prototypes)
        self.retriever: Retriever | None = None
        self.memory = Memory(config)
        if config.weight:
            self.retriever = Retriever(config, first.width)
            self.add(stack, "pha_memory", self.memory)
            self.add(stack, "mlp", self.retriever)
        self.hook(stack.register_forward_pre_hook(self._generate))
        self._add_adapters()
        if self.shared_blocks:
            self.hook(model.get_encoder().register_forward_hook(self._watch))
        self._mask = Argument(model, "attention_mask")

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return what trains as an optimizer's parameter groups, so that `lr` is about an adapter's rate, and a head's.

        A generated number is the sum of `code` numbers behind the norm: what makes it gets lr / code, and the trunk
        before the norm lr / 10. With one rate for all, either the generator diverges or the head stands still.
        """
        net = self.generator.decoder
        outputs = [net.LayerNorm, net.weight_up, net.weight_down, net.bias_up, net.bias_down]
        rates = {id(p): lr / self.config.code for module in outputs for p in module.parameters()}
        rates |= {id(p): lr / 10 for p in self.generator.parameters() if id(p) not in rates}
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in self.parameters():
            groups.setdefault(rates.get(id(parameter), lr), []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]

    # Where it stands

    def _add_adapters(self) -> None:
        for layer, block in enumerate(self.blocks):
            self._put(block, functools.partial(self._adapt, layer))
            self.insert("the generated adapter", block.name, block.layer, functools.partial(self._acting, layer))
        for block in self.shared_blocks:
            adapter = SharedAdapter(block.width, self.config.bottleneck)
            self.add(block.output, "adapter_layer", adapter)
            self._put(block, adapter)
            self.insert("the adapter", block.name, block.layer, functools.partial(parameters_of, adapter))

    def _put(self, block: Block, adapter: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add an adapter to a block's feed-forward: x + dropout(FF(n)) + adapter(n), n what the feed-forward reads."""
        if block.is_t5:
            states = Argument(block.output, "hidden_states")

            def behind(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
            ) -> torch.Tensor:
                return output + adapter(module.layer_norm(states.get(args, kwargs)))

            self.hook(block.output.register_forward_hook(behind, with_kwargs=True))
        elif block.output is block.feed_forward:  # a sum, whose order does not matter
            self.hook(block.feed_forward.register_forward_hook(lambda _module, args, out: out + adapter(args[0])))
        else:
            residual = Argument(block.output, "input_tensor", "residual_tensor")  # whose sum with FF(x) is normed

            def before(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                x = residual.get(args, kwargs)
                return residual.put(x + adapter(x), args, kwargs)

            self.hook(block.output.register_forward_pre_hook(before, with_kwargs=True))

    # The forward pass

    def _generate(self, *_: object) -> None:
        self._adapters = self.generator(self.prototypes[self._row(self.task)])

    def _adapt(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if layer == 0 and not self.shared_blocks:
            self._states = x  # before any generated adapter: of the instance alone, whatever the task
        if not self._adapters:
            raise no_effect(f"no adapters were generated: the forward of '{self.stack}' did not run", self.model)
        return self._adapters[layer](x)

    def _acting(self, layer: int) -> list[torch.Tensor]:
        """Return an adapter as the forward under way has it, and what it was generated of."""
        return [*self._adapters[layer], self.prototypes[self._row(self.task)]]

    def _probe(self, run: Callable[[], Any]) -> None:
        self._adapters, self._states = [], None
        super()._probe(run)
        if self.retriever is not None and self._states is None:
            raise no_effect(f"the retriever in '{self.stack}' reads no hidden states", self.model)
        self._states = None

    def _watch(self, _module: nn.Module, _args: object, output: Any) -> None:
        self._states = output[0]

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the model's output, in training with the retriever's losses in the loss."""
        self._states = None
        if self.model.training and any(map(_is_reentrant, self.checkpointing())):
            raise UsageError(
                "PHA does not support reentrant checkpointing: it generates all adapters once per forward",
                hint='set gradient_checkpointing_kwargs={"use_reentrant": False}',
            )
        output = forward(*args, **kwargs)
        if self.retriever is None or not self.model.training:
            return output
        states, self._states = self._states, None
        if states is None or loss_of(output) is None:
            self.tell_without_labels()
            return output
        losses = self._losses(self.retriever.vectors(states, self._mask.get(args, kwargs)))
        return with_loss(output, self.config.weight * losses)

    # The retriever

    def _losses(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return both losses of a batch, and remember its vectors; section 3.2.

        The released code mixes tasks in a batch; here a batch holds one, and the negatives of the instance-instance
        loss are the last vectors of the other tasks, without a gradient.
        """
        row = self._row(self.task)
        others = self.memory.others(row, vectors)
        self.memory.add(row, vectors)
        temperature = self.config.temperature
        table = torch.stack(list(self.prototypes))
        return instance_loss(vectors, others, temperature) + prototype_loss(vectors, table, row, temperature)

    def nearest(self, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Return the tasks, nearest first, with the mean cosine of the examples' vectors and their prototypes.

        `batches` are what the model takes; labels are not looked at. Raises UsageError where there is no retriever.
        """
        batches = [batches] if isinstance(batches, Mapping) else batches
        if self.retriever is None:
            raise UsageError(
                "no retriever to find the nearest prototype with: packs omit it, and weight=0 creates none",
                hint="name the task to start from, like='...', or encode with --keep-retriever",
            )
        training = self.model.training
        self.model.eval()
        reader = self.model.get_encoder() if self.shared_blocks else self.model.base_model
        accepted = inspect.signature(reader.forward).parameters
        cosines = []
        try:
            with torch.no_grad():
                table = F.normalize(torch.stack(list(self.prototypes)), dim=1)
                for batch in batches:
                    reader(**{name: value for name, value in batch.items() if name in accepted})
                    assert self._states is not None
                    vectors = self.retriever.vectors(self._states, batch.get(self._mask.name))
                    cosines.append(F.normalize(vectors, dim=1) @ table.T)
        finally:
            self._states = None
            self.model.train(training)
        if not cosines:
            raise UsageError("no examples to find the nearest prototype with", hint="pass batches of the new task")
        means = dict(zip(self.tasks, torch.cat(cosines).mean(0).tolist(), strict=True))
        return dict(sorted(means.items(), key=lambda row: -row[1]))

    # New tasks

    def add_task(
        self,
        task: str,
        labels: int = 0,
        batches: Iterable[Mapping[str, Any]] = (),
        *,
        like: str | None = None,
        freeze_generator: bool = False,
    ) -> str:
        """Add a task, which starts from a known task's prototype, and switch to it; return that known task.

        It is the one whose prototype is nearest to the examples (the paper's few-shot transfer), or `like`. Training
        goes on with what trains now, or with the new prototype and the new head alone where `freeze_generator`: all
        other tasks then stay as they are, to the bit, and the new one takes a row and a head of a pack. Make a new
        optimizer, for other parameters train.
        """
        if task in self.tasks:
            raise UsageError(f"task '{printable(task)}' already exists", hint="give the new task another name")
        if like is not None and like not in self.tasks:
            raise UsageError(
                f"no task '{printable(str(like))}' to start from", hint=f"choose one of {', '.join(self.tasks)}"
            )
        check_task(self.model, task, labels)
        like = next(iter(self.nearest(batches))) if like is None else like
        if freeze_generator:
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
        row = self.prototypes[self._row(like)].detach().clone()
        self.prototypes.append(nn.Parameter(row))
        self.tasks[task] = labels
        if self.heads is not None:
            head = new_head(self.heads[like], labels).to(self.device)
            self.heads[task] = head.train(self.model.training).requires_grad_(True)
        self.remember()
        self.note_own()
        self.switch(task)
        return like

    def _row(self, task: str) -> int:
        return list(self.tasks).index(task)

    def save(self, directory: str | os.PathLike[str], tasks: Sequence[str] | None = None) -> None:
        """Write model.safetensors, without the base, and config.json; `tasks` leaves the others' rows and heads out."""
        tasks = list(self.tasks) if tasks is None else list(tasks)
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown or not tasks:
            raise UsageError(
                f"no task '{printable(str(unknown[0]))}' to save" if unknown else "no task to save",
                hint=f"choose from {', '.join(self.tasks)}",
            )
        write_run(self, directory, tasks)


def attach(
    model: nn.Module, config: Config, tasks: Mapping[str, int], *, probe: Mapping[str, Any] | None = None
) -> Pha:
    """Put PHA on a model for tasks with so many labels each, 0 for a T5 that generates; the first task comes first.

    `probe` is a batch to probe it with (`Method.probe`). Raises UsageError for a model whose blocks are not known, and
    for tasks that it cannot have.
    """
    check_config(config, Config)
    return put_on(model, lambda: Pha(model, config, tasks), probe)


def load(model: nn.Module, directory: str | os.PathLike[str], *, probe: Mapping[str, Any] | None = None) -> Pha:
    """Put a saved run, or a decoded one, on the model of its base.

    A decoded run has one task, and the retriever only where the pack kept it; without it, training goes on without its
    losses. Raises RunError.
    """
    run = find_run(directory)
    with stated_in(run.config):
        config = Config(**run.settings)
    method = attach(model, config, run.tasks, probe=probe)
    with loading(method):
        fill(method, run)
    return method


def _is_reentrant(module: nn.Module) -> bool:
    """Tell whether a module checkpoints activations by torch's older way, which runs backward in its own graph."""
    run = getattr(module, "_gradient_checkpointing_func", None)
    return bool(getattr(run, "keywords", {}).get("use_reentrant"))


def _stacks(model: nn.Module) -> tuple[list[Block], list[Block]]:
    """Return the blocks whose adapters all tasks share, and those whose adapters are generated."""
    stacks: dict[str, list[Block]] = {}
    for block in blocks(model):
        stacks.setdefault(block.stack, []).append(block)
    *shared, generated = stacks.values()
    if len(shared) > 1 or (shared and not shared[0][0].is_t5):
        raise UsageError(
            f"{type(model).__name__} has {len(stacks)} stacks of layers, which PHA cannot use: {', '.join(stacks)}",
            hint="use an encoder, a decoder or a T5",
        )
    if not generated[0].stack:
        raise UsageError(
            f"{type(model).__name__} is a bare stack of layers, without a head",
            hint="attach to a model with a head, such as AutoModelForSequenceClassification",
        )
    return shared[0] if shared else [], generated
