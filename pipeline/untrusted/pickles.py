"""Pickled arrays from strangers, read without running or believing what is in them.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever
the program names. The machine here knows only the opcodes that arrays, lists, tuples,
dictionaries, text and numbers need. It looks nothing up: it compares the few names that numpy
writes as text, checks the values, and only then makes the array or the dtype from them.

Why a `pickle.Unpickler` whose `find_class` allows only numpy's names is not enough:
- numpy's own functions believe their arguments. `ndarray.__setstate__` with a dtype of objects
  takes raw bytes as pointers. A record dtype, a negative shape or an overflowing shape have
  crashed the interpreter.
- BUILD sets any attribute of an allowed object, and REDUCE calls an allowed function with
  arguments of the file's choice.
- The C machine believes every length. 30 bytes can ask for gigabytes. A few kB of text that is
  encoded again and again, or named again and again, grow without bound.
- Deep nesting, or keys whose hashes collide or recurse, end in a crash or in hours of work, not
  in an error.
- It returns nothing before the last byte, so that an array of a gigabyte could not be streamed.
- `find_class` is asked for names only. The extension registry (EXT1) and persistent ids come in
  by other doors.

Opcodes: `pickletools` of the standard library. Format of numpy's files:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
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
from pipeline.untrusted.archives import ZIP_FAULTS, damage_error, zip_faults_as_input_errors

Fields = dict[str | int, Any]  # the dictionary that a file holds
Order = Literal["C", "F"]
Kind = TypeVar("Kind")
Values = TypeVar("Values", bytes, list[Any])

MIB = 1 << 20
READ_SIZE = MIB  # bytes asked of a stream at once
CHUNK_BYTES = 8 * MIB  # about the size of one chunk of a streamed array
STREAM_ABOVE = MIB // 16  # bytes; larger arrays are streamed
MAX_ROW_BYTES = 256 * MIB  # one row of a streamed array; a full-size test condition has 1 MiB
MAX_BYTES_IN_MEMORY = 1024 * MIB  # all that is not streamed; a full-size recording has 900 MB
MAX_OPCODES = 1_000_000  # the published metadata has about 150,000
MAX_NAME_LENGTH = 1000  # bytes of a line with a module or a name

# `numpy.save` stores a dictionary as an object array without dimensions, under this header.
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(
    rb"\{'descr': '\|O', 'fortran_order': (True|False), 'shape': \(\), *\} *\n"
)

_STOP = b"."
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

# Opcodes that push bytes: how many bytes their length takes in the stream.
_BYTES_OPCODES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}

# Opcodes that push their argument.
_ARGUMENT_OPCODES = {
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}

# Opcodes that push a new value of their own.
_CONSTANT_OPCODES: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}

# `module name`, as a pickle names it, to the word that this module has for it.
_ALLOWED_NAMES = {
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
_ALLOWED_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|O8?|[SU]\d{1,5}")


@dataclass(frozen=True, eq=False)
class Streamed:
    """A large array whose values are read chunk by chunk.

    `chunks`: consecutive pieces along the first axis, about CHUNK_BYTES each.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Iterator[np.ndarray]


def read_npy(stream: IO[bytes], name: str) -> Fields:
    """Read a dictionary saved by `numpy.save`, or a bare pickle of one (protocols 2 to 5), whole.

    `name` is what error messages call the stream. An object array without dimensions is returned
    as the object in it. Raises InputError where the file holds anything else, or more than
    MAX_BYTES_IN_MEMORY bytes.
    """
    items = _read_items(stream, name, streaming=False)
    # Without streaming there is only one item.
    (fields,) = (item for item in items if isinstance(item, dict))
    return fields


def stream_npy(stream: IO[bytes], name: str) -> Iterator[Streamed | Fields]:
    """Like `read_npy`, but yield each large array of numbers when its bytes come.

    The dictionary is yielded last. In it, a `Streamed` stands where the array would. The chunks of
    an array can be read until the next item is asked for; chunks that nobody read are skipped.
    Only arrays in C order and in protocols 3 and 4 are streamed, others are read whole.
    """
    return _read_items(stream, name, streaming=True)


