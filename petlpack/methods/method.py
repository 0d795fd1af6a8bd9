"""What all methods have in common: a method stands on a model, trains by itself, is saved, and is taken off."""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from petlpack.errors import UsageError, printable
from petlpack.layouts.heads import MODULES
from petlpack.methods.base import refuse_new_weights
from petlpack.methods.places import OF_METHOD, head_modules, head_of, refuse_wrapped
from petlpack.methods.probe import Insert, check_inserts, few_tokens, no_effect
from petlpack.methods.settings import Rule, check, check_name, check_tasks, whole


class Method(ABC):
    """A method on a model, from `attach` to `detach`.

    The base is frozen, the method's parameters and the head's train, and `model(..., labels=...).loss` is the method's
    whole loss, so that any loop and `transformers.Trainer` train it. With `tasks` (labels by task) the model gets a
    head for each, with what stands in front of it, and `switch` says whose batch comes next; a task with 0 labels has
    no head (a T5 that generates).
    The model is in train mode after `attach`, and in eval mode after `load`.
    """

    config: Any
    """The settings that it was attached with, a dataclass."""

    def __init__(self, model: nn.Module, tasks: Mapping[str, int] | None = None) -> None:
        refuse_wrapped(model)
        check_tasks(tasks or {})
        for task, labels in (tasks or {}).items():
            check_task(model, task, labels)
        if getattr(model, "_petl_method", None) is not None:
            raise UsageError(
                f"{type(model).__name__} already has a method on it ({type(model._petl_method).__module__})",
                hint="take it off first: method.detach()",
            )
        self.model = model
        self.tasks = dict(tasks or {})
        self.task = next(iter(self.tasks), "")
        self._undo: list[Callable[[], None]] = []
        self._told = False
        self._inserts: list[Insert] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._added: list[nn.Module] = []
        self._mine: list[nn.Parameter] = []
        self._frozen: list[tuple[str, nn.Parameter]] = []
        self._switched = self._widened = False
        self._probing = False
        self._ran = False
        self._batch: dict[str, Any] | None = None
        self._probed: set[str] = set()
        refuse_new_weights(model)
        self._freeze()
        for name, value in (("_petl_method", self), ("__reduce_ex__", _refuse_copies)):
            object.__setattr__(model, name, value)  # not a submodule, and no parameter of the model
            self._undo.append(functools.partial(object.__delattr__, model, name))
        self._forget_compiled()
        self._undo.append(self._forget_compiled)
        self._wrap_forward()
        self.heads = self._add_heads() if self.tasks else None
        self._settings = nn.Module()
        self._settings._register_load_state_dict_pre_hook(self._check_settings, with_module=True)
        self.add(model, "method_settings", self._settings)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to copy and to pickle."""
        return _refuse_copies(protocol)

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains: the method's parameters and the head's."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return what trains as an optimizer's parameter groups, where parts of a method want a rate of their own."""
        return [{"params": self.parameters(), "lr": lr}]

    def switch(self, task: str) -> None:
        """Let `task`, one of those that the method was attached for, be the next batches'.

        With activation checkpointing, backward comes before the next switch: it computes the forward again. The first
        time that a task is switched to, it is probed. Raises UsageError, and the task is then the one that it was.
        """
        if task not in self.tasks:
            raise UsageError(
                f"no task '{printable(str(task))}': the method was attached for {', '.join(self.tasks) or 'one task'}",
                hint="name the tasks in attach(..., tasks={...})",
            )
        before, self._switched = self.task, True
        self._turn_to(task)
        if task not in self._probed or not self._hooks_stand():
            try:
                self.probe()
            except BaseException:
                self._turn_to(before)
                raise

    def _turn_to(self, task: str) -> None:
        self.task = task
        if self.tasks[task]:
            self._set_labels(self.tasks[task])

    def probe(self, batch: Mapping[str, Any] | None = None) -> None:
        """Show that all that the method put on the model changes what its layers compute, by one tiny forward.

        `attach`, `load` and the first `switch` to a task do it. `batch` is what the model runs on, by default four
        tokens; it is kept for later probes. Raises UsageError, which names the layer and the version of its library.
        """
        if batch is not None:
            check("probe", batch, _BATCH, "pass what the model is called with, as in model(**batch)")
            self._batch = {name: value for name, value in batch.items() if name not in _TARGETS}
        told, self._told, self._probing = self._told, True, True
        try:
            with torch.inference_mode(False):
                given = self._batch or few_tokens(self.model)
                self._probe(
                    functools.partial(self._run, {key: _own(self.device, value) for key, value in given.items()})
                )
        finally:
            self._told, self._probing = told, False
        self._probed.add(self.task)

    def _probe(self, run: Callable[[], Any]) -> None:
        """Raise UsageError where `run`, which returns the model's output, shows that something does not act."""
        check_inserts(self.model, self._inserts, run)

    def _run(self, batch: Mapping[str, Any]) -> Any:
        self._ran = False
        output = self.model(**batch)
        if not self._ran:
            raise no_effect(f"{type(self.model).__name__} does not run the forward that the method wrapped", self.model)
        return output

    def _hooks_stand(self) -> bool:
        """Tell whether no hook was taken off by somebody else, as copying and compiling a model do."""
        hooks = ((handle.id, handle.hooks_dict_ref()) for handle in self._hooks)
        return all(there is not None and key in there for key, there in hooks)

    @abstractmethod
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the run that `petlpack encode` reads."""

    def detach(self) -> None:
        """Take the method off: the model computes what it did before; only its own head keeps what it learned."""
        while self._undo:
            self._undo.pop()()

    def head_tensors(self, task: str = "") -> dict[str, torch.Tensor]:
        """Return a head's tensors as the model names them, `classifier.weight`; of a task with its own head, that."""
        tensors = (
            (f"{name}.{key}", own)
            for name, module in self._head_for(task).items()
            for key, own in module.state_dict().items()
        )
        return {name: tensor.detach().clone() for name, tensor in tensors}

    def load_head(self, tensors: Mapping[str, torch.Tensor], task: str = "") -> None:
        """Copy tensors named as `head_tensors` names them into the model's head, or into a task's."""
        if not tensors:
            return
        for name, module in self._head_for(task).items():
            own = {
                key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")
            }
            if self._widened:  # of a method that was cast with its model the head is in half, too
                module.to(next(iter(own.values())).dtype)
            module.load_state_dict(own)

    def _head_for(self, task: str) -> Mapping[str, nn.Module]:
        """Return the modules of the model's head by their names, or a task's own under the same names."""
        return head_modules(self.model) if self.heads is None or not task else dict(self.heads[task].items())

    def config_json(self, **more: Any) -> dict[str, Any]:
        """Return the model's config with the base's path, the head's modules, and whatever the method notes in it."""
        config = json.loads(self.model.config.to_json_string(use_diff=False))
        name = getattr(self.model.config, "_name_or_path", "")
        return {
            **config,
            "architectures": [type(self.model).__name__],
            **({"_name_or_path": name} if name else {}),
            MODULES: list(head_modules(self.model)),
            **more,
        }

    @contextmanager
    def writing(self, directory: str | os.PathLike[str]) -> Iterator[Path]:
        """Give a directory to write a run into; its files replace `directory`'s of the same names when all are written.

        Raises UsageError where `directory` is the base's, or holds weights that the run would not replace: encoding
        would take one of the two.
        """
        target = Path(directory)
        base = getattr(self.model.config, "_name_or_path", "")
        if base and Path(base).is_dir() and target.resolve() == Path(base).resolve():
            raise UsageError(f"'{printable(str(target))}' is the base's own directory", hint="save the run elsewhere")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as made:
            yield Path(made)
            written = [path.relative_to(made) for path in sorted(Path(made).rglob("*")) if path.is_file()]
            there = {path.relative_to(target) for pattern in _WEIGHTS for path in target.glob(pattern)}
            if others := sorted(path.as_posix() for path in there - set(written) if path.parts[0] != Path(made).name):
                raise UsageError(
                    f"'{printable(str(target))}' already holds other weights: {printable(others[0])}",
                    hint="give the run a directory of its own",
                )
            for file in written:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                (Path(made) / file).replace(target / file)

    def tell_without_labels(self) -> None:
        """Warn, once, of a training forward without labels: the loss that is made of its logits is not the method's."""
        if self.model.training and torch.is_grad_enabled() and not self._told:
            self._told = True
            warnings.warn(
                f"a training forward without labels leaves out what {type(self).__name__} adds to the loss "
                "(Trainer removes labels where label_smoothing_factor or compute_loss_func is set)",
                stacklevel=4,
            )

    # What attach is made of; everything is undone in reverse

    def hook(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        """Note a hook that `detach` removes."""
        self._hooks.append(handle)
        self._undo.append(handle.remove)

    def insert(self, what: str, layer: str, module: nn.Module, tensors: Callable[[], Sequence[torch.Tensor]]) -> None:
        """Note what was put into a layer, for the probe: by `tensors` it changes the module's output."""
        self._inserts.append(Insert(what, layer, module, tensors))

    def add(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        """Register a module on the model, on the device of the model's weights; `detach` takes it out."""
        if hasattr(parent, name):
            raise UsageError(
                f"{type(parent).__name__} already has a '{name}'",
                hint="load the model anew: something else has changed it",
            )
        parent.add_module(name, child.to(self.device))
        setattr(child, OF_METHOD, True)
        self._added.append(child)
        self._undo.append(lambda: delattr(parent, name))

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the model's own `forward` returns; a method that adds to the loss, or runs it twice, says how."""
        return forward(*args, **kwargs)

    def _wrap_forward(self) -> None:
        """Put the method's forward in the place of the model's, whose signature stays (Trainer asks it)."""
        forward, own = self.model.forward, self.model.__dict__.get("forward")

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not self._ran:  # written once: a compiled model would be compiled anew for a count
                self._ran = True
            output = self._weighed(forward, *args, **kwargs)
            if self.model.training and torch.is_grad_enabled() and not self._probing:
                self._check_training(loss_of(output))
            return output

        self.model.forward = wrapped

        def restore() -> None:
            del self.model.forward
            if own is not None:  # another library's wrapper, as accelerate's
                self.model.forward = own

        self._undo.append(restore)
        if type(self).forward is not Method.forward:
            self._undo.append(self.model.register_forward_pre_hook(self._await).remove)
            self._undo.append(self.model.register_forward_hook(self._check_ran).remove)

    def _await(self, *_args: Any) -> None:
        self._ran = False

    def _check_ran(self, *_args: Any) -> None:
        """Raise UsageError for a training forward that went past the method's."""
        if not self._ran and self.model.training and torch.is_grad_enabled():
            raise UsageError(
                f"{type(self.model).__name__}'s forward was replaced after attach, which leaves out what "
                f"{type(self).__name__} does in training",
                hint="trainers that do this (TRL's SFTTrainer) train only PROPETL: use transformers.Trainer",
            )

    def _weighed(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the model's output, its loss as large as the batch's share of the step's labels, where a loop says it.

        A loop that accumulates gradients gives the number of labels in all of its batches (`num_items_in_batch`, as the
        Trainer does), and adds the losses up. What a method adds to the loss is a mean of the batch like the rest, and
        some models' own loss is, too, whatever they are told (BERT's classifiers): the whole is weighed here.
        """
        total, labels = kwargs.get(_TOTAL), kwargs.get("labels")
        if total is None or not isinstance(labels, torch.Tensor):
            return self.forward(forward, *args, **kwargs)
        own = self._count(labels, kwargs.get("shift_labels"))
        output = self.forward(forward, *args, **{**kwargs, _TOTAL: own.clamp(min=1)})
        loss = loss_of(output)
        share = own / torch.as_tensor(total, device=own.device)
        return output if loss is None else set_loss(output, loss * share.to(loss.device))

    def _count(self, labels: torch.Tensor, shifted: torch.Tensor | None) -> torch.Tensor:
        """Return how many labels a batch's loss is the mean of; of a model of next tokens the first has none."""
        if shifted is None:
            shifted = labels[..., 1:] if predicts_next(self.model) else labels
        return (shifted != IGNORED).sum()

    def note_own(self) -> None:
        """Note which parameters are the method's now, and which stay frozen: what others do to them is refused."""
        self._mine = [parameter for module in self._added for parameter in module.parameters()]
        mine = {id(parameter) for parameter in self._mine}
        named = self.model.named_parameters()
        self._frozen = [(name, own) for name, own in named if not own.requires_grad and id(own) not in mine]

    def _check_training(self, loss: torch.Tensor | None) -> None:
        """Raise UsageError where a loss trains nothing of the method, or what it does not save."""
        self.check_precision()
        if thawed := next((name for name, own in self._frozen if own.requires_grad), None):
            raise UsageError(
                f"'{printable(thawed)}' of the base trains, and {type(self).__name__} does not save it",
                hint="leave frozen what attach froze, or fine-tune the whole model without a method",
            )
        frozen = bool(self._mine) and not any(parameter.requires_grad for parameter in self._mine)
        if frozen and loss is not None and loss.requires_grad:
            raise UsageError(
                f"{type(self).__name__} is frozen, while other parameters of {type(self.model).__name__} train",
                hint="get_peft_model() and freezing by hand do that: put only one method on a model",
            )
        if len(self.tasks) > 1 and not self._switched:
            self._switched = True
            warnings.warn(
                f"no task was switched to, so every batch trains '{self.task}' of {', '.join(self.tasks)}: call "
                "method.switch(task) before each batch, or train with SwitchTasks",
                stacklevel=4,
            )

    def check_precision(self) -> None:
        """Raise UsageError where the method's weights were cast to half precision with the model."""
        if any(own.dtype in _HALF for own in self._mine):
            raise UsageError(
                f"the weights of {type(self).__name__} were cast to half precision, in which they do not train exactly",
                hint="cast the model before attach: the method's own weights are then in single precision",
            )

    def remember(self) -> None:
        """Put settings and tasks into the state dict: a checkpoint of other ones is refused when it is loaded."""
        said = json.dumps({**asdict(self.config), "tasks": list(self.tasks.items())})
        self._settings.register_buffer(
            "settings", torch.tensor(list(said.encode()), dtype=torch.uint8, device=self.device)
        )

    def _check_settings(self, _module: nn.Module, state: Mapping[str, Any], prefix: str, *_args: Any) -> None:
        held = state.get(f"{prefix}settings")
        if held is None or torch.equal(held.cpu(), self._settings.settings.cpu()):
            return
        theirs, ours = (json.loads(bytes(own.tolist())) for own in (held, self._settings.settings))
        name = next((name for name in ours if theirs.get(name) != ours[name]), "tasks")
        raise UsageError(
            f"the checkpoint was trained with {name} {printable(str(theirs.get(name)))}, the method was attached with "
            f"{printable(str(ours.get(name)))}",
            hint="attach with the settings, and the tasks in the order, that the checkpoint was trained with",
        )

    def _forget_compiled(self) -> None:
        """Have a model that torch.compile has seen compiled anew: what it made knows the hooks that were there then."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def _freeze(self) -> None:
        wanted = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        training, problem = self.model.training, getattr(self.model.config, "problem_type", None)
        chosen = problem == "multi_label_classification" or getattr(self.model.config, "num_labels", 1) > 1
        self._problem = problem if chosen and problem != "single_label_classification" else None
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for module in head_modules(self.model).values():
            module.requires_grad_(True)
            self._widen(module)

        def restore() -> None:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(wanted[name])
            self.model.config.problem_type = problem  # Transformers notes there what it concludes of labels
            self.model.train(training)

        self._undo.append(restore)
        self.model.train()

    def _widen(self, head: nn.Module) -> None:
        """Let a head in half precision train in single: in so few bits small steps are lost, and Adam's eps is 0."""
        dtype = next(head.parameters()).dtype
        if dtype in _HALF:
            self._widened = True
            head.float()
            self._undo.append(lambda: head.to(dtype))
            self.hook(head.register_forward_pre_hook(_in_its_precision, with_kwargs=True))

    def _add_heads(self) -> nn.ModuleDict | None:
        """Give each task with labels a head: the model's, with as many outputs; its own stays as it is, unused."""
        own = head_modules(self.model)
        if not own or not any(self.tasks.values()):
            return None
        heads = nn.ModuleDict({task: new_head(own, labels) for task, labels in self.tasks.items()})
        self.add(self.model, "task_heads", heads)
        for name, module in own.items():
            self._give_way(name, module, heads)
        config = self.model.config
        names = config.id2label, config.label2id

        def restore() -> None:
            self._set_labels(len(names[0]))
            config.id2label, config.label2id = names

        self._undo.append(restore)
        self._set_labels(self.tasks[self.task])
        return heads

    def _give_way(self, name: str, module: nn.Module, heads: nn.ModuleDict) -> None:
        """Let the task's own take the place of a module of the model's head, which is computed and not used."""
        module.requires_grad_(False)

        def instead(_module: nn.Module, args: tuple[Any, ...], _out: object) -> Any:
            own = heads[self.task][name]
            return own(*_in_its_precision(own, args, {})[0])

        self.hook(module.register_forward_hook(instead))
        self.insert("the task's head", name, module, lambda: list(heads[self.task][name].parameters()))

    def _set_labels(self, labels: int) -> None:
        """Tell the model's own loss how many labels there are; what it concluded of other labels is forgotten.

        Not so a problem that cannot be concluded of labels' number: several labels of one text, or numbers.
        """
        self.model.config.num_labels = labels
        self.model.config.problem_type = self._problem
        if hasattr(self.model, "num_labels"):
            self.model.num_labels = labels


def _refuse_copies(_protocol: Any) -> Any:
    """Refuse to copy and to pickle a model, in whose `__reduce_ex__` it stands: its hooks call the method's modules."""
    raise UsageError(
        "a model with a method on it cannot be copied or pickled",
        hint="method.save(), then load() on another model; torch.save(model.state_dict(), ...) for a checkpoint",
    )


def new_head(modules: Mapping[str, nn.Module], labels: int) -> nn.ModuleDict:
    """Return a copy of a head, named first, and of what stands in front of it, the head with so many outputs."""
    head, *others = modules
    copies = {name: copy.deepcopy(modules[name]) for name in others}
    return nn.ModuleDict({head: _with_outputs(modules[head], labels), **copies})


def _with_outputs(head: nn.Module, labels: int) -> nn.Module:
    """Return a copy of a head with so many outputs, the last linear layer new: weights N(0, 0.02), any bias 0."""
    head = copy.deepcopy(head)
    holder = nn.Sequential(head)
    name, last = [(name, module) for name, module in holder.named_modules() if isinstance(module, nn.Linear)][-1]
    new = nn.Linear(last.in_features, labels, bias=last.bias is not None)  # a decoder's has none
    nn.init.normal_(new.weight, std=0.02)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, child = name.rpartition(".")
    setattr(holder.get_submodule(parent), child, new.to(last.weight))
    return holder[0]


def _in_its_precision(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cast what a module is called with to the precision of its weights."""
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def loss_of(output: Any) -> torch.Tensor | None:
    """Return the loss in a model's output, which may be a tuple; None where it has none: no labels were given."""
    loss = output[0] if isinstance(output, tuple) else getattr(output, "loss", None)
    return loss if isinstance(loss, torch.Tensor) and loss.dim() == 0 else None


def with_loss(output: Any, more: torch.Tensor) -> Any:
    """Return a model's output with more added to its loss."""
    return set_loss(output, (output[0] if isinstance(output, tuple) else output["loss"]) + more)


def set_loss(output: Any, loss: torch.Tensor) -> Any:
    """Return a model's output with this loss, which stands first in one that is a tuple."""
    if isinstance(output, tuple):  # return_dict=False
        return (loss, *output[1:])
    output["loss"] = loss
    return output


def check_task(model: nn.Module, task: str, labels: int) -> None:
    """Raise UsageError for a name that cannot stand in names of tensors, or labels that the model has no use for."""
    hint = "it becomes part of names of tensors and modules, and may be no attribute of torch's modules, such as 'type'"
    check_name(task, functools.partial(hasattr, nn.ModuleDict()), hint)
    has_head = head_of(model) is not None
    rule, has = (whole(1), "has a head") if has_head else (_NO_LABELS, "has no head of its own")
    check(f"the number of labels of task '{task}'", labels, rule, f"{type(model).__name__} {has}")


M = TypeVar("M", bound=Method)


def put_on(model: nn.Module, make: Callable[[], M], batch: Mapping[str, Any] | None) -> M:
    """Return a method that `make` puts on a model, when its probe has shown that it acts.

    Where that fails, the model is as it was before, also where only half of it was there.
    """
    before = getattr(model, "_petl_method", None)
    try:
        method = make()
        method.remember()
        method.note_own()
        method.probe(batch)
    except BaseException:
        left = getattr(model, "_petl_method", None)
        if left is not None and left is not before:
            left.detach()
        raise
    return method


def _own(device: torch.device, value: Any) -> Any:
    """Return a copy of a tensor that slopes can pass, on this device."""
    return value.to(device).clone() if isinstance(value, torch.Tensor) else value


@contextmanager
def loading(method: Method) -> Iterator[None]:
    """Fill a method from a run, and probe it again, in eval mode when it is done.

    Where that fails, the model is as it was before.
    """
    head = method.head_tensors()
    try:
        yield
        method.probe()
    except BaseException:
        try:
            method.detach()
        finally:
            method.load_head(head)
        raise
    method.model.eval()


_HALF = (torch.float16, torch.bfloat16)
_NO_LABELS = Rule("0", lambda value: type(value) is int and value == 0)
_BATCH = Rule("a mapping from the names of the model's inputs to tensors", lambda value: isinstance(value, Mapping))

IGNORED = -100
"""The label of what has no loss, as Transformers and torch say it."""

_NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")


def predicts_next(model: nn.Module) -> bool:
    """Tell whether a model's labels are its own tokens: each position's logits are for the next one.

    A subclass is what its parent is; of an image and a text the model that generates is a decoder alone, too.
    """
    names = [parent.__name__ for parent in type(model).__mro__]
    generates = any(name.endswith("ForConditionalGeneration") for name in names)
    decoder = generates and not getattr(model.config, "is_encoder_decoder", False)
    return decoder or any(name.endswith(_NEXT_TOKEN) for name in names)


_TOTAL = "num_items_in_batch"
"""How many labels the batches of one step have together, as Transformers' losses and its Trainer call it."""

_TARGETS = ("labels", "label", "label_ids", "start_positions", "end_positions", "next_sentence_label")
"""What a batch may have that the probe does without: a task with fewer labels knows no such target."""

_WEIGHTS = ("*.safetensors", "pytorch_*.bin", "propetl_*.bin", "*/adapter*.safetensors", "*/pytorch_adapter.bin")
"""Weights of a run, beside which no other run may be saved."""
