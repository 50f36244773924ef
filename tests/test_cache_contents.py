import os
import time
from pathlib import Path

import pytest

from pipeline.compute.cache_contents import read_entries
from pipeline.errors import InputError
from pipeline.files import try_lock
from stages.cache import DAY, choose, main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download that `data/fetched` has too, an interrupted embedding, two runs, and a lock."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(folder))
    sizes = {"abc": 3000, "embedding/x/batch.h5": 500, "study/old.h5": 70, "study/new.h5": 90}
    for name, size in sizes.items():
        write(folder / name, size, days=40)
    write(folder / "study/new.h5", 90, days=2)
    write(folder / "embedding/x.lock", 0, days=40)
    os.link(folder / "abc", tmp_path / "linked.zip")
    return folder


def write(path: Path, size: int, days: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_sizes_of_each_kind_are_shown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = {entry.path.name: entry for entry in read_entries(cache)}
    assert {name: entry.n_bytes for name, entry in entries.items()} == {
        "abc": 3000,
        "x": 500,
        "old.h5": 70,
        "new.h5": 90,
    }
    assert entries["abc"].bytes_to_free == 0  # the other link keeps the content
    assert entries["x"].bytes_to_free == 500

    before = files(cache)
    main()
    assert "study" in capsys.readouterr().out
    assert files(cache) == before


def test_only_the_kind_that_was_named_is_deleted(cache: Path) -> None:
    main(empty="embedding")
    assert files(cache) == {"abc", "study/old.h5", "study/new.h5", "embedding/x.lock"}
    assert (cache.parent / "linked.zip").stat().st_size == 3000


def test_what_was_used_lately_stays(cache: Path) -> None:
    main(empty="all", unused_for=30)
    assert files(cache) == {"study/new.h5", "embedding/x.lock"}


def test_what_a_run_may_be_at_work_on_stays(cache: Path) -> None:
    write(cache / "study/unfinished/run/state.pt", 10, days=0)
    main(empty="study")
    assert files(cache / "study") == {"unfinished/run/state.pt"}


def test_what_a_run_holds_the_lock_of_stays(cache: Path) -> None:
    lock = try_lock(cache / "embedding/x.lock")
    assert lock
    main(empty="embedding")
    assert (cache / "embedding/x/batch.h5").exists()

    lock.release()
    main(empty="embedding")
    assert not (cache / "embedding/x").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pth.part", "weights.pth.json"])
def test_a_download_that_is_being_fetched_stays(cache: Path, name: str) -> None:
    """Its lock has its whole name, ending included."""
    write(cache / name, 10, days=40)
    lock = try_lock(cache / "weights.pth.lock")
    assert lock
    main(empty="downloads")
    assert (cache / name).exists()

    lock.release()
    main(empty="downloads")
    assert not (cache / name).exists()


def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(cache: Path) -> None:
    message = "--empty stduy: the cache holds downloads, embedding, study; or say all.*study"
    with pytest.raises(InputError, match=message):
        choose(read_entries(cache), "stduy", 0, time.time())
