"""The check of somebody's own files: what it finds in files of MNE, EEGLAB and BIDS, and what it says of wrong ones."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

from pipeline.datasets.own.check import Check, check_own
from pipeline.datasets.own.subject_folder import read_subject_folder, write_subject_folder
from pipeline.datasets.own.trials import Epoching
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.params import read_params
from pipeline.sections import Own
from stages.check_own import refuse_problems
from tests.own_lab import (
    CH_NAMES,
    CONCEPTS,
    PICTURES,
    SFREQ,
    SUBJECTS,
    make_epochs,
    trials_of,
    write_bids,
    write_eeglab,
    write_fif,
    write_pictures,
)

OWN = read_params(Path("params.yaml")).own
AS_THEY_ARE = Epoching("all", "published", "published", "none")
CUT = Epoching("all", 50.0, [0.0, 0.2], "none")


@dataclass
class Lab:
    """Copies of the lab's files that a test may change, and what it sets."""

    base: Path
    kind: str = "fif"
    own: Own = OWN
    subjects: list[str] | str = "all"
    epoching: Epoching = AS_THEY_ARE
    top_k: tuple[int, ...] = (1, 3, 5)

    @property
    def eeg(self) -> Path:
        return self.base / self.kind

    @property
    def pictures(self) -> Path:
        return self.base / "pictures"

    def set(self, **values: object) -> None:
        self.own = self.own.model_copy(update=values)

    def check(self) -> Check:
        paths = {"eeg": str(self.eeg), "images": str(self.pictures)}
        # Paths that a test has set come first.
        unset = {key: path for key, path in paths.items() if getattr(self.own, key) == "none"}
        own = self.own.model_copy(update=unset)
        return check_own(own, self.subjects, self.epoching, self.top_k)

    def epochs_of(self, subject: str) -> Path:
        return self.eeg / f"{subject}-epo.fif"

    def write(self, subject: str, trials: pd.DataFrame | None = None, **axes: object) -> None:
        """Epochs of a subject again, with other trials or axes."""
        epochs = make_epochs(subject, trials, **axes)
        epochs.save(self.epochs_of(subject), overwrite=True, verbose="error")

    def table(self, subject: str, **columns: object) -> Path:
        """A CSV beside the epochs of a subject, with other values in some columns."""
        path = self.epochs_of(subject).with_suffix(".csv")
        trials_of(subject).assign(**columns).to_csv(path, index=False)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("lab")
    write_pictures(base / "pictures")
    write_fif(base / "fif")
    write_eeglab(base / "eeglab")
    write_bids(base / "bids")
    return base


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def lab(files: Path, tmp_path: Path) -> Lab:
    shutil.copytree(files / "fif", tmp_path / "lab/fif")
    shutil.copytree(files / "pictures", tmp_path / "lab/pictures")
    return Lab(tmp_path / "lab")


def problems(check: Check) -> list[str]:
    return [text for texts in check.findings.problems.values() for text in texts]


@pytest.mark.parametrize(
    ("kind", "epoching"), [("fif", AS_THEY_ARE), ("eeglab", AS_THEY_ARE), ("bids", CUT)]
)
def test_the_trials_of_each_format_are_those_that_were_written(
    files: Path, tmp_path: Path, kind: str, epoching: Epoching
) -> None:
    check = Lab(files, kind, epoching=epoching).check()
    assert not problems(check)
    assert list(check.subjects) == list(SUBJECTS)

    used = pd.concat([check.images["train"], check.images["test"]])
    assert sorted(used["image_ids"]) == [f"own/{name}" for name in PICTURES]
    assert sorted(set(used["things_concept"])) == list(CONCEPTS)
    assert not set(check.images["train"]["concept"]) & set(check.images["test"]["concept"])

    for subject, folder in check.subjects.items():
        write_subject_folder(tmp_path / subject, folder)
        again = read_subject_folder(tmp_path / subject)
        trials = again.trials
        names = trials_of(subject)["stim_file"]
        assert trials["image_ids"].tolist() == [f"own/{name}" for name in names]
        assert set(trials["session"]) == {1} and set(trials["file"]) == {0}

        expected = np.arange(len(names))
        if kind == "bids":  # a picture every half second
            expected = (expected + 1) * int(SFREQ / 2)
        assert trials["position"].tolist() == expected.tolist()
        assert again.kind == ("raw" if kind == "bids" else "epochs")
        [file] = again.files
        assert Path(file.path).is_file() and len(file.sha256) == 64

    if kind == "bids":
        kinds = check.findings.left_out
        assert kinds == {
            "rows whose stim_file is empty or n/a, such as fixations": [
                f"{subject}_ses-1_task-see_eeg.vhdr: 1 of 121 rows" for subject in SUBJECTS
            ]
        }
    else:
        assert not check.findings.left_out


