"""Pickles are read, never executed: arrays of every protocol come back, and nothing else is built."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from configs.pickles import PickleError, read_pickle

RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]


class Call:
    """Pickles as a call of any function, with any state."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4", "u1", "i8", "?"])
def test_arrays_come_back(protocol, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    content = {
        "a": array, "f": np.asfortranarray(array), "empty": array[:0], "scalar": np.float32(2.5), b"bytes": b"\x00\xff",
        "plain": [1, -(2**40), "caf\u00e9", (3.5, None, True), {}], "ordered": collections.OrderedDict(x=array[0]),
    }  # fmt: skip
    content["again"] = content["plain"]
    read = read_pickle(pickle.dumps(content, protocol))
    assert list(read) == list(content)
    for key in ("a", "f", "empty"):
        assert np.array_equal(read[key], content[key])
        assert read[key].dtype == content[key].dtype.newbyteorder("=")
    assert np.array_equal(read["ordered"]["x"], array[0])
    assert read["scalar"] == 2.5
    assert read[b"bytes"] == b"\x00\xff"
    assert read["plain"] == read["again"] == content["plain"]


def test_values_equal_those_of_pickle_itself():
    rng = np.random.default_rng(0)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        labels = rng.integers(0, 10, 1000).tolist()
        data = pickle.dumps({"labels": labels, "data": rng.integers(0, 255, (10, 30), np.uint8)}, protocol)
        read, expected = read_pickle(data), pickle.loads(data)
        assert read["labels"] == expected["labels"]
        assert np.array_equal(read["data"], expected["data"])


class Pointer:
    """A dtype that says object, with flags that say plain bytes: numpy would take the bytes for addresses."""

    def __init__(self, flags):
        self.flags = flags

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, self.flags)


class Fields:
    def __reduce__(self):
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


RAW = struct.pack("<Q", 0x4141414141414141) * 4
HOSTILE = {
    "system": Call(os.system, "true"),
    "eval": Call(eval, "1"),
    "load": Call(np.load, "/x"),
    "object array": np.array([1, "x"], object),
    "texts": np.array(["a"]),
    "records": np.zeros(2, [("a", "f4")]),
    "dates": np.zeros(2, "M8[s]"),
    "void": np.zeros(2, "V7"),
    "complex": np.zeros(2, complex),
    "long double": np.zeros(2, np.longdouble),
    "pointers": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (4,), Pointer(0), False, RAW)),
    "fields": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (4,), Fields(), False, RAW)),
    "pointer scalar": Call(SCALAR, Pointer(63), RAW[:8]),
    "too large": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (10**12,), np.dtype("f4"), False, b"abcd")),
    "negative": Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("f4"), False, b"abcd")),
    "never filled": Call(RECONSTRUCT, np.ndarray, (10**12,), b"b"),
    "many dimensions": np.zeros((1,) * 30),
    "a set": {1, 2},
    "tuple as key": {(1, 2): 3},
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_everything_else_is_refused(name, protocol):
    with pytest.raises(PickleError):
        read_pickle(pickle.dumps({"a": HOSTILE[name]}, protocol))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x02.", b"c", b"(" * 10_000 + b".", b"\x80\x04\x95" + b"\xff" * 8 + b".", b"r\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", b"X\xff\xff\xff\x7fabc.", b"I" + b"9" * 100_000 + b"\n.",
        b"\x8b\xff\xff\xff\x7f.", b"]" + b"2" * 100 + b".", b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
        b"\x80\x02]q\x00h\x00a.",
    ],
)  # fmt: skip
def test_damaged_and_hostile_bytes(data):
    tracemalloc.start()
    try:
        with pytest.raises(PickleError):
            read_pickle(data)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_large_memo_index_takes_no_memory():
    tracemalloc.start()
    try:
        assert read_pickle(b"\x80\x02]r\xff\xff\xff\x3f.") == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_shared_lists_are_walked_over_once():
    bomb = b"\x80\x02]q\x00"  # 60 lists, each with the one before twice: 2^60 leaves
    for index in range(60):
        bomb += b"](" + b"h" + bytes([index]) + b"h" + bytes([index]) + b"eq" + bytes([index + 1])
    value = read_pickle(bomb + b".")
    assert len(value) == 2


def test_one_piece_of_the_file_does_not_become_many_arrays():
    raw, dtype = b"\0" * 100_000, np.dtype("u1")
    arrays = [Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (len(raw),), dtype, False, raw)) for _ in range(50)]
    with pytest.raises(PickleError, match="more than it holds"):
        read_pickle(pickle.dumps(arrays, 4))
