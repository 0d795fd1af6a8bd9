"""Step 3: what tasks may have in common, as shared parts of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from petlpack.encoding.match import Digests, Matched
from petlpack.layouts.run import Run
from petlpack.sections.parts import part_name
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class SharedTensors:
    """What goes into one shared part of tensors: names (None for one that no file has), tensors, the part's name.

    `like` names for each a tensor of its kind, dtype and shape.
    """

    sha256: str
    names: tuple[str | None, ...]
    like: tuple[str, ...]
    tensors: tuple[Tensor, ...]


def share(run: Run, matched: Matched, digests: Digests) -> tuple[Matched, tuple[SharedTensors, ...]]:
    """Return the shared parts of tensors, without those that equal the base's or an earlier one: they are aliases.

    What all tasks of a run have is then no longer coded against the base.
    """
    seen = {matched.content(name) for name in matched.unchanged}
    parts = []
    for number, part in enumerate(run.parts):
        names: list[str] = []
        for name in part:
            tensor = matched.tensors.get(name) if name else None
            if tensor is not None and tensor.size and matched.content(name) not in seen:
                seen.add(matched.content(name))
                names.append(name)
        hints = run.hints if number == 0 else {}
        tensors = [*(matched.tensors[name] for name in names), *hints.values()]
        if tensors:
            hashes = digests.of({str(i): tensor for i, tensor in enumerate(tensors)}).values()
            sha256 = part_name([(t.dtype, t.shape, digest) for t, digest in zip(tensors, hashes, strict=True)])
            parts.append(SharedTensors(sha256, (*names, *(None for _ in hints)), (*names, *hints), tuple(tensors)))
    common = {name for part in run.parts for name in part} - matched.unchanged
    refs = {name: ref for name, ref in matched.refs.items() if name not in common}
    return replace(matched, refs=refs), tuple(parts)