def test_the_same_files_give_the_same_answer_and_a_hash_follows_its_file(lab: Lab) -> None:
    first = lab.check()
    [file] = first.subjects["sub-01"].files
    assert file.sha256 == sha256(Path(file.path))
    second = lab.check()
    for split in ("train", "test"):
        pd.testing.assert_frame_equal(first.images[split], second.images[split])

    lab.write("sub-01", trials_of("sub-01").iloc[::-1])
    assert lab.check().subjects["sub-01"].files[0].sha256 != file.sha256
    assert lab.check().subjects["sub-02"].files == first.subjects["sub-02"].files


def test_the_rows_for_the_user(lab: Lab) -> None:
    row = lab.check().rows[0]
    assert row == {
        "subject": "sub-01",
        "files": 1,
        "sessions": 1,
        "epochs": 120,
        "used": 120,
        "training pictures": 54,
        "repetitions": "2",
        "test pictures": 6,
        "their repetitions": "2",
        "channels": "4 EEG",
        "Hz": "100",
        "seconds": "-0.1 to 0.29",
    }


def test_meg_is_called_meg(lab: Lab) -> None:
    for subject in SUBJECTS:
        epochs = make_epochs(subject)
        epochs.set_channel_types(dict.fromkeys(CH_NAMES, "mag"), verbose="error")
        epochs.save(lab.epochs_of(subject), overwrite=True, verbose="error")
    check = lab.check()
    assert not problems(check)
    assert check.rows[1]["channels"] == "4 MEG"


def test_sessions_and_runs_are_joined_in_their_order(lab: Lab) -> None:
    trials = trials_of("sub-01")
    lab.epochs_of("sub-01").unlink()
    parts = {"ses-2_run-1": trials[80:], "ses-1_run-10": trials[40:80], "ses-1_run-2": trials[:40]}
    for name, part in parts.items():
        path = lab.eeg / f"sub-01_{name}_epo.fif"
        make_epochs("sub-01", part).save(path, verbose="error")
    check = lab.check()
    assert not problems(check)

    folder = check.subjects["sub-01"]
    assert [Path(file.path).name[7:-8] for file in folder.files] == [
        "ses-1_run-2",
        "ses-1_run-10",
        "ses-2_run-1",
    ]
    table = folder.trials
    assert table["image_ids"].tolist() == [f"own/{name}" for name in trials["stim_file"]]
    assert table["session"].tolist() == [1] * 80 + [2] * 40
    assert table["file"].tolist() == [0] * 40 + [1] * 40 + [2] * 40
    assert table["position"].tolist() == list(range(40)) * 3


def test_recordings_without_the_column_are_told_and_left_out(lab: Lab) -> None:
    _change_events(lab)
    folder = _events(lab).parent
    for path in folder.glob("*task-see*"):
        shutil.copy(path, folder / path.name.replace("task-see", "task-rest"))
    events = folder / "sub-01_ses-1_task-rest_events.tsv"
    pd.read_csv(events, sep="\t").drop(columns="stim_file").to_csv(events, sep="\t", index=False)
    shutil.copytree(folder, lab.eeg / "derivatives/old/sub-01/eeg")

    check = lab.check()
    assert not problems(check)
    assert [file.path for file in check.subjects["sub-01"].files] == [
        str(folder / "sub-01_ses-1_task-see_eeg.vhdr")
    ]
    [told] = check.findings.left_out["recordings without pictures"]
    assert told.startswith("sub-01_ses-1_task-rest_eeg.vhdr: its events have no column stim_file")


