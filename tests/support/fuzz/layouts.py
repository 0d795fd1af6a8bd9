"""Targets of layouts: a run's small files, headers and pickles, changed, are read as runs, or refused."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import petlpack
from petlpack.codecs.registry import codecs_for
from petlpack.errors.foreign import errors_of_run
from petlpack.layouts.layout import Layout
from petlpack.layouts.options import Options
from petlpack.layouts.registry import LAYOUTS, layout, options_of, read_run
from petlpack.layouts.results import stated_score
from tests.support.fuzz.mutations import bundle, mutate_bundle, unbundle
from tests.support.fuzz.target import Target, tried
from tests.support.method_cases import CASES, write_case
from tests.support.small_runs import TINY, make_pair, weights, write_pair, write_pipeline, write_run

_MOST = 1 << 14
"""Bytes of a file that is changed; larger ones are none of a tiny run that a layout reads."""

_TOKENIZER = ("vocab.txt", "merges.txt", "spiece.model", "tokenizer.json", "special_tokens_map.json")
_RARE = 64
"""One in so many runs is encoded, too."""


def _write_others(place: Path) -> dict[str, Path]:
    """Write a run for each of the layouts that are no method's, and return them."""
    runs = {
        "transformers": write_pair(place / "t", layers=1, width=4, words=8)[0],
        "diffusers": write_pipeline(place / "d")[0],
    }
    factors = {f"base_model.model.q.lora_{side}.weight": weights("F32", (2, 2), i) for i, side in enumerate("AB")}
    runs["peft"] = write_run(place / "p", factors, None, weights_file="adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["q"], "base_model_name_or_path": "b"}
    (runs["peft"] / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    bare, _ = make_pair(1, layers=1, width=4, words=8)
    runs["safetensors"] = write_run(place / "b", bare, None, weights_file="weights.safetensors")
    trainer = {"best_metric": 0.9, "best_model_checkpoint": "checkpoint-2", "log_history": [{"eval_accuracy": 0.9}]}
    (runs["transformers"] / "trainer_state.json").write_text(json.dumps(trainer), encoding="utf-8")
    return runs


@functools.cache
def _seeds() -> dict[str, list[tuple[bytes, dict[str, Any]]]]:
    """Return the runs of each layout as bundles, with the settings that they need."""
    found: dict[str, list[tuple[bytes, dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, case) in enumerate(CASES.items()):
            _, written, _ = write_case(name, Path(scratch) / str(number), TINY)
            settings = case.options.get("settings", {})
            found.setdefault(case.layout, []).append((_bundled(written.path), settings))
        for name, run in _write_others(Path(scratch)).items():
            found.setdefault(name, []).append((_bundled(run), {}))
    return found


def _bundled(run: Path) -> bytes:
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name not in _TOKENIZER]
    return bundle(
        {path.relative_to(run).as_posix(): path.read_bytes() for path in files if path.stat().st_size <= _MOST}
    )


def layout_target(layout_id: str, scratch: Path) -> Target:
    """Return the target of a layout: it tells whether a directory is its run, and reads it, or refuses."""
    cases = _seeds().get(layout_id) or list(itertools.chain(*_seeds().values()))  # a new one has those of all others
    places = (scratch / f"run{number}" for number in itertools.count())

    def attack(data: bytes) -> None:
        place = next(places)
        try:
            if not _written(place, unbundle(data)):
                return
            settings = cases[zlib.crc32(data) % len(cases)][1]
            for options in (Options(), options_of(settings)):
                _read(layout(layout_id), place, options)
            if zlib.crc32(data) % _RARE == 0:
                tried(lambda: petlpack.encode(place, scratch / "pack", task="fuzzed", replace=True, jobs=1))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    return Target([data for data, _ in cases], attack, mutate_bundle)


def _written(place: Path, parts: dict[str, bytes]) -> bool:
    """Write a run; False where no file system has such names."""
    place.mkdir()
    for name, data in parts.items():
        if name.startswith("/") or ".." in name.split("/"):
            continue
        try:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        except (OSError, ValueError):
            continue
    return bool(list(place.iterdir()))


def _read(reader: Layout, place: Path, options: Options) -> None:
    """Read a run as any layout does that knows it, and by one of them."""
    known = tried(lambda: reader.detect(place))
    if known is not None and known[0]:
        tried(lambda: _by(reader, place, options))
    found = tried(lambda: read_run(place, options))
    tried(lambda: stated_score(place))
    for run in found[0] if found is not None else ():
        size = sum(tensor.nbytes for tensor in run.module.tensors.values())
        for codec in codecs_for(run.module):
            codec.kinds(codec.rule_of(run.module))
        for name, tensor in run.module.tensors.items() if size < 1 << 20 else ():
            bits = tried(tensor.bits)
            assert bits is None or bits[0].nbytes == tensor.nbytes, name


def _by(reader: Layout, place: Path, options: Options) -> None:
    with errors_of_run(place):
        reader.read(place, options)


def _all() -> Iterator[tuple[str, Callable[[Path], Target]]]:
    return ((f"layout {name}", partial(layout_target, name)) for name in LAYOUTS)


RUNS: dict[str, Callable[[Path], Target]] = dict(_all())
"""The targets of layouts by name, each made with a directory of its own."""
