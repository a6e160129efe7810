"""Arrays and plain values from pickles, read without executing anything.

A pickle is a program for a small stack machine that may call any function. Here its opcodes are only decoded
(`pickletools`), and a machine of our own builds numbers, texts, bytes, lists, tuples, dictionaries, and numpy arrays of
plain numbers by name; everything else is refused. numpy's own reconstruction is not used: a file can make it take bytes
for pointers. What is built is bounded by the size of the file. Enough for Caffe2's and detectron2's weights (Python 2
and 3) and CIFAR-10's batches.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

MAX_OPCODES = 20_000_000
MAX_DEPTH = 100
"""Containers inside each other."""

_DTYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248])")
_MARK = object()


class PickleError(Exception):
    """A pickle that is damaged or holds more than arrays and plain values."""


def read_pickle(data: bytes) -> Any:
    """The value of a pickle of any protocol.

    Python 2's texts come as str of Latin-1, in which every byte is a letter; Python 3's bytes as bytes.

    Raises:
        PickleError: the bytes are no pickle, or it holds something else than arrays and plain values.
    """
    machine = _Machine(len(data))
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise PickleError(f"it has more than {MAX_OPCODES} instructions")
            if opcode.name == "STOP":
                return _finished(machine.pop(), {}, 0)
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, MemoryError) as error:
        raise PickleError(f"damaged: {' '.join(str(error).split())[:100] or type(error).__name__}") from None
    raise PickleError("damaged: it ends too early")


class _Array:
    """An array (or a dtype) that is announced and gets its content later."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None


class _Dtype:
    def __init__(self, code: str) -> None:
        self.code = code


class _Machine:
    """The stack machine; one method for each group of opcodes."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = 2 * size + 1024
        """So much may be built in arrays: more would be one piece of the file used again and again."""

    def step(self, name: str, argument: Any) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            if type(argument) is int and argument.bit_length() > 1024:
                raise PickleError("a number has hundreds of digits")
            self.stack.append(argument)
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _BUILDERS:
            _BUILDERS[name](self)
        elif name in ("GLOBAL", "INST"):
            self._name(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self._name(module, attribute)
        else:
            raise PickleError(f"it has the instruction {name}, which is not for plain values")

    def pop(self) -> Any:
        """The top of the stack, which must not be a mark."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark in place of a value")
        return value

    def pop_to_mark(self) -> list[Any]:
        """What lies above the last mark, which goes too."""
        position = len(self.stack) - 1
        while self.stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise ValueError("no mark")
        values = self.stack[position + 1 :]
        del self.stack[position:]
        return values

    def set_items(self, pairs: list[Any]) -> None:
        """Keys and values in turn into the dictionary on the top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise ValueError("no dictionary to fill")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, bytes, int, float, bool, type(None)):
                raise PickleError(f"a key is a {type(key).__name__.strip('_')}")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        """Values onto the list on the top of the stack."""
        if type(self.stack[-1]) is not list:
            raise ValueError("no list to fill")
        self.stack[-1].extend(values)

    def _name(self, module: Any, attribute: Any) -> None:
        """The function that builds what a name stands for; no name is ever looked up in Python."""
        if type(module) is not str or type(attribute) is not str or (module, attribute) not in _NAMES:
            raise PickleError(f"it asks for {module!s:.60}.{attribute!s:.60}")
        self.stack.append(_NAMES[module, attribute])

    def reduce(self) -> None:
        """Call one of our own builders with the arguments on the stack."""
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or function not in _FUNCTIONS:
            raise ValueError("no call of a known function")
        self.stack.append(function(self, *arguments))

    def build(self) -> None:
        """Give an announced array or dtype its content."""
        state, target = self.pop(), self.stack[-1]
        if type(target) is _Array:
            _, shape, dtype, is_fortran, raw = state
            target.value = self.array(shape, dtype, raw, "F" if is_fortran else "C")
        elif type(target) is _Dtype:
            order, *rest = state[1:5]
            if order not in ("<", ">", "|", "=") or any(part is not None for part in rest):
                raise PickleError("an array's type is not a plain number")
            target.code = order.replace("=", "<") + target.code.lstrip("<>=|")
        elif state not in (None, {}):
            raise PickleError("an object has a state of its own")

    def array(self, shape: Any, dtype: Any, raw: Any, order: Literal["C", "F"]) -> np.ndarray:
        """The array of this many bytes, in this machine's byte order."""
        if type(dtype) is not _Dtype or type(shape) is not tuple or len(shape) > 16:
            raise PickleError("an array's type is not a plain number")
        if any(type(side) is not int or side < 0 for side in shape):
            raise PickleError("an array's shape is not a tuple of lengths")
        raw = raw.encode("latin-1") if type(raw) is str else raw
        kind = np.dtype(dtype.code)
        if not isinstance(raw, bytes | bytearray) or math.prod(shape) * kind.itemsize != len(raw):
            raise PickleError("an array's bytes do not fit its shape and type")
        self.bytes_left -= len(raw)
        if self.bytes_left < 0:
            raise PickleError("it builds more than it holds")
        return np.frombuffer(raw, kind).reshape(shape, order=order).astype(kind.newbyteorder("="))


