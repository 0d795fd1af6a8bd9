"""Files as torch saves them that would run code, or cost much, if anybody ran them; all are made by code."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

CANARY = "PETLPACK_TEST_CANARY"
"""What code in a pickle sets in the environment, or makes as a file at the path that stands there."""

_SANG = "PETLPACK_TEST_CANARY_SANG"


def canary(*_: object, **__: object) -> dict[str, object]:
    """Tell that code ran."""
    os.environ[_SANG] = "1"
    return {}


def canary_sang() -> bool:
    """Tell whether code ran in this process, or in one that it started."""
    return _SANG in os.environ or Path(os.environ.get(CANARY, "/nowhere")).exists()


def _shell() -> str:
    return f"touch {os.environ.get(CANARY, '/nowhere')}"


def _code() -> str:
    return f"__import__('os').environ.__setitem__({_SANG!r}, '1')"


CALLED: dict[str, Callable[[], str]] = {
    **dict.fromkeys(("os system", "posix system", "subprocess getoutput", "os popen", "commands getoutput"), _shell),
    **dict.fromkeys(("builtins eval", "builtins exec", "__builtin__ eval", "timeit timeit", "code interact"), _code),
    **dict.fromkeys(("tests.support.hostile_pickles canary", "builtins __import__", "importlib import_module"), _code),
    **dict.fromkeys(("builtins getattr", "operator attrgetter", "functools partial", "builtins map"), _code),
    **dict.fromkeys(("torch.serialization os.system", "torch._utils os.system", "torch load"), _shell),
    **dict.fromkeys(("pickle loads", "builtins open", "io open", "pathlib Path.touch", "runpy run_path"), _shell),
    **dict.fromkeys(("torch._tensor _rebuild_from_type_v2", "torch._utils _rebuild_parameter_with_state"), _code),
    **dict.fromkeys(("collections OrderedDict", "builtins bytearray", "torch Tensor", "_codecs encode"), _code),
}
"""What a pickle asks for, and the text that it is called with."""


def text(value: str) -> bytes:
    """Return the operation that makes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _global(name: str) -> bytes:
    module, _, called = name.partition(" ")
    return f"c{module}\n{called}\n".encode()


def _inst(name: str, argument: bytes) -> bytes:
    module, _, called = name.partition(" ")
    return b"(" + argument + f"i{module}\n{called}\n".encode()


def _stacked(name: str) -> bytes:
    module, _, called = name.partition(" ")
    return text(module) + text(called) + b"\x93"


WAYS: dict[str, Callable[[str, bytes], bytes]] = {
    "REDUCE": lambda name, argument: _global(name) + argument + b"\x85R",
    "STACK_GLOBAL": lambda name, argument: _stacked(name) + argument + b"\x85R",
    "INST": _inst,
    "OBJ": lambda name, argument: b"(" + _global(name) + argument + b"o",
    "NEWOBJ": lambda name, argument: _global(name) + argument + b"\x85\x81",
    "NEWOBJ_EX": lambda name, argument: _global(name) + argument + b"\x85}\x92",
    "BUILD": lambda name, argument: _global(name) + b")R}" + argument + argument + b"sb",
    "state": lambda name, argument: _global("collections OrderedDict") + b")R}" + text("items") + _global(name) + b"sb",
    "kept": lambda name, argument: _global(name) + b"q\x090h\x09" + argument + b"\x85R",
    "EXT1": lambda name, argument: b"\x82\x01" + argument + b"\x85R",
    "EXT4": lambda name, argument: b"\x84\x01\x00\x00\x00" + argument + b"\x85R",
    "PERSID": lambda name, argument: b"P" + argument[5:30].replace(b"\n", b"") + b"\n",
    "BINPERSID": lambda name, argument: text("storage") + _global(name) + argument + b"\x87Q",
    "by an allowed one": lambda name, argument: (
        _global("torch._tensor _rebuild_from_type_v2") + b"(" + _global(name) + b"N" + argument + b"\x85}tR"
    ),
    "a parameter": lambda name, argument: (
        _global("torch._utils _rebuild_parameter_with_state") + b"(N\x89N}" + text("detach") + _global(name) + b"stR"
    ),
    "an appended one": lambda name, argument: _global(name) + b")R" + argument + b"a",
    "a frozen set": lambda name, argument: b"(" + _global(name) + argument + b"\x85R\x91",
    "bytes": lambda name, argument: _global(name) + b"B" + argument[1:] + b"\x85R",
}
"""How pickles call."""

PLACES: dict[str, Callable[[bytes], bytes]] = {
    "the whole": lambda call: call,
    "a value": lambda call: b"}" + text("weight") + call + b"s",
    "a key": lambda call: b"}" + call + b"Ns",
    "in a list": lambda call: b"}" + text("weight") + b"]" + call + b"as",
    "thrown away": lambda call: call + b"0}",
    "deep": lambda call: b"}" + text("state_dict") + b"}" + text("weight") + call + b"ss",
}
"""Where the call stands."""

