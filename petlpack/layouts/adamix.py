"""`adamix`: mixtures of adapters or LoRA, averaged at encode.

AdaMix (Wang et al. 2022); microsoft/AdaMix: run_glue.py's directories, and the NLG examples' `model.*.pt`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import places, skipped
from petlpack.layouts.files import refuse_methods, sort_files, warnings_about
from petlpack.layouts.heads import module_of, modules_of
from petlpack.layouts.layout import Layout, Names, first_of, model_in
from petlpack.layouts.options import ACTIVATION, SCALING, Options, Setting, said_by
from petlpack.layouts.run import LeftOut, Run, headers_of, left_out_tensors, read_json
from petlpack.rules.arithmetic import average, floats
from petlpack.rules.modules import Average, Mixture, Plain, Use
from petlpack.tensors.checkpoint import Checkpoint, find_weights, open_saved
from petlpack.tensors.name_text import name_text
from petlpack.tensors.tensor import Tensor

SOUPS = ("pytorch_model_expert_soup.safetensors", "pytorch_model_expert_soup.bin")
"""The file of experts and classifier alone, which run_glue.py pickles and petlpack.methods does not."""

_INSTEAD = (*SOUPS, "model.safetensors", "pytorch_model.bin", "model.*.pt")
"""Further files with the experts of the same run, of which one counts."""

INFERENCE_LEVEL = Setting("inference_level", "how AdaMix's experts are used (3: averaged)")
KEEP_EXPERTS = Setting(
    "keep_experts", "AdaMix: store all experts, not their average", flag=True, off_loses="all but the average"
)

_EXPERT = re.compile(
    r"(?P<side>(?P<place>.+)\.ExpertSoup\.MoA_(?P<letter>[AB]))\.deepspeed_experts\.(?P<number>\d+)\.(?P<part>weight|bias)"
    r"|(?P<module>.+)\.experts_lora_(?P<lora>[AB])\.(?P<index>\d+)"
)
_SIDES = {"A": "down", "B": "up"}

_DIGITS = 9
"""Digits of an expert's number: no model has as many experts, and Python converts no more than 4,300."""

_AVERAGED = 3
"""The inference level that averages the experts; 0 and 1 route at random (expert_soup.py:59-79)."""


