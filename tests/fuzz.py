"""Damaged and hostile inputs for all that reads files of others: `python -m tests.fuzz 10000`.

Every input is read or ends in InputError; nothing is imported, run or written, nothing hangs, memory stays small.
"""

import codecs
import io
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.datasets.things_eeg2 import LARGEST_EEG, open_eeg
from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.untrusted.archives import open_zip, read_member
from pipeline.untrusted.pickles import Streamed, stream_npy
from pipeline.untrusted.pictures import decode_image

SECONDS_EACH = 20  # of processor time, which others on the machine do not lengthen; coverage makes it five times longer
GROWTH_MB = 400
N_TRAIN, N_TEST = 40, 2
IMAGES = {"train": pd.DataFrame(index=range(N_TRAIN)), "test": pd.DataFrame(index=range(N_TEST))}
AS_PUBLISHED = read_params(Path("params.yaml")).preprocess
FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.putenv",
    "subprocess.Popen",
)
FORBIDDEN += (
    "exec",
    "compile",
    "import",
    "socket.connect",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "ctypes.dlopen",
)

_watching = False
_seen: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    writes = (
        event == "open"
        and isinstance(arguments[1], str)
        and any(mode in arguments[1] for mode in "wax+")
    )
    if event in FORBIDDEN or writes:
        _seen.append(f"{event} {arguments!a:.200}")


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fail if the block imports, unpickles by name, starts a program, writes a file, or takes too long."""
    global _watching

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer within {SECONDS_EACH} s")

    previous = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
    _seen.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    assert not _seen, _seen


codecs.lookup(
    "raw_unicode_escape"
)  # pickletools needs it; imported now, before anybody watches for imports
sys.addaudithook(_audit)


class Command:
    """Unpickled by Python, it runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def saved(value: object, protocol: int | None = None) -> bytes:
    """As `numpy.save` writes it, or as a bare pickle of the given protocol."""
    if protocol is not None:
        return pickle.dumps(value, protocol)
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def recording(shape: tuple[int, ...]) -> dict:
    ch_names = [f"P{i}" for i in range(shape[2])]
    data = np.random.default_rng(0).standard_normal(shape)
    return {
        "preprocessed_eeg_data": data,
        "ch_names": ch_names,
        "times": np.arange(shape[3]) * 0.01 - 0.2,
    }


def npy_seeds() -> list[bytes]:
    names = {
        "train_img_files": np.array(["aardvark_01b.jpg", "é.jpg"]),
        "objects": np.array(["a", None, 3], object),
    }
    mixed = {
        "number": np.float32(2),
        "tuple": (1, 2.5, True, b"bytes", 2**70),
        "nested": {"list": [[], [()]], 7: None},
    }
    plain = [recording((2, 2, 3, 4)), names, mixed]
    hostile = [{"a": Command("true")}, {"a": np.array([Command("true")], object)}]
    return [
        saved(value, protocol) for value in plain + hostile for protocol in (None, 0, 2, 3, 4, 5)
    ]