# ---------------------------------------------------------------------------------------------- what names stand for


def _make_array(machine: _Machine, *_: Any) -> _Array:
    return _Array()


def _make_dtype(machine: _Machine, code: Any, *_: Any) -> _Dtype:
    if type(code) is not str or not _DTYPE.fullmatch(code):
        raise PickleError(f"an array's type is {code!s:.40}, not a plain number")
    return _Dtype(code)


def _make_scalar(machine: _Machine, dtype: Any, raw: Any) -> np.generic:
    return machine.array((1,), dtype, raw, "C")[0]


def _from_buffer(machine: _Machine, raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return machine.array(shape, dtype, raw, "F" if order == "F" else "C")


def _make_dictionary(machine: _Machine, pairs: Any = ()) -> dict[Any, Any]:
    machine.stack.append({})
    machine.set_items([item for pair in pairs for item in pair])
    return machine.pop()


def _encode(machine: _Machine, text: Any, encoding: Any) -> bytes:
    """Python 3 pickles bytes in protocols below 3 as a call of codecs.encode(text, "latin1")."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise PickleError("it encodes a text")
    return text.encode("latin-1")


def _empty_bytes(machine: _Machine) -> bytes:
    """And their empty bytes as a call of bytes()."""
    return b""


def _ndarray(machine: _Machine, *_: Any) -> None:
    """numpy.ndarray itself is only ever an argument."""
    raise PickleError("it calls numpy.ndarray")


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _make_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _make_scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _make_dtype,
    ("collections", "OrderedDict"): _make_dictionary,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
}
_FUNCTIONS = frozenset(_NAMES.values())
_IGNORED = frozenset(("PROTO", "FRAME"))
_VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}  # fmt: skip


def _dictionary_from_mark(machine: _Machine) -> None:
    pairs = machine.pop_to_mark()
    machine.stack.append({})
    machine.set_items(pairs)


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def build(machine: _Machine) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return build


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.extend([value])


_BUILDERS: dict[str, Callable[[_Machine], Any]] = {
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.pop_to_mark())),
    "LIST": lambda machine: machine.stack.append(machine.pop_to_mark()),
    "DICT": _dictionary_from_mark,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": lambda machine: machine.extend(machine.pop_to_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine: machine.set_items(machine.pop_to_mark()),
    "POP": lambda machine: machine.stack.pop(),
    "POP_MARK": lambda machine: machine.pop_to_mark(),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _finished(value: Any, done: dict[int, Any], depth: int) -> Any:
    """The value with arrays in place of announcements. What several places share is walked over once."""
    if depth > MAX_DEPTH:
        raise PickleError("containers lie too deep inside each other")
    if type(value) is _Array:
        if value.value is None:
            raise PickleError("damaged: an array without content")
        return value.value
    if type(value) not in (list, tuple, dict):
        if type(value) is _Dtype or callable(value):
            raise PickleError("it holds a type or a function")
        return value
    if id(value) not in done:
        if type(value) is dict:
            result: Any = {key: _finished(item, done, depth + 1) for key, item in value.items()}
        else:
            result = type(value)(_finished(item, done, depth + 1) for item in value)
        done[id(value)] = result
    return done[id(value)]