def _read_items(stream: IO[bytes], name: str, streaming: bool) -> Iterator[Streamed | Fields]:
    reader = _Reader(stream, name)
    machine = _Machine(reader, streaming)

    try:
        opcode = _first_opcode(reader)
        while opcode != _STOP:
            array = machine.execute(opcode)

            if array is not None:
                streamed = Streamed(array.shape, array.dtype, reader.chunks(array))
                yield streamed
                reader.skip(array.end - reader.position)  # chunks that the caller did not read
                machine.push_streamed(streamed)

            opcode = reader.read(1)
        result = machine.result()
    except _Malformed as error:
        raise InputError(
            f"{name}: is not a saved dictionary of arrays (byte {reader.position}: {error}); "
            f"{FETCH_AGAIN}"
        ) from error

    reader.expect_end()
    if not isinstance(result, dict):
        raise InputError(
            f"{name}: holds a {type(result).__name__}, expected a dictionary; {FETCH_AGAIN}"
        )
    yield result


class _Malformed(Exception):
    """The stream breaks the rules of pickle or npy."""


def _first_opcode(reader: "_Reader") -> bytes:
    """The first byte of the pickle, after the header of `numpy.save` if there is one."""
    first = reader.read(1)
    if first != _NPY_MAGIC[:1]:
        return first  # a bare pickle
    if reader.read(5) != _NPY_MAGIC[1:]:
        raise _Malformed("neither npy nor pickle")

    version = reader.read(2)
    if version not in (b"\x01\x00", b"\x02\x00"):
        raise _Malformed(f"npy version {version[0]}.{version[1]}")

    # Version 1 has 2 bytes for the length of the header, version 2 has 4.
    length_bytes = 2 if version[0] == 1 else 4
    header = reader.read(int.from_bytes(reader.read(length_bytes), "little"))
    if not _NPY_HEADER.fullmatch(header):
        raise _Malformed(f"expected a dictionary, the npy header says {header[:100]!a}")
    return reader.read(1)


# The stream


@dataclass(frozen=True)
class _NextArray:
    """An array whose bytes come next in the stream."""

    shape: tuple[int, ...]
    dtype: np.dtype
    end: int  # position in the stream after its last byte


class _Reader:
    """Reads a stream: counts its bytes, limits memory and turns damage into InputError."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream = stream
        self.name = name
        self.position = 0
        self.n_bytes_in_memory = 0

    def read_some(self, size: int) -> bytes:
        """Between 1 and `size` bytes."""
        # A plain `try` is quicker than `zip_faults_as_input_errors`, and this runs for each opcode.
        try:
            data = self.stream.read(min(size, READ_SIZE))
        except ZIP_FAULTS as error:
            raise damage_error(self.name, error) from error

        if not data:
            raise InputError(f"{self.name}: ends early, after {self.position} bytes; {FETCH_AGAIN}")
        self.position += len(data)
        return data

    def read(self, size: int, weight: int = 4) -> bytes:
        """Exactly `size` bytes. Memory grows with the bytes that come, not with `size`.

        `weight` is how many bytes each byte becomes in memory. pickletools decodes text, where 4
        is the worst case.
        """
        self.n_bytes_in_memory += size * weight
        if self.n_bytes_in_memory > MAX_BYTES_IN_MEMORY:
            raise InputError(
                f"{self.name}: announces {size} bytes at once, more than a file of this kind can "
                f"have; {FETCH_AGAIN}"
            )
        if size == 0:
            return b""

        data = self.read_some(size)
        if len(data) == size:
            return data

        buffer = io.BytesIO()
        buffer.write(data)
        while buffer.tell() < size:
            buffer.write(self.read_some(size - buffer.tell()))
        return buffer.getvalue()  # shares the memory of the buffer, no second copy

    def readline(self) -> bytes:
        """One line, such as the module in GLOBAL; pickletools calls this."""
        line = bytearray()
        while not line.endswith(b"\n"):
            line += self.read_some(1)
            if len(line) > MAX_NAME_LENGTH:
                raise _Malformed("a name without end")
        return bytes(line)

    def chunks(self, array: _NextArray) -> Iterator[np.ndarray]:
        """The array in consecutive pieces along its first axis, each about CHUNK_BYTES."""
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        if row_bytes > MAX_ROW_BYTES:
            raise InputError(
                f"{self.name}: one row of array {array.shape} has {row_bytes} bytes, expected at "
                f"most {MAX_ROW_BYTES}; {FETCH_AGAIN}"
            )

        n_rows = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, array.shape[0], n_rows):
            shape = (min(n_rows, array.shape[0] - start), *array.shape[1:])
            chunk = np.empty(shape, array.dtype)

            # Fill the memory of the chunk, as many bytes at a time as the stream gives.
            unfilled = chunk.reshape(-1).view(np.uint8).data
            while unfilled:
                data = self.read_some(len(unfilled))
                unfilled[: len(data)] = data
                unfilled = unfilled[len(data) :]
            yield chunk

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.read_some(size))

    def expect_end(self) -> None:
        """Read on behind the pickle: zipfile compares the CRC only at the end of a member."""
        with zip_faults_as_input_errors(self.name):
            surplus = self.stream.read(1)
        if surplus:
            raise InputError(
                f"{self.name}: goes on after its end at byte {self.position}; {FETCH_AGAIN}"
            )


# The machine


class _AllowedName:
    """A function or class on the stack: one word of _ALLOWED_NAMES, never the object itself."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Incomplete:
    """A dtype or an array between REDUCE, which announces it, and BUILD, which sets `value`.

    `dtype` is what REDUCE said about a dtype. It is None for an array.
    """

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype = dtype
        self.is_complete = False
        self.value: Any = None


