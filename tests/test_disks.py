"""Real faults of real disks, each in one sentence that names what helps; what it names is done, and it helps.

`python -m tests.full_disk` has every stage and many more faults.
"""

import codecs
import errno
import fcntl
import io
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure

import stages
from pipeline.compute.unfinished import unfinished
from pipeline.datasets.image_table import read_image_table, write_image_table
from pipeline.datasets.scratch import Scratch
from pipeline.datasets.things_eeg2 import read_metadata
from pipeline.datasets.things_meg import read_metadata as read_meg_metadata
from pipeline.disks import disk_fault
from pipeline.download.own_copy import collect_images
from pipeline.download.remote import Remote
from pipeline.download.transfer import fetch
from pipeline.download.web import Patience
from pipeline.errors import InputError
from pipeline.evaluate.similarities import read_similarities
from pipeline.files import (
    cache_folder,
    check_folders,
    fault_of,
    files_below,
    new_hdf5,
    replacing,
    try_lock,
    waiting_note,
)
from pipeline.images.embeddings import read_embeddings, write_embeddings
from pipeline.params import read_params
from pipeline.preprocess.recordings import read_shape
from pipeline.untrusted.archives import open_zip

LARGE = np.random.default_rng(0).standard_normal(60_000)  # 0.5 MB
NOBODY = 65534
IS_ROOT = os.geteuid() == 0

Mount = Callable[[str], None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A disk of 4 MB, nearly full of a file `mine`, and what mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    try:
        (folder / "mine").write_bytes(bytes(4_150_000))
        yield (
            folder,
            lambda options: (
                subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True) and None
            ),
        )
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that another user may enter, which those of pytest are not."""
    if not IS_ROOT:
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def as_nobody() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def write_state(path: Path) -> None:
    with path.open("wb") as stream:
        torch.save({"a": torch.from_numpy(LARGE)}, stream)


def write_picture(path: Path) -> None:
    figure = Figure()
    figure.subplots().imshow(LARGE.reshape(200, 300))
    figure.savefig(path, format="png", dpi=100)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", LARGE.tobytes())


def write_pieces(path: Path) -> None:
    with tempfile.TemporaryFile(dir=path.parent) as file:
        for _ in range(2):
            np.save(file, LARGE)
    path.touch()


WRITERS = {
    "torch": write_state,
    "safetensors": lambda path: path.write_bytes(
        safetensors.torch.save({"a": torch.from_numpy(LARGE)})
    ),
    "safetensors, by itself": lambda path: safetensors.torch.save_file(
        {"a": torch.from_numpy(LARGE)}, path
    ),
    "pandas": lambda path: pd.DataFrame({"a": LARGE}).to_csv(path),
    "numpy": write_pieces,
    "matplotlib": write_picture,
    "zipfile": write_zip,
    "text": lambda path: path.write_text("x" * 400_000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_alike_whatever_writes(small_disk, name):
    folder, _ = small_disk
    with pytest.raises(InputError) as caught, replacing(folder / "data/a.out") as temporary:
        WRITERS[name](temporary)
    assert str(caught.value).startswith(
        f"{folder}/data/a.out: the disk is full, 0.000 GB are free in {folder}/data"
    )
    assert str(caught.value).endswith(
        "(No space left on device): make room there; then run it again"
    )
    assert not any((folder / "data").iterdir())

    (folder / "mine").unlink()
    with replacing(folder / "data/a.out") as temporary:
        WRITERS[name](temporary)
    assert [path.name for path in (folder / "data").iterdir()] == ["a.out"]


def test_a_file_that_is_there_stays_where_the_new_one_does_not_fit(small_disk):
    path = small_disk[0] / "a.h5"
    path.write_text("old")
    with pytest.raises(InputError, match="the disk is full"):
        write(path)
    assert path.read_text() == "old"


def test_a_disk_without_inodes(small_disk):
    folder, remount = small_disk
    (folder / "mine").unlink()
    remount("nr_inodes=2")
    (folder / "a").touch()
    with pytest.raises(
        InputError, match="takes no more files .all its inodes are used.*: delete files there;"
    ):
        check_folders({folder: 0})
    (folder / "a").unlink()
    check_folders({folder: 0})


def test_a_disk_that_is_read_only(small_disk):
    folder, remount = small_disk
    (folder / "mine").unlink()
    remount("ro")
    for ask in (lambda: check_folders({folder / "data": 0}), lambda: write(folder / "a")):
        with pytest.raises(
            InputError,
            match=f"the disk of {folder} is read-only .*mount it so that it can be written",
        ):
            ask()
    remount("rw")
    write(folder / "a")


def test_a_quota(small_disk):
    """Told as such, with all the free room that the disk has; a real one takes a file system with quotas."""
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(small_disk[0] / "a"))
    assert "your quota on the disk of" in str(fault_of(error, Path("b")))


def test_a_limit_of_the_size_of_files(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            InputError, match="File too large.: raise the limit .`ulimit -f unlimited`"
        ):
            write(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write(tmp_path / "a")


def write(path: Path) -> None:
    with new_hdf5(path) as file:
        file["eeg"] = LARGE


GROUPS = """
import resource, sys
from pathlib import Path
from pipeline.errors import InputError
from pipeline.disks import disk_fault
from pipeline.files import new_hdf5
for kb in (2, 10, 50, 150):
    resource.setrlimit(resource.RLIMIT_FSIZE, (kb * 1000, resource.RLIM_INFINITY))
    try:
        with new_hdf5(Path(sys.argv[1])) as file:
            for i in range(30):
                group = file.create_group(f"{i}")
                group.attrs["text"] = "x" * 500
                group["values"] = [[0.0] * 20] * 30
    except InputError as error:
        print(error)
