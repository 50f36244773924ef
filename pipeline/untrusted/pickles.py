"""Pickled arrays from elsewhere, read without running or believing what is in them.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
The machine here knows only the steps that arrays, lists, tuples, dictionaries, text and numbers need. It looks nothing
up: the few names that numpy writes are compared as text, and the array or dtype is then made from checked values.

Why a `pickle.Unpickler` whose `find_class` allows only numpy's names is not enough:
- numpy's own functions believe their arguments. `ndarray.__setstate__` with a dtype of objects takes raw bytes as
  pointers; a record dtype, a negative or an overflowing shape have crashed the interpreter.
- BUILD sets any attribute of what was allowed, and REDUCE calls it with arguments of the file's choice.
- The C machine takes a length at its word: 30 bytes can ask for gigabytes, and a few kB of text encoded over and over,
  or named again and again, grow without bound.
- Deep nesting, or keys whose hashes collide or recurse, end in a crash or in hours, not in an error.
- It gives nothing before the last byte, so that an array of a gigabyte could not go by in blocks.
- `find_class` is asked for names only: the extension registry (EXT1) and persistent ids come in by other doors.
Opcodes: `pickletools` of the standard library.
"""

import io
import math
import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal, NoReturn, TypeVar, cast

import numpy as np

from pipeline.errors import FETCH_AGAIN, InputError
from pipeline.untrusted.archives import ZIP_FAULTS, damaged, zip_faults

Fields = dict[str | int, Any]  # what a file holds, by the keys of its dictionary
Order = Literal["C", "F"]
Kind = TypeVar("Kind")
Values = TypeVar("Values", bytes, list[Any])

MIB = 1 << 20
CHUNK = MIB  # bytes asked of a stream at once
BLOCK = 8 * MIB  # about so many bytes of a streamed array are in memory at once
STREAMED = MIB // 16  # arrays of more bytes than this are streamed
LARGEST_BLOCK = 256 * MIB  # one row of a streamed array; a full-size test condition has 1 MiB
MOST_IN_MEMORY = 1024 * MIB  # all values that are not streamed; a full-size recording has 900 MB
MOST_STEPS = 1_000_000  # opcodes; the published metadata has about 150,000
LONGEST_NAME = 1000  # characters of a `module name` line

# What `numpy.save` writes for an object array without dimensions, which is what a saved dictionary is.
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(
    rb"\{'descr': '\|O', 'fortran_order': (True|False), 'shape': \(\), *\} *\n"
)

