"""Zip archives and pickled arrays from elsewhere, read without running or believing what is in them.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
The machine here knows only the steps that arrays, lists, tuples, dictionaries, text and numbers need. It looks nothing
up: the few names that numpy writes are compared as text, and the array or dtype is then made from checked values, not
by numpy's own `__setstate__`, which believes what it is given. Opcodes: `pickletools` of the standard library.
"""

import io
import math
import pickletools
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from pipeline.errors import InputError

MIB = 1 << 20
CHUNK = MIB  # bytes asked of a stream at once
BLOCK = 8 * MIB  # about so many bytes of a streamed array are in memory at once
STREAMED = MIB // 16  # arrays of more bytes than this are handed to `take`
LARGEST_BLOCK = 256 * MIB  # one row of a streamed array; a full-size test condition has 1 MiB
MOST_IN_MEMORY = 1024 * MIB  # all values that are not streamed; a full-size recording has 900 MB
MOST_STEPS = 1_000_000  # opcodes; the published metadata has about 150,000
LONGEST_NAME = 1000  # characters of a `module name` line

# What `numpy.save` writes for an object array without dimensions, which is what a saved dictionary is.
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(rb"\{'descr': '\|O', 'fortran_order': (True|False), 'shape': \(\), *\} *\n")

_STOP = b"."
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_BYTES_OPCODES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}  # width of the length, in bytes
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

_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)

Take = Callable[[tuple[int, ...], np.dtype, Iterator[np.ndarray]], object]


def open_zip(path: Path, largest_member: int) -> zipfile.ZipFile:
    """Open a zip whose directory has been checked; InputError names the first thing wrong.

    Refused: what is no zip or is cut off, and members that are absolute, climb out with `..`, are links, are encrypted,
    appear twice, use another compression than deflate or declare more than `largest_member` bytes.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror or error}); run the download again") from error
    except _ZIP_FAULTS as error:
        raise InputError(f"{path}: is not a whole zip archive ({error}); delete it and download it again") from error
    try:
        _check_members(archive, path, largest_member)
    except InputError:
        archive.close()
        raise
    return archive


def _check_members(archive: zipfile.ZipFile, path: Path, largest_member: int) -> None:
    seen = set()
    for info in archive.infolist():
        plain = PurePosixPath(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not plain.parts or plain.is_absolute() or ".." in plain.parts or re.search(r"[\\:\0]", info.orig_filename):
            problem = "has a name that leads out of the archive"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or a special file"
        elif info.flag_bits & 0x1:
            problem = "is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"is compressed by method {info.compress_type}, not by deflate"
        elif info.file_size > largest_member:
            problem = f"declares {info.file_size} bytes, more than the {largest_member} that such a file can have"
        elif info.header_offset < 0:
            problem = "begins before the file"
        elif plain in seen:
            problem = "appears twice"
        else:
            seen.add(plain)
            continue
        raise InputError(f"{path}: member {info.filename!a:.200} {problem}; get the archive from its source again")


@contextmanager
def open_member(archive: zipfile.ZipFile, name: str) -> Iterator[BinaryIO]:
    """The member as a stream; InputError where it is not in the archive or its header is broken."""
    with _zip_faults(f"{archive.filename}: {name}"):
        try:
            stream = archive.open(name)
        except KeyError as error:
            raise InputError(f"{archive.filename}: holds no {name}; is it the right archive?") from error
    with stream:
        yield stream


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The whole member, its CRC checked; no more bytes than `open_zip` allowed. InputError if damaged."""
    with open_member(archive, name) as stream, _zip_faults(f"{archive.filename}: {name}"):
        return stream.read()


@contextmanager
def _zip_faults(name: str) -> Iterator[None]:
    try:
        yield
    except _ZIP_FAULTS as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: is damaged ({error}); delete the archive and download it again")


