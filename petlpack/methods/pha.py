"""PHA: one network generates every task's adapters from the task's prototype, a row of numbers.

"Prototype-based HyperAdapter for Sample-Efficient Multi-task Tuning" (Zhao, Fu, Zhang and Hou 2023); names of tensors
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
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petlpack.errors import RunError, UsageError, printable
from petlpack.methods.files import GIVE, TensorFile, run_directory, stated_in, write_json, write_tensors
from petlpack.methods.method import Method, check_task, loading, loss_of, new_head, put_on, with_loss
from petlpack.methods.places import Argument, Block, blocks
from petlpack.methods.probe import no_effect
from petlpack.methods.settings import NOT_NEGATIVE, POSITIVE, check_all, check_config, check_tasks, whole
from petlpack.tensors.checkpoint import find_weights

FILE = "model.safetensors"

_PROTOTYPES = "adapter_task_embedding.weight"

_RULES = {
    "bottleneck": (whole(1), "bottleneck is the width of an adapter"),
    "code": (whole(1), "code is the length of a prototype"),
    "trunk": (whole(1), "trunk is the width of the generator's hidden layer"),
    "temperature": (POSITIVE, "temperature divides the retriever's cosines"),
    "weight": (NOT_NEGATIVE, "weight multiplies the retriever's losses; with 0 there is no retriever"),
    "memory": (whole(1), "memory is how many vectors of each task are remembered"),
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


class Adapter(tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]):
    """The weights of one adapter, as nn.Linear has them: down (r, d), its bias (r), up (d, r), its bias (d)."""

    __slots__ = ()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(x Wdown + bdown) Wup + bup of x (..., d), in the dtype of x: Houlsby et al. 2019, Figure 2."""
        down, down_bias, up, up_bias = (part.to(x.dtype) for part in self)
        return F.linear(F.relu(F.linear(x, down, down_bias)), up, up_bias)


