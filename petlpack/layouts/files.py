"""Which files of a run are kept byte for byte, and why the others are left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from petlpack.errors import RunError, printable
from petlpack.layouts.run import LeftOut
from petlpack.store import is_pack
from petlpack.tensors.checkpoint import Checkpoint

LOADING = frozenset(
    {
        *("config.json", "generation_config.json", "adapter_config.json", "head_config.json", "config_setfit.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
        *("vocab.txt", "vocab.json", "merges.txt", "vocab.bpe", "bpe.codes", "entity_vocab.json", "tekken.json"),
        *("tokenizer.model", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model"),
        *("source.spm", "target.spm", "chat_template.jinja", "chat_template.json"),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "router_config.json"),
    }
)
"""Files that loading a model needs, by name; Transformers, PEFT and sentence-transformers write them."""

TRAINING = ("optimizer", "scheduler", "scaler.pt", "rng_state", "training_args.bin", "global_step")
"""How the names of training state begin; most of it is pickled, and none is ever opened."""

_TEMPLATES = PurePosixPath("additional_chat_templates")

_OF_THE_WEIGHTS = {"config.json", "adapter_config.json", "head_config.json"}
"""Files that describe the weights beside them: those of the root may describe another model than a checkpoint's."""

LOGS = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "result.json"}
"""Files that say how a training went, by name."""

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}
"""How the names of weight files end, in formats that are read and in others."""

_OTHER_WEIGHTS = "other weights"

_BROKEN = "a broken link"


def sort_files(
    run: Path, chosen: Path, weights: Iterable[Path], also: Collection[str] = ()
) -> tuple[dict[str, Path], tuple[LeftOut, ...]]:
    """Sort the files of a run into those kept byte for byte and those left out, each with the reason.

    `chosen` is the run or the checkpoint in it whose files count, `weights` are the files whose tensors are stored,
    `also` names further files, relative to `chosen`, that loading needs. What `chosen` lacks is taken from the run.
    Raises RunError where a link that loading needs leads to no file.
    """
    stored = {path.resolve() for path in weights}
    names = {*LOADING, *also}
    directories = {_TEMPLATES, *module_types(chosen if (chosen / "modules.json").is_file() else run)}
    packs = {path.parent for path in run.rglob("pack.json") if path.parent != run and is_pack(path.parent)}
    kept: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    for path in sorted(run.rglob("*")):
        shown = path.relative_to(run).as_posix()
        broken = path.is_symlink() and not path.is_file()
        if not packs.isdisjoint(path.parents) or not (path in packs or broken or path.is_file()):
            continue
        if path in packs:
            left_out.append(LeftOut(shown, _total(path), "a pack"))
            continue
        if not broken and path.resolve() in stored:
            continue
        inside = path.is_relative_to(chosen)
        name = path.relative_to(chosen if inside else run)
        loading = name.as_posix() in names or any(name.is_relative_to(directory) for directory in directories)
        if path.suffix == ".py" or not (inside or _lacks(chosen, name)):
            loading = False
        if broken and loading:
            raise _broken_link(path)
        if broken:
            left_out.append(LeftOut(shown, 0, "a link to a directory" if path.is_dir() else _BROKEN))
        elif loading and _portable(name.as_posix()):
            kept[name.as_posix()] = path
        else:
            why = "a file name that is not valid on every system" if loading else _why(name, path)
            left_out.append(LeftOut(shown, path.stat().st_size, why))
    return kept, tuple(left_out)


def other_weights(left_out: Collection[LeftOut]) -> tuple[str, ...]:
    """Return a warning about weights that are left out, if there are any."""
    others = [left.file for left in left_out if left.why == _OTHER_WEIGHTS]
    return (f"left out other weights: {some(others)}",) if others else ()