@dataclass(frozen=True)
class AdamixLayout(Layout):
    """The expert soup, a full model with experts, or an NLG `model.*.pt`."""

    id = "adamix"
    method = "AdaMix"
    settings = (INFERENCE_LEVEL, KEEP_EXPERTS, SCALING, ACTIVATION)

    def may_be(self, names: Names) -> bool:
        """Tell whether there is something called like weights."""
        return names.show_weights

    def detect(self, path: Path) -> bool:
        """Tell whether the run, or a checkpoint of it, has a weight file with experts."""
        return _weights(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the run; raises RunError for one whose experts are not averaged, unless they are kept."""
        file = _weights(path)
        assert file is not None
        weights = open_saved(file, "model_state_dict")
        config = read_json(file.parent / "config.json") if (file.parent / "config.json").is_file() else {}
        if file.name not in SOUPS and file.suffix != ".pt" and config.get("inference_level") is None:
            refuse_methods(weights)  # the reference's own whole models say it
        experts = _experts(weights)
        _check_counts(experts, config, file)
        lora = any(key[1].startswith("lora") for key in experts)
        averaged = _is_averaged(config, file, options)
        new = modules_of(config)
        head = frozenset(name for name in weights.tensors if module_of(name, new))
        tensors = dict(weights.tensors)
        collapse = averaged and not options.wants(KEEP_EXPERTS)
        rows, names = _rows(tensors, experts, collapse=collapse, lora=lora)
        use = _use(config, lora, experts, weights, file, options)
        stored = {name: tensors[name] for name in names}
        kept, left_out = sort_files(path, file.parent, weights.sources, selection=options.selection, instead=_INSTEAD)
        left_out = (*left_out, *_averaged_away(weights, stored, file))
        whole = any(not _is_method(name) and name not in head for name in weights.tensors)
        base = config.get("_name_or_path")
        trained = sum(tensor.size for name, tensor in weights.tensors.items() if _EXPERT.fullmatch(name))
        return [
            Run(
                path=path,
                layout=self.id,
                method=f"AdaMix {use.kind}",
                module=Mixture(stored, head, use, rows) if averaged else Plain(stored, head),
                headers=headers_of({next(iter(weights.headers)): list(stored)}, stored),
                weight_bytes=weights.nbytes,
                kept={**kept, **(_one_expert(config) if collapse and "config.json" in kept else {})},
                left_out=left_out,
                warnings=(*skipped(path, file.parent), *warnings_about(left_out)),
                base_name=base if isinstance(base, str) and base else None,
                on_base=whole,
                figures={"trained": trained},
            )
        ]

    def weights(self, place: Path) -> list[Path]:
        """Return the expert soup, else the model, else the last of the NLG examples."""
        return first_of(place, SOUPS) or model_in(place) or first_of(place, ("model.final.pt", "model.*.pt"))


def _averaged_away(weights: Checkpoint, stored: Mapping[str, Tensor], file: Path) -> list[LeftOut]:
    """Return what averaging leaves out."""
    sizes = [tensor.nbytes for name, tensor in weights.tensors.items() if name not in stored]
    why = "averaged into one expert (--keep-experts keeps all)"
    return [left_out_tensors(file.name, "experts other than the first", sizes, why)] if sizes else []


def _weights(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".pt" and _has_experts(path) else None
    for place in places(path):
        for name in SOUPS:
            if (place / name).is_file():
                return place / name
        for file in (find_weights(place), *sorted(place.glob("model.*.pt"), key=_step)[-1:]):
            if file is not None and _has_experts(file):
                return file
    return None


def _step(file: Path) -> tuple[bool, int]:
    """Order `model.{step}.pt` by step, `model.final.pt` last."""
    step = file.name.split(".")[1]
    return step == "final", int(step) if step.isascii() and step.isdigit() else -1


def _has_experts(file: Path) -> bool:
    text = name_text(file)
    return b".ExpertSoup.MoA_" in text or b".experts_lora_" in text


Experts = dict[tuple[str, str, str], dict[int, str]]
"""Names of the experts by (place, side, part), by number."""


def _experts(weights: Checkpoint) -> Experts:
    experts: Experts = {}
    for name in weights.tensors:
        match = _EXPERT.fullmatch(name)
        if match is None:
            continue
        if match["lora"]:
            key = (match["module"], f"lora_{match['lora']}", "")
        else:
            key = (match["place"], _SIDES[match["letter"]], match["part"])
        number = match["number"] or match["index"]
        if len(number) > _DIGITS:
            raise RunError(
                f"'{printable(str(weights.sources[0]))}' has tensor '{printable(name[:80])}...', an expert whose "
                f"number has {len(number):,} digits",
                hint="experts are numbered from 0: save the run again",
            )
        experts.setdefault(key, {})[int(number)] = name
    return experts


def _check_counts(experts: Experts, config: Mapping[str, Any], file: Path) -> None:
    """Raise RunError where experts are missing, or their number differs between layers or from the config's."""
    counts: dict[tuple[str, str], set[int]] = {}
    for (place, side, part), numbers in experts.items():
        if sorted(numbers) != list(range(len(numbers))):
            missing = next(number for number in itertools.count() if number not in numbers)
            raise RunError(
                f"'{printable(str(file))}' has experts {', '.join(map(str, sorted(numbers)))} of "
                f"'{printable(place)}' {side}, but expert {missing} is missing",
                hint="the file is incomplete: save the run again",
            )
        counts.setdefault((side, part), set()).add(len(numbers))
    for (side, part), seen in counts.items():
        if len(seen) > 1:
            raise RunError(
                f"'{printable(str(file))}' has {min(seen)} experts of {side} {part} in one layer and {max(seen)} in "
                "another",
                hint="the file is incomplete: save the run again",
            )
    wanted = config.get("num_experts")
    shared = {"down": config.get("sharing_down"), "up": config.get("sharing_up")}
    for (side, part), (count,) in counts.items():
        expected = 1 if shared.get(side) in (1, True) else wanted
        if isinstance(wanted, int) and side in shared and shared[side] is not None and count != expected:
            raise RunError(
                f"'{printable(str(file))}' has {count} experts of {side} {part}, but its config.json says {expected}",
                hint="config.json is from another run: copy the right one",
            )


def _is_averaged(config: Mapping[str, Any], file: Path, options: Options) -> bool:
    """Tell whether inference averages the experts; raises RunError where it routes at random and they are not kept."""
    level = config.get("inference_level")
    text = options.text(INFERENCE_LEVEL, str(level) if isinstance(level, int) else None)
    if text is None and file.suffix == ".pt":
        return True  # the NLG examples only ever average
    if text is None:
        text = options.needed(INFERENCE_LEVEL, file)
    if text == str(_AVERAGED):
        return True
    if options.wants(KEEP_EXPERTS):
        return False
    raise RunError(
        f"'{printable(str(file.parent))}' has inference level {printable(text)}, "
        "which routes every input to a random expert, so no average of them computes the same",
        hint=f"to store all experts, {said_by(KEEP_EXPERTS.name, 'true')}",
        flag=KEEP_EXPERTS.name,
    )


def _is_method(name: str) -> bool:
    return ".ExpertSoup." in name or ".experts_lora_" in name or "expert_score_weight" in name


def _rows(
    tensors: dict[str, Tensor], experts: Experts, *, collapse: bool, lora: bool
) -> tuple[tuple[Average, ...], list[str]]:
    """Return a row for each averaged tensor, and the names of the tensors to store.

    Where the experts collapse their average takes the place of expert 0, whose score is then the only one.
    """
    rows, dropped = [], set()
    for (place, side, part), numbers in experts.items():
        names = [numbers[i] for i in sorted(numbers)]
        scores = _scores_name(names[0])
        output = f"{_place(place)}.{side}" + (f".{part}" if part else "")
        if lora and len(names) == 1 and (scores not in tensors or tensors[scores].size != 1):
            rows.append(Average(output, (names[0],)))  # the shared side is used as it is
            continue
        _check_experts(names, scores, tensors)
        if not collapse:
            rows.append(Average(output, tuple(names), scores))
            continue
        tensors[names[0]] = average([tensors[name] for name in names], tensors[scores])
        dropped |= set(names[1:])
        rows.append(Average(output, (names[0],)))
    if collapse:
        for scores in {_scores_name(numbers[0]) for numbers in experts.values()} & tensors.keys():
            tensors[scores] = _first(tensors[scores])
    return tuple(rows), [name for name in tensors if name not in dropped]


def _scores_name(expert: str) -> str:
    if ".deepspeed_experts." in expert:
        return expert.partition(".deepspeed_experts.")[0] + ".expert_score_weight"
    return expert.partition(".experts_lora_")[0] + ".lora_expert_score_weight"


def _place(place: str) -> str:
    """Return the place of a module in the model, without what DistributedDataParallel puts in front."""
    return place.removeprefix("module.")


def _check_experts(names: list[str], scores: str, tensors: Mapping[str, Tensor]) -> None:
    if scores not in tensors:
        raise RunError(f"experts '{printable(names[0])}', ... have no scores: '{printable(scores)}' is missing")
    if tensors[scores].shape != (len(names),):
        raise RunError(
            f"'{printable(scores)}' is {list(tensors[scores].shape)}, expected one each for the {len(names)} experts "
            f"'{printable(names[0])}', ..."
        )
    if np.isnan(floats(tensors[scores])).any():
        raise RunError(f"'{printable(scores)}' contains NaN")
    first = tensors[names[0]]
    for name in names[1:]:
        if (tensors[name].dtype, tensors[name].shape) != (first.dtype, first.shape):
            raise RunError(
                f"expert '{printable(name)}' is {tensors[name].dtype.name} {list(tensors[name].shape)}, "
                f"but '{printable(names[0])}' is {first.dtype.name} {list(first.shape)}"
            )


def _first(scores: Tensor) -> Tensor:
    """Return the score of the one expert that is left: of zeros, as they are never trained, a zero."""
    return Tensor(scores.dtype, (1,), lambda start, stop: scores.read_flat(start, stop))


def _one_expert(config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the config of the averaged model: by the run's own, the original code would make up the experts gone."""
    if config.get("num_experts", 1) == 1:
        return {}
    return {"config.json": (json.dumps({**config, "num_experts": 1}, indent=2, sort_keys=True) + "\n").encode()}


def _use(
    config: Mapping[str, Any], lora: bool, experts: Experts, weights: Checkpoint, file: Path, options: Options
) -> Use:
    if lora:
        settings: dict[str, Any] = {"scaling": options.needed_number(SCALING, file, _scaling(config, file))}
        a, b = (
            next(weights.tensors[n[0]] for k, n in experts.items() if k[1] == side) for side in ("lora_A", "lora_B")
        )
        if a.shape[0] != b.shape[1]:
            groups = a.shape[0] // b.shape[1] if b.shape[1] else 0
            settings["enable"] = _enabled(groups, file)
        return Use("lora", settings)
    named = config.get("adapter_activation", config.get("hidden_act"))
    in_config = named if isinstance(named, str) else None
    activation = options.text(ACTIVATION, in_config) or options.needed(ACTIVATION, file)
    return Use("adapter", {"activation": activation, "scaling": 1.0, "form": "output"})


def _scaling(config: Mapping[str, Any], file: Path) -> float | None:
    """Return alpha / r, where the config says both, as runs of `petlpack.methods` do."""
    alpha, rank = config.get("lora_alpha"), config.get("lora_r")
    if alpha is None or rank is None:
        return None
    try:
        scaling = float(alpha / rank)
    except (TypeError, ZeroDivisionError, OverflowError):
        scaling = math.nan
    if not math.isfinite(scaling):
        raise RunError(
            f"'{printable(str(file.parent))}' has lora_alpha {printable(str(alpha))} and lora_r {printable(str(rank))} "
            "in its config.json, expected finite numbers",
            hint="LoRA scales by lora_alpha / lora_r, so both must be numbers, and lora_r not 0: correct config.json",
        )
    return scaling


def _enabled(groups: int, file: Path) -> list[bool]:
    """Return which of query, key and value a merged LoRA of so many groups changes (enable_lora in gpt2_ft.py)."""
    if groups not in (2, 3):
        raise RunError(
            f"'{printable(str(file))}' has a LoRA of {groups} groups, expected 2 or 3: query and value, or all three"
        )
    return [True, groups == 3, True]