class _Manual(nn.Module):  # type: ignore[misc]
    """An adapter of the encoder, which all tasks share; starts at 0."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.adapter_down_manual = nn.Linear(width, bottleneck)
        self.adapter_up_manual = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.adapter_up_manual.weight)
        nn.init.zeros_(self.adapter_up_manual.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up = self.adapter_down_manual, self.adapter_up_manual
        return Adapter((down.weight, down.bias, up.weight, up.bias))(x)


class _Net(nn.Module):  # type: ignore[misc]
    """From codes (n, 2 code) to the numbers of n adapters."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(2 * config.code, config.trunk)
        self.linear2 = nn.Linear(config.trunk, config.code)
        self.LayerNorm = nn.LayerNorm(config.code, eps=1e-6)
        self.weight_up = nn.Linear(config.code, width * config.bottleneck)
        self.weight_down = nn.Linear(config.code, width * config.bottleneck)
        self.bias_up = nn.Linear(config.code, width)
        self.bias_down = nn.Linear(config.code, config.bottleneck)
        for linear in (self.weight_up, self.bias_up, self.bias_down):
            nn.init.zeros_(linear.weight)
        # Hyperfan-in (Chang, Flokas and Lipson 2020): behind the norm, a generated entry has variance 1 / width
        nn.init.normal_(self.weight_down.weight, std=(config.code * width) ** -0.5)
        for linear in (self.weight_up, self.weight_down, self.bias_up, self.bias_down):
            nn.init.zeros_(linear.bias)

    def forward(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.LayerNorm(self.linear2(F.relu(self.linear1(codes))))
        return self.weight_up(hidden), self.weight_down(hidden), self.bias_up(hidden), self.bias_down(hidden)


class Generator(nn.Module):  # type: ignore[misc]
    """The hypernetwork: from a prototype to an adapter for each layer; section 3.3.

    e = [K ; L_i], h = LayerNorm(W2 relu(W1 e + b1) + b2), and each part of the adapter is linear in h. What makes the
    up-projection starts at 0, so that training starts at the base's function, as LoRA's does; what makes the
    down-projection does not. (The released code starts both near 0, at a saddle.)
    """

    def __init__(self, config: Config, layers: int, width: int) -> None:
        """Make the network for so many layers of this width."""
        super().__init__()
        self.layer_embed = nn.Embedding(layers, config.code)
        self.decoder = _Net(config, width)
        self._shape = config.bottleneck, width

    def forward(self, prototype: torch.Tensor) -> list[Adapter]:
        """Return the adapters of a prototype of shape (code,), one for each layer."""
        layers, (bottleneck, width) = self.layer_embed.weight, self._shape
        codes = torch.cat([prototype.expand(len(layers), -1), layers], 1)
        up, down, up_bias, down_bias = self.decoder(codes)
        ups = up.view(-1, bottleneck, width).transpose(1, 2)
        downs = down.view(-1, width, bottleneck).transpose(1, 2)
        return [Adapter(parts) for parts in zip(downs, down_bias, ups, up_bias, strict=True)]


class Memory(nn.Module):  # type: ignore[misc]
    """The retriever's last vectors of each task, by the task's row: the other tasks' negatives.

    A checkpoint of the model keeps them, or training would go on from it with others. Their number grows, so they are
    an extra state: (vectors, 1 + code), the row first.
    """

    def __init__(self, config: Config) -> None:
        """Remember nothing."""
        super().__init__()
        self.vectors: dict[int, torch.Tensor] = {}
        self._most = config.memory
        self._none = torch.empty(0, 1 + config.code)

    def others(self, row: int, like: torch.Tensor) -> torch.Tensor:
        """Return the vectors of all tasks but this; of the dtype and on the device of `like` where there are none."""
        return torch.cat([like[:0], *(self.vectors[other] for other in sorted(self.vectors) if other != row)])

    def add(self, row: int, vectors: torch.Tensor) -> None:
        """Remember a task's vectors, and forget its oldest."""
        past = self.vectors.get(row, vectors[:0])
        self.vectors[row] = torch.cat([past, vectors]).detach()[-self._most :]

    def get_extra_state(self) -> torch.Tensor:
        """Return what is remembered, as one tensor: a checkpoint holds nothing else."""
        rows = [F.pad(vectors, (1, 0), value=row) for row, vectors in sorted(self.vectors.items())]
        return torch.cat(rows) if rows else self._none

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Remember what a checkpoint did."""
        self.vectors = {int(row): state[state[:, 0] == row, 1:] for row in state[:, 0].unique()}


def instance_loss(vectors: torch.Tensor, others: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return InfoNCE between instances (n, code) of one task and `others` (m, code) of other tasks; section 3.2.

    -log softmax of the cosine over the temperature, over the other n - 1 and the m, in the mean over the n - 1
    positives and the n instances: `_ins_ins_loss` of the released code. Without a positive or a negative nothing is to
    be told apart, and it is 0.
    """
    n = len(vectors)
    if n < 2 or not len(others):
        return vectors.sum() * 0
    vectors, others = F.normalize(vectors, dim=1), F.normalize(others, dim=1)
    scores = vectors @ torch.cat([vectors, others]).T / temperature
    itself = torch.eye(n, n + len(others), dtype=torch.bool, device=vectors.device)
    logs = F.log_softmax(scores.masked_fill(itself, -torch.inf), 1)[:, :n]
    return -logs.masked_fill(itself[:, :n], 0).sum() / (n * (n - 1))


def prototype_loss(vectors: torch.Tensor, prototypes: torch.Tensor, row: int, temperature: float) -> torch.Tensor:
    """Return InfoNCE between instances (n, code) and prototypes (tasks, code), of which `row` is theirs; section 3.2.

    The mean of -log softmax of the cosine over the temperature; with one task it is 0. (`_pro_ins_loss` of the released
    code leaves the positive out of the sum, which has no lower bound.)
    """
    scores = F.normalize(vectors, dim=1) @ F.normalize(prototypes, dim=1).T / temperature
    return -F.log_softmax(scores, 1)[:, row].mean()


class Pha(Method):
    """PHA on a model.

    A T5 with a decoder has its decoder's adapters generated, and in the encoder adapters that all tasks share; an
    encoder alone has all its adapters generated. Adapters stand parallel to the feed-forward.
    """

    def __init__(self, model: nn.Module, config: Config, tasks: Mapping[str, int]) -> None:
        """Install what `attach` says."""
        self.config = config
        if not tasks:
            raise UsageError("no tasks were given, and PHA needs a prototype for each", hint='say tasks={"sst2": 2}')
        check_tasks(tasks)
        self._manual, self._generated = _stacks(model)
        super().__init__(model, tasks)
        first = self._generated[0].output_name
        self.place = first.replace(".0.", ".{layer}.", 1)
        """Where the generated adapters stand, with `{layer}` for the number of the layer."""
        self.stack = self._generated[0].stack
        """`decoder`, `bert.encoder`: what the names of the method's tensors begin with."""
        self._adapters: list[Adapter] = []
        self._states: torch.Tensor | None = None
        width = self._generated[0].width
        stack = model.get_submodule(self.stack)
        self.generator = Generator(config, len(self._generated), width)
        self.add(stack, "param_gen", self.generator)
        self.prototypes = nn.ParameterList(torch.randn(config.code) for _ in tasks)
        """A parameter for each task, so that no optimizer moves the rows of tasks that do not train."""
        self.add(stack, "adapter_task_embedding", self.prototypes)
        self.retriever: nn.Sequential | None = None
        self.memory = Memory(config)
        if config.weight:
            self.retriever = nn.Sequential(
                nn.Linear(width, config.trunk), nn.ReLU(), nn.Linear(config.trunk, config.code)
            )
            self.add(stack, "pha_memory", self.memory)
            self.add(stack, "mlp", self.retriever)
        self.hook(stack.register_forward_pre_hook(self._generate))
        for layer, block in enumerate(self._generated):
            self._put(block, functools.partial(self._adapt, layer))
            self.insert("the generated adapter", block.name, block.layer, functools.partial(self._acting, layer))
        for block in self._manual:
            adapter = _Manual(width, config.bottleneck)
            self.add(block.output, "adapter_layer", adapter)
            self._put(block, adapter)
            self.insert("the adapter", block.name, block.layer, functools.partial(_parameters_of, adapter))
        if self._manual:
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

    # The forward pass

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

    def _generate(self, *_: object) -> None:
        self._adapters = self.generator(self.prototypes[self._row(self.task)])

    def _adapt(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if layer == 0 and not self._manual:
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
        if self.model.training and any(map(_is_reentrant, self.model.modules())):
            raise UsageError(
                "PHA makes its adapters once for all layers, and reentrant checkpointing would go through that twice",
                hint='checkpoint with gradient_checkpointing_kwargs={"use_reentrant": False}',
            )
        output = forward(*args, **kwargs)
        if self.retriever is None or not self.model.training:
            return output
        states, self._states = self._states, None
        if states is None or loss_of(output) is None:
            self.tell_without_labels()
            return output
        losses = self._losses(self._vectors(states, self._mask.get(args, kwargs)))
        return with_loss(output, self.config.weight * losses)

    # The retriever

    def _vectors(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the retriever's vectors (batch, code) of hidden states (batch, length, d), meaned over the mask."""
        assert self.retriever is not None
        if mask is None or mask.dim() != 2:
            pooled = states.mean(1)
        else:
            kept = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
        return self.retriever(pooled.to(self.retriever[0].weight.dtype))

    def _losses(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return both losses of a batch, and remember its vectors; section 3.2.

        The released code mixes tasks in a batch; here a batch holds one, and the negatives of the instance-instance
        loss are the last vectors of the other tasks, without a gradient.
        """
        own = self._row(self.task)
        others = self.memory.others(own, vectors)
        self.memory.add(own, vectors)
        temperature = self.config.temperature
        table = torch.stack(list(self.prototypes))
        return instance_loss(vectors, others, temperature) + prototype_loss(vectors, table, own, temperature)

    def nearest(self, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Return the tasks, nearest first, with the mean cosine of the examples' vectors and their prototypes.

        `batches` are what the model takes; labels are not looked at. Raises UsageError where there is no retriever.
        """
        batches = [batches] if isinstance(batches, Mapping) else batches
        if self.retriever is None:
            raise UsageError(
                "there is no retriever to find the nearest prototype with: packs leave it out, and weight=0 makes none",
                hint="name the task to start from, like='...', or encode with --keep-retriever",
            )
        training = self.model.training
        self.model.eval()
        reader = self.model.get_encoder() if self._manual else self.model.base_model
        taken = inspect.signature(reader.forward).parameters
        cosines = []
        try:
            with torch.no_grad():
                table = F.normalize(torch.stack(list(self.prototypes)), dim=1)
                for batch in batches:
                    reader(**{name: value for name, value in batch.items() if name in taken})
                    assert self._states is not None
                    vectors = self._vectors(self._states, batch.get(self._mask.name))
                    cosines.append(F.normalize(vectors, dim=1) @ table.T)
        finally:
            self._states = None
            self.model.train(training)
        if not cosines:
            raise UsageError(
                "there are no examples to find the nearest prototype with", hint="give batches of the new task"
            )
        means = dict(zip(self.tasks, torch.cat(cosines).mean(0).tolist(), strict=True))
        return dict(sorted(means.items(), key=lambda found: -found[1]))

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
            raise UsageError(f"task '{printable(task)}' exists already", hint="give the new task a name of its own")
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

    # Files

    def save(self, directory: str | os.PathLike[str], tasks: Sequence[str] | None = None) -> None:
        """Write model.safetensors, without the base, and config.json; `tasks` leaves the others' rows and heads out."""
        tasks = list(self.tasks) if tasks is None else list(tasks)
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown or not tasks:
            raise UsageError(
                f"no task '{printable(str(unknown[0]))}' to save" if unknown else "no task to save",
                hint=f"choose from {', '.join(self.tasks)}",
            )
        tensors = self._shared()
        tensors[f"{self.stack}.{_PROTOTYPES}"] = torch.stack([self.prototypes[self._row(task)] for task in tasks])
        if self.heads is not None:
            for task in tasks:
                tensors |= {f"heads.{task}.{name}": tensor for name, tensor in self.head_tensors(task).items()}
        end = self.stack.rpartition(".")[2]
        settings = {"encoder_adapter": "manual", "encoder_adapter_dim": self.config.bottleneck} if self._manual else {}
        settings |= {f"{end}_adapter": "pro-hyper", f"{end}_adapter_dim": self.config.bottleneck}
        config = self.config_json(
            **settings,
            adapter_norm_input=self._generated[0].norm is None and self._generated[0].reads is not None,
            adapter_place=self.place,
            process_encoder_output=self.retriever is not None,
            hypernetwork_bottleneck=self.config.trunk,
            retriever={name: getattr(self.config, name) for name in ("temperature", "weight", "memory")},
            tasks=tasks,
            task_labels={task: self.tasks[task] for task in tasks},
        )
        for name in ("id2label", "label2id"):  # of the current task's head alone
            config.pop(name, None)
        with self.writing(directory) as made:
            write_tensors(made / FILE, tensors)
            write_json(made / "config.json", config)

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the method alone, without the heads'."""
        modules = [self.generator, self.prototypes, self.retriever, *(b.output.adapter_layer for b in self._manual)]
        return [parameter for module in modules if module is not None for parameter in module.parameters()]

    def _shared(self) -> dict[str, torch.Tensor]:
        """Return the tensors that all tasks share, as the file names them."""
        modules = {f"{block.output_name}.adapter_layer": block.output.adapter_layer for block in self._manual}
        modules[f"{self.stack}.param_gen"] = self.generator
        if self.retriever is not None:
            modules[f"{self.stack}.mlp"] = self.retriever
        return {
            f"{place}.{name}": tensor.detach()
            for place, module in modules.items()
            for name, tensor in module.state_dict().items()
        }

    def _copy(self, file: TensorFile) -> None:
        """Copy a run's tensors in; raises RunError where it lacks one, or has another shape."""
        file.copy(self._shared())
        name = f"{self.stack}.{_PROTOTYPES}"
        table = file.get(name, (len(self.prototypes), self.config.code))
        for prototype, row in zip(self.prototypes, table, strict=True):
            prototype.data.copy_(row)
        for task in self.tasks if self.heads is not None else ():
            file.copy_head(self, f"heads.{task}.", task)


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
    directory = run_directory(directory)
    weights = find_weights(directory) or directory / FILE
    said = weights.parent / "config.json"
    for path in (weights, said):
        if not path.is_file():
            raise RunError(f"'{printable(str(path))}' is missing", hint=GIVE)
    file = TensorFile(weights)
    tensors = file.tensors
    try:
        table = json.loads(said.read_text(encoding="utf-8"))
        tasks = {task: int(table.get("task_labels", {}).get(task, 0)) for task in table["tasks"]}
        losses = {name: value for name, value in table.get("retriever", {}).items() if name in asdict(Config())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"'{printable(str(said))}' does not say the tasks of the run: {printable(repr(error))}",
            hint="the config.json of a PHA run has `tasks` in the order of the prototypes",
        ) from error
    stack = next((name.removesuffix(f".{_PROTOTYPES}") for name in tensors if name.endswith(f".{_PROTOTYPES}")), None)
    net = f"{stack}.param_gen.decoder"
    sizes = {"code": f"{net}.linear2.bias", "trunk": f"{net}.linear1.bias", "bottleneck": f"{net}.bias_down.bias"}
    missing = next((name for name in sizes.values() if name not in tensors), None)
    if stack is None or missing:
        raise file.error(f"has no '{missing if stack else _PROTOTYPES}'")
    if not any(name.startswith(f"{stack}.mlp.") for name in tensors):
        losses["weight"] = 0.0
    with stated_in(said):
        config = Config(**{size: len(tensors[name]) for size, name in sizes.items()}, **losses)
    method = attach(model, config, tasks, probe=probe)
    with loading(method):
        if method.stack != stack:
            raise file.error(f"has its generator at '{stack}', but {type(model).__name__} has it at '{method.stack}'")
        for parameter in method.own_parameters():
            parameter.data = parameter.data.to(tensors[sizes["code"]].dtype)  # it may have been moved to another
        method._copy(file)
    return method


def _is_reentrant(module: nn.Module) -> bool:
    """Tell whether a module checkpoints activations by torch's older way, which runs backward in its own graph."""
    run = getattr(module, "_gradient_checkpointing_func", None)
    on = getattr(module, "gradient_checkpointing", False) and run is not None
    return bool(on and getattr(run, "keywords", {}).get("use_reentrant"))


def _parameters_of(module: nn.Module) -> list[torch.Tensor]:
    return list(module.parameters())


def _stacks(model: nn.Module) -> tuple[list[Block], list[Block]]:
    """Return the blocks whose adapters all tasks share, and those whose adapters are generated."""
    stacks: dict[str, list[Block]] = {}
    for block in blocks(model):
        stacks.setdefault(block.stack, []).append(block)
    found = list(stacks.values())
    if len(found) > 2 or (len(found) == 2 and not found[0][0].is_t5):
        raise UsageError(
            f"{type(model).__name__} has {len(found)} stacks: {', '.join(stacks)}",
            hint="PHA works on an encoder, on a decoder, or on a T5",
        )
    if not found[-1][0].stack:
        raise UsageError(
            f"{type(model).__name__} is a bare stack of layers", hint="attach to the model with a head around it"
        )
    return (found[0], found[1]) if len(found) == 2 else ([], found[0])
