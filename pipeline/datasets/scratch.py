"""Arrays that wait on the disk while a file is prepared.

Nothing of them stays on the disk, however the process ends.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.errors import InputError


class Scratch:
    """A file without a name, which the system deletes when the process ends. A context manager.

    About `n_bytes` are reserved for it in the folder for temporary files (the environment variable
    TMPDIR), so that other processes cannot take the room. `content` is what messages call the
    arrays. Raises InputError where there is too little room.
    """

    def __init__(self, n_bytes: int, content: str) -> None:
        self._n_bytes = n_bytes
        self._content = content
        self._folder = _temporary_folder()

        with self._disk_faults_as_input_errors():
            if shutil.disk_usage(self._folder).free < n_bytes:
                # Raised as the disk itself would: the context makes an InputError of both.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # __exit__ closes it.
            self._file: BinaryIO = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115

    def __enter__(self) -> "Scratch":
        try:
            with self._disk_faults_as_input_errors():
                _reserve(self._file, self._n_bytes)
        except InputError:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def end(self) -> int:
        """The byte at which the next array begins."""
        return self._file.tell()

    def append(self, values: np.ndarray) -> None:
        """Write an array after the others."""
        with self._disk_faults_as_input_errors():
            self._file.write(np.ascontiguousarray(values).data)
            self._file.flush()

    def read(self, begin: int, shape: tuple[int, ...]) -> np.ndarray:
        """The float64 array of this shape that begins at this byte.

        Do not append after the first call: reading moves the end.
        """
        self._file.seek(begin)
        return np.fromfile(self._file, np.float64, int(np.prod(shape))).reshape(shape)

    @contextmanager
    def _disk_faults_as_input_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(self._folder).free
            raise InputError(
                f"{self._folder}: {self._content} need about {self._n_bytes / 1e9:.1f} GB there "
                f"for a while, and {free / 1e9:.1f} GB are free ({error.strerror}); let the "
                "environment variable TMPDIR name a folder with more room, as in "
                "`TMPDIR=/data/tmp dvc repro`, or lower preprocess.workers, of which each needs "
                "as much"
            ) from error


def _temporary_folder() -> Path:
    """The folder that TMPDIR names. Raises InputError where nobody can write there.

    Python itself would silently take another folder.
    """
    folder = tempfile.gettempdir()
    chosen = os.environ.get("TMPDIR")
    if chosen and not (os.path.isdir(chosen) and os.path.samefile(chosen, folder)):
        raise InputError(
            f"TMPDIR is {chosen}, which is no folder that can be written to: make it, or name "
            "another one"
        )
    return Path(folder)


def _reserve(file: BinaryIO, n_bytes: int) -> None:
    """Take the room on the disk now, where the system can do that."""
    if n_bytes == 0 or not hasattr(os, "posix_fallocate"):  # macOS has no such call
        return
    try:
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        # Some file systems cannot reserve; then the room is taken while arrays are written.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
