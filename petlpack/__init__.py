"""petlpack: keep a thousand fine-tunes of one base without a thousand copies, and get every one back exactly.

    petlpack.encode("runs/sst2", pack="glue.pack", base="models/bert-base")
    pack = petlpack.open("glue.pack")
    state = pack["sst2"].state_dict(base="models/bert-base")

Names are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from petlpack.version import __version__

if TYPE_CHECKING:
    from petlpack.analyze.planning import Offer, PackPlan, Plans, RunPlan, plan
    from petlpack.analyze.stats import Stats, stats
    from petlpack.analyze.survey import Survey, survey
    from petlpack.encoding import Encoded, encode
    from petlpack.errors import (
        BaseError,
        DamageError,
        LockedError,
        PetlpackError,
        RunError,
        TaskError,
        UnknownFormatError,
        UsageError,
    )
    from petlpack.loading import Decoded, Task
    from petlpack.modules import Rebuilt
    from petlpack.pack import Checked, Pack, verify
    from petlpack.pack import open_pack as open
    from petlpack.tensors.base import Base
    from petlpack.tensors.tensor import Tensor

_WHERE = {
    "Base": "petlpack.tensors.base:Base",
    "BaseError": "petlpack.errors:BaseError",
    "Checked": "petlpack.pack:Checked",
    "DamageError": "petlpack.errors:DamageError",
    "Decoded": "petlpack.loading:Decoded",
    "Encoded": "petlpack.encoding:Encoded",
    "LockedError": "petlpack.errors:LockedError",
    "Offer": "petlpack.analyze.planning:Offer",
    "Pack": "petlpack.pack:Pack",
    "PackPlan": "petlpack.analyze.planning:PackPlan",
    "PetlpackError": "petlpack.errors:PetlpackError",
    "Plans": "petlpack.analyze.planning:Plans",
    "Rebuilt": "petlpack.modules:Rebuilt",
    "RunError": "petlpack.errors:RunError",
    "RunPlan": "petlpack.analyze.planning:RunPlan",
    "Stats": "petlpack.analyze.stats:Stats",
    "Survey": "petlpack.analyze.survey:Survey",
    "Task": "petlpack.loading:Task",
    "TaskError": "petlpack.errors:TaskError",
    "Tensor": "petlpack.tensors.tensor:Tensor",
    "UnknownFormatError": "petlpack.errors:UnknownFormatError",
    "UsageError": "petlpack.errors:UsageError",
    "encode": "petlpack.encoding:encode",
    "open": "petlpack.pack:open_pack",
    "plan": "petlpack.analyze.planning:plan",
    "stats": "petlpack.analyze.stats:stats",
    "survey": "petlpack.analyze.survey:survey",
    "verify": "petlpack.pack:verify",
}

__all__ = [
    "Base",
    "BaseError",
    "Checked",
    "DamageError",
    "Decoded",
    "Encoded",
    "LockedError",
    "Offer",
    "Pack",
    "PackPlan",
    "PetlpackError",
    "Plans",
    "Rebuilt",
    "RunError",
    "RunPlan",
    "Stats",
    "Survey",
    "Task",
    "TaskError",
    "Tensor",
    "UnknownFormatError",
    "UsageError",
    "__version__",
    "encode",
    "open",
    "plan",
    "stats",
    "survey",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'petlpack' has no attribute '{name}'")
    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name what is public."""
    return __all__
