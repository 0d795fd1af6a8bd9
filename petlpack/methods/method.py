"""What all methods have in common: a method stands on a model, trains by itself, is saved, and is taken off."""

from __future__ import annotations

import functools
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import Check, check
from petlpack.methods.attachment import Attachment, refuse_second
from petlpack.methods.heads import check_task, head_modules, in_its_precision, new_head
from petlpack.methods.losses import count_labels, loss_of, set_loss
from petlpack.methods.new_weights import refuse_new_weights
from petlpack.methods.places import refuse_wrapped
from petlpack.methods.probe import check_inserts, few_tokens, no_effect, parameters_of
from petlpack.methods.settings import check_tasks

_HALF = (torch.float16, torch.bfloat16)
_BATCH = Check("a mapping from input names to tensors", lambda value: isinstance(value, Mapping))

_TOTAL = "num_items_in_batch"
"""How many labels the batches of one step have together, as Transformers' losses and its Trainer call it."""

_TARGETS = ("labels", "label", "label_ids", "start_positions", "end_positions", "next_sentence_label")
"""What a batch may have that the probe does without: a task with fewer labels knows no such target."""


class Method(Attachment, ABC):
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
        refuse_second(model)
        super().__init__(model)
        self.tasks = dict(tasks or {})
        self.task = next(iter(self.tasks), "")
        self._may_checkpoint = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
        self._mine: list[nn.Parameter] = []
        self._frozen: list[tuple[str, nn.Parameter]] = []
        self._warned = self._switched = self._widened = False
        self._probing = self._ran = False
        self._batch: dict[str, Any] | None = None
        self._probed: set[str] = set()
        refuse_new_weights(model)
        self._freeze()
        self._mark()
        self._wrap_forward()
        self.heads = self._add_heads() if self.tasks else None
        self._settings = nn.Module()
        self._settings._register_load_state_dict_pre_hook(self._check_settings, with_module=True)
        self.add(model, "method_settings", self._settings)

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
            check("probe", batch, _BATCH, "pass the batch that the model is called with, as in model(**batch)")
            self._batch = {name: value for name, value in batch.items() if name not in _TARGETS}
        warned, self._warned, self._probing = self._warned, True, True
        try:
            with torch.inference_mode(False):
                inputs = self._batch or few_tokens(self.model)
                copies = {name: _copy_on(self.device, value) for name, value in inputs.items()}
                self._probe(functools.partial(self._run, copies))
        finally:
            self._warned, self._probing = warned, False
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

    @abstractmethod
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the run that `petlpack encode` reads."""

    def head_tensors(self, task: str = "", *, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return a head's tensors as the model names them, `classifier.weight`; of a task with its own head, that."""
        return {
            f"{prefix}{name}.{key}": tensor.detach().clone()
            for name, module in self._head_for(task).items()
            for key, tensor in module.state_dict().items()
        }

    def load_head(self, tensors: Mapping[str, torch.Tensor], task: str = "") -> None:
        """Copy tensors named as `head_tensors` names them into the model's head, or into a task's."""
        if not tensors:
            return
        for name, module in self._head_for(task).items():
            start = f"{name}."
            state = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
            if self._widened:  # of a method that was cast with its model the head is in half, too
                module.to(next(iter(state.values())).dtype)
            module.load_state_dict(state)

    def _head_for(self, task: str) -> Mapping[str, nn.Module]:
        """Return the modules of the model's head by their names, or a task's own under the same names."""
        return head_modules(self.model) if self.heads is None or not task else dict(self.heads[task].items())

    # The training forward

    def tell_without_labels(self) -> None:
        """Warn, once, of a training forward without labels: the loss that is made of its logits is not the method's."""
        if self.model.training and torch.is_grad_enabled() and not self._warned:
            self._warned = True
            warnings.warn(
                f"training forward without labels: the loss lacks what {type(self).__name__} adds to it "
                "(Trainer drops labels when label_smoothing_factor or compute_loss_func is set)",
                stacklevel=4,
            )

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the model's own `forward` returns; a method that adds to the loss, or runs it twice, says how."""
        return forward(*args, **kwargs)

    def _wrap_forward(self) -> None:
        """Put the method's forward in the place of the model's, whose signature stays (Trainer asks it)."""
        forward, replaced = self.model.forward, self.model.__dict__.get("forward")

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
            if replaced is not None:  # by another library's wrapper, as accelerate's
                self.model.forward = replaced

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
                f"{type(self.model).__name__}'s forward was replaced after attach, so the training step of "
                f"{type(self).__name__} does not run",
                hint="use transformers.Trainer; trainers that replace forward (TRL's SFTTrainer) support PROPETL only",
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
        count = count_labels(self.model, labels, kwargs.get("shift_labels"))
        output = self.forward(forward, *args, **{**kwargs, _TOTAL: count.clamp(min=1)})
        loss = loss_of(output)
        share = count / torch.as_tensor(total, device=count.device)
        return output if loss is None else set_loss(output, loss * share.to(loss.device))

    def checkpointing(self) -> list[nn.Module]:
        """Return the modules that checkpoint activations now."""
        return [module for module in self._may_checkpoint if module.gradient_checkpointing]

    # What trains

    def note_own(self) -> None:
        """Note which parameters are the method's now, and which stay frozen: what others do to them is refused."""
        self._mine = [parameter for module in self._added for parameter in module.parameters()]
        mine = set(map(id, self._mine))
        named = self.model.named_parameters()
        self._frozen = [(name, weight) for name, weight in named if not weight.requires_grad and id(weight) not in mine]

    def _check_training(self, loss: torch.Tensor | None) -> None:
        """Raise UsageError where a loss trains nothing of the method, or what it does not save."""
        self.check_precision()
        if thawed := next((name for name, weight in self._frozen if weight.requires_grad), None):
            raise UsageError(
                f"'{printable(thawed)}' of the base model is trainable, but {type(self).__name__} does not save it",
                hint="keep frozen what attach() froze, or fine-tune the whole model without a method",
            )
        frozen = bool(self._mine) and not any(parameter.requires_grad for parameter in self._mine)
        if frozen and loss is not None and loss.requires_grad:
            raise UsageError(
                f"{type(self).__name__} is frozen, while other parameters of {type(self.model).__name__} are trainable",
                hint="attach only one method to a model; get_peft_model() and manual freezing freeze the first one",
            )
        if len(self.tasks) > 1 and not self._switched:
            self._switched = True
            warnings.warn(
                f"method.switch() was not called: every batch trains '{self.task}' of {', '.join(self.tasks)}; call "
                "method.switch(task) before each batch, or train with SwitchTasks",
                stacklevel=4,
            )

    def check_precision(self) -> None:
        """Raise UsageError where the method's weights were cast to half precision with the model."""
        if any(parameter.dtype in _HALF for parameter in self._mine):
            raise UsageError(
                f"the weights of {type(self).__name__} were cast to half precision, but they must train in float32",
                hint="cast the model before attach(): the method's own weights then stay in float32",
            )

    def remember(self) -> None:
        """Put settings and tasks into the state dict: a checkpoint of other ones is refused when it is loaded."""
        text = json.dumps({**asdict(self.config), "tasks": list(self.tasks.items())})
        octets = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        self._settings.register_buffer("settings", octets)

    def _check_settings(self, _module: nn.Module, state: Mapping[str, Any], prefix: str, *_args: Any) -> None:
        settings = state.get(f"{prefix}settings")
        if settings is None or torch.equal(settings.cpu(), self._settings.settings.cpu()):
            return
        theirs, ours = (json.loads(bytes(octets.tolist())) for octets in (settings, self._settings.settings))
        name = next((name for name in ours if theirs.get(name) != ours[name]), "tasks")
        raise UsageError(
            f"the checkpoint was trained with {name}={printable(str(theirs.get(name)))}, but the method was attached "
            f"with {name}={printable(str(ours.get(name)))}",
            hint="attach with the settings of the checkpoint, and its tasks in the same order",
        )

    # The base, and the head

    def _freeze(self) -> None:
        trained = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
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
                parameter.requires_grad_(trained[name])
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
            self.hook(head.register_forward_pre_hook(in_its_precision, with_kwargs=True))

    def _add_heads(self) -> nn.ModuleDict | None:
        """Give each task with labels a head: the model's, with as many outputs; its own stays as it is, unused."""
        head = head_modules(self.model)
        if not head or not any(self.tasks.values()):
            return None
        heads = nn.ModuleDict({task: new_head(head, labels) for task, labels in self.tasks.items()})
        self.add(self.model, "task_heads", heads)
        for name, module in head.items():
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
            tasks_module = heads[self.task][name]
            return tasks_module(*in_its_precision(tasks_module, args, {})[0])

        self.hook(module.register_forward_hook(instead))
        self.insert("the task's head", name, module, lambda: parameters_of(heads[self.task][name]))

    def _set_labels(self, labels: int) -> None:
        """Tell the model's own loss how many labels there are; what it concluded of other labels is forgotten.

        Not so a problem that cannot be concluded of labels' number: several labels of one text, or numbers.
        """
        self.model.config.num_labels = labels
        self.model.config.problem_type = self._problem
        if hasattr(self.model, "num_labels"):
            self.model.num_labels = labels


def _copy_on(device: torch.device, value: Any) -> Any:
    """Return a copy of a tensor that slopes can pass, on this device."""
    return value.to(device).clone() if isinstance(value, torch.Tensor) else value
