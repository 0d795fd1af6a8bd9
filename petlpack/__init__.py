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
    from petlpack.analyze.audit import Audit, audit
    from petlpack.analyze.details import Details, details
    from petlpack.analyze.forecast import Forecast, parse_counts
    from petlpack.analyze.known_codecs import KnownCodec, KnownCodecs, known_codecs
    from petlpack.analyze.listing import ListedTask, Listing, listing
    from petlpack.analyze.offers import FailedPlan, Offer, PackPlan, Plans, RunPlan
    from petlpack.analyze.planning import plan
    from petlpack.analyze.rows import TaskRow
    from petlpack.analyze.stats import Stats, stats
    from petlpack.analyze.survey import KindRow, RunRow, Survey, survey
    from petlpack.analyze.tables import Table
    from petlpack.checking import Checked, Findings, verify
    from petlpack.decoding.directory import Decoded
    from petlpack.decoding.task import Task
    from petlpack.encoding.encode import Encoded, encode
    from petlpack.encoding.runs import EncodedRun, EncodedRuns, encode_runs
    from petlpack.errors import (
        BaseError,
        DamageError,
        LimitError,
        LockedError,
        PetlpackError,
        Problem,
        RunError,
        TaskError,
        UnknownFormatError,
        UsageError,
        printable,
        problem_of,
    )
    from petlpack.exports.registry import known_exports
    from petlpack.layouts.registry import known_settings
    from petlpack.pack import Garbage, Pack, Removed, Sealed, gc, remove, seal
    from petlpack.pack import open_pack as open
    from petlpack.rules.modules import Rebuilt
    from petlpack.store import is_pack
    from petlpack.tensors.base import Base
    from petlpack.tensors.tensor import Tensor

_WHERE = {
    "Audit": "petlpack.analyze.audit:Audit",
    "Base": "petlpack.tensors.base:Base",
    "BaseError": "petlpack.errors:BaseError",
    "Checked": "petlpack.checking:Checked",
    "DamageError": "petlpack.errors:DamageError",
    "Decoded": "petlpack.decoding.directory:Decoded",
    "Details": "petlpack.analyze.details:Details",
    "Encoded": "petlpack.encoding.encode:Encoded",
    "EncodedRun": "petlpack.encoding.runs:EncodedRun",
    "EncodedRuns": "petlpack.encoding.runs:EncodedRuns",
    "FailedPlan": "petlpack.analyze.offers:FailedPlan",
    "Findings": "petlpack.checking:Findings",
    "Forecast": "petlpack.analyze.forecast:Forecast",
    "Garbage": "petlpack.pack:Garbage",
    "KindRow": "petlpack.analyze.survey:KindRow",
    "KnownCodec": "petlpack.analyze.known_codecs:KnownCodec",
    "KnownCodecs": "petlpack.analyze.known_codecs:KnownCodecs",
    "LimitError": "petlpack.errors:LimitError",
    "ListedTask": "petlpack.analyze.listing:ListedTask",
    "Listing": "petlpack.analyze.listing:Listing",
    "LockedError": "petlpack.errors:LockedError",
    "Offer": "petlpack.analyze.offers:Offer",
    "Pack": "petlpack.pack:Pack",
    "PackPlan": "petlpack.analyze.offers:PackPlan",
    "PetlpackError": "petlpack.errors:PetlpackError",
    "Plans": "petlpack.analyze.offers:Plans",
    "Problem": "petlpack.errors:Problem",
    "Rebuilt": "petlpack.rules.modules:Rebuilt",
    "Removed": "petlpack.pack:Removed",
    "RunError": "petlpack.errors:RunError",
    "RunPlan": "petlpack.analyze.offers:RunPlan",
    "RunRow": "petlpack.analyze.survey:RunRow",
    "Sealed": "petlpack.pack:Sealed",
    "Stats": "petlpack.analyze.stats:Stats",
    "Survey": "petlpack.analyze.survey:Survey",
    "Table": "petlpack.analyze.tables:Table",
    "Task": "petlpack.decoding.task:Task",
    "TaskError": "petlpack.errors:TaskError",
    "TaskRow": "petlpack.analyze.rows:TaskRow",
    "Tensor": "petlpack.tensors.tensor:Tensor",
    "UnknownFormatError": "petlpack.errors:UnknownFormatError",
    "UsageError": "petlpack.errors:UsageError",
    "audit": "petlpack.analyze.audit:audit",
    "details": "petlpack.analyze.details:details",
    "encode": "petlpack.encoding.encode:encode",
    "encode_runs": "petlpack.encoding.runs:encode_runs",
    "gc": "petlpack.pack:gc",
    "is_pack": "petlpack.store:is_pack",
    "known_codecs": "petlpack.analyze.known_codecs:known_codecs",
    "known_exports": "petlpack.exports.registry:known_exports",
    "known_settings": "petlpack.layouts.registry:known_settings",
    "listing": "petlpack.analyze.listing:listing",
    "open": "petlpack.pack:open_pack",
    "parse_counts": "petlpack.analyze.forecast:parse_counts",
    "plan": "petlpack.analyze.planning:plan",
    "printable": "petlpack.errors:printable",
    "problem_of": "petlpack.errors:problem_of",
    "remove": "petlpack.pack:remove",
    "seal": "petlpack.pack:seal",
    "stats": "petlpack.analyze.stats:stats",
    "survey": "petlpack.analyze.survey:survey",
    "verify": "petlpack.checking:verify",
}

__all__ = [
    "Audit",
    "Base",
    "BaseError",
    "Checked",
    "DamageError",
    "Decoded",
    "Details",
    "Encoded",
    "EncodedRun",
    "EncodedRuns",
    "FailedPlan",
    "Findings",
    "Forecast",
    "Garbage",
    "KindRow",
    "KnownCodec",
    "KnownCodecs",
    "LimitError",
    "ListedTask",
    "Listing",
    "LockedError",
    "Offer",
    "Pack",
    "PackPlan",
    "PetlpackError",
    "Plans",
    "Problem",
    "Rebuilt",
    "Removed",
    "RunError",
    "RunPlan",
    "RunRow",
    "Sealed",
    "Stats",
    "Survey",
    "Table",
    "Task",
    "TaskError",
    "TaskRow",
    "Tensor",
    "UnknownFormatError",
    "UsageError",
    "__version__",
    "audit",
    "details",
    "encode",
    "encode_runs",
    "gc",
    "is_pack",
    "known_codecs",
    "known_exports",
    "known_settings",
    "listing",
    "open",
    "parse_counts",
    "plan",
    "printable",
    "problem_of",
    "remove",
    "seal",
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
