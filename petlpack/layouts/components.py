"""The weight files that come along with a run, as weights: each a component of its task, and no longer bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from petlpack.layouts.files import TOO_LARGE, some, warnings_about
from petlpack.layouts.run import LeftOut, Run
from petlpack.layouts.selection import Selection
from petlpack.store import MAX_SHARED
from petlpack.tensors.checkpoint import PICKLED, Checkpoint
from petlpack.tensors.components import is_written, with_components
from petlpack.tensors.kinds import kind_by_name
from petlpack.tensors.pickled import holds_more


def as_weights(run: Run, selection: Selection) -> Run:
    """Return a run with the tensors of the weight files that it keeps; one that is asked for by name stays bytes.

    So does a file that is more than a state dict, and what is none: that is left out where it is larger than files may
    be, and weights only where no pack can hold their bytes.
    """
    files = {
        name: path
        for name, path in run.kept.items()
        if isinstance(path, Path) and is_weights(PurePosixPath(name)) and not _is_asked(run, name, path, selection)
    }
    main = Checkpoint(run.headers, dict(run.module.tensors), ())
    weights, why_not = with_components(main, files)
    more = [name for name in why_not if files[name].suffix in PICKLED and holds_more(files[name])]
    most = {name: MAX_SHARED if name in more else selection.max_file for name in why_not}
    large = {name for name in why_not if files[name].stat().st_size > most[name]}
    left_out = [_too_large(run, files[name]) for name in sorted(large)]
    taken = files.keys() - why_not.keys()
    odd = [name for name in why_not if name not in large and name.endswith(".safetensors")]
    return replace(
        run,
        module=replace(run.module, tensors=weights.tensors),
        headers=weights.headers,
        weight_bytes=run.weight_bytes + weights.nbytes,
        kept={name: path for name, path in run.kept.items() if name not in taken | large},
        left_out=(*run.left_out, *left_out),
        warnings=(
            *run.warnings,
            *([f"kept as bytes what is no valid safetensors file: {some(odd)}"] if odd else []),
            *_told_of(more, large),
            *warnings_about(left_out),
        ),
    )


def _told_of(more: list[str], large: set[str]) -> list[str]:
    """Return what to say of pickled weights that are more than a state dict: without it they are predicted, too."""
    kept, gone = [name for name in more if name not in large], [name for name in more if name in large]
    advice = "save the state dict by itself to have it encoded as weights"
    return [
        *([f"kept as bytes what is more than a state dict: {some(kept)}; {advice}"] if kept else []),
        *(
            [f"left out weights that are more than a state dict and too large to be kept: {some(gone)}; {advice}"]
            if gone
            else []
        ),
    ]


def is_weights(name: PurePosixPath) -> bool:
    """Tell by its name whether a file holds weights that can come back in its format."""
    return is_written(name.name) and kind_by_name(name.parts) == "other weights"


def without_components(run: Run, files: set[str]) -> tuple[Run, list[str]]:
    """Return a run without the components that are in none of these files, and the names of theirs."""
    odd = [name for name, header in run.headers.items() if header.prefix and name not in files]
    gone = {tensor for name in odd for tensor in run.headers[name].tensors}
    module = replace(run.module, tensors={n: tensor for n, tensor in run.module.tensors.items() if n not in gone})
    return replace(run, module=module, headers={n: h for n, h in run.headers.items() if n not in odd}), odd


def _is_asked(run: Run, name: str, path: Path, selection: Selection) -> bool:
    return selection.keeps(PurePosixPath(name), PurePosixPath(path.relative_to(run.path).as_posix()))


def _too_large(run: Run, path: Path) -> LeftOut:
    return LeftOut(path.relative_to(run.path).as_posix(), path.stat().st_size, TOO_LARGE)
