"""A small real run of every layout, and what somebody could have done to its files: configs, weights, indexes, folders.

Every run has the same done to it, so that a layout that is new is attacked in all of these ways.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from petlpack.layouts.registry import LAYOUTS
from tests.support.hostile_files import OF_FILES, OF_FOLDERS, Change
from tests.support.method_cases import CASES
from tests.support.method_runs import write_base
from tests.support.small_runs import TINY, make_pair, weights, write_pair, write_pipeline, write_safetensors

Hostile = tuple[str, Change]


# Runs


def write_run_of(layout_id: str, place: Path) -> Path:
    """Write a small run that a layout reads to `place / "run"`, and what it stands on to `place / "base"`."""
    if layout_id in OTHERS:
        OTHERS[layout_id](place)
        return place / "run"
    case = next(case for case in CASES.values() if case.layout == layout_id)
    if case.base is not None:
        write_base(place / "base", TINY, family=case.base)
    case.write(place / "run", place / "base", TINY)
    return place / "run"


def options_of(layout_id: str) -> list[str]:
    """Return the options of `encode` that the run of a layout needs."""
    found = [case.options for case in CASES.values() if case.layout == layout_id][:1]
    said = found[0].get("settings", {}) if found else {}
    return [word for name, value in said.items() for word in _option(name, value)]


def _option(name: str, value: str | bool) -> list[str]:
    return [f"--{name.replace('_', '-')}"] if value is True else ["--set", f"{name}={value}"]


def _lora(place: Path) -> None:
    layer = "base_model.model.encoder.layer.0.attention.self.query"
    tensors = {f"{layer}.lora_A.weight": weights("F32", (2, 8), 1), f"{layer}.lora_B.weight": weights("F32", (8, 2), 2)}
    write_safetensors(place / "run" / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "modules_to_save": None}
    (place / "run" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def _shards(place: Path) -> None:
    """Write a model in two shards."""
    run, _ = write_pair(place, layers=1, width=8, words=8)
    (run / "model.safetensors").unlink()
    tuned, _ = make_pair(layers=1, width=8, words=8)
    halves = {"a.safetensors": list(tuned)[::2], "b.safetensors": list(tuned)[1::2]}
    for file, names in halves.items():
        write_safetensors(run / file, {name: tuned[name] for name in names})
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (run / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _bare(place: Path) -> None:
    write_pair(place, layers=1, width=8, words=8)
    (place / "run" / "config.json").unlink()


OTHERS: dict[str, Change] = {
    "peft": _lora,
    "transformers": _shards,
    "diffusers": lambda place: write_pipeline(place),
    "safetensors": _bare,
}


def hostile_runs(pristine: Mapping[str, Path]) -> Iterator[tuple[str, str, Change]]:
    """Yield layout, what was done, and what does it to a copy of the layout's run."""
    for number, layout_id in enumerate(LAYOUTS):
        run = pristine[layout_id]
        files = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
        for file in files:
            ways = [*_of_json(run / file, number)] if file.endswith(".json") else []
            ways += [*_of_weights(run / file)] if file.endswith(".safetensors") else []
            ways += [*_of_pickles()] if file.endswith((".bin", ".pt")) else []
            if file.endswith((".json", ".safetensors", ".bin", ".pt")):
                ways += [one for i, one in enumerate(OF_FILES.items()) if i % 3 == number % 3 or i < 3]
            yield from ((layout_id, f"{file}: {what}", _on(file, change)) for what, change in ways)
        yield from ((layout_id, what, change) for what, change in OF_FOLDERS.items())


def _on(file: str, change: Change) -> Change:
    return lambda run: change(run / file)


# JSON

VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        2**63,
        10**400,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\ud800",
        "a\0b",
        "../x",
        "/",
        "9" * 5000,
    ),
    *([], [[]], [["x"]], [None], {}, {"": []}, [2**61, 0], {"x": [{}]}, 99999999, "²", "\x1b[31m", "x" * 100_000),
]


