"""The readers of foreign zips and pickles: as numpy on honest files; the others are refused, nothing of them runs."""

import copyreg
import io
import os
import pickle
import stat
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.errors import InputError
from pipeline.untrusted.archives import open_member, open_zip, read_member
from pipeline.untrusted.pickles import read_npy, stream_npy
from tests import fuzz

PROTOCOLS = (2, 3, 4, 5)
MIB = 1 << 20


def read(data: bytes) -> dict:
    return read_npy(io.BytesIO(data), "some.npy")


def same_numbers(ours: np.ndarray, numpys: np.ndarray) -> bool:
    return ours.tobytes() == numpys.astype(ours.dtype).tobytes()


def same(ours: object, numpys: object) -> bool:
    """Equal, and of the same types all the way down."""
    if isinstance(numpys, np.ndarray):
        return (
            isinstance(ours, np.ndarray)
            and (ours.dtype, ours.shape) == (numpys.dtype.newbyteorder("="), numpys.shape)
            and (
                ours.tolist() == numpys.tolist()
                if numpys.dtype == object
                else same_numbers(ours, numpys)
            )
        )
    if isinstance(numpys, dict):
        return list(ours) == list(numpys) and all(same(ours[key], numpys[key]) for key in numpys)
    if isinstance(numpys, list | tuple):
        return (
            type(ours) is type(numpys) and len(ours) == len(numpys) and all(map(same, ours, numpys))
        )
    return type(ours) is type(numpys) and (ours == numpys or (ours != ours and numpys != numpys))


numbers = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=300)
)
kinds = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
)
kinds |= npst.unicode_string_dtypes(endianness="?", max_len=5) | npst.complex_number_dtypes(
    sizes=(64, 128)
)
arrays = npst.arrays(kinds, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
values = st.recursive(
    numbers
    | arrays
    | arrays.map(np.asfortranarray)
    | npst.from_dtype(np.dtype("f4"))
    | npst.from_dtype(np.dtype("U3")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=5) | st.integers(-(2**60), 2**60), values, max_size=4))
def test_reads_what_numpy_reads(value: dict) -> None:
    file = io.BytesIO()
    np.save(file, value)
    peer = np.load(io.BytesIO(file.getvalue()), allow_pickle=True).item()
    assert same(read(file.getvalue()), peer)
    for protocol in PROTOCOLS:
        assert same(
            read(pickle.dumps(value, protocol)), pickle.loads(pickle.dumps(value, protocol))
        )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reads_numpy_1_names_object_arrays_and_shared_parts(protocol: int) -> None:
    names = np.array([["a", "é"], [None, 3]], object)
    value = {
        "names": names,
        "again": names,
        "empty": np.array([], object),
        "none": np.array(None, object),
        5: np.bool_(True),
    }
    data = pickle.dumps(value, protocol)
    old = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray").replace(
        b"numpy._core", b"numpy.core"
    )
    if protocol >= 4:  # the frame is one byte shorter for each name
        old = old[:2] + b"\x95" + struct.pack("<Q", len(old) - 11) + old[11:]
    expected = value | {"none": None}
    assert same(read(data), expected)
    assert same(read(old), expected)


@pytest.mark.parametrize("protocol", (3, 4))
def test_streams_a_large_array_block_by_block(protocol: int) -> None:
    large = np.random.default_rng(0).standard_normal((300, 8, 900)).astype(">f8")  # 17 MB
    data = pickle.dumps({"before": [1], "large": large, "after": np.arange(3)}, protocol)
    items = stream_npy(io.BytesIO(data), "some.npy")
    streamed = next(items)
    assert (streamed.shape, streamed.dtype) == (large.shape, large.dtype)
    chunks = list(streamed.chunks)
    (result,) = items
    assert len(chunks) > 1
    assert same(np.concatenate(chunks), large)
    assert (result["before"], result["large"], result["after"].tolist()) == (
        [1],
        streamed,
        [0, 1, 2],
    )
    items = stream_npy(io.BytesIO(data), "some.npy")
    next(next(items).chunks)
    (untouched,) = items
    assert untouched["after"].tolist() == [0, 1, 2], "what is left is passed over"


class Reduced:
    """Made by copyreg in protocol 0 and 1, by NEWOBJ in 2 and later."""

    def __setstate__(self, state: str) -> None:
        os.system(state)

    def __getstate__(self) -> str:
        return self.command


