"""Bad input of a stage ends in one sentence, and nothing is half written."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.sample import Size, make_raw
from pipeline.datasets.table import SAMPLE
from tests.clone import Project, project_after_its_first_run


@pytest.fixture(scope="module")
def project(tmp_path_factory, quick_programs) -> Project:
    return project_after_its_first_run(tmp_path_factory, quick_programs)


def without_an_image(project: Project, tmp_path: Path) -> list[str]:
    shutil.copytree(project.folder / "data/fetched/images", tmp_path / "images")
    damaged = tmp_path / "images/test_images.zip"
    damaged.unlink()
    with (
        zipfile.ZipFile(project.folder / "data/fetched/images/test_images.zip") as old,
        zipfile.ZipFile(damaged, "w") as new,
    ):
        for name in [name for name in old.namelist() if not name.endswith("/")][1:]:
            new.writestr(name, old.read(name))
    inputs = [str(tmp_path / "images"), "data/fetched/images.csv", "data/fetched/weights"]
    return ["embed", "synclr_vitb16", "none", *inputs, *[str(tmp_path / "unaligned.h5")] * 2]


def truncated(project: Project, tmp_path: Path) -> list[str]:
    (tmp_path / "eeg").mkdir()
    whole = (project.folder / "data/fetched/eeg/sub-01.zip").read_bytes()
    (tmp_path / "eeg/sub-01.zip").write_bytes(whole[: len(whole) // 2])
    inputs = [str(tmp_path / "eeg"), "data/fetched/images.csv", str(tmp_path / "private")]
    return ["preprocess", *inputs, str(tmp_path / "out")]


def metadata_of_others(project: Project, tmp_path: Path) -> list[str]:
    other = Size(
        train_concepts=11,
        images_per_concept=2,
        test_concepts=6,
        train_repetitions=2,
        test_repetitions=3,
    )
    make_raw([], tmp_path / "eeg", tmp_path / "images", tmp_path / "image_metadata", other)
    write_image_table(tmp_path / "images.csv", SAMPLE.read_metadata(tmp_path / "image_metadata"))
    inputs = ["data/fetched/eeg", str(tmp_path / "images.csv"), str(tmp_path / "private")]
    return ["preprocess", *inputs, str(tmp_path / "out")]


def other_subject(project: Project, tmp_path: Path) -> list[str]:
    project.set(dataset="sample", subjects=["sub-77"])
    return [
        "download",
        *(str(tmp_path / name) for name in ("eeg", "images", "image_metadata", "images.csv")),
    ]


def misspelt_key(project: Project, tmp_path: Path) -> list[str]:
    project.set(encder="aligned")
    return ["train", "data/eeg", "data/embeddings/unaligned.h5", str(tmp_path / "model")]


def embeddings_of_others(project: Project, tmp_path: Path) -> list[str]:
    (tmp_path / "unaligned.h5").write_bytes(b"no HDF5")
    return ["train", "data/eeg", str(tmp_path / "unaligned.h5"), str(tmp_path / "model")]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (without_an_image, "1 of 6 images are missing, the first is test_images/"),
        (truncated, "sub-01.zip"),
        (metadata_of_others, "22"),
        (other_subject, "sub-77"),
        (misspelt_key, "unknown key encder"),
        (embeddings_of_others, "is not a whole embedding cache"),
    ],
)
def test_bad_input_gets_one_sentence(
    project, tmp_path, prepare: Callable[[Project, Path], list[str]], message
):
    params = project.folder / "params.yaml"
    shipped = params.read_bytes()
    try:
        command = prepare(project, tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        output = project.stage(*command, fails=True)
    finally:
        params.write_bytes(shipped)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], output
    assert "Traceback" not in output
    assert {
        path for path in tmp_path.rglob("*") if path.is_file()
    } == before.keys()  # nothing half-written
