"""THINGS-MEG: what MNE wrote is read by trial and joined to the images by name; what is not as published is named."""

import random
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.datasets.things_meg import (
    find_subjects,
    memory_needed,
    open_eeg,
    read_metadata,
    sensor_positions,
)
from pipeline.errors import InputError
from pipeline.sections import Preprocess
from tests.meg_files import (
    expected,
    image_id,
    make_epochs,
    make_info,
    make_meg,
    make_trials,
    numbers,
    save_parts,
    sensors,
)

SUBJECTS = ("P1", "P2")
PUBLISHED = Preprocess.model_validate(yaml.safe_load(Path("params.yaml").read_text())["preprocess"])
SPLITS = ("train", "test")
N_TRAIN, N_TEST, N_CHANS, N_TIMES = (
    240,
    10,
    8,
    281,
)  # more training images and test trials than a chunk takes


@pytest.fixture(scope="module")
def meg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meg")
    make_meg(folder, SUBJECTS, n_concepts=30, n_test=10)
    return folder


@pytest.fixture
def subject(tmp_path: Path, meg: Path) -> Path:
    """A copy of a subject's folder, to be spoilt."""
    return Path(shutil.copytree(meg / "eeg" / "P1", tmp_path / "P1"))


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return read_metadata(folder / "sample_attributes_P1.csv")


def read(path: Path, images: Mapping[str, pd.DataFrame]) -> dict[str, np.ndarray]:
    with open_eeg(path, images, PUBLISHED) as raw:
        return {split: np.concatenate(list(raw.chunks[split])) for split in SPLITS}


def test_each_image_is_one_row_and_no_concept_is_in_both_splits(meg: Path) -> None:
    images = tables(meg)
    assert [len(images[split]) for split in SPLITS] == [N_TRAIN, N_TEST]
    for table in images.values():
        assert list(table.columns) == ["image_ids", "concept", "things_concept"]
        rows = [(concept, file) for _, concept, file in table["image_ids"].str.split("/")]
        assert rows == sorted(set(rows))
        assert (
            list(table["concept"])
            == list(table["things_concept"])
            == [concept for concept, _ in rows]
        )
        assert all(file.startswith(f"{concept}_") for concept, file in rows)
    assert not set(images["train"]["concept"]) & set(images["test"]["concept"])
    assert (images["train"].groupby("concept").size() == 12).all()
    own_copy = meg / "object_images"
    for image in pd.concat(images)["image_ids"]:
        folder, path = image.split("/", 1)
        assert folder == "things_images" and (own_copy / path).is_file()


def test_the_table_is_the_same_whoever_was_recorded(meg: Path) -> None:
    first, second = (meg / f"sample_attributes_{subject}.csv" for subject in SUBJECTS)
    assert first.read_bytes() != second.read_bytes()
    for split in SPLITS:
        pd.testing.assert_frame_equal(read_metadata(first)[split], read_metadata(second)[split])


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_condition_is_the_response_to_its_image(name: str, meg: Path) -> None:
    images = tables(meg)
    eeg = read(find_subjects(meg / "eeg")[name], images)
    assert eeg["train"].shape == (N_TRAIN, 1, N_CHANS, N_TIMES)
    assert eeg["test"].shape == (N_TEST, 12, N_CHANS, N_TIMES)
    number = {
        f"things_images/{image_id(path)}": i
        for path, i in numbers(make_trials(name, 30, 12, 10)).items()
        if "catch" not in path
    }
    for split in SPLITS:
        assert eeg[split].dtype == np.float64
        for condition, image in zip(eeg[split], images[split]["image_ids"], strict=True):
            wanted = [expected(number[image], i, N_CHANS, N_TIMES) for i in range(len(condition))]
            assert np.array_equal(condition, wanted)


