"""What docs/own-data.md shows is what a lab's files give: its Python, and what the check prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pipeline.errors import InputError
from stages import check_own
from tests.own_lab import SUBJECTS, make_epochs, trials_of, write_pictures

BLOCKS = [
    token
    for token in MarkdownIt().parse(Path("docs/own-data.md").read_text())
    if token.type == "fence"
]


def blocks(language: str) -> list[str]:
    return [token.content for token in BLOCKS if token.info == language]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Epochs saved by the Python of the page."""
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "pictures")
    (tmp_path / "epochs").mkdir()
    [code] = blocks("python")
    for subject in SUBJECTS:
        epochs = make_epochs(subject)
        epochs.metadata = None
        epochs.save(tmp_path / "recorded-epo.fif", overwrite=True, verbose="error")
        with contextlib.chdir(tmp_path):
            exec(code, {"shown": trials_of(subject)["stim_file"].tolist()})
            Path("sub-01-epo.fif").rename(f"epochs/{subject}-epo.fif")
    return tmp_path


def check(lab: Path) -> str:
    """What the command of the page prints, with its paths."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(InputError):
        check_own.main(Path("params.yaml"), eeg=str(lab / "epochs"), images=str(lab / "pictures"))
    return told.getvalue().replace(str(lab), "/data/lab")


def test_the_page_shows_what_the_check_prints(lab: Path) -> None:
    printed = re.sub(r" \([\d,.]+ [MG]B are free\);", "", check(lab))
    assert printed == blocks("text")[1]


def test_the_page_shows_what_a_slip_gives(lab: Path) -> None:
    trials = trials_of("sub-01")
    at = trials.index[trials["stim_file"] == "cat/cat_01.jpg"][0]
    # Line 7 of the page is the sixth row.
    order = [*trials.index.drop(at)[:5], at, *trials.index.drop(at)[5:]]
    trials = trials.loc[order]
    trials.loc[at, "stim_file"] = "cat/catt_01.jpg"
    trials.to_csv(lab / "epochs/sub-01-epo.csv", index=False)
    assert blocks("text")[2] in check(lab)