def test_trials_whose_window_was_not_recorded_are_told_and_left_out(lab: Lab) -> None:
    _change_events(lab)
    # Rows that name no picture need no onset.
    events = _events(lab).read_text()
    _events(lab).write_text(events.replace("0.1\t", "n/a\t", 1))
    lab.epoching = replace(CUT, window=[-1.0, 0.2])  # the first picture appears at 0.5 s
    check = lab.check()
    assert not problems(check)
    assert len(check.subjects["sub-01"].trials) == 119
    kinds = check.findings.left_out
    assert kinds["trials of which not all of -1 .. 0.22 s was recorded"] == [
        f"{subject}_ses-1_task-see_eeg.vhdr: 1 of 120 trials, at its start or end"
        for subject in SUBJECTS
    ]


def test_a_table_beside_a_file_comes_before_its_metadata(lab: Lab) -> None:
    names = [f"{Path(name).stem}" for name in trials_of("sub-01")["stim_file"]]
    lab.table("sub-01", stim_file=["", *names[1:]])
    check = lab.check()
    assert not problems(check)
    assert check.subjects["sub-01"].trials["position"].tolist() == list(range(1, 120))


# What is wrong, the sentence that is expected, and what the sentence says to do.
Step = Callable[[Lab], object]
WRONG: dict[str, tuple[Step, str, Step]] = {}


def wrong(sentence: str, mend: Step) -> Callable[[Step], Step]:
    def add(step: Step) -> Step:
        WRONG[step.__name__.replace("_", " ").strip()] = (step, sentence, mend)
        return step

    return add


@wrong("own.eeg is 'lab/fif': expected the full path", lambda lab: lab.set(eeg=str(lab.eeg)))
def relative_path(lab: Lab) -> None:
    lab.set(eeg="lab/fif")


@wrong("is a file; name the folder", lambda lab: lab.set(eeg=str(lab.eeg)))
def a_file_for_a_folder(lab: Lab) -> None:
    lab.set(eeg=str(lab.epochs_of("sub-01")))


@wrong("got an empty folder; name the folder that has them", lambda lab: lab.set(eeg=str(lab.eeg)))
def empty_folder(lab: Lab) -> None:
    (lab.base / "empty").mkdir()
    lab.set(eeg=str(lab.base / "empty"))


@wrong(
    "got a part of a BIDS root; let own.eeg name the root", lambda lab: lab.set(eeg=str(lab.eeg))
)
def a_part_of_a_bids_root(lab: Lab) -> None:
    _change_events(lab)
    lab.set(eeg=str(lab.eeg / "sub-01"))


def _make_bids(lab: Lab) -> None:
    lab.set(eeg=str(write_bids(lab.base / "bids")))
    lab.epoching = CUT


@wrong("got raw recordings (sub-01_raw.fif); make them a BIDS root", _make_bids)
def continuous_recordings(lab: Lab) -> None:
    folder = lab.base / "raw"
    folder.mkdir()
    info = mne.create_info(CH_NAMES, SFREQ, "eeg", verbose="error")
    raw = mne.io.RawArray(np.zeros((4, 100)), info, verbose="error")
    raw.save(folder / "sub-01_raw.fif", verbose="error")
    lab.set(eeg=str(folder))


@wrong(
    "expected one column stim_file (own.image_column), got image, what, part",
    lambda lab: lab.set(image_column="image"),
)
def another_column(lab: Lab) -> None:
    for subject in SUBJECTS:
        lab.write(subject)
        trials = trials_of(subject).rename(columns={"stim_file": "image"})
        trials.to_csv(lab.epochs_of(subject).with_suffix(".csv"), index=False)