def test_it_is_what_mne_reads_whole(meg: Path) -> None:
    images = tables(meg)
    epochs = mne.read_epochs(meg / "eeg" / "P2" / "preprocessed_P2-epo.fif", verbose="error")
    assert len({len(list((meg / "eeg" / name).glob("*.fif"))) for name in SUBJECTS} | {4}) == 1
    of_trial = [f"things_images/{image_id(path)}" for path in epochs.metadata["image_path"]]
    with open_eeg(meg / "eeg" / "P2", images, PUBLISHED) as raw:
        assert raw.layout.ch_names == tuple(epochs.ch_names)
        assert np.array_equal(raw.layout.times, epochs.times) and raw.layout.modality == "MEG"
        assert len(raw.layout.times) == N_TIMES and raw.layout.step == pytest.approx(1 / 200)
        for split in SPLITS:
            chunks = list(raw.chunks[split])
            assert len(chunks) > 1
            for condition, image in zip(
                np.concatenate(chunks), images[split]["image_ids"], strict=True
            ):
                assert np.array_equal(
                    condition, epochs.get_data()[[image == other for other in of_trial]]
                )


def test_subjects_are_folders(meg: Path, tmp_path: Path) -> None:
    assert find_subjects(meg / "eeg") == {name: meg / "eeg" / name for name in SUBJECTS}
    assert find_subjects(tmp_path) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("sfreq", 100.0), ("baseline", [-0.1, 0.0]), ("mvnn", "epochs"), ("sessions", [1])],
)
def test_what_the_release_has_done_is_not_done_again(key: str, value: object, meg: Path) -> None:
    asked = PUBLISHED.model_copy(update={key: value})
    with pytest.raises(
        InputError, match=rf"preprocess\.{key} is .*published prepared .*; set it to "
    ):
        open_eeg(meg / "eeg" / "P1", tables(meg), asked).__enter__()


# Files that are not as published


@pytest.mark.parametrize("suffix", ("", "-1", "-2", "-3"))
def test_a_missing_part_is_named(suffix: str, subject: Path, meg: Path) -> None:
    (subject / f"preprocessed_P1-epo{suffix}.fif").unlink()
    with pytest.raises(
        InputError, match=rf"preprocessed_P1-epo{suffix}\.fif: is missing, expected 4"
    ):
        read(subject, tables(meg))
    with pytest.raises(
        InputError, match=rf"preprocessed_P1-epo{suffix}\.fif: is missing, expected 4"
    ):
        memory_needed(subject, PUBLISHED)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            "P2/preprocessed_P2-epo-1.fif",
            "-1",
            "epo-1.fif: says that preprocessed_P2-epo-2.fif comes next",
        ),
        (
            "P1/preprocessed_P1-epo.fif",
            "-1",
            "epo-1.fif: says that preprocessed_P1-epo-1.fif comes next",
        ),
        ("P1/preprocessed_P1-epo-3.fif", "-1", "epo-1.fif: says that no file comes next"),
        (
            "P1/preprocessed_P1-epo-2.fif",
            "-3",
            "epo-3.fif: says that preprocessed_P1-epo-3.fif comes next, .* no file",
        ),
        (
            "P2/preprocessed_P2-epo-3.fif",
            "-3",
            r"P1: the train image \S+ is seen [02] times, expected 1.*another subject's: fetch it again",
        ),
    ],
)
def test_a_part_of_another_recording_is_refused(
    source: str, target: str, message: str, subject: Path, meg: Path
) -> None:
    shutil.copy(meg / "eeg" / source, subject / f"preprocessed_P1-epo{target}.fif")
    with pytest.raises(InputError, match=message):
        read(subject, tables(meg))


@pytest.mark.parametrize("share", (0.0, 0.001, 0.5, 0.99))
def test_a_cut_part_is_refused_before_it_is_read(share: float, subject: Path, meg: Path) -> None:
    part = subject / "preprocessed_P1-epo-2.fif"
    part.write_bytes(part.read_bytes()[: int(share * part.stat().st_size)])
    with (
        pytest.raises(
            InputError, match="epo-2.fif: (cannot be read as epochs of MNE|says that no file)"
        ),
        open_eeg(subject, tables(meg), PUBLISHED),
    ):
        pytest.fail("opened")


