"""Whether the modules that a run's rule makes are modules."""

from __future__ import annotations

from petlpack.codecs.codec import Codec
from petlpack.encoding.prepare import Prepared
from petlpack.errors import DamageError, RunError, printable
from petlpack.rules.modules import Rebuilt

_HINT = "its files are from different runs, or incomplete: copy the run again"


def check_modules(prepared: Prepared, codec: Codec) -> None:
    """Raise RunError where the run's tensors do not fit its rule, or the modules that come out are none."""
    try:
        rebuilt = codec.rebuild(prepared.described.template.rule, prepared.matched.tensors)
        for tensor in rebuilt.tensors.values() if rebuilt is not None else ():
            tensor.read_flat(0, min(1, tensor.size))
    except DamageError as error:
        raise RunError(
            f"'{printable(str(prepared.run.path))}': {error.message}", hint=_HINT, code=error.own_code
        ) from error
    if rebuilt is not None and rebuilt.kind == "adapter":
        _check_adapters(prepared, rebuilt)


def _check_adapters(prepared: Prepared, rebuilt: Rebuilt) -> None:
    """Raise RunError where the parts of an adapter do not follow each other."""
    names = {id(tensor): name for name, tensor in prepared.matched.tensors.items()}
    for name, down in rebuilt.tensors.items():
        place, _, part = name.rpartition(".down.")
        if part != "weight" or len(down.shape) != 2:
            continue
        narrow, width = down.shape
        expected = {"down.bias": (narrow,), "up.weight": (width, narrow), "up.bias": (width,)}
        for other, shape in expected.items():
            tensor = rebuilt.tensors.get(f"{place}.{other}")
            if tensor is not None and tensor.shape != shape:
                source = names.get(id(tensor), f"{place}.{other}")
                raise RunError(
                    f"'{printable(str(prepared.run.path))}': tensor '{printable(source)}' is {list(tensor.shape)}, "
                    f"the adapter at '{printable(place)}' needs {list(shape)}",
                    hint=_HINT,
                )