def _of_json(file: Path, number: int) -> Iterator[Hostile]:
    """Yield other values of each key, keys that are missing, and keys that stand twice."""
    table = json.loads(file.read_text(encoding="utf-8"))
    for i, key in enumerate(table if isinstance(table, dict) else ()):
        for value in (VALUES[(3 * i + 5 * number) % len(VALUES)], VALUES[(7 * i + number + 11) % len(VALUES)]):
            yield f"{key} is {str(value)[:20]!a}", _with({**table, key: value})
        inner = table[key]
        if isinstance(inner, dict) and inner:
            at = next(iter(inner))
            yield f"{key}.{at} is a list", _with({**table, key: {**inner, at: [[]]}})
            yield f"{key} leads out", _with({**table, key: dict.fromkeys(inner, "../../other.safetensors")})
        if i % 3 == number % 3:
            yield f"{key} missing", _with({k: v for k, v in table.items() if k != key})
    yield "keys twice", lambda path: path.write_text(_twice(table), encoding="utf-8")
    yield "every number is -1", _with(_mapped(table, -1))
    yield "every number is 10^400", _with(_mapped(table, 10**400))


def _with(table: Any) -> Change:
    return lambda path: path.write_text(json.dumps(table), encoding="utf-8")


def _twice(table: Any) -> str:
    text = json.dumps(table)
    return f"{{{text[1:-1]},{text[1:-1]}}}" if isinstance(table, dict) and table else text


def _mapped(value: Any, number: int) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(inner, number) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, number) for inner in value]
    return number if type(value) in (int, float) else value


# safetensors

NAMES = [
    *("", ".", "..", "../../x", "/etc/x", "a\\b", "a\0b", "\x1b[31m\n", "CON", "x" * 5000, "." * 3000, "__metadata__x"),
    *(
        "a..b",
        "ü" * 200,
        "\ufeff",
        "weight",
        "0",
        "layer.99999999.weight",
        f"layer.{'9' * 5000}.weight",
        "layer.².weight",
    ),
]

ROWS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a shape of 2^61 and 0": lambda row: {**row, "shape": [2**61, 0]},
    "a shape of floats": lambda row: {**row, "shape": [1.0, 2]},
    "a shape of -1": lambda row: {**row, "shape": [-1]},
    "a shape in a shape": lambda row: {**row, "shape": [[1]]},
    "a shape of 5,000 digits": lambda row: {**row, "shape": ["9" * 5000]},
    "65 dimensions": lambda row: {**row, "shape": [1] * 65},
    "no dimension": lambda row: {**row, "shape": []},
    "a dimension more": lambda row: {**row, "shape": [*row["shape"], 1]},
    "a dimension more in front": lambda row: {**row, "shape": [1, *row["shape"]]},
    "all in one dimension": lambda row: {**row, "shape": [_count(row["shape"])]},
    "turned round": lambda row: {**row, "shape": row["shape"][::-1]},
    "bytes": lambda row: {**row, "dtype": "U8", "shape": [row["data_offsets"][1] - row["data_offsets"][0]]},
    "truths": lambda row: {**row, "dtype": "BOOL", "shape": [row["data_offsets"][1] - row["data_offsets"][0]]},
    "a dtype that nobody knows": lambda row: {**row, "dtype": "F12"},
    "a dtype that is none": lambda row: {**row, "dtype": ["F32"]},
    "offsets that overlap": lambda row: {**row, "data_offsets": [0, row["data_offsets"][1]]},
    "offsets turned round": lambda row: {**row, "data_offsets": row["data_offsets"][::-1]},
    "offsets of 2^64": lambda row: {**row, "data_offsets": [0, 2**64]},
    "a field more": lambda row: {**row, "more": 1},
    "no dtype": lambda row: {key: row[key] for key in ("shape", "data_offsets")},
    "no object": lambda row: [],  # type: ignore[dict-item, return-value]
}


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _of_weights(file: Path) -> Iterator[Hostile]:
    """Yield other headers: of each tensor one, and each kind of name and row of some tensor."""
    table, _ = _parts(file)
    names = [name for name in table if name != "__metadata__"]
    for i, name in enumerate(names):
        yield f"{name} missing", _renamed(name, f"no.{i}")
        what, change = list(ROWS.items())[i % len(ROWS)]
        yield f"{name}: {what}", _row(name, change)
        if re.search(r"\.\d+\.", name):
            other = re.sub(r"\.\d+\.", (".99999999.", f".{'9' * 5000}.", ".-1.", ".²."[:3] + ".")[i % 4], name, count=1)
            yield f"{name} has another number", _renamed(name, other)
    for i, other in enumerate(NAMES):
        yield f"a tensor called {other[:20]!a}", _renamed(names[i % len(names)], other)
    for i, (what, change) in enumerate(ROWS.items()):
        yield f"a tensor: {what}", _row(names[(5 * i + 1) % len(names)], change)
    for what, text in HEADERS.items():
        yield what, _headed(text)
    yield "metadata of numbers", _row("__metadata__", lambda _: {"format": 1})
    yield "a long header", lambda path: path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])