def test_a_file_that_is_none_of_mne_is_refused(subject: Path, meg: Path) -> None:
    (subject / "preprocessed_P1-epo.fif").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(
        InputError,
        match=r"epo\.fif: cannot be read as epochs of MNE \(.*`dvc repro --force download`",
    ):
        read(subject, tables(meg))


def test_a_chain_of_tags_that_turns_back_is_refused(subject: Path, meg: Path) -> None:
    """MNE alone would follow it for ever."""
    part = subject / "preprocessed_P1-epo-3.fif"
    data = bytearray(part.read_bytes())
    data[48:52] = struct.pack(
        ">i", 36
    )  # the second tag begins at byte 36 and names itself as the next
    part.write_bytes(data)
    with pytest.raises(InputError, match="epo-3.fif: .*the entry at byte 36 of .* damaged or cut"):
        read(subject, tables(meg))


def test_a_part_that_shrinks_while_it_is_read_is_an_error(subject: Path, meg: Path) -> None:
    with open_eeg(subject, tables(meg), PUBLISHED) as raw:
        with (subject / "preprocessed_P1-epo-1.fif").open("r+b") as file:
            file.truncate(100_000)
        with pytest.raises(InputError, match="P1: cannot be read as epochs of MNE"):
            list(raw.chunks["train"])


def test_whatever_is_damaged_ends_in_one_sentence(subject: Path, meg: Path) -> None:
    images, chance = tables(meg), random.Random(0)
    part = subject / "preprocessed_P1-epo-1.fif"
    whole, refused = part.read_bytes(), 0
    for _ in range(40):
        data = bytearray(whole)
        data[chance.randrange(4000)] ^= 1 << chance.randrange(8)
        data[-chance.randrange(1, 4000)] ^= 1 << chance.randrange(8)
        part.write_bytes(data)
        try:
            read(subject, images)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