"""


def test_a_file_of_many_groups_that_does_not_fit_ends_in_one_sentence(tmp_path):
    """With h5py's own file there are hundreds of lines of traceback, and a segmentation fault at the end."""
    command = [sys.executable, "-c", GROUPS, str(tmp_path / "a.h5")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        len(done.stdout.splitlines()) == 4
        and done.stdout.count("a.h5: a file may not be as large as") == 4
    )
    assert not any(tmp_path.iterdir())


def test_no_right_to_write_or_to_read(open_folder):
    with (
        as_nobody(),
        pytest.raises(
            InputError, match="no right to write into .*it is root's, drwxr-xr-x"
        ) as caught,
    ):
        write(open_folder / "a.h5")
    assert "give yourself the right with chmod, or ask root for it" in str(caught.value)
    open_folder.chmod(0o777)
    with as_nobody():
        write(open_folder / "a.h5")
    (open_folder / "a.h5").chmod(0)
    with as_nobody(), pytest.raises(PermissionError) as refused:
        (open_folder / "a.h5").open()
    with as_nobody():
        assert "you have no right to read" in str(fault_of(refused.value, Path()))


def test_a_folder_that_may_not_be_entered(open_folder):
    """Nothing below it can be asked for, not even whether it is there."""
    path = open_folder / "locked/below/a.h5"
    path.parent.mkdir(parents=True)
    (open_folder / "locked").chmod(0o700)
    with as_nobody(), pytest.raises(PermissionError) as refused:
        path.open()
    with as_nobody():
        said = str(disk_fault(refused.value, path))
    assert f"you have no right to enter {open_folder}/locked (it is root's, drwx------)" in said


def test_a_file_that_may_not_be_read_is_not_told_to_be_made_again(open_folder):
    path = open_folder / "a.h5"
    write(path)
    path.chmod(0)
    with (
        as_nobody(),
        pytest.raises(InputError, match="you have no right to read .*or ask root for it"),
    ):
        read_similarities(path)
    path.chmod(0o644)
    with (
        as_nobody(),
        pytest.raises(InputError, match="holds no similarities of the evaluate stage"),
    ):
        read_similarities(path)


def test_a_prepared_subject_or_parameters_that_may_not_be_read(open_folder):
    subject, params = open_folder / "sub-01.h5", open_folder / "params.yaml"
    write(subject)
    shutil.copy("params.yaml", params)
    params.chmod(0)
    subject.chmod(0)
    for read in (lambda: read_shape(subject, "train", average=True), lambda: read_params(params)):
        with (
            as_nobody(),
            pytest.raises(InputError, match="you have no right to read .*ask root for it"),
        ):
            read()
    params.chmod(0o644)
    with as_nobody():
        assert read_params(params).dataset == "sample"