def attacks(command: str) -> dict[str, bytes]:
    evil, text = fuzz.Command(command), command.encode()
    reduced = Reduced()
    reduced.command = command
    short = b"\x8c" + bytes([len(text)]) + text
    found = {f"reduce, protocol {p}": pickle.dumps({"ch_names": evil}, p) for p in range(6)}
    found |= {f"copyreg or newobj, protocol {p}": pickle.dumps({"a": reduced}, p) for p in range(6)}
    found |= {
        "global": b"\x80\x02cos\nsystem\n" + short + b"\x85R.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85R.",
        "nested": pickle.dumps({"a": [({"b": [evil]},)]}),
        "object array": pickle.dumps({"a": np.array([evil, 1], object)}),
        "saved dictionary": fuzz.saved({"preprocessed_eeg_data": np.zeros(3), "times": evil}),
        "saved array of objects": fuzz.saved(np.array(evil, object)),
        "inst": b"(V" + text + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nV" + text + b"\no.",
        "after a large array": fuzz.saved({"large": np.zeros(100_000), "evil": evil}),
        "builtins": b"cbuiltins\neval\n(V__import__('os').system('''" + text + b"''')\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cos\nabort\nV__name__\ntR0" + pickle.dumps({"a": evil}),
    }
    return found


@pytest.mark.parametrize("attack", attacks("x"))
def test_runs_nothing(attack: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    data = attacks(f"touch {marker}")[attack]
    with (
        fuzz.nothing_runs(),
        pytest.raises(
            InputError, match="some.npy: tries to load '.*', which could run code"
        ) as refused,
    ):
        list(stream_npy(io.BytesIO(data), "some.npy"))
    assert not marker.exists()
    named = ("system", "copyreg", "copy_reg", "Reduced", "eval", "getattr")
    assert any(name in str(refused.value) for name in named)
    with suppress(ValueError, pickle.UnpicklingError, TypeError):
        np.load(io.BytesIO(data), allow_pickle=True)
    assert marker.exists(), "the attack is no real one"


def test_runs_nothing_registered_with_copyreg(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 0x77)
    try:
        with pytest.raises(InputError, match="tries to load 'the opcode EXT1 119'"):
            read(b"\x80\x02\x82\x77\x8c\x01x\x85R.")
    finally:
        copyreg.remove_extension("os", "system", 0x77)


DTYPE = b"cnumpy\ndtype\n(V%b\nI00\nI01\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR"


def array(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    """A pickle {"a": array} whose state says what it is told to."""
    return (
        b"\x80\x04}Va\n"
        + ARRAY
        + b"(I1\n("
        + shape
        + b"t"
        + DTYPE % dtype
        + b"I00\n"
        + data
        + b"tbs."
    )


def test_the_hostile_states_below_are_read_where_they_are_honest() -> None:
    assert read(array(b"I2\n", b"f8", b"C\x10" + bytes(16)))["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "data",
    {
        "pointers": array(b"I1\n", b"O8", b"C\x08" + b"\x41" * 8),
        "too few bytes": array(b"I3\n", b"f8", b"C\x10" + bytes(16)),
        "giant shape": array(b"I%d\n" % 2**62, b"f8", b"C\x10" + bytes(16)),
        "overflowing shape": array(b"I%d\n" % 2**39 * 3, b"f8", b"C\x00"),
        "negative shape": array(b"I-1\nI-2\n", b"f8", b"C\x10" + bytes(16)),
        "unknown dtype": array(b"I2\n", b"x9", b"C\x10" + bytes(16)),
        "record dtype": array(b"I2\n", b"f4,f4", b"C\x10" + bytes(16)),
        "void dtype": array(b"I2\n", b"V8", b"C\x10" + bytes(16)),
        "no unicode": array(b"I1\n", b"U1", b"C\x04" + b"\xff" * 4),
        "no truth value": array(b"I1\n", b"b1", b"C\x01\x07"),
        "array within itself": b"\x80\x04}Va\n" + ARRAY + b"q\x05(I1\n(I1\nt" + DTYPE % b"O8" + b"I00\n]h\x05atbs.",
        "array never filled": b"\x80\x04}Va\n" + ARRAY + b"s.",
        "objects in an array": b"\x80\x04}Va\n" + ARRAY + b"(I1\n(I1\nt" + DTYPE % b"O8" + b"I00\n]]atbs.",
        "deep key": b"\x80\x04}" + b")" + b"\x85" * 200_000 + b"Nso.",
        "announced bytes": b"\x80\x04}Va\nB\xff\xff\xff\x7f" + b"x" * 100,
        "announced text": b"\x80\x04}X\xff\xff\xff\x7f" + b"x" * 100,
        "announced 2**62 bytes": b"\x80\x04}Va\n\x8e" + struct.pack("<Q", 2**62),
        "announced number": b"\x80\x04}Va\n\x8b\xff\xff\xff\x7f",
        "text beyond all measure": b"\x80\x04}(" + (b"X" + struct.pack("<I", 90 * MIB) + b"x" * 90 * MIB) * 3 + b"u.",
        "far memo": b"\x80\x04}r\xff\xff\xff\x7fj\xff\xff\xff\x7e.",
        "millions of lists": b"\x80\x04}Va\n" + b"]" * 1_500_000,
        "one text encoded over and over": b"\x80\x02}(Va\nX" + struct.pack("<I", MIB) + b"x" * MIB + b"q\x01"
        + b"c_codecs\nencode\nh\x01Vlatin1\n\x86R" * 10_000 + b"e.",
        "nothing": b"",
        "only the end": b".",
        "a list": pickle.dumps([1]),
        "text": b"<!DOCTYPE html><title>Sign in</title>",
        "a plain array": (lambda file: (np.save(file, np.zeros(3)), file.getvalue())[1])(io.BytesIO()),
        "npy version 9": b"\x93NUMPY\x09\x00" + bytes(100),
        "more after the end": pickle.dumps({}) + b"x",
        "a set": pickle.dumps({"a": {1}}),
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_refuses_hostile_structure(data: tuple[str, bytes]) -> None:
    with fuzz.nothing_runs(), pytest.raises(InputError, match="some.npy"):
        read(data[1])


def test_survives_deep_nesting() -> None:
    value = read(b"\x80\x04}Va\n" + b"]" * 200_000 + b"a" * 199_999 + b"s.")
    assert len(value["a"]) == 1


@pytest.mark.parametrize("protocol", (None, *PROTOCOLS))
def test_refuses_every_truncation(protocol: int | None) -> None:
    data = fuzz.saved(fuzz.recording((2, 2, 3, 4)), protocol)
    for end in range(len(data)):
        with pytest.raises(InputError, match="some.npy"):
            read(data[:end])


def make_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"data", zipfile.ZIP_DEFLATED)
    return path


def test_reads_members(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", "folder/", "folder/name.npy", "__MACOSX/._x")
    with open_zip(path, MIB) as archive:
        assert read_member(archive, "folder/name.npy") == b"data"
        with (
            pytest.raises(InputError, match="a.zip: holds no folder/other.npy"),
            open_member(archive, "folder/other.npy"),
        ):
            pass


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\\..\\x", "C:/x", "a\0b"])
def test_refuses_names_that_lead_out(name: str, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", "QQQQ")
    stored = name.encode().ljust(4, b"/")
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("Q" * len(stored))
        archive.writestr(info, b"data")
    path.write_bytes(path.read_bytes().replace(b"Q" * len(stored), stored))
    with pytest.raises(InputError, match="leads out of the archive"):
        open_zip(path, MIB)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_duplicates_links_encryption_other_compression(tmp_path: Path) -> None:
    def refused(path: Path, why: str) -> None:
        with pytest.raises(InputError, match=why):
            open_zip(path, MIB)

    refused(make_zip(tmp_path / "twice.zip", "a/x", "a/x"), "'a/x' appears twice")
    refused(make_zip(tmp_path / "dots.zip", "a/x", "a/./x"), "appears twice")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "link.zip", "'x' is a link")
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", b"data")
    refused(tmp_path / "lzma.zip", "compressed by method 14")
    data = bytearray(make_zip(tmp_path / "locked.zip", "x").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    refused(tmp_path / "locked.zip", "encrypted")


def test_refuses_a_bomb_by_what_it_declares_and_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", bytes(50 * MIB))
    with pytest.raises(InputError, match=f"declares {50 * MIB} bytes, more than the {MIB}"):
        open_zip(path, MIB)
    data = path.read_bytes().replace(struct.pack("<I", 50 * MIB), struct.pack("<I", 1000))
    path.write_bytes(data)
    with open_zip(path, MIB) as archive, pytest.raises(InputError, match="is damaged"):
        read_member(archive, "x")


def test_refuses_damage_anywhere_in_a_zip(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "a.zip", "folder/name.npy").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut.zip").unlink(missing_ok=True)
        (tmp_path / "cut.zip").write_bytes(whole[:end])
        with pytest.raises(
            InputError,
            match=r"cut.zip: is not a whole zip archive \(.*\); fetch it again with `dvc repro",
        ):
            open_zip(tmp_path / "cut.zip", MIB)
    flipped = bytearray(whole)
    flipped[whole.index(b"name.npy") + 9] ^= 1
    (tmp_path / "a.zip").write_bytes(flipped)
    with open_zip(tmp_path / "a.zip", MIB) as archive, pytest.raises(InputError, match="damaged"):
        read_member(archive, "folder/name.npy")
    with pytest.raises(InputError, match="absent.zip: cannot be opened"):
        open_zip(tmp_path / "absent.zip", MIB)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x04", b"\x93NUMPY\x01\x00"]))
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    with fuzz.nothing_runs(), suppress(InputError):
        assert isinstance(read(start + data), dict)


def test_fuzz(tmp_path: Path) -> None:
    outcomes = fuzz.run(300, seed=0, failure=tmp_path / "failure")
    assert sum(map(sum, (counts.values() for counts in outcomes.values()))) == 300
    assert all(counts["read"] and counts["refused"] for counts in outcomes.values())
