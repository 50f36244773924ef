"""Small simulated subjects of Alljoined-1.6M in the published layout, as the download names the files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import edfio
import numpy as np
from scipy import signal

from pipeline.datasets.alljoined_files import CH_NAMES, SESSIONS

SFREQ = 256
SOA, FIRST = 0.2, 0.6  # s from image to image, and before the first one
OTHER_CHANNELS = ("TimestampS", "Counter", "Battery", "MarkerHardware", "CQ")
TRIALS_IN_A_TRAINING_BLOCK = 2


@dataclass
class Contents:
    """What a test may change before a file is written.

    `eeg`: by name, microvolts. `annotations`: seconds and text.
    """

    eeg: dict[str, np.ndarray]
    annotations: list[tuple[float, str]]
    sfreq: float = SFREQ


Change = Callable[[int, int, Contents], None]  # of session and block


def make_subject(
    folder: Path,
    n_images: Mapping[str, int],
    subject: str = "sub-01",
    *,
    sessions: Sequence[int] = SESSIONS,
    seed: int = 0,
    prefix: bool = False,
    patient: str = "Subject 1",
    change: Change | None = None,
) -> Path:
    """Write `folder`/<subject>/session_01_block_01.edf and so on: 1/f noise of about 10 uV that channels share, on an
    offset of 4 mV, and a response to each image.

    A test image is shown 20 times in a session, the first one once more. Of the training images every fifth is shown
    once in each session, and the others once or twice. Onsets lie between samples; among the images are an oddball, a
    key that was pressed, and a second kind of note. `change` may spoil a file.
    """
    rng = np.random.default_rng([seed, *subject.encode()])
    mixing = rng.standard_normal((len(CH_NAMES), len(CH_NAMES))) / np.sqrt(len(CH_NAMES))
    responses = rng.standard_normal((sum(n_images.values()), len(CH_NAMES), 1))
    (folder / subject).mkdir(parents=True, exist_ok=True)
    for session in sessions:
        for block, image_ids in _order(rng, n_images, session).items():
            contents = _record(rng, image_ids, "test" if block < 5 else "train", responses, mixing)
            n_all = sum(n_images.values())
            kind = contents.annotations[0][1].split(",")[0]
            contents.annotations += [(0.1, "behav,3,1"), (0.15, "oddball,1")]
            contents.annotations += [(0.45, f"{kind},{n_all + block % 9},-1,1")]
            if prefix:
                before = f"session_{session},block_{block},"
                contents.annotations = [(at, before + text) for at, text in contents.annotations]
            if change:
                change(session, block, contents)
            path = folder / subject / f"session_{session:02d}_block_{block:02d}.edf"
            _write(path, contents, patient)
    return folder / subject


def _order(
    rng: np.random.Generator, n_images: Mapping[str, int], session: int
) -> dict[int, np.ndarray]:
    """The ids of the images that each block shows, in the order of time."""
    train = np.arange(n_images["train"])
    is_twice = ((train + session) % 2 == 0) & (train % 5 > 0)
    shown = rng.permutation(np.concatenate([train, train[is_twice]]))
    test = n_images["train"] + np.arange(n_images["test"])
    shown_of_test = rng.permutation([*np.repeat(test, 20), test[0]])
    blocks = dict(enumerate(np.array_split(shown_of_test, 4), start=1))
    return blocks | dict(enumerate(np.array_split(shown, 15), start=5))


def _record(
    rng: np.random.Generator,
    image_ids: np.ndarray,
    split: str,
    responses: np.ndarray,
    mixing: np.ndarray,
) -> Contents:
    onsets = FIRST + SOA * np.arange(len(image_ids)) + rng.uniform(0, 0.004, len(image_ids))
    n_samples = SFREQ * int(np.ceil(onsets[-1] + 1.3))
    noise = signal.lfilter([1], [1, -0.98], rng.standard_normal((len(mixing), n_samples)))
    eeg = 4200 + 2 * mixing @ noise + 50 * rng.standard_normal((len(mixing), 1))
    time = np.arange(100) / SFREQ
    bump = 3 * np.exp(-(((time - 0.15) / 0.04) ** 2))
    for onset, image_id in zip(onsets, image_ids, strict=True):
        start = round(onset * SFREQ)
        eeg[:, start : start + len(time)] += responses[image_id] * bump
    names = [name.replace("AFz", "Afz") for name in CH_NAMES]
    annotations = [
        (float(onset), f"stim_{split},{image_id},{i // 20},{i % 20}")
        for i, (onset, image_id) in enumerate(zip(onsets, image_ids, strict=True))
    ]
    return Contents(dict(zip(names, eeg, strict=True)), annotations)


def _write(path: Path, contents: Contents, patient: str) -> None:
    signals = [
        edfio.EdfSignal(
            values,
            contents.sfreq,
            label=name,
            physical_dimension="uV",
            physical_range=(0, 8400),
        )
        for name, values in contents.eeg.items()
    ]
    seconds = len(next(iter(contents.eeg.values()))) / contents.sfreq
    for name in OTHER_CHANNELS:
        sfreq = 512 if name == "Counter" else 32  # the headset's own, at rates of their own
        values = np.arange(round(seconds * sfreq)) % 100.0
        signals.append(edfio.EdfSignal(values, sfreq, label=name, physical_range=(0, 100)))
    order = np.random.default_rng(0).permutation(len(contents.annotations))
    annotations = [
        edfio.EdfAnnotation(*contents.annotations[i][:1], None, contents.annotations[i][1])
        for i in order
    ]
    edf = edfio.Edf(
        signals,
        annotations=annotations,
        patient=edfio.Patient(name=patient.replace(" ", "_")),
        data_record_duration=1,
    )
    edf.write(path)