def test_a_folder_that_cannot_be_listed(open_folder):
    (open_folder / "inner").mkdir(mode=0o700)
    (open_folder / "inner/a").touch()
    with (
        as_nobody(),
        pytest.raises(
            InputError, match="inner: cannot be listed .*give yourself the right with chmod"
        ),
    ):
        list(files_below(open_folder))
    (open_folder / "inner").chmod(0o755)
    with as_nobody():
        assert list(files_below(open_folder)) == [str(open_folder / "inner/a")]


def image_table(path: Path) -> None:
    table = pd.DataFrame({"image_ids": ["a", "b"], "concept": "c", "things_concept": "c"})
    write_image_table(path, {"train": table.iloc[:1], "test": table.iloc[1:]})


def own_picture(path: Path) -> None:
    path.mkdir()
    (path / "a").mkdir()
    (path / "a/b.jpg").write_bytes(b"picture")


READERS = {
    "archive": (write_zip, lambda path: open_zip(path, 10**6).close()),
    "metadata": (lambda path: path.write_bytes(pickle.dumps(METADATA)), read_metadata),
    "MEG's table": (lambda path: path.write_text(MEG_TABLE), read_meg_metadata),
    "table of images": (image_table, read_image_table),
    "embedding cache": (
        lambda path: write_embeddings(path, ["a"], [("last", np.ones((1, 2)), {})], {}),
        lambda path: read_embeddings(path, "last"),
    ),
}
METADATA = {
    f"{split}_img_{name}": [split]
    for split in ("train", "test")
    for name in ("concepts", "files", "concepts_THINGS")
}
MEG_TABLE = "trial_type,image_path\nexp,images_meg/a/a_01b.jpg\nexp,images_meg/b/b_01b.jpg\n"
MEG_TABLE += "test,images_test_meg/a_13s.jpg\n"


@pytest.mark.parametrize("name", READERS)
def test_a_file_without_the_right_to_read_is_not_to_be_fetched_again(open_folder, name):
    write_file, read_file = READERS[name]
    path = open_folder / "file"
    write_file(path)
    codecs.lookup("cp437")  # of zips: nobody may not read where Python has it
    path.chmod(0)
    with (
        as_nobody(),
        pytest.raises(
            InputError, match="^[^;]*you have no right to read .*chmod.*; then run it again$"
        ),
    ):
        read_file(path)
    path.chmod(0o644)
    with as_nobody():
        read_file(path)


def test_a_picture_of_the_user_without_the_right_to_read(open_folder, tmp_path):
    own_picture(open_folder / "own")
    picture = open_folder / "own/a/b.jpg"
    picture.chmod(0)
    (open_folder / "out").mkdir()
    (open_folder / "out").chmod(0o777)
    target = open_folder / "out/a.zip"
    with as_nobody(), pytest.raises(InputError, match="b.jpg: you have no right to read .*chmod"):
        collect_images(open_folder / "own", ["things_images/a/b.jpg"], target)
    picture.chmod(0o644)
    with as_nobody():
        collect_images(open_folder / "own", ["things_images/a/b.jpg"], target)


def test_too_little_room_for_epochs_and_another_folder_for_them(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(small_disk[0]))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(
        InputError, match="the epochs need about 0.0 GB there .*TMPDIR name a folder with more room"
    ):
        Scratch(10**6, "the epochs")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with Scratch(10**6, "the epochs") as scratch:
        scratch.append(LARGE)


def test_a_link_to_nothing_and_a_file_in_the_way(tmp_path):
    (tmp_path / "data").symlink_to(tmp_path / "gone")
    for ask in (
        lambda: check_folders({tmp_path / "data/eeg": 0}),
        lambda: write(tmp_path / "data/eeg/a"),
    ):
        with pytest.raises(
            InputError, match=f"data is a link to {tmp_path}/gone, which is not there"
        ):
            ask()
    (tmp_path / "gone").mkdir()
    write(tmp_path / "data/eeg/a")

    (tmp_path / "eeg").write_text("mine")
    for ask in (lambda: check_folders({tmp_path / "eeg": 0}), lambda: write(tmp_path / "eeg/a")):
        with pytest.raises(
            InputError, match="eeg.* is a file and should be a folder .*: move it away"
        ):
            ask()
    (tmp_path / "eeg").rename(tmp_path / "mine")
    write(tmp_path / "eeg/a")

    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="b: it is a folder and should be a file .*: move it away"):
        write(tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "c")
    write(tmp_path / "b")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(
        InputError, match="its name is too long for this disk .*: give it a shorter one"
    ):
        write(tmp_path / f"{'a' * 300}.h5")
    write(tmp_path / "a.h5")


