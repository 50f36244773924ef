"""A report of MEG says MEG; and where no channel has a known place, it says that there is no map."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline.preprocess.recordings import read_modality
from pipeline.report.pictures import has_positions
from pipeline.report.scalp_map import scalp_map
from pipeline.study.people import StudyRecording
from pipeline.train.inputs import HashedFile
from stages import report
from stages.evaluate import name_modality
from stages.study import describe
from tests.test_baseline import params, run_baseline, run_evaluation, write_page
from tests.test_comparison import compared, pair
from tests.test_study_page import page as study_page
from tests.test_study_page import study
from tests.test_study_summary import cells
from tests.tiny import make_embeddings, make_prepared
from tests.web_pages import words


@pytest.fixture(scope="module")
def meg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny prepared files as they would be of an MEG whose sensors no system knows."""
    base = tmp_path_factory.mktemp("meg")
    make_embeddings(base / "embeddings.h5", make_prepared(base), seed=0)
    for path in (base / "eeg").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["modality"] = "MEG"
            file["ch_names"][:] = ["E1", "E2", "E3"]
    return base


@pytest.mark.long
def test_each_page_picture_and_sentence_calls_it_so(
    meg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(report, "read_thumbnails", lambda *_: None)
    drawn = []

    def save(figure, path: Path) -> None:
        drawn.append(path.stem)
        texts = [text.get_text() for text in figure.findobj(lambda node: hasattr(node, "get_text"))]
        assert not [text for text in texts if "EEG" in text]
        path.write_bytes(b"PNG")

    monkeypatch.setattr("pipeline.report.pictures.save_png", save)
    run_baseline(meg, tmp_path)
    summary = run_evaluation(meg, tmp_path)
    assert summary["modality"] == "MEG"
    page = write_page(tmp_path)

    explanation = json.loads((tmp_path / "explanation.json").read_text())
    assert explanation["modality"] == "MEG"
    answers = [explanation[name]["answer"] for name in ("reliability", "rsa")]
    assert "by the MEG itself" in answers[0] and "EEG" not in " ".join(answers)

    # What the sample says of itself, names of files and metrics, and the settings keep the word.
    text = words(tmp_path / "report.html")
    for theirs in [*summary["caveats"], summary["planted"]]:
        text = text.replace(theirs, "")
    assert "decoding images from MEG" in page and "What the MEG retrieves" in text
    assert not re.findall(r"\bEEG\b.{30}", text)

    # The charts' titles are in their specifications.
    assert "When: one window of the MEG" in page
    assert "each side that is MEG" in page and "MEG: half finds half" in page

    assert drawn == ["retrieval", "similarity", "cosines", "embeddings"]
    assert (
        "The map of what each channel contributes is left out: the data have no sensor positions, "
        "and the 10-05 system has no channel of these names (E1, E2, E3)."
    ) in text


def test_eeg_needs_no_word(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "sub-01.h5", "w") as file:
        file.attrs["subject"] = "sub-01"
    assert read_modality(tmp_path / "sub-01.h5") == "EEG"
    assert name_modality(tmp_path / "sub-01.h5") == {}


def test_the_answer_of_a_comparison_and_of_a_study_says_so(meg: Path, tmp_path: Path) -> None:
    eeg, of_meg = (compared(*pair(10), **facts)["answer"] for facts in ({}, {"modality": "MEG"}))
    assert "MEG, 20-way, pooled" in of_meg
    assert of_meg.replace("MEG, ", "") == eeg

    recording = StudyRecording("sample", {"sub-01": HashedFile.of(meg / "eeg/sub-01.h5")})
    facts = describe(report.read_params(params(tmp_path)), [], [recording])
    assert facts["modality"] == "MEG"
    summary, table = study(cells(["clip_vitb32"], ["nice"]), modality="MEG")
    assert "MEG, 50-way" in summary["answer"]
    text = words(study_page(tmp_path, (summary, table)))
    assert "MEG encoder" in text and "EEG" not in text


@pytest.mark.parametrize(
    ("names", "places", "known"),
    [
        (["O1", "Oz"], None, True),
        (["E1", "oz"], None, True),
        (["E1", "E2"], None, False),
        (["E1", "E2"], [[0.1, 0.2], [np.nan, np.nan]], True),
        (["O1", "Oz"], [[np.nan, 0.2], [np.nan, np.nan]], False),
    ],
)
def test_there_is_a_map_where_a_channel_has_a_place(
    names: list[str], places: list[list[float]] | None, known: bool
) -> None:
    channels = pd.DataFrame({"ch_name": names})
    if places is not None:
        channels[["x", "y"]] = places
    assert has_positions(channels) == known
    if places is not None and known:
        figure = scalp_map(names, {"lost": np.arange(2.0)}, "title", np.array(places))
        assert figure.axes[0].get_title() == "without a position: E2 +1.000"
