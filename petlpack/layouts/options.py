"""What a caller says of a run that its directory does not: settings by name, and what to keep of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from petlpack.errors import RunError, UsageError, printable

SETTINGS = {
    "activation": "the adapters' non-linearity (relu, gelu, gelu_new, ...)",
    "combine": "how a task's and a layer's mask become one (or, and, add)",
    "inference_level": "how AdaMix's experts are used (3: averaged)",
    "keep_ratio": "share of the entries that a mask keeps, from 0 to 1",
    "scaling": "factor of an adapter's output; LoRA's alpha / r",
    "task_order": "names of the tasks in the order of their rows, with commas",
}
"""Every setting that some layout may need."""

ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "sigmoid", "tanh", "silu", "swish", "mish", "linear", "leaky_relu", "relu2"),
        *(
            "gelu",
            "gelu_10",
            "gelu_accurate",
            "gelu_fast",
            "gelu_new",
            "gelu_python",
            "gelu_pytorch_tanh",
            "quick_gelu",
        ),
    }
)
"""Non-linearities as Transformers calls them."""

FLAGS = ("keep_experts", "keep_retriever", "bake")
"""What may be kept, or baked, on request."""


@dataclass(frozen=True)
class Options:
    """Options of `read`. What a run needs and nobody says is an error that names it; nothing is guessed."""

    settings: Mapping[str, str] = field(default_factory=dict)
    keep_experts: bool = False
    keep_retriever: bool = False
    bake: bool = False
    used: set[str] = field(default_factory=set, compare=False)
    """Settings and flags that a layout asked for."""

    def __post_init__(self) -> None:
        """Refuse names that no layout knows."""
        for name in self.settings:
            if name not in SETTINGS:
                raise UsageError(
                    f"no setting '{printable(name)}'",
                    hint=f"settings are {', '.join(SETTINGS)} (see --set in the help)",
                )

    @classmethod
    def from_facts(cls, facts: object) -> Options:
        """Return the options that a manifest keeps; what it says that no layout knows is ignored."""
        facts = facts if isinstance(facts, dict) else {}
        flags = {name: facts.get(name) is True for name in FLAGS}
        settings = {name: str(value) for name, value in facts.items() if name in SETTINGS}
        return cls(settings, flags["keep_experts"], flags["keep_retriever"], flags["bake"])

    def to_facts(self) -> dict[str, str | bool]:
        """Return what was said, as a manifest keeps it, so that the same run can be read again."""
        flags = {name: True for name in FLAGS if name in self.used and getattr(self, name)}
        return {**{name: self.settings[name] for name in sorted(self.used & self.settings.keys())}, **flags}

    def text(self, name: str, found: str | None = None, known: Collection[str] = ()) -> str | None:
        """Return a setting: what the run says, or what the caller says where the run says nothing.

        `found` is the run's own. Raises UsageError where both say something and disagree, or the value is not `known`.
        """
        self.used.add(name)
        said = self.settings.get(name)
        known = known or (ACTIVATIONS if name == "activation" else ())
        if said is not None and known and said not in known:
            raise UsageError(
                f"--set {name}={printable(said)} is none of {', '.join(sorted(known))}", hint="choose one of these"
            )
        if said is not None and found is not None and said != found:
            raise _contradiction(name, said, found)
        return found if said is None else said

    def needed(self, name: str, where: object, known: Collection[str] = ()) -> str:
        """Return a setting that only the caller can know of run `where`; raises RunError that names it."""
        value = self.text(name, None, known)
        if value is None:
            raise _missing(name, where, "|".join(sorted(known)) or "...")
        return value

    def number(self, name: str, found: float | None = None) -> float | None:
        """Return a setting that is a number, as `text` does."""
        self.used.add(name)
        said = self.settings.get(name)
        if said is None:
            return found
        try:
            value = float(said)
        except ValueError:
            raise UsageError(
                f"--set {name}={printable(said)} is not a number", hint=f"say --set {name}=NUMBER"
            ) from None
        if not math.isfinite(value) and name != "keep_ratio":  # of which its own check says what it has to be
            raise UsageError(f"--set {name}={printable(said)} is not finite", hint=f"say --set {name}=NUMBER")
        if found is not None and value != found:
            raise _contradiction(name, said, f"{found:g}")
        return value

    def needed_number(self, name: str, where: object, found: float | None = None) -> float:
        """Return a number that the run `where` does not say by itself; raises RunError that names it."""
        value = self.number(name, found)
        if value is None:
            raise _missing(name, where, "NUMBER")
        return value

    def wants(self, flag: str) -> bool:
        """Tell whether a flag of FLAGS is set, on which something in the run depends."""
        self.used.add(flag)
        return getattr(self, flag) is True

    def unused(self) -> tuple[str, ...]:
        """Return a warning for each setting or flag that was given and that nothing in the run depends on."""
        flags = [f"--{flag.replace('_', '-')}" for flag in FLAGS if getattr(self, flag) and flag not in self.used]
        settings = [f"--set {name}" for name in self.settings if name not in self.used]
        return tuple(f"{said}: nothing in the run depends on it" for said in (*settings, *flags))


def _contradiction(name: str, said: str, found: str) -> UsageError:
    return UsageError(
        f"--set {name}={printable(said)}, and the run says {name} is {printable(found)}",
        hint="leave the setting out: what the run says of itself holds",
    )


def _missing(name: str, where: object, value: str) -> RunError:
    return RunError(
        f"'{printable(str(where))}' does not say its {name}: {SETTINGS[name]}",
        hint=f"say it with --set {name}={value}",
    )
