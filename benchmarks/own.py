"""Time and memory of preparing one's own EEG at a lab's size, against MNE's reading of the same files alone.

Run as `python -m benchmarks.own [epochs|eeglab|bids] [N | small]`: N subjects (20) of 64 channels x 4,000 epochs x 250
samples, or two tiny ones. The files are noise, written by MNE: FIF in single precision (256 MB a subject), EEGLAB's
.set, and BrainVision in BIDS at 500 Hz, which is cut, its baseline taken off, and resampled to 250 Hz. One subject's
file is made and linked for all; so they are read from the memory of the system, by both sides. Every task runs in a
process of its own, and each subject is prepared by one worker. It needs 2 GB of disk, and 0.3 GB for each subject.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import write_latest

KINDS = ("epochs", "eeglab", "bids")


@dataclass(frozen=True)
class Size:
    """Of one subject; training images are shown twice, test images twelve times."""

    n_chans: int
    n_train: int
    n_test: int

    @property
    def n_epochs(self) -> int:
        return 2 * self.n_train + 12 * self.n_test


FULL = Size(n_chans=64, n_train=1700, n_test=50)  # 4,000 epochs
SMALL = Size(n_chans=8, n_train=20, n_test=5)
TMIN, SFREQ, N_TIMES = -0.2, 250.0, 250
RAW_SFREQ, SOA = 500.0, 250  # of the raw recording: Hz, and samples from image to image
BASELINE = (-0.2, 0.0)


def make(kind: str, folder: Path, n_subjects: int, size: Size) -> None:
    """The files of the first subject, links to them for the others, and the folders of all."""
    import numpy as np
    import pandas as pd

    from pipeline.datasets.own.subject_folder import (
        SubjectFile,
        SubjectFolder,
        write_subject_folder,
    )

    rng = np.random.default_rng(0)
    ids = {"train": [f"train/{i}.jpg" for i in range(size.n_train)]}
    ids["test"] = [f"test/{i}.jpg" for i in range(size.n_test)]
    images = pd.concat(
        pd.DataFrame(
            {"split": split, "image_ids": names, "concept": names, "things_concept": names}
        )
        for split, names in ids.items()
    )
    images.to_csv(folder / "images.csv", index=False)

    shown = rng.permutation(ids["train"] * 2 + ids["test"] * 12)
    positions = np.arange(size.n_epochs)
    if kind == "bids":
        positions = 500 + SOA * positions
    trials = pd.DataFrame({"image_ids": shown, "session": 1, "file": 0, "position": positions})

    first = write_recording(kind, folder, positions, size)
    about = "raw" if kind == "bids" else "epochs"
    for i in range(n_subjects):
        subject = f"sub-{i + 1:02d}"
        file = first
        if i > 0 and kind != "bids":  # a file in BIDS has its subject in its name: read it again
            file = folder / f"{subject}{first.name.removeprefix('sub-01')}"
            os.link(first, file)
        files = (SubjectFile(str(file), "0" * 64),)
        write_subject_folder(folder / "subjects" / subject, SubjectFolder(about, files, trials))


def write_recording(kind: str, folder: Path, positions: Sequence[int], size: Size) -> Path:
    import mne
    import mne_bids
    import numpy as np

    rng = np.random.default_rng(0)
    ch_names = [f"E{i + 1}" for i in range(size.n_chans)]
    if kind == "bids":
        info = mne.create_info(ch_names, RAW_SFREQ, "eeg")
        data = np.empty((size.n_chans, positions[-1] + 1000))
        for row in data:
            row[:] = 1e-5 * rng.standard_normal(len(row), np.float32)
        raw = mne.io.RawArray(data, info, verbose="error")
        path = mne_bids.BIDSPath(root=folder / "bids", subject="01", task="look", datatype="eeg")
        raw.set_annotations(mne.Annotations(np.array(positions) / RAW_SFREQ, 0, "image"))
        mne_bids.write_raw_bids(
            raw, path, format="BrainVision", allow_preload=True, verbose="error"
        )
        return Path(path.fpath)

    info = mne.create_info(ch_names, SFREQ, "eeg")
    data = np.empty((size.n_epochs, size.n_chans, N_TIMES))
    for epoch in data:
        epoch[:] = 1e-5 * rng.standard_normal(epoch.shape, np.float32)
    epochs = mne.EpochsArray(data, info, tmin=TMIN, verbose="error")
    if kind == "eeglab":
        epochs.export(folder / "sub-01.set", verbose="error")
        return folder / "sub-01.set"
    epochs.save(folder / "sub-01-epo.fif", fmt="single", verbose="error")
    return folder / "sub-01-epo.fif"


def ours(kind: str, folder: Path, n_subjects: int, size: Size) -> None:
    from pipeline.datasets.own import eeg
    from pipeline.datasets.table import THINGS_EEG2
    from pipeline.params import read_params
    from pipeline.preprocess.preparation import link_subjects, prepare_subjects

    dataset = replace(
        THINGS_EEG2,
        find_subjects=eeg.find_subjects,
        open_eeg=eeg.open_eeg,
        memory_needed=eeg.memory_needed,
        units=eeg.UNITS,
    )
    changes: dict[str, object] = {"workers": 1}
    if kind == "bids":
        last = TMIN + (N_TIMES - 1) / SFREQ
        changes |= {"sfreq": SFREQ, "window": [TMIN, last], "baseline": list(BASELINE)}
    preprocess = read_params(Path("params.yaml")).preprocess.model_copy(update=changes)
    private = folder / "private_eeg"
    prepare_subjects(dataset, folder / "subjects", folder / "images.csv", private, preprocess)
    link_subjects(private, folder / "eeg")


def plain(kind: str, folder: Path, n_subjects: int, size: Size) -> None:
    """Read all epochs of all subjects; nothing is sorted, averaged or kept."""
    import mne
    import mne_bids
    import numpy as np

    for i in range(n_subjects):
        name = f"sub-{i + 1:02d}"
        if kind == "epochs":
            mne.read_epochs(folder / f"{name}-epo.fif", verbose="error").get_data(copy=False)
        elif kind == "eeglab":
            mne.read_epochs_eeglab(folder / f"{name}.set", verbose="error").get_data(copy=False)
        else:
            path = mne_bids.BIDSPath(
                root=folder / "bids", subject="01", task="look", datatype="eeg"
            )
            raw = mne_bids.read_raw_bids(path, verbose="error")
            events, event_id = mne.events_from_annotations(raw, "auto", "image", verbose="error")
            last = TMIN + N_TIMES / SFREQ
            epochs = mne.Epochs(
                raw, events, event_id, TMIN, last, BASELINE, preload=True, verbose="error"
            )
            epochs.resample(SFREQ, verbose="error")
            assert np.isfinite(epochs.get_data(copy=False)[0, 0, 0])


TASKS = {"make": make, "ours": ours, "plain": plain}


def measure(task: str, kind: str, folder: Path, n_subjects: int, size: str) -> tuple[float, float]:
    """Seconds and MB: the peak resident memory of the process plus that of its largest child."""
    start = time.perf_counter()
    arguments = [task, kind, str(folder), str(n_subjects), size]
    command = [sys.executable, "-m", "benchmarks.own", *arguments]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - start, float(out.split()[-1])


def main(kinds: Sequence[str], n_subjects: int, size: str) -> None:
    figures: dict[str, float] = {}
    print(
        f"{n_subjects} subjects of {SIZES[size].n_chans} channels x {SIZES[size].n_epochs} epochs"
    )
    print("           prepared           MNE's reading      ratio")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            measure("make", kind, folder, n_subjects, size)
            plain_s, plain_mb = measure("plain", kind, folder, n_subjects, size)
            ours_s, ours_mb = measure("ours", kind, folder, n_subjects, size)
        print(
            f"{kind:8} {ours_s:6.1f} s {ours_mb:6.0f} MB  {plain_s:6.1f} s {plain_mb:6.0f} MB  "
            f"{ours_s / plain_s:6.2f}",
            flush=True,
        )
        figures |= {
            f"own_{kind}_peak_rss_mb": round(ours_mb),
            f"own_{kind}_vs_mne_time": round(ours_s / plain_s, 3),
        }
    if size == "full":
        write_latest(figures)


SIZES = {"full": FULL, "small": SMALL}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in TASKS:
        task, kind, folder, n_subjects, size = sys.argv[1:]
        TASKS[task](kind, Path(folder), int(n_subjects), SIZES[size])
        peaks = [
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        print(sum(peaks) * (1 if sys.platform == "darwin" else 1024) / 1e6)
    else:
        wanted = [word for word in sys.argv[1:] if word in KINDS]
        numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
        small = "small" in sys.argv[1:]
        if len(wanted) + len(numbers) + small != len(sys.argv) - 1:
            raise SystemExit(__doc__)
        main(wanted or KINDS, *(numbers or [2 if small else 20]), "small" if small else "full")