@wrong(
    "has no metadata that say which picture each epoch showed; put sub-02-epo.csv beside it",
    lambda lab: lab.table("sub-02"),
)
def no_metadata(lab: Lab) -> None:
    epochs = make_epochs("sub-02")
    epochs.metadata = None
    epochs.save(lab.epochs_of("sub-02"), overwrite=True, verbose="error")


@wrong(
    "has 119 rows below its first line, expected 120, one for each epoch of sub-01-epo.fif",
    lambda lab: lab.table("sub-01"),
)
def a_row_too_few(lab: Lab) -> None:
    trials_of("sub-01").iloc[1:].to_csv(lab.eeg / "sub-01-epo.csv", index=False)


@wrong(
    "has the one column 'stim_file;what;part'; save it with commas", lambda lab: lab.table("sub-01")
)
def semicolons(lab: Lab) -> None:
    trials_of("sub-01").to_csv(lab.eeg / "sub-01-epo.csv", index=False, sep=";")


@wrong("sub-01-epo.csv: cannot be read as a table", lambda lab: lab.table("sub-01"))
def not_a_table(lab: Lab) -> None:
    (lab.eeg / "sub-01-epo.csv").write_bytes(b"stim_file,\xff\xfe\n1,2,3\n4\n")


def _take_out_first(lab: Lab) -> None:
    names = trials_of("sub-01")["stim_file"].tolist()
    lab.table("sub-01", stim_file=["n/a", *names[1:]])


@wrong("sub-01-epo.csv, line 2: the picture is 'cat/cat_09.jpg', which", _take_out_first)
def missing_picture(lab: Lab) -> None:
    names = trials_of("sub-01")["stim_file"].tolist()
    lab.table("sub-01", stim_file=["cat/cat_09.jpg", *names[1:]])


@wrong("is it cat_01.jpg?", lambda lab: lab.table("sub-01"))
def misspelt_picture(lab: Lab) -> None:
    names = trials_of("sub-01")["stim_file"].str.replace("cat/cat_01.jpg", "cat/catt_01.jpg")
    lab.table("sub-01", stim_file=names)


@wrong("it has cat/cat_01.jpg: correct the folder", lambda lab: lab.table("sub-01"))
def picture_of_another_folder(lab: Lab) -> None:
    names = trials_of("sub-01")["stim_file"].str.replace("cat/cat_01.jpg", "dog/cat_01.jpg")
    lab.table("sub-01", stim_file=names)


def _with_folders(lab: Lab) -> None:
    for subject in SUBJECTS:
        lab.table(subject)


@wrong("has 2 of that name: cat/cat_01.jpg, old/cat_01.jpg; name the folder with it", _with_folders)
def picture_twice(lab: Lab) -> None:
    (lab.pictures / "old").mkdir()
    shutil.copy(lab.pictures / "cat/cat_01.jpg", lab.pictures / "old")
    for subject in SUBJECTS:
        lab.table(subject, stim_file=[Path(name).name for name in trials_of(subject)["stim_file"]])


@wrong("both mean cat/cat_01.jpg; give each picture one name", lambda lab: lab.table("sub-01"))
def two_names_of_a_picture(lab: Lab) -> None:
    names = trials_of("sub-01")["stim_file"].tolist()
    names[names.index("cat/cat_01.jpg")] = "cat_01"
    lab.table("sub-01", stim_file=names)


@wrong(
    "has no pictures, expected JPEG or PNG (.jpg, .jpeg, .png), got 2 files (.fif)",
    lambda lab: lab.set(images=str(lab.pictures)),
)
def folder_without_pictures(lab: Lab) -> None:
    lab.set(images=str(lab.eeg))


@wrong(
    "cat_01.jpg: is a link to a file that is not there; fetch it first: datalad get",
    lambda lab: write_pictures(lab.pictures),
)
def link_to_nothing(lab: Lab) -> None:
    path = lab.pictures / "cat/cat_01.jpg"
    path.unlink()
    path.symlink_to(lab.base / "annex/cat_01.jpg")
    (lab.base / "annex").mkdir()