def change_metadata(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Write a subject whose trials say something else than what the table of trials says."""
    trials = make_trials("P1", 30, 12, 10)
    epochs = make_epochs(trials, N_CHANS, n_times=21)
    epochs.metadata = change(trials.copy())
    save_parts(epochs, path)


def replace(old: str, new: str, count: int | None = None) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """`old` in image paths becomes `new`, in the first `count` trials that have it."""

    def change(trials: pd.DataFrame) -> pd.DataFrame:
        rows = trials.index[trials["image_path"].str.contains(old)][:count]
        assert len(rows)
        trials.loc[rows, "image_path"] = trials.loc[rows, "image_path"].str.replace(old, new)
        return trials

    return change


TRIALS = make_trials("P1", 30, 12, 10)["image_path"]
FIRST_TEST, LAST_TEST = sorted(
    path.split("/")[1] for path in set(TRIALS[TRIALS.str.startswith("images_test")])
)[::9]
TRAIN_CONCEPT = "bat_20005"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trials: None, "P1-epo.fif: the epochs have no metadata"),
        (
            lambda trials: trials.drop(columns="image_path"),
            "P1: the trials have no image_path, they have trial_type",
        ),
        (lambda trials: trials.drop(columns="trial_type"), "P1: the trials have no trial_type"),
        (lambda trials: trials.assign(trial_type="catch"), "P1: has no trials of type exp"),
        (
            replace("images_meg/", "other/", 1),
            "image_path of a trial of type exp is 'other/.*, expected such as im",
        ),
        (
            replace("images_test_meg/", "images_meg/"),
            "of a trial of type test is 'images_meg/.*, expected such as ima",
        ),
        (
            replace(f"{TRAIN_CONCEPT}_02s", f"{TRAIN_CONCEPT}_99s"),
            f"train image 'things_images/{TRAIN_CONCEPT}/.*99s.*' is no",
        ),
        (
            replace(f"{TRAIN_CONCEPT}_02s", f"{TRAIN_CONCEPT}_03s"),
            "_02s.jpg is seen 0 times, expected 1, .* 1 others",
        ),
        (
            replace(FIRST_TEST, "cat_99s.jpg"),
            "the test image 'things_images/cat/cat_99s.jpg' is not in the table",
        ),
        (
            replace(FIRST_TEST, LAST_TEST, 1),
            f"test image .*{FIRST_TEST} is seen 11 times, expected 12, .* 1 others",
        ),
    ],
)
def test_trials_that_do_not_fit_the_table_are_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame | None], message: str, meg: Path, tmp_path: Path
) -> None:
    assert TRAIN_CONCEPT in set(tables(meg)["train"]["concept"])
    change_metadata(tmp_path / "P1", change)
    with (
        pytest.raises(InputError, match=message),
        open_eeg(tmp_path / "P1", tables(meg), PUBLISHED),
    ):
        pytest.fail("opened")


def test_another_number_of_repetitions_is_taken_as_it_is(tmp_path: Path) -> None:
    make_meg(tmp_path, n_repetitions=5, n_times=21)
    assert read(tmp_path / "eeg" / "P1", tables(tmp_path))["test"].shape == (4, 5, N_CHANS, 21)


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_value_that_is_no_number_is_refused(value: float, meg: Path, tmp_path: Path) -> None:
    trials = make_trials("P1", 30, 12, 10)
    epochs = make_epochs(trials, N_CHANS, n_times=21)
    row = trials.index[trials["image_path"].str.contains(TRAIN_CONCEPT)][0]
    epochs._data[row, 3, 7] = value
    save_parts(epochs, tmp_path / "P1")
    with pytest.raises(InputError, match=rf"P1: trial {row} \(from 0\) holds NaN or infinite"):
        read(tmp_path / "P1", tables(meg))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a table of trials as CSV"),
        (b"\xff\xfe\x00", "is not a table of trials as CSV"),
        (b'a,b\n1,2\n"3', "is not a table of trials as CSV"),
        (b"trial_type,path\nexp,x\n", "have no image_path, they have trial_type, path"),
        (b"trial_type,image_path\nexp,images_meg/a/a_01b.jpg\n", "has no trials of type test"),
        (
            b"trial_type,image_path\nexp,a_01b.jpg\n",
            "trial of type exp is 'a_01b.jpg', expected such as images_meg/",
        ),
        (
            b"trial_type,image_path\nexp,images_meg/a/a_01b.jpg\ntest,images_test_meg/a_b_13s.jpg\n",
            "the test image 'things_images/a_b/a_b_13s.jpg' is of a concept that no exp trial has, expected one of th",
        ),
        (
            b"trial_type,image_path\nexp,images_meg/a/a_01b.jpg\ntest,images_test_meg/a_13s.jpg\n",
            "no concept is left for training",
        ),
    ],
)
def test_a_table_of_trials_that_is_not_as_published_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "sample_attributes_P1.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_metadata(path)


def test_a_table_of_trials_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sample_attributes_P1.csv: cannot be read"):
        read_metadata(tmp_path / "sample_attributes_P1.csv")


# Sensors


def test_sensor_positions_are_those_of_the_layout_that_the_sensors_come_from() -> None:
    _, flat, _ = sensors(275)
    found = sensor_positions(make_info(275), "P1")
    assert found.dtype == np.float64
    assert np.hypot(*found.T).max() == pytest.approx(1)
    assert np.allclose(found, flat, atol=1e-6)  # the positions are held as float32 or so


def test_left_is_left_and_the_nose_is_up() -> None:
    names, _, _ = sensors(275)
    found = dict(zip(names, sensor_positions(make_info(275), "P1"), strict=True))
    assert found["MLT21-1609"][0] < -0.5 < 0.5 < found["MRT21-1609"][0]
    assert found["MZO03-1609"][1] < 0 < found["MZF01-1609"][1]


@pytest.mark.parametrize("position", (np.nan, 0.0))
def test_sensors_without_positions_are_refused(position: float) -> None:
    info = make_info(8)
    for channel in info["chs"]:
        channel["loc"][:3] = position
    with pytest.raises(InputError, match="P1: the sensors have no positions"):
        sensor_positions(info, "P1")
