"""EEG is prepared in this process. A file of its own, without torch: worker processes of tests import it too."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest.mock import patch

from pipeline.preprocess import preparation


@contextmanager
def no_other_process() -> Iterator[None]:
    """Subjects are prepared in threads: to start another process takes longer than the work."""
    with patch.object(
        preparation, "ProcessPoolExecutor", lambda n_workers, _: ThreadPoolExecutor(n_workers)
    ):
        yield