def test_a_link_out_of_the_project_is_told_before_dvc_refuses_it(tmp_path, monkeypatch):
    """DVC: "is outside of git repository", when the stage has done all its work."""
    for name in ("project", "elsewhere/eeg", "project/cache"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    Path("data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        InputError,
        match=f"data lies in {tmp_path}/elsewhere by a link.*clone the project onto that",
    ):
        stages.check_links([Path("params.yaml"), Path("data/eeg")])
    monkeypatch.delenv("DVC_ROOT")
    stages.check_links([Path("data/eeg")])

    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    Path("data").unlink()
    Path("data").mkdir()
    Path("data/evaluation.h5").symlink_to(
        tmp_path / "elsewhere/file"
    )  # as DVC's own links into its cache
    stages.check_links(
        [Path("data/eeg"), Path("data/evaluation.h5"), "a", tmp_path / "elsewhere/eeg"]
    )


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
        _ = 1 / 0
    with pytest.raises(InputError, match="^as it was$"), replacing(tmp_path / "a"):
        raise InputError("as it was")


def test_room_is_counted_by_disk(small_disk, tmp_path):
    folder, _ = small_disk
    (folder / "mine").unlink()
    check_folders({folder / "a": 400_000, folder / "b": 400_000, tmp_path: 400_000})
    with pytest.raises(
        InputError, match=f"{folder}/a: the files need 0.005 GB more and only 0.004 GB are free"
    ):
        check_folders({folder / "a": 2_600_000, folder / "b": 2_600_000})
    assert not any(folder.iterdir())

    (folder / "mine").write_bytes(bytes(2_000_000))
    with pytest.raises(InputError, match="are free; make room there; then run it again$"):
        check_folders({folder / "a": 3_000_000})
    (folder / "mine").unlink()
    check_folders({folder / "a": 3_000_000})


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.disks import disk_fault
from pipeline.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "sub-01.h5")], cwd=Path(__file__).parents[1]
    )
    [left] = tmp_path.iterdir()
    machine = left.name.split(".")[-2].split("-")[0]
    others = {
        ".b.h5.01234567-1.tmp": False,  # of another machine, just now
        ".c.h5.01234567-1.tmp": True,  # and two days ago
        ".d.h5.1.tmp": True,  # of an earlier version
        ".e.tmp": False,  # not ours
        f".f.h5.{machine}-{os.getpid()}.tmp": False,  # of a process that is at it
        f".g.h5.{machine}-{os.getpid()}.tmp": True,  # older than the process of that number
    }
    for name in others:
        (tmp_path / name).touch()
        if name[1] in "cdeg":
            os.utime(tmp_path / name, (1e9, 1e9))
    # What another thread is placing, of an old cache
    link = tmp_path / f".h.zip.{machine}-{os.getpid()}.tmp"
    os.utime(tmp_path / ".e.tmp", (1e9, 1e9))
    os.link(tmp_path / ".e.tmp", link)
    write(tmp_path / "sub-02.h5")
    expected = {name for name, goes in others.items() if not goes} | {"sub-02.h5", link.name}
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = try_lock(tmp_path / "a.lock")
    assert lock is not None and try_lock(tmp_path / "a.lock") is None
    assert waiting_note(tmp_path / "a.lock").endswith(
        f"if there is none, delete {tmp_path}/a.lock.held"
    )
    lock.release()
    again = try_lock(tmp_path / "a.lock")
    assert again is not None
    (tmp_path / "a.lock.held").unlink()  # as the note says
    third = try_lock(tmp_path / "a.lock")
    assert third is not None
    third.release()


def test_hdf5_needs_no_locks(tmp_path):
    """Of which network disks have none: here another process has the lock, and the file is read all the same."""
    write(tmp_path / "a.h5")
    with (tmp_path / "a.h5").open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with h5py.File(tmp_path / "a.h5", "r") as file:
            assert file["eeg"].shape == LARGE.shape


def test_what_another_user_locked_can_be_locked_by_all(open_folder):
    open_folder.chmod(0o777)
    first = try_lock(open_folder / "a.lock")
    assert first is not None
    with as_nobody():
        assert try_lock(open_folder / "a.lock") is None
    first.release()
    with as_nobody():
        second = try_lock(open_folder / "a.lock")
        assert second is not None
        second.release()