def zip_bytes(members: dict[str, bytes], compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return file.getvalue()


def subject_members(train: tuple[int, ...], test: tuple[int, ...]) -> dict[str, bytes]:
    arrays = {"training": saved(recording(train)), "test": saved(recording(test), 4)}
    return {f"sub-01/preprocessed_eeg_{name}.npy": data for name, data in arrays.items()}


def zip_seeds() -> list[bytes]:
    """Archives of which the headers are a large part."""
    members = subject_members((N_TRAIN, 1, 2, 3), (N_TEST, 2, 2, 3))
    return [
        zip_bytes(members, compression)
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ]


def damaged_members(chance: random.Random) -> bytes:
    """A sound archive of damaged arrays, one large enough to be streamed."""
    members = subject_members((N_TRAIN, 4, 6, 10), (N_TEST, 3, 6, 10))
    name = chance.choice(list(members))
    members[name] = mutate(members[name], chance.choice(list(members.values())), chance)
    return zip_bytes(members, zipfile.ZIP_STORED)


def image_seeds() -> list[bytes]:
    seeds = []
    for mode, kind in (
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
    ):
        file = io.BytesIO()
        Image.effect_noise((24, 16), 50).convert(mode).save(file, kind)
        seeds.append(file.getvalue())
    return seeds


def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A few random injuries: bits, lengths, cuts, repeats, opcodes of pickle, pieces of another input."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        near = chance.choice(
            (len(result), 400)
        )  # the values are most of a file, the structure is at both ends
        at = chance.choice((chance.randrange(near + 1), len(result) - chance.randrange(near + 1)))
        at = min(max(at, 0), len(result))
        size = chance.choice((1, 2, 4, 8, 30, 300))
        match chance.randrange(8):
            case 0:
                result[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                result[at : at + size] = b""
            case 2:
                result[at:at] = result[at : at + size] * chance.choice((1, 2, 50))
            case 3:
                result[at : at + 4] = chance.choice(
                    (b"\xff" * 4, b"\x00" * 4, b"\xff\xff\xff\x7f", b"\x01\x00\x00\x00")
                )
            case 4:
                result[at:at] = bytes(
                    chance.choice(
                        b"(.0123FINJKLMQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x93\x94\x95"
                    )
                )
            case 5:
                start = chance.randrange(len(other))
                result[at:at] = other[start : start + size]
            case 6:
                del result[at:]
            case 7 if result:
                result[at % len(result)] ^= 1 << chance.randrange(8)
    return bytes(result)


def random_pickle(chance: random.Random) -> bytes:
    """A walk over the opcodes with arguments that are mostly well formed, so that deeper states are reached."""
    words = (
        b"numpy",
        b"ndarray",
        b"dtype",
        b"numpy.core.multiarray",
        b"_reconstruct",
        b"scalar",
        b"f8",
        b"O8",
        b"<",
        b"b",
    )
    words += (
        b"_codecs",
        b"encode",
        b"latin1",
        b"numpy.core.numeric",
        b"_frombuffer",
        b"C",
        b"os",
        b"system",
        b"U2",
        b"|",
    )
    parts = [b"\x80\x04"]
    for _ in range(chance.randrange(1, 60)):
        word = chance.choice(words)
        number = chance.choice((0, 1, 2, 3, 8, 63, 255))
        steps = (
            b"\x8c" + bytes([len(word)]) + word,
            b"C" + bytes([len(word)]) + word,
            b"C" + bytes([number % 9]) + b"\x01" * (number % 9),
            b"K" + bytes([number]),
            b"J" + chance.randbytes(4),
            b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
            b"h" + bytes([number % 8]),
            b"q" + bytes([number % 8]),
            b"c" + word + b"\n" + chance.choice(words) + b"\n",
            b"cnumpy\ndtype\n\x8c\x02f8\x89\x88\x87R(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R",
            *(bytes([code]) for code in b"(NR]}tlsuaeb\x85\x86\x87\x88\x89\x93\x94)02d"),
        )
        parts.append(chance.choice(steps))
    return b"".join(parts) + b"."


def read_npy_bytes(data: bytes) -> None:
    for item in stream_npy(io.BytesIO(data), "fuzz.npy"):
        if isinstance(item, Streamed):
            sum(chunk.size for chunk in item.chunks)


def read_zip(path: Path) -> None:
    """All that is done with a subject's archive, as `preprocess.preparation` does it."""
    with open_zip(path, LARGEST_EEG) as archive:
        for name in archive.namelist():
            read_member(archive, name)
    with open_eeg(path, IMAGES, AS_PUBLISHED) as raw:
        for chunks in raw.chunks.values():
            for _ in chunks:
                pass


def make_input(parser: str, seeds: list[bytes], chance: random.Random) -> bytes:
    kind = chance.randrange(3)
    if parser == "npy" and kind == 0:
        return random_pickle(chance)
    if parser == "zip" and kind == 0:
        return damaged_members(chance)
    return mutate(chance.choice(seeds), chance.choice(seeds), chance)


def run(count: int, seed: int, failure: Path) -> dict[str, Counter]:
    """Try `count` inputs; returns how many each parser has read and refused. What else happens is raised, and the input
    that did it is in `failure`."""
    chance = random.Random(seed)
    seeds = {"npy": npy_seeds(), "zip": zip_seeds(), "image": image_seeds()}
    outcomes = {parser: Counter() for parser in seeds}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sub-01.zip"
        parsers: dict[str, Callable[[bytes], object]] = {
            "npy": read_npy_bytes,
            "zip": lambda data: read_zip(path),
            "image": lambda data: decode_image(data, "fuzz.jpg"),
        }

        def outcome(parser: str, data: bytes) -> str:
            try:
                parsers[parser](data)
            except InputError:
                return "refused"
            return "read"

        for parser, values in seeds.items():  # what Python imports late it imports now
            for data in values:
                path.write_bytes(data)
                outcome(parser, data)
        for i in range(count):
            parser = ("npy", "zip", "npy", "zip", "image")[i % 5]
            data = make_input(parser, seeds[parser], chance)
            path.unlink()
            path.write_bytes(data)
            try:
                with nothing_runs():
                    outcomes[parser][outcome(parser, data)] += 1
            except BaseException:
                failure.write_bytes(data)
                raise
    return outcomes


def main(count: int) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    outcomes = run(count, seed=time.time_ns() % 2**32, failure=Path("fuzz-failure.bin"))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for parser, counts in outcomes.items():
        print(f"{parser:6} {counts['refused']:7} refused, {counts['read']:7} read")
    print(
        f"{count} inputs in {time.perf_counter() - start:.0f} s; memory grew by {growth:.0f} MB; nothing ran"
    )
    assert growth < GROWTH_MB


if __name__ == "__main__":
    main(int(sys.argv[1]))
