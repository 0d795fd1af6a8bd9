"""The vectors of formats/pcodec.md, by the library and by the decoder that was written from that page alone."""

from __future__ import annotations

import numpy as np
import pytest

from petlpack.coding import pco
from petlpack.errors import RefusedError, UnknownFormatError, reason
from tests.support import pcodec_reader
from tests.support.golden import ALL
from tools.vectors import Vector, unhex
from tools.write_vectors import numbers_of, steps_of

STREAMS = [vector for vector in ALL if vector.kind == "stream"]


def read(vector: Vector, count: int) -> np.ndarray:
    kind, width = vector["type"][0], int(vector["type"][1:])
    return pco.decompress(unhex(vector["data"]), count, np.dtype(f"<{kind}{width // 8}"))


def read_too(vector: Vector, count: int) -> list[int]:
    return pcodec_reader.decode(unhex(vector["data"]), count, vector["type"][0], int(vector["type"][1:]))


@pytest.mark.parametrize("vector", [pytest.param(v, id=v.id) for v in STREAMS if not v.bad])
def test_good_streams(vector: Vector) -> None:
    numbers = numbers_of(vector)
    assert read(vector, numbers.size).tolist() == numbers.tolist()
    assert read_too(vector, numbers.size) == numbers.tolist()
    steps = steps_of(vector, unhex(vector["data"]))
    assert steps == {name: vector[name] for name in steps}
    again = pco.compress(numbers, smooth=vector["smooth"])
    assert pcodec_reader.decode(again, numbers.size, vector["type"][0], int(vector["type"][1:])) == numbers.tolist()


@pytest.mark.parametrize("vector", [pytest.param(v, id=v.id) for v in STREAMS if v.bad])
def test_bad_streams(vector: Vector) -> None:
    unknown = vector.get("error") == "unknown"
    with pytest.raises(UnknownFormatError if unknown else RefusedError) as caught:
        read(vector, vector["count"])
    assert reason(caught.value, "") == vector["code"]
    with pytest.raises(ValueError, match=r".") as caught_too:
        read_too(vector, vector["count"])
    assert isinstance(caught_too.value, pcodec_reader.UnknownStreamError) == unknown
