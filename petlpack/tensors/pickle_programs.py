"""What running a pickle would cost, found out from its operations before torch runs them.

A pickle is a program: a few hundred bytes of tuples that name one another twice have 2^60 items, all of which are
looked at when one of them is a key, and 40 MB of brackets are gigabytes of lists. Only what torch's weights-only reader
does is followed; at any other operation, and where the stack does not fit, that ends with an error of its own.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from petlpack.errors import RefusedError

FREE_STEPS, STEPS_A_STORAGE, BYTES_A_STEP = 1 << 16, 40, 1 << 11
"""Operations of a pickle; those more for each storage that it names and the file has: one tensor takes about thirty;
and the bytes of the file for one more: words of a vocabulary, which its weights outweigh."""

BYTES_A_STORAGE = 1 << 9
"""Bytes that a storage takes where no directory tells how many there are."""

FREE_WORK, WORK_A_STEP = 1 << 20, 1 << 6
"""Items that are looked at, each character of a text among them, and those more for each operation: an item that is
named in many places counts in each."""

_LATIN = ("latin1", "latin-1")
"""The code in which pickles write bytes as a text: another may take the square of its length, or grow each time."""

_DIRECTLY = ("encode", "bytearray")
"""How the names of functions end that are only followed where the pickle calls them itself, not by another one."""

_MAGIC = 0x1950A86A20F9469CFC6C
"""What the first of the pickles says in a file that torch saved before it saved archives."""


class Item:
    """Something on the stack: how many items it holds, itself among them, and the largest number of them all."""

    __slots__ = ("code", "inside", "largest", "name", "size", "text")

    def __init__(self, size: int = 1, largest: int = 0, name: str = "", text: str = "") -> None:
        self.size, self.largest, self.name, self.text = size, largest, name, text
        self.inside = False
        """Whether it is held by another, which counts it as it is now."""
        self.code: str | None = None
        """The second of what a function is called with, the code of a text; None where there is none."""


@dataclass(frozen=True)
class Room:
    """What a pickle may take: bytes of the whole file, and the most storages that it can have."""

    nbytes: int
    storages: int

    def steps(self, storages: int) -> int:
        """Return how many operations the file explains where so many storages are named."""
        return FREE_STEPS + STEPS_A_STORAGE * min(storages, self.storages) + self.nbytes // BYTES_A_STEP


def check_programs(file: BinaryIO) -> None:
    """Check the pickles of a file that is no archive: magic number, version, system, what was saved, keys of storages.

    Raises RefusedError (`archive-limit`) where running them would take more than they explain, ValueError where the
    first is another. Leaves the file behind the last one.
    """
    nbytes = _size_of(file)
    room = Room(nbytes, nbytes // BYTES_A_STORAGE)
    file.seek(0)
    buffered = io.BufferedReader(file)  # type: ignore[type-var]  # operations are read byte by byte
    try:
        if Program(buffered, room).value != _MAGIC:
            raise ValueError("Invalid magic number; corrupt file?")
        for _ in range(4):
            if not Program(buffered, room).ended:
                break
    finally:
        buffered.detach()


class _Within:
    """A file of which no more is asked for than there is: who reads a text makes room for what it says of its size."""

    def __init__(self, file: BinaryIO, nbytes: int) -> None:
        self._file, self._nbytes = file, nbytes
        self.readline, self.tell = file.readline, file.tell

    def read(self, nbytes: int) -> bytes:
        return self._file.read(min(nbytes, self._nbytes))


class Program:
    """One pickle, followed to its end, or to where torch gives up."""

    def __init__(self, file: BinaryIO, room: Room) -> None:
        self._nbytes, self._room, self._most_steps = _size_of(file), room, room.steps(0)
        self._stack: list[Item] = []
        self._outer: list[list[Item]] = []
        self._memo: dict[int, Item] = {}
        self._steps = self._storages = self._work = 0
        self.value: object = None
        """The last number that it makes: all that there is to know of the first pickle."""
        self.ended = False
        try:
            for step, argument, _ in pickletools.genops(_Within(file, self._nbytes)):  # type: ignore[arg-type]
                self._follow(step.name, argument)
        except RefusedError:
            raise
        except (ValueError, IndexError, KeyError, OverflowError, EOFError):
            return  # torch says what is wrong
        self.ended = True

    def _follow(self, name: str, argument: object) -> None:
        self._steps += 1
        if self._steps > self._most_steps:
            raise _too_much(f"{self._steps:,} operations for {self._storages:,} storages")
        act = _ACTS.get(name)
        if act is None:
            raise ValueError(name)
        act(self, argument)
        if self._work > FREE_WORK + WORK_A_STEP * self._steps:
            raise _too_much(f"{self._work:,} items that {self._steps:,} operations make of one another")

    def scalar(self, argument: object) -> None:
        """Put what holds nothing else on the stack."""
        self.value = argument
        text = argument if isinstance(argument, str) else ""
        self._stack.append(Item(1 + len(text), argument if isinstance(argument, int) else 0, text=text))

    def named(self, argument: object) -> None:
        """Put a class or a function on the stack, told as `module name`."""
        self._stack.append(Item(name=str(argument)))

    def mark(self, _: object) -> None:
        """Begin a row of items."""
        self._outer.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Item]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _put(self, items: list[Item]) -> None:
        made = Item(1 + _held(items), max((item.largest for item in items), default=0))
        made.code = items[1].text if len(items) == 2 else "" if items[2:] else None
        self._stack.append(made)

    def row(self, _: object) -> None:
        """Make a tuple of the items behind the mark."""
        self._put(self._marked())

    def last(self, count: int) -> None:
        """Make a tuple of the last few items."""
        self._put([self._stack.pop() for _ in range(count)][::-1])

    def add(self, items: list[Item], keys: int = 0) -> None:
        """Put items into what is on top of the stack, the first of each pair being a key where there are `keys`."""
        holder = self._stack[-1]
        if holder.inside:
            raise _too_much("a list that grows inside of another")
        holder.size += _held(items)
        holder.code = ""  # of a list that a function may be called with
        self._work += sum(item.size for item in items[::2]) if keys else 0

    def call(self, _: object) -> None:
        """Call what is below the top of the stack with that."""
        given, called = self._stack.pop(), self._stack.pop()
        made = Item(1 + _held([given]))
        if called.name.endswith(_DIRECTLY):
            if given.code not in (_LATIN if called.name.endswith("encode") else (None, *_LATIN)):
                raise _too_much("bytes of a text in another code than latin1")
            made.size += given.largest
        self._work += made.size + called.size  # which is shown where it is no function
        self._stack.append(made)

    def build(self, _: object) -> None:
        """Give what is below the top of the stack that as its state."""
        state = self._stack.pop()
        self._work += state.size
        self._stack[-1].size += _held([state])

    def storage(self, _: object) -> None:
        """Put a storage in the place of the tuple that says which."""
        self._storages += 1
        self._most_steps = self._room.steps(self._storages)
        self._work += self._stack.pop().size
        self._stack.append(Item())

    def keep(self, number: object) -> None:
        """Remember what is on top of the stack."""
        assert isinstance(number, int)
        self._memo[number] = self._stack[-1]

    def again(self, number: object) -> None:
        """Put what is remembered on the stack."""
        assert isinstance(number, int)
        self._stack.append(self._memo[number])

    def stop(self, _: object) -> None:
        """Return what is on top of the stack, all of which is looked at."""
        self._work += self._stack[-1].size


def _held(items: list[Item]) -> int:
    """Return how many items some are together, which another holds from now on."""
    for item in items:
        if item.name.endswith(_DIRECTLY):
            raise _too_much(f"a call of '{item.name}' by another function")
        item.inside = True
    return sum(item.size for item in items)


def _too_much(what: str) -> RefusedError:
    return RefusedError(f"its pickle makes {what}", code="archive-limit")


def _size_of(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    return size


Act = Callable[[Program, object], None]


def _acts() -> Iterator[tuple[str, Act]]:
    """Yield what each operation does that torch's weights-only reader knows."""
    scalars = ("NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1")
    for name in (*scalars, "BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
        yield name, Program.scalar
    for count in (1, 2, 3):
        yield f"TUPLE{count}", lambda program, _, count=count: program.last(count)  # type: ignore[misc]
    yield from {"MARK": Program.mark, "TUPLE": Program.row, "GLOBAL": Program.named}.items()
    yield "APPEND", lambda program, _: program.add([program._stack.pop()])
    yield "APPENDS", lambda program, _: program.add(program._marked())
    yield "SETITEM", lambda program, _: program.add([program._stack.pop(), program._stack.pop()][::-1], keys=1)
    yield "SETITEMS", lambda program, _: program.add(program._marked(), keys=1)
    yield from {"REDUCE": Program.call, "NEWOBJ": Program.call, "BUILD": Program.build}.items()
    yield from {"BINPERSID": Program.storage, "STOP": Program.stop, "PROTO": lambda program, _: None}.items()
    for name in ("BINPUT", "LONG_BINPUT"):
        yield name, Program.keep
    for name in ("BINGET", "LONG_BINGET"):
        yield name, Program.again


_ACTS = dict(_acts())
