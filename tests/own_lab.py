"""A lab with two subjects who saw sixty pictures of ten concepts, each twice.

The files are written by MNE, MNE-BIDS and MNE's writer of EEGLAB's format.
"""

import shutil
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd
from PIL import Image

CONCEPTS = ("bird", "boat", "car", "cat", "cup", "dog", "hat", "lamp", "shoe", "tree")
PICTURES = [
    f"{concept}/{concept}_{number:02}.jpg" for concept in CONCEPTS for number in range(1, 7)
]
SUBJECTS = ("sub-01", "sub-02")
REPETITIONS = 2
SFREQ = 100.0
TMIN = -0.1
N_TIMES = 40
CH_NAMES = ["O1", "Oz", "O2", "Pz"]


def write_pictures(folder: Path) -> Path:
    """Each of its own colours, 24 x 24."""
    rng = np.random.default_rng(7)
    for name in PICTURES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((24, 24), Image.Resampling.NEAREST).save(path, quality=95)
    return folder


def trials_of(subject: str) -> pd.DataFrame:
    """What each trial showed, in an order of the subject's own: a column for each use."""
    order = np.random.default_rng(SUBJECTS.index(subject)).permutation(
        np.repeat(np.arange(len(PICTURES)), REPETITIONS)
    )
    names = np.array(PICTURES)[order]
    concepts = [name.split("/")[0] for name in names]
    return pd.DataFrame(
        {
            "stim_file": names,
            "what": concepts,
            "part": ["test" if concept in ("cat", "tree") else "train" for concept in concepts],
        }
    )


def make_epochs(
    subject: str,
    trials: pd.DataFrame | None = None,
    ch_names: list[str] = CH_NAMES,
    sfreq: float = SFREQ,
    tmin: float = TMIN,
    n_times: int = N_TIMES,
) -> mne.EpochsArray:
    """Epochs in which each picture has a pattern, and noise; V."""
    trials = trials_of(subject) if trials is None else trials
    rng = np.random.default_rng(SUBJECTS.index(subject) + 10)
    patterns = np.random.default_rng(5).standard_normal((len(PICTURES), len(ch_names), n_times))
    shown = [PICTURES.index(name) if name in PICTURES else 0 for name in trials["stim_file"]]
    noise = rng.standard_normal((len(trials), len(ch_names), n_times))

    info = mne.create_info(ch_names, sfreq, "eeg", verbose="error")
    eeg = 1e-6 * (patterns[shown] + noise)
    return mne.EpochsArray(eeg, info, tmin=tmin, metadata=trials, verbose="error")


def write_fif(folder: Path) -> Path:
    """`sub-XX-epo.fif`, the trials in their metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for subject in SUBJECTS:
        make_epochs(subject).save(folder / f"{subject}-epo.fif", verbose="error")
    return folder


def write_eeglab(folder: Path) -> Path:
    """`sub-XX/sub-XX_epo.set`, the trials in a CSV beside it."""
    for subject in SUBJECTS:
        path = folder / subject / f"{subject}_epo.set"
        path.parent.mkdir(parents=True, exist_ok=True)
        mne.export.export_epochs(path, make_epochs(subject), fmt="eeglab", verbose="error")
        trials_of(subject).to_csv(path.with_suffix(".csv"), index=False)
    return folder


def write_bids(root: Path) -> Path:
    """BrainVision in a BIDS root: a picture every half second; fixations name none."""
    for subject in SUBJECTS:
        trials = trials_of(subject)
        epochs = make_epochs(subject)
        n_between = int(SFREQ / 2)
        eeg = 1e-6 * np.random.default_rng(1).standard_normal(
            (len(CH_NAMES), (len(trials) + 2) * n_between)
        )
        onsets = n_between * np.arange(1, len(trials) + 1)
        for onset, epoch in zip(onsets, epochs.get_data(), strict=True):
            start = onset + round(TMIN * SFREQ)
            eeg[:, start : start + N_TIMES] += epoch

        info = mne.create_info(CH_NAMES, SFREQ, "eeg", verbose="error")
        raw = mne.io.RawArray(eeg, info, verbose="error")
        raw.info["line_freq"] = 50
        raw.set_annotations(mne.Annotations(onsets / SFREQ, 0.1, ["picture"] * len(trials)))
        path = mne_bids.BIDSPath(
            subject=subject[4:], session="1", task="see", datatype="eeg", root=root
        )
        mne_bids.write_raw_bids(
            raw, path, allow_preload=True, format="BrainVision", overwrite=True, verbose="error"
        )
        events = root / subject / "ses-1/eeg" / f"{subject}_ses-1_task-see_events.tsv"
        table = pd.read_csv(events, sep="\t")
        for column in trials.columns:
            table[column] = trials[column]
        fixation = table.iloc[:1].assign(onset=0.1, sample=10, trial_type="fixation")
        fixation[list(trials.columns)] = "n/a"
        pd.concat([fixation, table]).to_csv(events, sep="\t", index=False)
    return root


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target