_STOP = b"."
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_BYTES_OPCODES = {
    "SHORT_BINBYTES": 1,
    "BINBYTES": 4,
    "BINBYTES8": 8,
    "BYTEARRAY8": 8,
}  # width of the length, in bytes
# Opcodes that leave what follows them in the stream, and those that leave a new value of their own.
_ARGUMENTS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_ARGUMENTS |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_CONSTANTS |= {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|O8?|[SU]\d{1,5}")
_NAMES = {
    "_codecs encode": "encode",  # bytes in protocol 2
    "builtins bytes": "bytes",
    "__builtin__ bytes": "bytes",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.multiarray scalar": "scalar",
    "numpy._core.multiarray scalar": "scalar",
    "numpy.core.numeric _frombuffer": "frombuffer",  # arrays in protocol 5
    "numpy._core.numeric _frombuffer": "frombuffer",
}


@dataclass(frozen=True, eq=False)
class Streamed:
    """A large array that goes by: `blocks` are consecutive pieces along the first axis, about BLOCK bytes each."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterator[np.ndarray]


def read_npy(stream: IO[bytes], name: str) -> Fields:
    """Read a dictionary saved by `numpy.save`, or a bare pickle of one (protocols 2 to 5), whole.

    `name` is what error messages call the stream. An object array without dimensions is returned as the object in it.
    InputError where anything else is in the file, or more than MOST_IN_MEMORY bytes.
    """
    (fields,) = (item for item in _items(stream, name, streaming=False) if isinstance(item, dict))
    return fields


def stream_npy(stream: IO[bytes], name: str) -> Iterator[Streamed | Fields]:
    """As `read_npy`, but each large array of numbers is yielded when its bytes come; last of all the dictionary is.

    In the dictionary, a `Streamed` stands where the array would. Its blocks are there until the next item is asked for;
    those that are left are passed over. Only arrays in C order and of protocols 3 and 4 go by, others are read whole.
    """
    return _items(stream, name, streaming=True)


def _items(stream: IO[bytes], name: str, streaming: bool) -> Iterator[Streamed | Fields]:
    source = _Source(stream, name)
    machine = _Machine(source, streaming)
    try:
        code = _first_opcode(source)
        while code != _STOP:
            passing = machine.step(code)
            if passing is not None:
                streamed = Streamed(passing.shape, passing.dtype, source.blocks(passing))
                yield streamed
                source.skip(passing.end - source.position)
                machine.passed(streamed)
            code = source.read(1)
        result = machine.result()
    except _Malformed as error:
        raise InputError(
            f"{name}: is not a saved dictionary of arrays (byte {source.position}: {error}); {FETCH_AGAIN}"
        ) from error
    source.expect_end()
    if not isinstance(result, dict):
        raise InputError(
            f"{name}: holds a {type(result).__name__}, expected a dictionary; {FETCH_AGAIN}"
        )
    yield result


class _Malformed(Exception):
    """The stream breaks the rules of pickle or npy."""


def _first_opcode(source: "_Source") -> bytes:
    """The first byte of the pickle, behind the header of `numpy.save` if there is one."""
    first = source.read(1)
    if first != _NPY_MAGIC[:1]:
        return first
    if source.read(5) != _NPY_MAGIC[1:]:
        raise _Malformed("neither npy nor pickle")
    version = source.read(2)
    if version not in (b"\x01\x00", b"\x02\x00"):
        raise _Malformed(f"npy version {version[0]}.{version[1]}")
    header = source.read(int.from_bytes(source.read(2 if version[0] == 1 else 4), "little"))
    if not _NPY_HEADER.fullmatch(header):
        raise _Malformed(f"expected a dictionary, the npy header says {header[:100]!a}")
    return source.read(1)


@dataclass(frozen=True)
class _Passing:
    """An array whose bytes come next in the stream."""

    shape: tuple[int, ...]
    dtype: np.dtype
    end: int  # position in the stream after its last byte


class _Source:
    """A stream that counts its bytes, keeps lengths within bounds and turns damage into InputError."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream, self.name, self.position, self.kept = stream, name, 0, 0

    def some(self, size: int) -> bytes:
        """Between 1 and `size` bytes."""
        try:  # once a byte, too often for `zip_faults`
            data = self.stream.read(min(size, CHUNK))
        except ZIP_FAULTS as error:
            raise damaged(self.name, error) from error
        if not data:
            raise InputError(f"{self.name}: ends early, after {self.position} bytes; {FETCH_AGAIN}")
        self.position += len(data)
        return data

    def read(self, size: int, weight: int = 4) -> bytes:
        """Exactly `size` bytes; memory grows with what is there, not with what is announced.

        `weight` is how many bytes each becomes in memory: 4 in the worst text, which is what pickletools asks for.
        """
        self.kept += size * weight
        if self.kept > MOST_IN_MEMORY:
            raise InputError(
                f"{self.name}: announces {size} bytes at once, more than a file of this kind can have; {FETCH_AGAIN}"
            )
        if size == 0:
            return b""
        data = self.some(size)
        if len(data) == size:
            return data
        buffer = io.BytesIO()
        buffer.write(data)
        while buffer.tell() < size:
            buffer.write(self.some(size - buffer.tell()))
        return buffer.getvalue()  # shares the buffer, no second copy

    def readline(self) -> bytes:
        """One line of a `module name` pair, for pickletools."""
        line = bytearray()
        while not line.endswith(b"\n"):
            line += self.some(1)
            if len(line) > LONGEST_NAME:
                raise _Malformed("a name without end")
        return bytes(line)

    def blocks(self, array: _Passing) -> Iterator[np.ndarray]:
        """The array in consecutive pieces along its first axis, each about BLOCK bytes, read-only use."""
        row = array.dtype.itemsize * math.prod(array.shape[1:])
        if row > LARGEST_BLOCK:
            raise InputError(
                f"{self.name}: one row of array {array.shape} has {row} bytes, expected at most "
                f"{LARGEST_BLOCK}; {FETCH_AGAIN}"
            )
        rows = max(1, BLOCK // row)
        for start in range(0, array.shape[0], rows):
            block = np.empty((min(rows, array.shape[0] - start), *array.shape[1:]), array.dtype)
            room = block.reshape(-1).view(np.uint8).data
            while room:
                data = self.some(len(room))
                room[: len(data)] = data
                room = room[len(data) :]
            yield block

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.some(size))

    def expect_end(self) -> None:
        """At the end of a zip member the CRC is checked."""
        with zip_faults(self.name):
            rest = self.stream.read(1)
        if rest:
            raise InputError(
                f"{self.name}: goes on after its end at byte {self.position}; {FETCH_AGAIN}"
            )


class _Named:
    """One of _NAMES."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Unbuilt:
    """A dtype or an array, made in two steps: REDUCE leaves it without `value`, BUILD completes it."""

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype, self.built = dtype, False
        self.value: Any = None


class _Passed:
    """Stands for the bytes of an array that went by."""

    def __init__(self, value: Streamed) -> None:
        self.value = value


class _Machine:
    """Interprets a pickle one opcode at a time; everything it makes is an array, plain container, text or number."""

    def __init__(self, source: _Source, streaming: bool) -> None:
        self.source, self.streaming = source, streaming
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[object, Any] = {}
        self.steps, self.made = 0, 0

    def passed(self, value: Streamed) -> None:
        """The bytes that `step` announced have gone by."""
        self.stack.append(_Passed(value))

    def result(self) -> object:
        if not self.stack:
            raise _Malformed("nothing in it")
        return self._complete(self.stack[-1])

    def step(self, code: bytes) -> _Passing | None:
        """Do one opcode; returns the array whose bytes come next if they are to be streamed."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise _Malformed(f"more than {MOST_STEPS} steps")
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise _Malformed(f"unknown opcode {code!a}")
        try:
            if opcode.name in _BYTES_OPCODES:
                return self._bytes(
                    int.from_bytes(self.source.read(_BYTES_OPCODES[opcode.name]), "little")
                )
            source = cast(IO[bytes], self.source)  # pickletools asks for read and readline only
            self._do(opcode.name, opcode.arg.reader(source) if opcode.arg else None)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise _Malformed(
                f"{opcode.name}, {type(error).__name__}: {str(error)[:100]!a}"
            ) from error
        return None

    def _bytes(self, size: int) -> _Passing | None:
        if self.streaming and size > STREAMED and self.marks:
            match self.stack[self.marks[-1] :]:
                case [1, tuple() as shape, _Unbuilt(value=np.dtype() as dtype), False] if (
                    dtype.kind in "iuf" and shape
                ):
                    _check_size(size, shape, dtype)
                    return _Passing(shape, dtype, self.source.position + size)
        self.stack.append(self.source.read(size, weight=1))
        return None

    def _do(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case _ if opcode in _ARGUMENTS:
                stack.append(argument)
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode]())
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(opcode[-1]))))
            case "TUPLE":
                stack.append(tuple(self._pop_mark()))
            case "LIST":
                stack.append(self._pop_mark())
            case "APPEND" | "APPENDS":
                items = self._pop(1) if opcode == "APPEND" else self._pop_mark()
                self._top(list).extend(items)
            case "DICT":
                stack.append(_pairs(self._pop_mark()))
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if opcode == "SETITEM" else self._pop_mark()
                self._top(dict).update(_pairs(items))
            case "GLOBAL":
                stack.append(self._named(argument))
            case "STACK_GLOBAL":
                stack.append(self._named(" ".join(self._pop(2))))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(
                    self._call(function.name if isinstance(function, _Named) else "?", arguments)
                )
            case "BUILD":
                (state,) = self._pop(1)
                self._build(self._top(_Unbuilt), state)
            case "INST":
                self._refuse(argument)
            case _:
                self._refuse(
                    f"the opcode {opcode}"
                    + (f" {str(argument)[:100]}" if argument is not None else "")
                )

    def _pop(self, count: int) -> list[Any]:
        """The last `count` values, oldest first, each of them complete."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        values = self.stack[-count:]
        del self.stack[-count:]
        return [self._complete(value) for value in values]

    def _pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return [self._complete(value) for value in values]

    @staticmethod
    def _complete(value: object) -> object:
        if isinstance(value, _Unbuilt):
            if not value.built:
                raise _Malformed("an array or a dtype is used before it is complete")
            return value.value
        return value

    def _top(self, kind: type[Kind]) -> Kind:
        top = self.stack[-1]
        if not isinstance(top, kind):
            raise TypeError(f"a {kind.__name__.strip('_')} is due")
        return top

    def _named(self, name: str) -> _Named:
        if name not in _NAMES:
            self._refuse(name.replace(" ", "."))
        return _Named(_NAMES[name])

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"{self.source.name}: tries to load {what[:200]!a}, which could run code; only arrays, lists, tuples, "
            "dictionaries, text and numbers are read, so do not use this file: get it from its source again"
        )

    def _call(self, function: str, arguments: object) -> object:
        match function, arguments:
            case "encode", (str() as text, "latin1"):
                return self._within_budget(text.encode("latin-1"))
            case "bytes", ():
                return b""
            case "dtype", (str() as code, *_) if _DTYPE.fullmatch(code):
                return _Unbuilt(np.dtype(code))
            case "reconstruct", (_Named(name="ndarray"), (0,), b"b"):
                return _Unbuilt(None)
            case "scalar", (np.dtype(itemsize=0) as dtype, b""):  # text without letters
                return dtype.type()
            case "scalar", (np.dtype() as dtype, bytes() as data):
                return _array((), dtype, "C", self._within_budget(data))[()]
            case "frombuffer", (
                bytes() as data,
                np.dtype() as dtype,
                tuple() as shape,
                "C" | "F" as order,
            ):
                return _array(shape, dtype, order, self._within_budget(data))
        raise ValueError(f"{function} with arguments that numpy does not write")

    def _build(self, target: _Unbuilt, state: object) -> None:
        if target.built:
            raise ValueError("built twice")
        target.built = True
        match target.dtype, state:
            case np.dtype() as dtype, (
                3,
                "<" | ">" | "=" | "|" as order,
                None,
                None,
                None,
                int(),
                int(),
                int(),
            ):
                target.value = dtype.newbyteorder(order)
            case None, (1, tuple(), np.dtype(), bool(), _Passed(value=value)):
                target.value = value
            case None, (
                1,
                tuple() as shape,
                np.dtype(kind="O"),
                bool() as fortran,
                list() as items,
            ):
                target.value = _object_array(
                    shape, "F" if fortran else "C", self._within_budget(items)
                )
            case None, (
                1,
                tuple() as shape,
                np.dtype() as dtype,
                bool() as fortran,
                bytes() as data,
            ):
                target.value = _array(
                    shape, dtype, "F" if fortran else "C", self._within_budget(data)
                )
            case _:
                raise ValueError("a state that numpy does not write")

    def _within_budget(self, data: Values) -> Values:
        """One value may be named many times; refuse to make much more of it than the stream is long."""
        self.made += len(data)
        if self.made > 4 * self.source.position:
            raise ValueError("more values than the file has bytes")
        return data


def _pairs(items: list[Any]) -> Fields:
    """Keys are text, or integers that are their own hash: nothing whose hash is slow, deep or made to collide."""
    for key in items[::2]:
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**61 - 1)):
            raise TypeError(
                f"a dictionary key is a {type(key).__name__}, expected text or a whole number"
            )
    return dict(zip(items[::2], items[1::2], strict=True))


def _check_size(size: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("a shape that no array has")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes for an array {shape} of {dtype}")


def _array(shape: tuple[int, ...], dtype: np.dtype, order: Order, data: bytes) -> np.ndarray:
    _check_size(len(data), shape, dtype)
    if dtype.kind == "O" or dtype.itemsize == 0:
        raise ValueError(f"bytes as the content of an array of {dtype}")
    if dtype.kind == "U" and np.frombuffer(data, dtype.byteorder + "u4").max(initial=0) > 0x10FFFF:
        raise ValueError("text that is not Unicode")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ValueError("truth values other than 0 and 1")
    array = np.ndarray(shape, dtype, buffer=data, order=order)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _object_array(shape: tuple[int, ...], order: Order, items: list[Any]) -> object:
    _check_size(len(items), shape, np.dtype(np.uint8))
    if shape == ():
        return items[0]
    if not all(isinstance(item, str | int | float | None | np.generic) for item in items):
        raise ValueError("an array of objects that are neither text nor numbers")
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape, order=order)