class _StreamedBytes:
    """Stands on the stack for the bytes of an array that was streamed."""

    def __init__(self, array: Streamed) -> None:
        self.array = array


class _Machine:
    """Executes a pickle opcode by opcode. Makes only arrays, plain containers, text and numbers."""

    def __init__(self, reader: _Reader, streaming: bool) -> None:
        self.reader = reader
        self.streaming = streaming
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack, one for each open MARK
        self.memo: dict[object, Any] = {}
        self.n_opcodes = 0
        self.n_values_made = 0

    def push_streamed(self, array: Streamed) -> None:
        """Go on after the bytes of the array that `execute` returned."""
        self.stack.append(_StreamedBytes(array))

    def result(self) -> object:
        if not self.stack:
            raise _Malformed("nothing in it")
        return self._value_of(self.stack[-1])

    def execute(self, code: bytes) -> _NextArray | None:
        """Execute one opcode. Return the array whose bytes come next, if it is to be streamed."""
        self.n_opcodes += 1
        if self.n_opcodes > MAX_OPCODES:
            raise _Malformed(f"more than {MAX_OPCODES} steps")

        opcode = _OPCODES.get(code)
        if opcode is None:
            raise _Malformed(f"unknown opcode {code!a}")

        try:
            if opcode.name in _BYTES_OPCODES:
                length = self.reader.read(_BYTES_OPCODES[opcode.name])
                return self._push_bytes(int.from_bytes(length, "little"))

            stream = cast(IO[bytes], self.reader)  # pickletools calls only read and readline
            argument = opcode.arg.reader(stream) if opcode.arg else None
            self._execute(opcode.name, argument)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise _Malformed(
                f"{opcode.name}, {type(error).__name__}: {str(error)[:100]!a}"
            ) from error
        return None

    def _push_bytes(self, size: int) -> _NextArray | None:
        """Push the next `size` bytes, or return the array that they are, if it can be streamed."""
        if self.streaming and size > STREAM_ABOVE and self.marks:
            # numpy writes (1, shape, dtype, is_fortran, data) as the state of an array. If all but
            # the data lie above the last mark, then these bytes are the data.
            match self.stack[self.marks[-1] :]:
                case [1, tuple() as shape, _Incomplete(value=np.dtype() as dtype), False] if (
                    dtype.kind in "iuf" and shape
                ):
                    _check_size(size, shape, dtype)
                    return _NextArray(shape, dtype, self.reader.position + size)

        self.stack.append(self.reader.read(size, weight=1))
        return None

    def _execute(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":  # say nothing about the values
                pass

            # Push one value
            case _ if opcode in _ARGUMENT_OPCODES:
                stack.append(argument)
            case _ if opcode in _CONSTANT_OPCODES:
                stack.append(_CONSTANT_OPCODES[opcode]())

            # Remember a value, and push it again
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])

            # Containers: their items lie above the last mark, or are a fixed number
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(opcode[-1]))))
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "LIST":
                stack.append(self._pop_to_mark())
            case "APPEND" | "APPENDS":
                items = self._pop(1) if opcode == "APPEND" else self._pop_to_mark()
                self._top(list).extend(items)
            case "DICT":
                stack.append(_to_dict(self._pop_to_mark()))
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if opcode == "SETITEM" else self._pop_to_mark()
                self._top(dict).update(_to_dict(items))

            # Names, calls and states: where Python would run code
            case "GLOBAL":
                stack.append(self._allowed_name(argument))
            case "STACK_GLOBAL":
                stack.append(self._allowed_name(" ".join(self._pop(2))))
            case "REDUCE":
                function, arguments = self._pop(2)
                name = function.name if isinstance(function, _AllowedName) else "?"
                stack.append(self._call(name, arguments))
            case "BUILD":
                (state,) = self._pop(1)
                self._build(self._top(_Incomplete), state)
            # An old opcode that imports and calls at once.
            case "INST":
                self._refuse(argument)

            case _:
                text = "" if argument is None else f" {str(argument)[:100]}"
                self._refuse(f"the opcode {opcode}{text}")

    def _pop(self, count: int) -> list[Any]:
        """The last `count` values, oldest first, each of them complete."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        return self._pop_from(len(self.stack) - count)

    def _pop_to_mark(self) -> list[Any]:
        """The values above the last mark, oldest first, each of them complete."""
        return self._pop_from(self.marks.pop())

    def _pop_from(self, start: int) -> list[Any]:
        values = self.stack[start:]
        del self.stack[start:]
        return [self._value_of(value) for value in values]

    @staticmethod
    def _value_of(item: object) -> object:
        """What an item of the stack stands for; `_Incomplete` never leaves the machine."""
        if isinstance(item, _Incomplete):
            if not item.is_complete:
                raise _Malformed("an array or a dtype is used before it is complete")
            return item.value
        return item

    def _top(self, kind: type[Kind]) -> Kind:
        top = self.stack[-1]
        if not isinstance(top, kind):
            raise TypeError(f"expected a {kind.__name__.strip('_')} on the stack")
        return top

    def _allowed_name(self, name: str) -> _AllowedName:
        if name not in _ALLOWED_NAMES:
            self._refuse(name.replace(" ", "."))
        return _AllowedName(_ALLOWED_NAMES[name])

    def _refuse(self, name: str) -> NoReturn:
        raise InputError(
            f"{self.reader.name}: tries to load {name[:200]!a}, which could run code; only arrays, "
            "lists, tuples, dictionaries, text and numbers are read, so do not use this file: get "
            "it from its source again"
        )

    def _call(self, function: str, arguments: object) -> object:
        """What REDUCE pushes: the value of a call that numpy or Python writes, checked first."""
        match function, arguments:
            # Protocol 2 has no opcode for bytes: it writes them as text, and none as `bytes()`.
            case "encode", (str() as text, "latin1"):
                return self._within_budget(text.encode("latin-1"))
            case "bytes", ():
                return b""

            # A dtype, and an array that is still empty: BUILD brings the rest.
            case "dtype", (str() as code, *_) if _ALLOWED_DTYPE.fullmatch(code):
                return _Incomplete(np.dtype(code))
            case "reconstruct", (_AllowedName(name="ndarray"), (0,), b"b"):
                return _Incomplete(None)

            # A number or text of numpy.
            case "scalar", (np.dtype(itemsize=0) as dtype, b""):  # text without letters
                return dtype.type()
            case "scalar", (np.dtype() as dtype, bytes() as data):
                return _array((), dtype, "C", self._within_budget(data))[()]

            # A whole array in protocol 5.
            case "frombuffer", (
                bytes() as data,
                np.dtype() as dtype,
                tuple() as shape,
                "C" | "F" as order,
            ):
                return _array(shape, dtype, order, self._within_budget(data))

        raise ValueError(f"{function} with arguments that numpy does not write")

    def _build(self, target: _Incomplete, state: object) -> None:
        if target.is_complete:
            raise ValueError("built twice")
        target.is_complete = True

        if target.dtype is None:
            target.value = self._array_of_state(state)
        else:
            target.value = _dtype_of_state(target.dtype, state)

    def _array_of_state(self, state: object) -> object:
        """What `ndarray.__setstate__` would make of (1, shape, dtype, is_fortran, data)."""
        match state:
            # Its bytes have gone to the caller already.
            case (1, tuple(), np.dtype(), bool(), _StreamedBytes(array=array)):
                return array
            # Objects come as a list of values, numbers and text as bytes.
            case (1, tuple() as shape, np.dtype(kind="O"), bool() as is_fortran, list() as items):
                return _object_array(shape, _order(is_fortran), self._within_budget(items))
            case (1, tuple() as shape, np.dtype() as dtype, bool() as is_fortran, bytes() as data):
                return _array(shape, dtype, _order(is_fortran), self._within_budget(data))
        raise ValueError("a state that numpy does not write")

    def _within_budget(self, data: Values) -> Values:
        """The data, unless the values made so far are far more than the bytes read so far.

        A short file can name one long value many times, and have it copied each time.
        """
        self.n_values_made += len(data)
        if self.n_values_made > 4 * self.reader.position:
            raise ValueError("more values than the file has bytes")
        return data


# Values, made from what the file says and checked first


def _to_dict(items: list[Any]) -> Fields:
    """A dictionary of key, value, key, value.

    Keys are text, or integers that are their own hash. Other keys can have hashes that are slow,
    deep or made to collide.
    """
    for key in items[::2]:
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**61 - 1)):
            raise TypeError(
                f"a dictionary key is a {type(key).__name__}, expected text or a whole number"
            )
    return dict(zip(items[::2], items[1::2], strict=True))


def _dtype_of_state(dtype: np.dtype, state: object) -> np.dtype:
    """The dtype that `dtype.__setstate__` would make; only its byte order is free."""
    match state:
        case (3, "<" | ">" | "=" | "|" as byte_order, None, None, None, int(), int(), int()):
            return dtype.newbyteorder(byte_order)
    raise ValueError("a state that numpy does not write")


def _order(is_fortran: bool) -> Order:
    return "F" if is_fortran else "C"


def _check_size(size: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    # type(): True is an int too. Beside a length of 0, any other would pass the next comparison.
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("a shape that no array has")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes for an array {shape} of {dtype}")


def _array(shape: tuple[int, ...], dtype: np.dtype, order: Order, data: bytes) -> np.ndarray:
    """An array of numbers or text, in the byte order of this machine."""
    _check_size(len(data), shape, dtype)

    # Bytes must never become pointers, letters or truth values that numpy would not make itself.
    if dtype.kind == "O" or dtype.itemsize == 0:
        raise ValueError(f"bytes as the content of an array of {dtype}")
    if dtype.kind == "U" and np.frombuffer(data, dtype.byteorder + "u4").max(initial=0) > 0x10FFFF:
        raise ValueError("text that is not Unicode")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ValueError("truth values other than 0 and 1")

    # The array shares the memory of `data`, and a copy is made only of another byte order.
    array = np.ndarray(shape, dtype, buffer=data, order=order)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _object_array(shape: tuple[int, ...], order: Order, items: list[Any]) -> object:
    """An array of text and numbers; without dimensions, the one object in it."""
    _check_size(len(items), shape, np.dtype(np.uint8))  # one item counts as one byte
    if shape == ():
        return items[0]
    if not all(isinstance(item, str | int | float | None | np.generic) for item in items):
        raise ValueError("an array of objects that are neither text nor numbers")

    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape, order=order)
