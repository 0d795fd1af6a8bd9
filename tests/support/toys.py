"""Codecs, a coder, a layout and an export that stand in no registry: what CONTRIBUTING asks for, and nothing more."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from petlpack.codecs.codec import Codec, ReadSection, Way, exactly
from petlpack.codecs.units import FromBase, Piece, Section, Unit, base_pieces, group, own_pieces
from petlpack.coding.array import Array, Level
from petlpack.exports.export import Export, Exportable, Reading
from petlpack.layouts.files import sort_files
from petlpack.layouts.layout import Layout
from petlpack.layouts.options import Options, Setting
from petlpack.layouts.run import Run
from petlpack.records.slot import Slot
from petlpack.rules.modules import Copy, Dense, Module, Plain, Rebuilt, Use
from petlpack.rules.rows import check_rule, find, pair, parse_rows, rebuilt, to_rule
from petlpack.tensors.checkpoint import open_checkpoint
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.tensor import Tensor

HALF = Setting("toy_half", "toys: leave out the right half", flag=True, on_loses="the right half")
COLOUR = Setting("toy_colour", "toys: what colour they have", frozenset({"red", "blue"}))


class ToyCoder:
    """What differs from the prediction, deflated."""

    id = "toy"
    decode_ns = 1.0

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes:
        """Return the bytes."""
        return zlib.compress((bits if array.prediction is None else bits ^ array.prediction).tobytes())

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the array."""
        try:
            bits = np.frombuffer(zlib.decompress(data), array.dtype.bits)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(bits) != array.count:
            raise ValueError(f"{len(bits)} elements")
        return bits if array.prediction is None else bits ^ array.prediction


@dataclass(frozen=True)
class ToyCodec(Codec):
    """Every tensor by the toy coder."""

    id = "toy"
    takes = MappingProxyType({Dense: (Way(),), Plain: (Way(),)})

    def units(self, slots: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
        """Cut into `toys.N` against the base, `loose.N` and `head.N`."""
        own: dict[bool, list[Piece]] = {False: [], True: []}
        for piece in own_pieces(slots):
            own[piece.slot.head].append(piece)
        return [
            *group(base_pieces(slots), "toys", 1 << 20, role="base", predictor=FromBase()),
            *group(own[False], "loose", 1 << 20, role="own"),
            *group(own[True], "head", 1 << 20, role="head"),
        ]

    def encode(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> list[Section]:
        """Return one section."""
        return [Section(unit.name, tuned, Array(unit.dtype, unit.size, unit.row, prediction), ("toy",))]

    def decode(self, unit: Unit, read: ReadSection, prediction: Bits | None) -> Bits:
        """Return the flat elements."""
        return read(unit.name, unit.dtype, exactly(unit.size), unit.row, prediction)


@dataclass(frozen=True)
class ShyCodec(ToyCodec):
    """Only what has no head."""

    id = "shy"
    takes = MappingProxyType({Dense: (Way(),)})

    def declines(self, unit: Unit, tuned: Bits, prediction: Bits | None) -> str | None:
        """Say that there is a head."""
        return f"it has a head of {unit.size} weights" if unit.role == "head" else None


@dataclass(frozen=True)
class NamedCodec(ToyCodec):
    """Whole models, and a rule by which their matrices come back under other names."""

    id = "named"
    takes = MappingProxyType({Dense: (Way(),)})

    def rule_of(self, module: Module) -> dict[str, Any]:
        """Return the new name of each matrix."""
        return to_rule(
            Use("lora", {"scaling": 1.0}),
            [Copy(f"new.{name}", name) for name, tensor in module.tensors.items() if len(tensor.shape) == 2],
        )

    def kinds(self, rule: Mapping[str, Any] | None) -> dict[str, str]:
        """Return one kind for all matrices: the rule's."""
        return {row.tensor: "matrix" for row in self._rows(rule)}

    def rebuild(self, rule: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Rebuilt | None:
        """Return the matrices by their new names."""
        assert rule is not None
        return rebuilt(rule, {row.output: find(tensors, row.tensor) for row in self._rows(rule)})

    def formula(self, rule: Mapping[str, Any] | None) -> list[str]:
        """Return the names."""
        return [f"{row.output} = {row.tensor}" for row in self._rows(rule)]

    def _rows(self, rule: Mapping[str, Any] | None) -> list[Copy]:
        return parse_rows(check_rule(rule)["rows"], lambda row: Copy(*pair(row)))


@dataclass(frozen=True)
class ToyLayout(Layout):
    """toy.json, and a left and a right half of the weights."""

    id = "toy"
    method = "toy tune"
    settings = (HALF, COLOUR)

    def detect(self, path: Path) -> bool:
        """Tell whether there is a toy.json."""
        return (path / "toy.json").is_file()

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the halves: of a LoRA where toy.json says so, else of a whole model."""
        about = json.loads((path / "toy.json").read_text(encoding="utf-8"))
        sides = ("left",) if options.wants(HALF) else ("left", "right")
        halves = [open_checkpoint(path / f"{side}.safetensors") for side in sides]
        options.text(COLOUR)
        tensors = {name: tensor for half in halves for name, tensor in half.tensors.items()}
        kept, left_out = sort_files(path, path, [path / "left.safetensors", path / "right.safetensors"], ["toy.json"])
        head = frozenset(name for name in tensors if name.startswith("classifier."))
        copies = tuple(Copy(name, name) for name in tensors if name not in head)
        lora = Plain(tensors, head, Use("lora", {"scaling": 2.0}), copies)
        return [
            Run(
                path=path,
                layout=self.id,
                method=self.method,
                module=lora if about["lora"] else Dense(tensors),
                headers={name: header for half in halves for name, header in half.headers.items()},
                weight_bytes=sum(half.nbytes for half in halves),
                kept=kept,
                left_out=left_out,
                base_name=None,
            )
        ]


@dataclass(frozen=True)
class DeepLayout(Layout):
    """deep.json, and weights in a folder beside it, whose names end as no other weights' do."""

    id = "deep"
    method = "deep tune"

    def detect(self, path: Path) -> bool:
        """Tell whether there is a deep.json."""
        return (path / "deep.json").is_file()

    def weights(self, place: Path) -> list[Path]:
        """Return the files in the folder."""
        return sorted((place / "w").glob("*.st"))

    def folders(self, path: Path) -> list[Path]:
        """Return the folder."""
        return [path / "w"]

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read all files as one model."""
        files = {f"w/{file.name}": open_checkpoint(file) for file in self.weights(path)}
        kept, left_out = sort_files(path, path, self.weights(path), ["deep.json"])
        return [
            Run(
                path=path,
                layout=self.id,
                method=self.method,
                module=Dense({name: tensor for file in files.values() for name, tensor in file.tensors.items()}),
                headers={name: next(iter(file.headers.values())) for name, file in files.items()},
                weight_bytes=sum(file.nbytes for file in files.values()),
                kept=kept,
                left_out=left_out,
                base_name=None,
            )
        ]


class ToyExport(Export):
    """One text with the names of all tensors."""

    id = "toy"

    def is_already(self, task: Exportable) -> bool:
        """Return False: no run is such a text."""
        return False

    def write(self, task: Exportable, directory: Path, reading: Reading) -> list[str]:
        """Write the text; the weights are gone."""
        names = [slot.name for slot in task.load(reading.base).sources.slots]
        (directory / "toy.txt").write_text("\n".join(names), encoding="utf-8")
        return ["the weights are not in it"]
