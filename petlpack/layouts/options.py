"""What a caller says of a run that its directory does not: settings by name, and what to keep of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from petlpack.errors import RunError, UsageError, printable


@dataclass(frozen=True)
class Setting:
    """Something that a caller may say of a run: a text, a number, or whether something is kept (`flag`).

    `about` says to people what it is; `known` are the values that a text may have, where they are known.
    """

    name: str
    about: str
    known: frozenset[str] = frozenset()
    flag: bool = False


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

ACTIVATION = Setting("activation", "the adapters' non-linearity (relu, gelu, gelu_new, ...)", ACTIVATIONS)
KEEP_RATIO = Setting("keep_ratio", "share of the entries that a mask keeps, from 0 to 1")
SCALING = Setting("scaling", "factor of an adapter's output; LoRA's alpha / r")
TASK_ORDER = Setting("task_order", "names of the tasks in the order of their rows, with commas")
"""Settings of several layouts; those of one stand in its file."""


@dataclass(frozen=True)
class Options:
    """What a caller says of a run, by the settings' names. What a run needs and nobody says is an error that names it.

    Flags are said as `true` or `false`. Nothing is guessed.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    used: dict[str, Setting] = field(default_factory=dict, compare=False)
    """Settings that a layout asked for, by name."""

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> Options:
        """Return options as a caller or a manifest says them: flags may be True and False."""
        return cls(
            {name: str(said).lower() if isinstance(said, bool) else str(said) for name, said in settings.items()}
        )

    def to_facts(self) -> dict[str, str | bool]:
        """Return what was said and asked for, as a manifest keeps it, so that the same run can be read again."""
        said = [self.used[name] for name in sorted(self.used.keys() & self.settings.keys())]
        texts: dict[str, str | bool] = {one.name: self.settings[one.name] for one in said if not one.flag}
        return {**texts, **{one.name: True for one in said if one.flag and self.wants(one)}}

    def text(self, setting: Setting, found: str | None = None) -> str | None:
        """Return a setting: what the run says, or what the caller says where the run says nothing.

        `found` is the run's own. Raises UsageError where both say something and disagree, or the value is not known.
        """
        said = self._said(setting)
        if said is not None and setting.known and said not in setting.known:
            raise UsageError(
                f"--set {setting.name}={printable(said)} is none of {', '.join(sorted(setting.known))}",
                hint="choose one of these",
            )
        if said is not None and found is not None and said != found:
            raise _contradiction(setting.name, said, found)
        return found if said is None else said

    def needed(self, setting: Setting, where: object) -> str:
        """Return a setting that only the caller can know of run `where`; raises RunError that names it."""
        value = self.text(setting)
        if value is None:
            raise _missing(setting, where, "...")
        return value

    def number(self, setting: Setting, found: float | None = None) -> float | None:
        """Return a setting that is a number, as `text` does."""
        said, name = self._said(setting), setting.name
        if said is None:
            return found
        try:
            value = float(said)
        except ValueError:
            raise UsageError(
                f"--set {name}={printable(said)} is not a number", hint=f"say --set {name}=NUMBER"
            ) from None
        if not math.isfinite(value) and setting is not KEEP_RATIO:  # of which its own check says what it has to be
            raise UsageError(f"--set {name}={printable(said)} is not finite", hint=f"say --set {name}=NUMBER")
        if found is not None and value != found:
            raise _contradiction(name, said, f"{found:g}")
        return value

    def needed_number(self, setting: Setting, where: object, found: float | None = None) -> float:
        """Return a number that the run `where` does not say by itself; raises RunError that names it."""
        value = self.number(setting, found)
        if value is None:
            raise _missing(setting, where, "NUMBER")
        return value

    def wants(self, flag: Setting) -> bool:
        """Tell whether a flag is set, on which something in the run depends; raises UsageError where it is no flag."""
        said = self._said(flag)
        if said not in (None, "true", "false"):
            raise UsageError(
                f"--set {flag.name}={printable(said or '')} is neither true nor false",
                hint=f"say --set {flag.name}=true",
            )
        return said == "true"

    def unused(self) -> tuple[str, ...]:
        """Return a warning for each setting that was given and that nothing in the run depends on."""
        return tuple(f"--set {n}: nothing in the run depends on it" for n in self.settings if n not in self.used)

    def _said(self, setting: Setting) -> str | None:
        self.used[setting.name] = setting
        return self.settings.get(setting.name)


def _contradiction(name: str, said: str, found: str) -> UsageError:
    return UsageError(
        f"--set {name}={printable(said)}, and the run says {name} is {printable(found)}",
        hint="leave the setting out: what the run says of itself holds",
    )


def _missing(setting: Setting, where: object, value: str) -> RunError:
    value = value if setting is ACTIVATION else "|".join(sorted(setting.known)) or value
    return RunError(
        f"'{printable(str(where))}' does not say its {setting.name}: {setting.about}",
        hint=f"say it with --set {setting.name}={value}",
    )