def warnings_of(weights: Checkpoint, left_out: Collection[LeftOut]) -> tuple[str, ...]:
    """Return what a person should know of a run: weights that are left out, and those that come back otherwise."""
    broken = [left.file for left in left_out if left.why == _BROKEN]
    pickled = [source.name for source in weights.sources if source.suffix != ".safetensors"]
    warnings = [*weights.warnings, *other_weights(left_out)]
    if broken:
        warnings.append(f"left out broken links: {some(broken)}")
    if pickled and not {*pickled} & weights.headers.keys():
        verb = "comes" if len(pickled) == 1 else "come"
        warnings.append(f"{some(pickled)} {verb} back as {some(list(weights.headers))}")
    return tuple(warnings)


def module_types(directory: Path) -> dict[PurePosixPath, str]:
    """Return the directories that a sentence-transformers modules.json names, each with its module's type.

    A module at the root has no directory; a path that leads outside is ignored.
    """
    index = directory / "modules.json"
    if not index.is_file():
        return {}
    try:
        rows = [(module["path"], module.get("type")) for module in json.loads(index.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"'{printable(str(index))}' is not a valid list of modules: {error!r}", hint="save the model again"
        ) from error
    paths = [(PurePosixPath(path), str(kind)) for path, kind in rows if isinstance(path, str)]
    return {path: kind for path, kind in paths if path.parts and not path.is_absolute() and ".." not in path.parts}


def some(names: list[str]) -> str:
    """Name the first five of several files."""
    return ", ".join(printable(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def check_links(directory: Path) -> None:
    """Raise RunError where a file that loading needs, or weights, is a link to nothing."""
    for path in sorted(directory.iterdir()):
        if (path.name in LOADING or path.suffix in WEIGHTS) and path.is_symlink() and not path.exists():
            raise _broken_link(path)


def _broken_link(path: Path) -> RunError:
    return RunError(
        f"'{printable(str(path))}' is a link to '{printable(str(path.readlink()))}', which is not a file",
        hint="loading the model needs it: replace the link by the file itself",
    )


def _lacks(chosen: Path, name: Path) -> bool:
    """Tell whether a file of the run stands in for one that the chosen checkpoint lacks."""
    return name.as_posix() not in _OF_THE_WEIGHTS and not (chosen / name).exists()


def _portable(name: str) -> bool:
    return name.isprintable() and "\\" not in name and ":" not in name


def _total(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _why(name: Path, path: Path) -> str:
    """Return why a file is left out; `name` is relative to the chosen directory where it is in that."""
    if path.name.startswith(TRAINING):
        return "training state, not needed for inference"
    if any(part.startswith("checkpoint-") for part in name.parts[:-1]):
        return "another checkpoint"
    if path.name == "README.md":
        return "model card"
    if path.name in (".gitattributes", ".gitignore"):
        return "repository file"
    if path.name.endswith(".index.json"):
        return "an index of files that are not kept"
    if path.suffix in WEIGHTS:
        return _OTHER_WEIGHTS
    if path.name in LOGS or "runs" in name.parts[:-1] or path.name.startswith("events.out.tfevents"):
        return "training log"
    if path.suffix == ".py" and (path.parent / "config.json").is_file():
        return "code; loading with trust_remote_code needs it"
    return "not known to be needed"


METHODS = {
    "propetl": "PROPETL",
    "param_gen": "PHA",
    "ExpertSoup": "AdaMix",
    "experts_lora_A": "AdaMix",
    "diff_pruning": "diff pruning",
}
"""Modules that petlpack.methods puts on a model, in whose names no whole model has parts."""


def refuse_methods(weights: Checkpoint) -> None:
    """Raise RunError for a model that was saved with a method of petlpack on it: without it, it computes otherwise."""
    held = ((name, METHODS[part]) for name in weights.tensors for part in name.split(".") if part in METHODS)
    name, method = next(held, ("", ""))
    if method:
        raise RunError(
            f"'{printable(str(weights.sources[0]))}' is a model with {method} on it ('{printable(name)}'), as "
            "save_pretrained and Trainer write it: it does not say how the method is used",
            hint="load it into a model with the method on it, then method.save(DIRECTORY), and encode that",
        )