@wrong("cat_01.jpg: is empty (0 bytes)", lambda lab: write_pictures(lab.pictures))
def empty_picture(lab: Lab) -> None:
    (lab.pictures / "cat/cat_01.jpg").write_bytes(b"")


@wrong("60 pictures of 60 lie in no folder of a concept", lambda lab: lab.set(concept="picture"))
def flat_pictures(lab: Lab) -> None:
    for name in PICTURES:
        (lab.pictures / name).rename(lab.pictures / Path(name).name)
    for subject in SUBJECTS:
        lab.table(subject, stim_file=[Path(name).stem for name in trials_of(subject)["stim_file"]])


@wrong(
    "expected one column kind (own.concept), got stim_file, what, part",
    lambda lab: lab.set(concept="what"),
)
def no_column_of_concepts(lab: Lab) -> None:
    lab.set(concept="kind")


@wrong("what of the picture cat/cat_01.jpg is 'dog', and in", lambda lab: lab.table("sub-02"))
def two_concepts_of_a_picture(lab: Lab) -> None:
    lab.set(concept="what")
    trials = trials_of("sub-02")
    is_cat = trials["stim_file"] == "cat/cat_01.jpg"
    lab.table("sub-02", what=trials["what"].mask(is_cat, "dog"))


@wrong("what of the picture cat/cat_01.jpg is empty; fill it in", lambda lab: lab.table("sub-02"))
def concept_without_a_name(lab: Lab) -> None:
    lab.set(concept="what")
    trials = trials_of("sub-02")
    is_cat = trials["stim_file"] == "cat/cat_01.jpg"
    lab.table("sub-02", what=trials["what"].mask(is_cat, ""))


@wrong("part is 'validation', expected train or test", lambda lab: lab.table("sub-01"))
def unknown_split(lab: Lab) -> None:
    lab.set(split="part")
    trials = trials_of("sub-01")
    lab.table("sub-01", part=trials["part"].mask(trials["what"] == "cat", "validation"))


def _leave_out_unseen(lab: Lab) -> None:
    path = lab.base / "split.csv"
    table = trials_of("sub-01").drop_duplicates("stim_file")
    table = table.assign(image=table["stim_file"], split=table["part"])
    table[table["image"] != "cat/cat_01.jpg"].to_csv(path, index=False)
    lab.set(split=str(path))


@wrong(
    "sub-02: saw 11 of 12 test pictures, not cat/cat_01.jpg; all subjects are tested on",
    _leave_out_unseen,
)
def unseen_test_picture(lab: Lab) -> None:
    lab.set(split="part")
    trials = trials_of("sub-02")
    lab.write("sub-02", trials[trials["stim_file"] != "cat/cat_01.jpg"])


@wrong("line 3: cat/cat_01.jpg is in test, and in", _leave_out_unseen)
def split_of_a_csv_twice(lab: Lab) -> None:
    path = lab.base / "split.csv"
    path.write_text("image,split\ncat/cat_01.jpg,train\ncat_01,test\n")
    lab.set(split=str(path))


@wrong("expected the columns image and split (own.split), got picture, set", _leave_out_unseen)
def csv_with_other_columns(lab: Lab) -> None:
    path = lab.base / "split.csv"
    path.write_text("picture,set\ncat/cat_01.jpg,train\n")
    lab.set(split=str(path))


@wrong("expected at least 2 training pictures, got 0", lambda lab: lab.set(split="part"))
def all_of_it_is_test(lab: Lab) -> None:
    path = lab.base / "split.csv"
    path.write_text("image,split\n" + "".join(f"{name},test\n" for name in PICTURES))
    lab.set(split=str(path))


@wrong(
    "expected at least 6 test pictures, more than evaluate.top_k (5), got 1",
    lambda lab: lab.set(split="part"),
)
def one_test_picture(lab: Lab) -> None:
    path = lab.base / "split.csv"
    lines = [f"{name},train\n" for name in PICTURES[2:]]
    path.write_text(f"image,split\n{PICTURES[0]},test\n" + "".join(lines))
    lab.set(split=str(path))


