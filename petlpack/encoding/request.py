"""What is asked of one call of `encode`, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from petlpack.codecs.codec import Codec
from petlpack.codecs.registry import CODECS, codecs_for, wanted_codec
from petlpack.codecs.registry import codec as registered_codec
from petlpack.coding.array import Level
from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import PART, check, optional, shown
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run


def without_base_hint(run: Run) -> str:
    """Return what a hint says besides of the codecs that store a run without a base; empty where none does."""
    without = [codec.id for codec in codecs_for(run.module) if not codec.uses_base and not run.on_base]
    return "".join(f"; --codec {codec_id} stores the run without a base" for codec_id in without)


@dataclass(frozen=True)
class Request:
    """Which codec, how hard it tries, the share of the changes to keep, and what is said of the run.

    Raises UsageError for a codec or level that is not known, and for a density that is no share.
    """

    codec: str
    level: Level
    density: float | None
    options: Options

    def __post_init__(self) -> None:
        if self.level not in ("fast", "small"):
            raise UsageError(f"unknown level {shown(self.level)}", hint="choose fast or small")
        check("density", self.density, optional(PART), "density is the share of the weights to keep")
        if self.codec != "auto":
            wanted_codec(self.codec)

    def needs_base(self, run: Run) -> bool:
        """Tell whether the run cannot be encoded as asked without its base."""
        return run.needs_base and (self.codec == "auto" or wanted_codec(self.codec).uses_base)

    def candidates(self, run: Run) -> list[Codec]:
        """Return the codecs to try; raises UsageError for one that cannot take the run."""
        kind, known, wanted = type(run.module), codecs_for(run.module), self.codec
        if wanted == "auto":
            tried = [codec for codec in known if kind not in codec.on_request]
        elif not (tried := [codec for codec in known if codec.id == wanted]) and self.density is None:
            raise UsageError(
                f"codec '{wanted}' does not take '{printable(str(run.path))}' ({run.method})",
                hint=f"choose one of auto, {', '.join(codec.id for codec in known)}",
            )
        if self.density is None:
            return tried
        pruning = [codec for codec in tried if kind in codec.prunes]
        if not pruning:
            ids = " or ".join(codec_id for codec_id in CODECS if registered_codec(codec_id).prunes)
            raise UsageError(
                f"density is only for a full fine-tune with codec {ids}, not for '{printable(str(run.path))}' "
                f"({run.method}) with codec {wanted}",
                hint="omit the density",
            )
        return pruning