_LONG = 0x1950A86A20F9469CFC6C


def legacy(program: bytes, at: int = 3) -> bytes:
    """Return a file as torch saved them before archives, with a pickle in the place of one of its five."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    held: tuple[object, ...] = (_LONG, 1001, system, {}, [])
    parts = [pickle.dumps(part, 2) for part in held]
    parts[at] = program
    return b"".join(parts)


def zipped(*records: tuple[str, bytes], deflated: bool = False) -> bytes:
    """Return an archive as torch saves it, with these records in front."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", 8 if deflated else zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, data in (*records, ("a/byteorder", b"little"), ("a/version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(name), data, archive.compression)
    return file.getvalue()


def _tarred(program: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            row = tarfile.TarInfo(name)
            row.size = len(program)
            archive.addfile(row, io.BytesIO(program))
    return file.getvalue()


GOOD = b"\x80\x02}."

CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "pickle": lambda program: program,
    "archive": lambda program: zipped(("a/data.pkl", program)),
    "deflated": lambda program: zipped(("a/data.pkl", program), deflated=True),
    "second": lambda program: zipped(("a/data.pkl", GOOD), ("a/data.pkl", program)),
    "first": lambda program: zipped(("a/data.pkl", program), ("a/data.pkl", GOOD)),
    "other folder": lambda program: zipped(("b/data.pkl", program), ("a/data.pkl", GOOD)),
    "upper case": lambda program: zipped(("a/DATA.PKL", program)),
    "nested": lambda program: zipped(("a/data.pkl", zipped(("a/data.pkl", program)))),
    "script": lambda program: zipped(
        ("a/data.pkl", program), ("a/constants.pkl", program), ("a/code/__torch__.py", b"")
    ),
    "behind": lambda program: program + zipped(("a/data.pkl", GOOD)),
    "tar": _tarred,
    **{f"legacy {at}": (lambda program, at=at: legacy(program, at)) for at in range(5)},  # type: ignore[misc]
}
"""What the pickle stands in."""

HEADS = {"protocol 0": b"", "protocol 2": b"\x80\x02", "protocol 4": b"\x80\x04", "protocol 255": b"\x80\xff"}


def calls() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield every pickle that would call something, in every container."""
    for name, said in CALLED.items():
        for way, make in WAYS.items():
            for place, put in PLACES.items():
                for head, begin in HEADS.items():
                    for container, hold in CONTAINERS.items():

                        def build(
                            name: str = name,
                            said: Callable[[], str] = said,
                            make: Callable[[str, bytes], bytes] = make,
                            put: Callable[[bytes], bytes] = put,
                            begin: bytes = begin,
                            hold: Callable[[bytes], bytes] = hold,
                        ) -> bytes:
                            return hold(begin + put(make(name, text(said()))) + b".")

                        yield f"{name}, {way}, {place}, {head}, {container}", build


def real(*, archive: bool) -> bytes:
    """Return what torch saves of a small state dict, tied and inside of a checkpoint."""
    import torch

    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {"a.weight": weight, "tied": weight, "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(7)}
    file = io.BytesIO()
    saved = {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(saved, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def mutated(count: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield real files of both kinds with a few bytes of the pickle another, cut, doubled or from elsewhere."""
    files = {archive: real(archive=archive) for archive in (True, False)}
    for number in range(count):
        archive = number % 2 == 0

        def build(number: int = number, archive: bool = archive) -> bytes:
            rng = random.Random(number)
            if not archive:
                return bytes(_mutated(rng, files[archive]))
            with zipfile.ZipFile(io.BytesIO(files[archive])) as old:
                rows = [(row.filename, old.read(row)) for row in old.infolist()]
            return zipped(
                *((name, bytes(_mutated(rng, data)) if name.endswith("data.pkl") else data) for name, data in rows)
            )

        yield f"mutated {number}", build


def _mutated(rng: random.Random, data: bytes) -> bytearray:
    out = bytearray(data)
    operations = b"()].}0123NRSXKMJGQPabcdehijloqrstu\x81\x85\x86\x87\x88\x89\x8a\x8f\x93\x94"
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        what = rng.randrange(5)
        if what == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            out[at] = rng.choice(operations)
        elif what == 2:
            del out[at : at + rng.randint(1, 8)]
        elif what == 3:
            out[at:at] = out[rng.randrange(len(out)) :][: rng.randint(1, 40)]
        else:
            out[at:at] = bytes([rng.choice(operations)])
    return out


def _memo(count: int, join: bytes = b"\x86") -> bytes:
    """Return operations for a tuple that holds the one before twice, and so on: 2 to the power of `count` items."""
    steps = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + join + b"q" + bytes([i + 1]) for i in range(count))
    return b")q\x00" + steps


def _shared(width: int, deep: int, kind: bytes = b"]", add: bytes = b"e") -> bytes:
    """Return lists, or dictionaries, that hold one another `width` times."""
    program = kind + b"q\x00"
    for i in range(deep):
        again = b"h" + bytes([i])
        held = again * width if kind == b"]" else b"".join(text(f"{n}") + again for n in range(width))
        program += kind + b"(" + held + add + b"q" + bytes([i + 1])
    return program


def _tensor(numel: int, size: int, stride: int) -> bytes:
    """Return operations for a tensor that says so of itself, over a storage that says it has `numel` numbers."""

    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    storage = b"(" + text("storage") + _global("torch FloatStorage") + text("0") + text("cpu") + number(numel) + b"tQ"
    sizes = number(size) + b"\x85" + number(stride) + b"\x85"
    called = _global("torch._utils _rebuild_tensor_v2") + b"(" + storage + b"K\x00" + sizes + b"\x89"
    return called + _global("collections OrderedDict") + b")RtR"


def _encoded(value: bytes, code: str) -> bytes:
    """Return operations for the bytes of a text in some code."""
    return _global("_codecs encode") + value + text(code) + b"\x86R"


def _nested_codes(count: int) -> bytes:
    """Return operations for bytes that are written out in digits, and these again, and so on."""
    value = _encoded(text("x" * 1000), "latin1")
    for _ in range(count):
        value = _encoded(value, "hex")
    return value


def _by_another(name: str, arguments: bytes) -> bytes:
    """Return operations for a call of a function by one that is allowed."""
    held = _global(name) + _global("torch Tensor") + arguments + b"N"
    return _global("torch._tensor _rebuild_from_type_v2") + b"(" + held + b"tR"


_OFTEN = text("ab" * 200_000) + b"q\x00"
"""A text that is remembered."""

BOMBS: dict[str, bytes] = {
    "brackets": b"]" * 40_000_000,
    "marks": b"(" * 10_000_000,
    "a key of tuples": b"}" + _memo(60) + b"Ns",
    "keys of tuples": b"}" + _memo(18) + b"Ns" + b"h\x12Ns" * 2000,
    "a function of tuples": _memo(60) + b")R",
    "lists of lists": b"}" + text("a") + _shared(200, 4) + b"s",
    "dictionaries of dictionaries": _shared(200, 4, b"}", b"u"),
    "lists that grow later": b"]q\x00]q\x01]q\x02" + b"h\x02(" + b"h\x01" * 3000 + b"eh\x01(" + b"h\x00" * 3000 + b"e",
    "an array": b"}" + text("a") + _global("builtins bytearray") + b"\x8a\x05\x00\x00\x00\x00\x10\x85Rs",
    "a new tensor": b"}" + text("a") + _global("torch Tensor") + b"\x8a\x05\x00\x00\x00\x00\x10\x85Rs",
    "a new storage": b"}" + text("a") + _global("torch FloatStorage") + b"\x8a\x05\x00\x00\x00\x00\x10\x85Rs",
    "a huge storage": b"}" + text("a") + _tensor(1 << 40, 4, 1) + b"s",
    "a repeated number": b"}" + text("a") + _tensor(1, 1 << 40, 0) + b"s",
    "a negative size": b"}" + text("a") + _tensor(1, -1, 1) + b"s",
    "a stride behind": b"}" + text("a") + _tensor(4, 2, 1 << 62) + b"s",
    "a long name": b"}" + text("n" * 8_000_000) + b"Ns",
    "sizes of sizes": b"}" + text("a") + _global("torch Size") + _memo(40) + b"\x85Rs",
    "a counter": _global("collections Counter") + b"(" + text("a" * 200_000) + b"tR",
    "a set": _global("builtins set") + b"](" + b"K\x01K\x02\x86" * 100_000 + b"e\x85R",
    "a text in a code that takes squares": _encoded(text("".join(map(chr, range(0x4E00, 0x8000)))), "punycode"),
    "a text in a code of a code": _nested_codes(40),
    "a text packed often": b"](" + _encoded(_OFTEN, "latin1") + _encoded(b"h\x00", "bz2") * 100 + b"e",
    "a text in a code, as an array": _global("builtins bytearray")
    + text("\u4e00" * 40_000)
    + text("punycode")
    + b"\x86R",
    "a text counted often": b"](" + _OFTEN + (_global("collections Counter") + b"h\x00\x85R") * 200 + b"e",
    "a text in a code, by another": _by_another("_codecs encode", text("\u4e00" * 40_000) + text("punycode") + b"\x86"),
    "an array by another": _by_another("builtins bytearray", b"\x8a\x05\x00\x00\x00\x00\x10\x85"),
    "arrays as large as the file": (
        b"](" + text("x" * 100_000) + (_global("builtins bytearray") + b"J\xa0\x86\x01\x00\x85R") * 10_000 + b"e"
    ),
    "storages that are named often": b"](K\x01\x85q\x00" + b"h\x00Q" * 1000 + b"]" * 900_000 + b"e",
}
"""Small programs that make much; each stands in an archive and in a file as torch saved them before."""