def _choose_channels(lab: Lab) -> None:
    lab.epoching = replace(lab.epoching, channels=["O1", "Oz", "O2"])


@wrong(
    'expected the 4 of most files: with Fz and without Pz; set preprocess.channels to the 3 that all have: ["O1", "Oz", "O2"]',
    _choose_channels,
)
def other_channels(lab: Lab) -> None:
    lab.write("sub-02", ch_names=["O1", "Oz", "O2", "Fz"])


@wrong(
    "has 4 channels, expected the 4 of most files: the same in another order; set", _choose_channels
)
def another_order_of_channels(lab: Lab) -> None:
    lab.write("sub-02", ch_names=CH_NAMES[::-1])


@wrong(
    "has no channel 'Cz' (preprocess.channels), it has O1 Oz O2 Pz; correct preprocess.channels",
    _choose_channels,
)
def unknown_channel(lab: Lab) -> None:
    lab.epoching = replace(lab.epoching, channels=["Oz", "Cz"])


def _choose_rate(lab: Lab) -> None:
    lab.epoching = replace(lab.epoching, sfreq=100.0, window=[-0.1, 0.29])


@wrong("has 200 Hz, expected the 100 of most files; set preprocess.sfreq to 100", _choose_rate)
def another_rate(lab: Lab) -> None:
    lab.write("sub-02", sfreq=200.0, n_times=79)


@wrong(
    "sub-01-epo.fif: has 100 Hz, and preprocess.sfreq is 250; set it to 100 at most", _choose_rate
)
def a_rate_above_the_recorded(lab: Lab) -> None:
    lab.epoching = replace(lab.epoching, sfreq=250.0)


def _choose_window(lab: Lab) -> None:
    lab.epoching = replace(lab.epoching, window=[-0.1, 0.19])


@wrong(
    "has -0.1 to 0.19 s, expected -0.1 to 0.29 s as most files; set preprocess.window to [-0.1,0.19]",
    _choose_window,
)
def other_times(lab: Lab) -> None:
    lab.write("sub-02", n_times=30)


@wrong("has -0.1 to 0.29 s, and preprocess.window is 0 to 1; set it to [-0.1,0.29]", _choose_window)
def a_window_beyond_the_epochs(lab: Lab) -> None:
    lab.epoching = replace(lab.epoching, window=[0.0, 1.0])


@wrong(
    "no subject sub-3, there are sub-01, sub-02: choose of these in `subjects`",
    lambda lab: setattr(lab, "subjects", ["sub-02"]),
)
def unknown_subject(lab: Lab) -> None:
    lab.subjects = ["sub-3"]


@wrong("the same epochs seem to be in", lambda lab: (lab.eeg / "sub-01-epo.set").unlink())
def epochs_in_two_formats(lab: Lab) -> None:
    mne.export.export_epochs(lab.eeg / "sub-01-epo.set", make_epochs("sub-01"), verbose="error")
    lab.table("sub-01")


def _one_step(lab: Lab) -> None:
    (lab.eeg / "sub-01_proc-ica_epo.fif").unlink()


@wrong("epochs of several steps of processing (no proc-, proc-ica)", _one_step)
def epochs_of_two_steps(lab: Lab) -> None:
    make_epochs("sub-01").save(lab.eeg / "sub-01_proc-ica_epo.fif", verbose="error")


@wrong(
    "lies in the folder of sub-02 and has the name of sub-01",
    lambda lab: (lab.eeg / "sub-02").rename(lab.eeg / "sub-01"),
)
def a_file_in_the_folder_of_another(lab: Lab) -> None:
    (lab.eeg / "sub-02").mkdir()
    lab.epochs_of("sub-01").rename(lab.eeg / "sub-02/sub-01-epo.fif")


@wrong("sub-03-epo.fif: is a copy of", lambda lab: (lab.eeg / "sub-03-epo.fif").unlink())
def the_file_of_another_subject(lab: Lab) -> None:
    shutil.copy(lab.epochs_of("sub-01"), lab.eeg / "sub-03-epo.fif")