def test_another_users_cache(open_folder, monkeypatch):
    """It can be read where all is there; of what has to be written, the sentence names a way that helps."""
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(open_folder / "theirs"))
    with unfinished("embedding", __file__, [], {}, "a", keep=True) as folder:
        (folder / "batch").write_text("done")
    with as_nobody(), unfinished("embedding", __file__, [], {}, "a", keep=True) as folder:
        assert (folder / "batch").read_text() == "done"
    with (
        as_nobody(),
        pytest.raises(
            InputError, match="or let ALIGNED_EEG_CACHE name a folder that you can write"
        ),
        unfinished("training", __file__, [], {}, "a"),
    ):
        pass
    (open_folder / "own").mkdir(mode=0o777)
    (open_folder / "own").chmod(0o777)
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(open_folder / "own/cache"))
    with as_nobody():
        shutil.copytree(open_folder / "theirs", cache_folder(), dirs_exist_ok=True)
        with (
            unfinished("training", __file__, [], {}, "a"),
            unfinished("embedding", __file__, [], {}, "a", keep=True) as folder,
        ):
            assert (folder / "batch").read_text() == "done"


def test_downloads_in_a_cache_of_others_are_used_where_they_are(open_folder, monkeypatch):
    """By who may only read it; nothing has to be fetched, so that there is no server."""
    cache, mine = open_folder / "cache", open_folder / "mine"
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(cache))
    cache.mkdir()
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    remotes = {}
    for name in ("a.zip", "b.bin"):
        (cache / f"key-{name}").write_bytes(LARGE.tobytes() if name == "b.bin" else zipped(LARGE))
        size = (cache / f"key-{name}").stat().st_size
        remotes[mine / "data" / name] = Remote(name, "http://127.0.0.1:1/", size, f"key-{name}")

    codecs.lookup("cp437")  # of zip's names: loaded by root, if nobody may not read where Python is
    with as_nobody():
        fetch(remotes)
    assert (mine / "data/b.bin").read_bytes() == LARGE.tobytes()
    assert (mine / "data/b.bin").stat().st_uid == NOBODY, "what is not ours is copied"
    assert {path.name for path in cache.iterdir()} == {"key-a.zip", "key-b.bin"}

    content = bytearray(zipped(LARGE))
    content[1000] ^= 1
    (cache / "key-a.zip").write_bytes(content)
    with (
        as_nobody(),
        pytest.raises(
            InputError, match="or let ALIGNED_EEG_CACHE name a folder that you can write"
        ),
    ):
        fetch(remotes)
    shutil.copytree(cache, mine / "cache")
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(mine / "cache"))
    subprocess.run(["chown", "-R", str(NOBODY), mine], check=True)
    with (
        as_nobody(),
        pytest.raises(InputError, match="127.0.0.1"),
    ):  # it goes on: by fetching the damaged one
        fetch(remotes, Patience(attempts=1, first_attempts=1))
    (mine / "cache/key-a.zip").write_bytes(zipped(LARGE))
    with as_nobody():
        fetch(remotes)


def zipped(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a"), values.tobytes())
    return file.getvalue()


def test_a_full_cache_is_moved_and_used_again(small_disk, tmp_path, monkeypatch):
    cache = small_disk[0] / "cache"
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(cache))
    remedy = f"or move {cache} to a larger disk and let ALIGNED_EEG_CACHE name it there"
    with (
        pytest.raises(InputError, match=remedy),
        unfinished("embedding", __file__, [], {}, "a", keep=True) as folder,
    ):
        (folder / "batch").write_text("done")
        write(folder / "next")
    shutil.move(cache, tmp_path / "larger")
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "larger"))
    with unfinished("embedding", __file__, [], {}, "a", keep=True) as folder:
        write(folder / "next")
        assert (folder / "batch").read_text() == "done"


def test_a_cache_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(InputError, match="file is a file and should be a folder"):
        cache_folder()
    monkeypatch.setenv("ALIGNED_EEG_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(InputError, match="write the path in full"):
        cache_folder()
    monkeypatch.setenv("ALIGNED_EEG_CACHE", "cache")
    with pytest.raises(InputError, match="must be an absolute path, got 'cache'"):
        cache_folder()
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    assert cache_folder().is_dir()
