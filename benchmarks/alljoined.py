"""Time and memory of preparing full-size subjects of Alljoined-1.6M, against MNE's reading of the same files.

Run as `python -m benchmarks.alljoined [small]`. The subject is noise, made once: 76 EDF files of 297 s, 32 channels at
256 Hz, and 83,064 trials. It is prepared as params/alljoined does (`ours`). MNE reads all of the files (`reading`), and
cuts and resamples the same epochs as well, keeping nothing (`cutting`). Then two workers prepare four such subjects
(`ours, 4`), which one process of MNE reads (`reading, 4`). Every task runs in a process of its own. It needs 8 GB of
disk in the temporary folder.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import write_latest

SIZES = {"full": (16540, 200, 297), "small": (200, 4, 12)}  # training and test images, s of a block
SUBJECT = "sub-01"


def make(folder: Path, size: str) -> None:
    """Which images a session shows is drawn, so that some are shown once in it, as published."""
    import edfio
    import numpy as np
    import pandas as pd

    from pipeline.datasets.alljoined_files import CH_NAMES, SFREQ

    n_train, n_test, seconds = SIZES[size]
    rng = np.random.default_rng(0)
    images = pd.DataFrame({"split": ["train"] * n_train + ["test"] * n_test})
    images["image_ids"] = [f"{split}/{i}.jpg" for i, split in enumerate(images["split"])]
    images["concept"] = images["things_concept"] = images["image_ids"]
    images.to_csv(folder / "images.csv", index=False)

    (folder / "eeg" / SUBJECT).mkdir(parents=True)
    noise = 4200 + 10 * rng.standard_normal((len(CH_NAMES), round(seconds * SFREQ)))
    signals = [
        edfio.EdfSignal(row, SFREQ, label=name, physical_dimension="uV", physical_range=(0, 8400))
        for name, row in zip(CH_NAMES, noise, strict=True)
    ]
    n_extra = round(0.04 * n_train)
    shown = np.concatenate([np.repeat(np.arange(n_train), 4), rng.choice(n_train, n_extra)])
    training = np.array_split(rng.permutation(shown), 60)
    test = [n_train + rng.permutation(np.repeat(np.arange(n_test), 20)) for _ in range(4)]
    for session in range(1, 5):
        blocks = [
            *np.array_split(test[session - 1], 4),
            *training[15 * session - 15 : 15 * session],
        ]
        for block, image_ids in enumerate(blocks, start=1):
            kind = "stim_test" if block < 5 else "stim_train"
            onsets = 2 + np.linspace(0, seconds - 5, len(image_ids))
            annotations = [
                edfio.EdfAnnotation(onset, None, f"{kind},{image_id},{i // 20},{i % 20}")
                for i, (onset, image_id) in enumerate(zip(onsets, image_ids, strict=True))
            ]
            edf = edfio.Edf(signals, annotations=annotations, data_record_duration=1)
            edf.write(folder / "eeg" / SUBJECT / f"session_{session:02d}_block_{block:02d}.edf")


def ours(folder: Path, size: str) -> None:
    from pipeline.datasets.table import ALLJOINED
    from pipeline.params import read_params
    from pipeline.preprocess.preparation import prepare_subjects

    as_published = {
        "sfreq": 250.0,
        "window": [-0.2, 0.996],
        "baseline": [-0.2, 0.0],
        "mvnn": "epochs",
        "workers": 2,  # one for each subject at most
    }
    preprocess = read_params(Path("params.yaml")).preprocess.model_copy(update=as_published)
    prepare_subjects(ALLJOINED, folder / "eeg", folder / "images.csv", folder / "out", preprocess)


def reading(folder: Path, size: str) -> None:
    import mne

    for file in sorted((folder / "eeg").glob("*/*.edf")):
        mne.io.read_raw_edf(file, preload=True, verbose="error")


def cutting(folder: Path, size: str) -> None:
    import mne

    for file in sorted((folder / "eeg" / SUBJECT).iterdir()):
        raw = mne.io.read_raw_edf(file, preload=True, verbose="error")
        events, event_id = mne.events_from_annotations(raw, verbose="error")
        epochs = mne.Epochs(
            raw, events, event_id, -0.2, 1, (None, 0), preload=True, verbose="error"
        )
        epochs.resample(250, verbose="error")


TASKS = {"make": make, "ours": ours, "reading": reading, "cutting": cutting}


def measure(task: str, folder: Path, size: str) -> tuple[float, float]:
    """Seconds and MB: the peak resident memory of the process, or of its child if that is more."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.alljoined", task, str(folder), size]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - start, float(out.split()[-1])


def link_subjects(folder: Path, four: Path) -> None:
    """Four subjects of the same files."""
    for number in range(1, 5):
        target = four / "eeg" / f"sub-{number:02d}"
        shutil.copytree(folder / "eeg" / SUBJECT, target, copy_function=os.link)
    shutil.copy(folder / "images.csv", four)


def main(size: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure("make", folder, size)
        figures = {task: measure(task, folder, size) for task in ("reading", "ours", "cutting")}

        four = folder / "four"
        link_subjects(folder, four)
        for task in ("reading", "ours"):
            figures[f"{task}, 4"] = measure(task, four, size)

    for name, (seconds, megabytes) in figures.items():
        print(f"{name:10} {seconds:6.1f} s {megabytes:6.0f} MB peak")

    seconds = {name: figure[0] for name, figure in figures.items()}
    ratios = {
        "alljoined_vs_mne_reading_time": seconds["ours"] / seconds["reading"],
        "alljoined_vs_mne_cutting_time": seconds["ours"] / seconds["cutting"],
        "alljoined_4_vs_mne_reading_time": seconds["ours, 4"] / seconds["reading, 4"],
    }
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.2f}")
    if size == "full":
        peak = {"alljoined_peak_rss_mb": round(figures["ours"][1])}
        write_latest(peak | {name: round(ratio, 3) for name, ratio in ratios.items()})


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in TASKS:
        TASKS[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
        peaks = [
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        print(max(peaks) * (1 if sys.platform == "darwin" else 1024) / 1e6)
    elif sys.argv[1:] in ([], ["small"]):
        main("small" if sys.argv[1:] else "full")
    else:
        raise SystemExit(__doc__)