@wrong(
    "nothing_here': expected the full path of a folder of epochs, or of a BIDS root, and there is "
    "nothing at that path",
    lambda lab: lab.set(eeg=str(lab.eeg)),
)
def a_folder_that_is_not_there(lab: Lab) -> None:
    lab.set(eeg=str(lab.base / "nothing_here"))


@wrong("sub-01-epo.fif: cannot be read as epochs", lambda lab: lab.write("sub-01"))
def damaged_file(lab: Lab) -> None:
    path = lab.epochs_of("sub-01")
    path.write_bytes(path.read_bytes()[:5000])


@wrong("sub-03.set: cannot be read as epochs", lambda lab: (lab.eeg / "sub-03.set").unlink())
def continuous_eeglab(lab: Lab) -> None:
    info = mne.create_info(CH_NAMES, SFREQ, "eeg", verbose="error")
    raw = mne.io.RawArray(np.zeros((4, 200)), info, verbose="error")
    mne.export.export_raw(lab.eeg / "sub-03.set", raw, verbose="error")
    lab.table("sub-01").rename(lab.eeg / "sub-03.csv")


@wrong(
    "is a part of sub-03-epo.fif, which is not beside it",
    lambda lab: (lab.eeg / "sub-03-epo-1.fif").unlink(),
)
def a_part_alone(lab: Lab) -> None:
    shutil.copy(lab.epochs_of("sub-01"), lab.eeg / "sub-03-epo-1.fif")


def _events(lab: Lab) -> Path:
    return lab.eeg / "sub-01/ses-1/eeg/sub-01_ses-1_task-see_events.tsv"


def _change_events(lab: Lab, **values: object) -> None:
    lab.kind = "bids"
    lab.epoching = CUT
    write_bids(lab.eeg)
    table = pd.read_csv(_events(lab), sep="\t", dtype=str, keep_default_na=False)
    for column, value in values.items():
        table.loc[3, column] = value
    table.to_csv(_events(lab), sep="\t", index=False)


@wrong(
    "preprocess.window and preprocess.sfreq, expected numbers, got published; set both",
    lambda lab: setattr(lab, "epoching", CUT),
)
def raw_without_a_window(lab: Lab) -> None:
    _change_events(lab)
    lab.epoching = AS_THEY_ARE


@wrong(
    "events.tsv, line 5: onset is 'n/a', expected a number of seconds",
    lambda lab: write_bids(lab.eeg),
)
def an_onset_that_is_no_number(lab: Lab) -> None:
    _change_events(lab, onset="n/a")


@wrong(
    "events.tsv, line 5: the onset is 1500 s, expected 0 to 60.99 s",
    lambda lab: write_bids(lab.eeg),
)
def an_onset_in_milliseconds(lab: Lab) -> None:
    _change_events(lab, onset="1500")


@wrong(
    "is recorded at 100 Hz, preprocess.sfreq is 250; choose a lower rate",
    lambda lab: setattr(lab, "epoching", CUT),
)
def raw_at_a_lower_rate(lab: Lab) -> None:
    _change_events(lab)
    lab.epoching = replace(CUT, sfreq=250.0)


@wrong(
    "no recording has trials that name a picture; let own.image_column",
    lambda lab: lab.set(image_column="stim_file"),
)
def raw_without_the_column(lab: Lab) -> None:
    _change_events(lab)
    lab.set(image_column="image")


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_input_gets_a_sentence_and_what_it_says_helps(lab: Lab, what: str) -> None:
    spoil, sentence, mend = WRONG[what]
    spoil(lab)
    check = lab.check()
    told = problems(check)
    assert [text for text in told if sentence in text], told
    assert all("\n" not in text and "Traceback" not in text for text in told)
    with pytest.raises(InputError):
        refuse_problems(check)

    mend(lab)
    mended = lab.check()
    assert not problems(mended)
    assert mended.subjects
