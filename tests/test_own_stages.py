"""The user's own files through the stages: from a folder of recordings and one of pictures to the report."""

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipeline.datasets.image_table import read_image_table
from pipeline.errors import InputError
from stages import check_own, download
from tests.clone import Project, project_after_its_first_run, ran
from tests.own_lab import (
    PICTURES,
    SUBJECTS,
    make_epochs,
    trials_of,
    write_bids,
    write_eeglab,
    write_fif,
    write_pictures,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("lab")
    write_pictures(base / "pictures")
    write_fif(base / "fif")
    return base


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))


def parameters(folder: Path, lab: Path, **changes: object) -> Path:
    """params.yaml with dataset: own and the lab's files."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    own = {"eeg": str(lab / "fif"), "images": str(lab / "pictures"), "test_concepts": 0.3}
    values["dataset"] = "own"
    values["own"] |= own
    values |= changes
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_download(folder: Path, params: Path) -> None:
    check_own.main(params, folder / "check")
    outputs = (folder / name for name in ("eeg", "images", "metadata", "images.csv"))
    download.main(params, *outputs, own_check=folder / "check")


def test_the_download_puts_paths_trials_and_pictures_in_place(lab: Path, tmp_path: Path) -> None:
    run_download(tmp_path, parameters(tmp_path, lab))
    images = read_image_table(tmp_path / "images.csv")
    assert {split: len(table) for split, table in images.items()} == {"train": 42, "test": 18}

    with zipfile.ZipFile(tmp_path / "images/own.zip") as archive:
        assert sorted(archive.namelist()) == [f"own/{name}" for name in PICTURES]
        for name in PICTURES:
            assert archive.read(f"own/{name}") == (lab / "pictures" / name).read_bytes()

    for subject in SUBJECTS:
        folder = tmp_path / "eeg" / subject
        about = json.loads((folder / "recordings.json").read_text())
        assert [file["path"] for file in about["files"]] == [str(lab / f"fif/{subject}-epo.fif")]
        assert len(pd.read_csv(folder / "trials.csv")) == 120
    # The same pictures in a zip, below a folder of its own, make the same zip but for that folder.
    archive = shutil.make_archive(str(tmp_path / "mine"), "zip", lab, "pictures")
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    params = parameters(zipped, lab)
    values = yaml.safe_load(params.read_text())
    values["own"]["images"] = archive
    params.write_text(yaml.safe_dump(values))
    run_download(zipped, params)
    tables = [read_image_table(folder / "images.csv") for folder in (tmp_path, zipped)]
    first, second = tables
    for split in ("train", "test"):
        assert first[split]["concept"].tolist() == second[split]["concept"].tolist()
    with zipfile.ZipFile(zipped / "images/own.zip") as archive_of_download:
        assert sorted(archive_of_download.namelist()) == [f"own/pictures/{n}" for n in PICTURES]

    # No byte of the recordings is copied.
    assert sum(path.stat().st_size for path in (tmp_path / "eeg").rglob("*.*")) < 10_000


def test_another_split_changes_nothing_that_is_embedded(lab: Path, tmp_path: Path) -> None:
    contents = []
    for name, split in (("first", "part"), ("second", "drawn")):
        folder = tmp_path / name
        folder.mkdir()
        params = parameters(folder, lab)
        values = yaml.safe_load(params.read_text())
        values["own"]["split"] = split
        params.write_text(yaml.safe_dump(values))
        check_own.main(params, folder / "check")
        outputs = (folder / name for name in ("eeg", "images", "metadata", "images.csv"))
        table = folder / "pictures.csv"
        download.main(params, *outputs, own_check=folder / "check", to_embed=table)
        contents.append((table.read_bytes(), (folder / "images/own.zip").read_bytes()))
    assert contents[0] == contents[1]
    first, second = (tmp_path / name / "images.csv" for name in ("first", "second"))
    assert first.read_bytes() != second.read_bytes()


def test_the_chosen_subjects_alone(lab: Path, tmp_path: Path) -> None:
    run_download(tmp_path, parameters(tmp_path, lab, subjects=["sub-02"]))
    assert [path.name for path in (tmp_path / "eeg").iterdir()] == ["sub-02"]


def test_of_another_dataset_nothing_is_looked_at(tmp_path: Path) -> None:
    assert check_own.main(Path("params.yaml"), tmp_path / "check") == ""
    assert not list((tmp_path / "check").iterdir())


def test_by_hand_it_looks_at_files_that_no_parameter_names(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eeg = str(lab / "fif")
    assert check_own.main(Path("params.yaml"), eeg=eeg, images=str(lab / "pictures")) == ""
    told = capsys.readouterr().out
    assert "sub-02 1 1 120 120 54 2 6 2 4 EEG 100 -0.1 to 0.29" in " ".join(told.split())
    assert "54 training pictures of 9 concepts, 6 test pictures of 1 concept" in told
    assert "a run takes about 1 MB for the prepared EEG" in told


def test_ten_problems_of_a_kind_are_shown_and_one_ends_it(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(lab / "pictures", tmp_path / "pictures")
    for name in PICTURES[:14]:
        (tmp_path / "pictures" / name).unlink()
    params = parameters(tmp_path, lab)
    with pytest.raises(InputError, match="14 problems, which are listed above; the first is this"):
        check_own.main(params, tmp_path / "check", images=str(tmp_path / "pictures"))
    told = capsys.readouterr().out
    assert "problems: pictures that are missing (14)" in told and "  and 4 more" in told
    assert told.count(" the picture is ") == 10
    assert not (tmp_path / "check").exists()


def test_a_picture_that_is_gone_since_the_check(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "pictures", tmp_path / "pictures")
    params = parameters(tmp_path, lab)
    values = yaml.safe_load(params.read_text())
    values["own"]["images"] = str(tmp_path / "pictures")
    params.write_text(yaml.safe_dump(values))
    check_own.main(params, tmp_path / "check")
    (tmp_path / "pictures" / PICTURES[3]).unlink()
    outputs = (tmp_path / name for name in ("eeg", "images", "metadata", "images.csv"))
    with pytest.raises(InputError, match=f"{PICTURES[3]} is not there any more; put it back, or"):
        download.main(params, *outputs, own_check=tmp_path / "check")
    assert not (tmp_path / "images").exists() or not list((tmp_path / "images").iterdir())


# Long: through DVC, in a clone.

# What runs where only the split differs: nothing is embedded
STAGES_OF_A_SPLIT = ["check_own", "download", "private_eeg", "preprocess", "train"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, quick_programs: str) -> Project:
    return project_after_its_first_run(tmp_path_factory, quick_programs)


@pytest.fixture(scope="module")
def changing_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("changing")
    write_pictures(base / "pictures")
    write_fif(base / "fif")
    write_eeglab(base / "eeglab")
    write_bids(base / "bids")
    return base


def tested_concepts(project: Project) -> list[str]:
    table = pd.read_csv(project.folder / "data/fetched/images.csv")
    return sorted(set(table.loc[table["split"] == "test", "concept"]))


def choose(project: Project, lab: Path, kind: str) -> None:
    project.set(
        dataset="own",
        own__eeg=str(lab / kind),
        own__images=str(lab / "pictures"),
        own__split="part",
        train__eeg_encoder="flatten",  # 40 samples are too few for most others
        preprocess__window=[0, 0.2] if kind == "bids" else "published",
        preprocess__sfreq=50.0 if kind == "bids" else "published",
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["eeglab", "bids", "fif"])  # the tests below go on with fif
def test_each_format_from_its_files_to_report_and_comparison(
    project: Project, changing_lab: Path, kind: str
) -> None:
    choose(project, changing_lab, kind)
    output = project.run("dvc", "repro")
    assert "sub-02" in output and "48 training pictures of 8 concepts" in output

    metrics = project.metrics()
    assert (metrics["dataset"], metrics["n_way"], metrics["n_subjects"]) == ("own", 12, 2)
    assert not metrics["synthetic"]
    page = (project.folder / "metrics/report.html").read_text()
    assert "concept names stand for them" in page and "Published figures" not in page
    n_times = 11 if kind == "bids" else 40
    with h5py.File(project.folder / "data/eeg/sub-02.h5") as file:
        assert file["train/eeg"].shape == (48, 4, n_times)
        assert file["test/eeg"].shape == (12, 2, 4, n_times)
    assert ran(project.run("dvc", "repro")) == []

    project.run("python3", "-m", "stages.compare")
    comparison = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert [comparison[side] for side in ("baseline", "other")] == ["unaligned", "aligned"]

    project.run("dvc", "repro")
    page = (project.folder / "metrics/report.html").read_text()
    assert "aligned − unaligned" in page


def ran_of_first(output: str) -> list[str]:
    """Without the stage of a second recording, which looks at the table of images and writes a note alone."""
    return [stage for stage in ran(output) if stage != "download_second"]


@pytest.mark.long
def test_a_corrected_file_reruns_what_depends_on_it(project: Project, changing_lab: Path) -> None:
    choose(project, changing_lab, "fif")
    project.run("dvc", "repro")

    # A column: cat is trained in place of car. Beside the file, which is not written again.
    for subject in SUBJECTS:
        trials = trials_of(subject)
        part = trials["what"].isin(["car", "tree"]).map({True: "test", False: "train"})
        path = changing_lab / "fif" / f"{subject}-epo.csv"
        trials.assign(part=part).to_csv(path, index=False)
    corrected_column = ran_of_first(project.run("dvc", "repro", "evaluate"))
    assert corrected_column == [*STAGES_OF_A_SPLIT, "evaluate"]
    assert tested_concepts(project) == ["car", "tree"]

    # Another split of the same pictures.
    project.set(own__split="drawn", own__test_concepts=0.3)
    assert ran_of_first(project.run("dvc", "repro", "train")) == STAGES_OF_A_SPLIT
    assert len(tested_concepts(project)) == 3

    # A picture under the same name: the EEG is not prepared again.
    noise = np.random.default_rng(11).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(changing_lab / "pictures" / PICTURES[0])
    corrected_picture = ran_of_first(project.run("dvc", "repro", "train"))
    assert corrected_picture == [
        *("check_own", "download", "embed@unaligned", "embed@aligned", "train")
    ]

    # Recordings under the same name: nothing is embedded again.
    path = changing_lab / "fif/sub-01-epo.fif"
    epochs = make_epochs("sub-01")
    epochs._data *= 2
    epochs.save(path, overwrite=True, verbose="error")
    corrected_epochs = ran_of_first(project.run("dvc", "repro", "train"))
    assert corrected_epochs == ["check_own", "download", "private_eeg", "preprocess", "train"]

    assert ran_of_first(project.run("dvc", "repro", "train")) == []


@pytest.mark.long
def test_a_problem_ends_the_run_before_anything_is_computed(
    project: Project, changing_lab: Path
) -> None:
    choose(project, changing_lab, "fif")
    project.set(own__image_column="picture")
    output = project.run("dvc", "repro", fails=True)
    assert "expected one column picture (own.image_column), got stim_file" in output
    assert "Traceback" not in output and "Running stage 'download'" not in output
    project.set(own__image_column="stim_file")  # one of those that it names
    project.run("dvc", "repro")