def read_npy(stream: BinaryIO, name: str, take: Take | None = None) -> dict:
    """Read a dictionary saved by `numpy.save`, or a bare pickle of one (protocols 2 to 5).

    `name` is what error messages call the stream. With `take`, an array of numbers in C order is not kept in memory:
    while it goes by, `take(shape, dtype, blocks)` is called with an iterator over consecutive pieces along the first
    axis, and what it returns stands in the dictionary. Small arrays, and those of protocols 2 and 5, are returned whole
    all the same. An object array without dimensions is returned as the object in it. InputError where anything else is
    in the file, or more than MOST_IN_MEMORY bytes of it that cannot be streamed.
    """
    source = _Source(stream, name)
    machine = _Machine(source, streaming=take is not None)
    try:
        code = _first_opcode(source)
        while code != _STOP:
            passing = machine.step(code)
            if passing is not None:
                machine.passed(take(passing.shape, passing.dtype, source.blocks(passing)))
                source.skip(passing.end - source.position)
            code = source.read(1)
        result = machine.result()
    except _Malformed as error:
        raise InputError(f"{name}: is not a saved dictionary of arrays (byte {source.position}: {error})") from error
    source.expect_end()
    if not isinstance(result, dict):
        raise InputError(f"{name}: holds a {type(result).__name__}, expected a dictionary")
    return result


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

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name, self.position, self.kept = stream, name, 0, 0

    def some(self, size: int) -> bytes:
        """Between 1 and `size` bytes."""
        try:  # once a byte, too often for `_zip_faults`
            data = self.stream.read(min(size, CHUNK))
        except _ZIP_FAULTS as error:
            raise _damaged(self.name, error) from error
        if not data:
            raise InputError(f"{self.name}: ends early, after {self.position} bytes; delete it and download it again")
        self.position += len(data)
        return data

    def read(self, size: int, weight: int = 4) -> bytes:
        """Exactly `size` bytes; memory grows with what is there, not with what is announced.

        `weight` is how many bytes each becomes in memory: 4 in the worst text, which is what pickletools asks for.
        """
        self.kept += size * weight
        if self.kept > MOST_IN_MEMORY:
            raise InputError(f"{self.name}: announces {size} bytes at once, more than a file of this kind can have")
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
            raise InputError(f"{self.name}: one row of array {array.shape} has {row} bytes, at most {LARGEST_BLOCK}")
        rows = max(1, BLOCK // row)
        for start in range(0, array.shape[0], rows):
            block = np.empty((min(rows, array.shape[0] - start), *array.shape[1:]), array.dtype)
            room = memoryview(block.reshape(-1).view(np.uint8))
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
        with _zip_faults(self.name):
            rest = self.stream.read(1)
        if rest:
            raise InputError(f"{self.name}: goes on after its end at byte {self.position}; download it again")


class _Named:
    """One of _NAMES."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Unbuilt:
    """A dtype or an array, made in two steps: REDUCE leaves it without `value`, BUILD completes it."""

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype, self.value, self.built = dtype, None, False


class _Passed:
    """What `take` returned for the bytes of an array."""

    def __init__(self, value: object) -> None:
        self.value = value


class _Machine:
    """Interprets a pickle one opcode at a time; everything it makes is an array, plain container, text or number."""

    def __init__(self, source: _Source, streaming: bool) -> None:
        self.source, self.streaming = source, streaming
        self.stack, self.marks, self.memo = [], [], {}
        self.steps, self.made = 0, 0

    def passed(self, value: object) -> None:
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
                return self._bytes(int.from_bytes(self.source.read(_BYTES_OPCODES[opcode.name]), "little"))
            self._do(opcode.name, opcode.arg.reader(self.source) if opcode.arg else None)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise _Malformed(f"{opcode.name}, {type(error).__name__}: {str(error)[:100]!a}") from error
        return None

    def _bytes(self, size: int) -> _Passing | None:
        if self.streaming and size > STREAMED and self.marks:
            match self.stack[self.marks[-1] :]:
                case [1, tuple() as shape, _Unbuilt(value=np.dtype() as dtype), False] if dtype.kind in "iuf" and shape:
                    _check_size(size, shape, dtype)
                    return _Passing(shape, dtype, self.source.position + size)
        self.stack.append(self.source.read(size, weight=1))
        return None

    def _do(self, opcode: str, argument: object) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "INT" | "LONG" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                stack.append(argument)
            case "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(opcode[-1]))))
            case "TUPLE":
                stack.append(tuple(self._pop_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self._pop_mark())
            case "APPEND" | "APPENDS":
                items = self._pop(1) if opcode == "APPEND" else self._pop_mark()
                self._top(list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
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
                stack.append(self._call(function.name if isinstance(function, _Named) else "?", arguments))
            case "BUILD":
                (state,) = self._pop(1)
                self._build(self._top(_Unbuilt), state)
            case "INST":
                self._refuse(argument)
            case _:
                self._refuse(f"the opcode {opcode}" + (f" {str(argument)[:100]}" if argument is not None else ""))

    def _pop(self, count: int) -> list:
        """The last `count` values, oldest first, each of them complete."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        values = self.stack[-count:]
        del self.stack[-count:]
        return [self._complete(value) for value in values]

    def _pop_mark(self) -> list:
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

    def _top(self, kind: type) -> object:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {kind.__name__.strip('_')} is due")
        return self.stack[-1]

    def _named(self, name: str) -> _Named:
        if name not in _NAMES:
            self._refuse(name.replace(" ", "."))
        return _Named(_NAMES[name])

    def _refuse(self, what: str) -> None:
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
            case "frombuffer", (bytes() as data, np.dtype() as dtype, tuple() as shape, "C" | "F" as order):
                return _array(shape, dtype, order, self._within_budget(data))
        raise ValueError(f"{function} with arguments that numpy does not write")

    def _build(self, target: _Unbuilt, state: object) -> None:
        if target.built:
            raise ValueError("built twice")
        target.built = True
        match target.dtype, state:
            case np.dtype() as dtype, (3, "<" | ">" | "=" | "|" as order, None, None, None, int(), int(), int()):
                target.value = dtype.newbyteorder(order)
            case None, (1, tuple(), np.dtype(), bool(), _Passed(value=value)):
                target.value = value
            case None, (1, tuple() as shape, np.dtype(kind="O"), bool() as fortran, list() as items):
                target.value = _object_array(shape, "F" if fortran else "C", self._within_budget(items))
            case None, (1, tuple() as shape, np.dtype() as dtype, bool() as fortran, bytes() as data):
                target.value = _array(shape, dtype, "F" if fortran else "C", self._within_budget(data))
            case _:
                raise ValueError("a state that numpy does not write")

    def _within_budget(self, data: bytes | list) -> bytes | list:
        """One value may be named many times; refuse to make much more of it than the stream is long."""
        self.made += len(data)
        if self.made > 4 * self.source.position:
            raise ValueError("more values than the file has bytes")
        return data


def _pairs(items: list) -> dict:
    """Keys are text, or integers that are their own hash: nothing whose hash is slow, deep or made to collide."""
    for key in items[::2]:
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**61 - 1)):
            raise TypeError(f"a dictionary key is a {type(key).__name__}, expected text or a whole number")
    return dict(zip(items[::2], items[1::2], strict=True))


def _check_size(size: int, shape: tuple, dtype: np.dtype) -> None:
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("a shape that no array has")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes for an array {shape} of {dtype}")


def _array(shape: tuple, dtype: np.dtype, order: str, data: bytes) -> np.ndarray:
    _check_size(len(data), shape, dtype)
    if dtype.kind == "O" or dtype.itemsize == 0:
        raise ValueError(f"bytes as the content of an array of {dtype}")
    if dtype.kind == "U" and np.frombuffer(data, dtype.byteorder + "u4").max(initial=0) > 0x10FFFF:
        raise ValueError("text that is not Unicode")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ValueError("truth values other than 0 and 1")
    array = np.ndarray(shape, dtype, buffer=data, order=order)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _object_array(shape: tuple, order: str, items: list) -> object:
    _check_size(len(items), shape, np.dtype(np.uint8))
    if shape == ():
        return items[0]
    if not all(isinstance(item, str | int | float | None | np.generic) for item in items):
        raise ValueError("an array of objects that are neither text nor numbers")
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape, order=order)