HEADERS = {
    "20,000 empty tensors": json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]} for i in range(20_000)}
    ).encode(),
    "a header of brackets": b'{"a":' + b"[" * 100_000,
    "a header of numbers": b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
    "a header that is no object": b"[]",
    "a header that is not UTF-8": b'{"\xff":1}',
    "half of a character": b'{"a\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "an empty header": b"{}",
    "a tensor twice": b"{" + b",".join(2 * [b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}']) + b"}",
}


def _headed(text: bytes) -> Change:
    return lambda path: path.write_bytes(struct.pack("<Q", len(text)) + text)


def _parts(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    behind = 8 + struct.unpack_from("<Q", data)[0]
    return json.loads(data[8:behind]), data[behind:]


def _write(file: Path, table: Mapping[str, Any], body: bytes) -> None:
    text = json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _renamed(name: str, other: str) -> Change:
    def change(file: Path) -> None:
        table, body = _parts(file)
        _write(file, {other if key == name else key: row for key, row in table.items()}, body)

    return change


def _row(name: str, other: Callable[[dict[str, Any]], Any]) -> Change:
    def change(file: Path) -> None:
        table, body = _parts(file)
        _write(file, {**table, name: other(table.get(name, {}))}, body)

    return change


# What torch saved


def _of_pickles() -> Iterator[Hostile]:
    for what, change in STATES.items():
        yield what, _changed(change)


def _changed(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda file: _saved(file, change)


def _saved(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    import torch

    try:
        saved = torch.load(file, weights_only=True)
    except Exception:  # training arguments, which are code: other bytes do as well
        saved = {"a": torch.zeros(2)}
    inner = next((key for key in ("model_state_dict", "model") if isinstance(saved, dict) and key in saved), None)
    state = dict(saved[inner] if inner else saved) if isinstance(saved, dict) else {"a": saved}
    torch.save({**saved, inner: change(state)} if inner else change(state), file)


def _first(state: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    name = max(state, key=lambda name: getattr(state[name], "ndim", 0))
    return {**state, name: change(state[name])}


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "one less": lambda state: dict(list(state.items())[1:]),
    "one half": lambda state: dict(list(state.items())[::2]),
    "all turned": lambda state: {
        name: getattr(t, "T", t) if getattr(t, "ndim", 0) == 2 else t for name, t in state.items()
    },
    "all with a dimension more": lambda state: {
        name: t[None] if hasattr(t, "ndim") else t for name, t in state.items()
    },
    "all flat": lambda state: {name: t.flatten() if hasattr(t, "flatten") else t for name, t in state.items()},
    "all truths": lambda state: {name: t != 0 if hasattr(t, "ndim") else t for name, t in state.items()},
    "all empty": lambda state: {name: t.flatten()[:0] if hasattr(t, "flatten") else t for name, t in state.items()},
    "a text": lambda state: _first(state, lambda _: "x"),
    "a list": lambda state: _first(state, lambda _: [1, [2]]),
    "no value": lambda state: _first(state, lambda _: None),
    "a number": lambda state: _first(state, lambda _: 10**400),
    "a row less": lambda state: _first(state, lambda t: t[:-1].clone() if getattr(t, "ndim", 0) else t),
    "names of numbers": lambda state: {i: t for i, t in enumerate(state.values())},
    "names that lead out": lambda state: {f"../{name}": t for name, t in state.items()},
    "long names": lambda state: {"x" * 5000 + name: t for name, t in state.items()},
    "numbers in names": lambda state: {re.sub(r"\d+", "99999999", name): t for name, t in state.items()},
    "long numbers in names": lambda state: {re.sub(r"\d+", "9" * 4400, name, count=1): t for name, t in state.items()},
    "odd digits in names": lambda state: {re.sub(r"\d+", "²", name): t for name, t in state.items()},
    "half of a character": lambda state: {name + "\ud800": t for name, t in state.items()},
    "a list of all": lambda state: list(state.values()),
    "nothing": lambda state: {},
    "no state": lambda state: 5,
}
