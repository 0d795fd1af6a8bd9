"""What a caller says of a run that its directory does not: settings by name, and what to keep of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from petlpack.errors import RunError, UsageError, printable
from petlpack.layouts.selection import Selection


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
    selection: Selection = field(default_factory=Selection, compare=False)
    """What is said of the files beside the weights; no setting, for the pack shows by itself what it keeps."""
    used: dict[str, Setting] = field(default_factory=dict, compare=False)
    """Settings that a layout asked for, by name."""

    @classmethod
    def of(cls, settings: Mapping[str, object], selection: Selection | None = None) -> Options:
        """Return options as a caller or a manifest says them: flags may be True and False."""
        texts = {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()
        }
        return cls(texts, selection or Selection())

    def to_facts(self) -> dict[str, str | bool]:
        """Return what was said and asked for, as a manifest keeps it, so that the same run can be read again."""
        asked = [self.used[name] for name in sorted(self.used.keys() & self.settings.keys())]
        texts: dict[str, str | bool] = {
            setting.name: self.settings[setting.name] for setting in asked if not setting.flag
        }
        return {**texts, **{setting.name: True for setting in asked if setting.flag and self.wants(setting)}}

    def text(self, setting: Setting, by_run: str | None = None) -> str | None:
        """Return a setting: what the run says, or what the caller says where the run says nothing.

        `found` is the run's own. Raises UsageError where both say something and disagree, or the value is not known.
        """
        by_caller = self._said(setting)
        if by_caller is not None and setting.known and by_caller not in setting.known:
            raise UsageError(
                f"--set {setting.name}={printable(by_caller)}: expected one of {', '.join(sorted(setting.known))}",
                hint=f"pass --set {setting.name}=VALUE with one of these",
            )
        if by_caller is not None and by_run is not None and by_caller != by_run:
            raise _contradiction(setting.name, by_caller, by_run)
        return by_run if by_caller is None else by_caller

    def needed(self, setting: Setting, where: object) -> str:
        """Return a setting that only the caller can know of run `where`; raises RunError that names it."""
        value = self.text(setting)
        if value is None:
            raise _missing(setting, where, "...")
        return value

    def number(self, setting: Setting, by_run: float | None = None) -> float | None:
        """Return a setting that is a number, as `text` does."""
        by_caller, name = self._said(setting), setting.name
        if by_caller is None:
            return by_run
        try:
            value = float(by_caller)
        except ValueError:
            raise UsageError(
                f"--set {name}={printable(by_caller)} is not a number", hint=f"pass --set {name}=NUMBER"
            ) from None
        if not math.isfinite(value) and setting is not KEEP_RATIO:  # of which its own check says what it has to be
            raise UsageError(f"--set {name}={printable(by_caller)} is not finite", hint=f"pass --set {name}=NUMBER")
        if by_run is not None and value != by_run:
            raise _contradiction(name, by_caller, f"{by_run:g}")
        return value

    def needed_number(self, setting: Setting, where: object, by_run: float | None = None) -> float:
        """Return a number that the run `where` does not say by itself; raises RunError that names it."""
        value = self.number(setting, by_run)
        if value is None:
            raise _missing(setting, where, "NUMBER")
        return value

    def wants(self, flag: Setting) -> bool:
        """Tell whether a flag is set, on which something in the run depends; raises UsageError where it is no flag."""
        by_caller = self._said(flag)
        if by_caller not in (None, "true", "false"):
            raise UsageError(
                f"--set {flag.name}={printable(by_caller or '')}: expected true or false",
                hint=f"pass --set {flag.name}=true",
            )
        return by_caller == "true"

    def unused(self) -> tuple[str, ...]:
        """Return a warning for each setting and glob that was given and that nothing in the run depends on."""
        settings = [f"--set {n} has no effect on this run" for n in self.settings if n not in self.used]
        return (*settings, *self.selection.unused())

    def _said(self, setting: Setting) -> str | None:
        self.used[setting.name] = setting
        return self.settings.get(setting.name)


def _contradiction(name: str, by_caller: str, by_run: str) -> UsageError:
    return UsageError(
        f"--set {name}={printable(by_caller)}, but the run says {name} is {printable(by_run)}",
        hint="omit the setting: the run's own value is used",
    )


def _missing(setting: Setting, where: object, value: str) -> RunError:
    value = value if setting is ACTIVATION else "|".join(sorted(setting.known)) or value
    return RunError(
        f"'{printable(str(where))}' does not say its {setting.name}: {setting.about}",
        hint=f"pass --set {setting.name}={value}",
    )
