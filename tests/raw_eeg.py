"""Small simulated subjects of THINGS-EEG2 in the published layout of the raw recordings."""

import itertools
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import signal

from pipeline.datasets.channels import POSTERIOR
from pipeline.datasets.raw_files import FILES, REPETITIONS, SESSIONS, TARGET

# The channels of the release stand among others, and not in its order.
CH_NAMES = ("Fp1", "Fz", *sorted(POSTERIOR), "T7")
SFREQ = 1000
SOA = 200  # samples from one image to the next
BEFORE, AFTER = 600, 1200  # samples before the first image and from the last one to the end


def make_raw_subject(
    folder: Path,
    n_conditions: Mapping[str, int],
    subject: str = "sub-01",
    seed: int = 0,
    *,
    ch_names: Sequence[str] = CH_NAMES,
    compression: int = zipfile.ZIP_STORED,
    protocol: int | None = None,
    change: Callable[[int, str, dict], None] | None = None,
    images_per_concept: int = 1,
    shift: int = 0,
) -> Path:
    """Write `folder`/<subject>.zip: 1/f noise of about 10 uV that channels share, and a response to each image.

    A training image is shown twice in two of the sessions, a test image 20 times in each; the first image of a session
    once more, and among the images are target trials. As in the experiment, the images of a training concept are shown
    in the same sessions; a subject of another `shift` sees other concepts in them. `change(session, split, fields)`
    may spoil a file; `protocol` writes bare pickles as that protocol makes them.
    """
    rng = np.random.default_rng([seed, *subject.encode()])
    mixing = rng.standard_normal((len(ch_names), len(ch_names))) / np.sqrt(len(ch_names))
    responses = {
        split: rng.standard_normal((n, len(ch_names), 1)) for split, n in n_conditions.items()
    }
    pairs = list(itertools.combinations(SESSIONS, 2))

    def shown_in(image: int) -> tuple[int, ...]:
        return pairs[(image // images_per_concept + shift) % len(pairs)]

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{subject}.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for session, split in itertools.product(SESSIONS, ("train", "test")):
            images = [
                i for i in range(n_conditions[split]) if split == "test" or session in shown_in(i)
            ]
            order = np.repeat(images, REPETITIONS[split])
            order = rng.permutation(np.append(order, images[0])) + 1
            order = np.insert(order, rng.choice(len(order), len(order) // 8), TARGET)
            fields = _record(rng, order, responses[split], mixing)
            fields |= {
                "ch_names": [*ch_names, "stim"],
                "ch_types": ["eeg"] * len(ch_names) + ["stim"],
            }
            fields |= {"sfreq": SFREQ, "highpass": 0.01, "lowpass": 100}
            if change:
                change(session, split, fields)
            with archive.open(f"{subject}/ses-{session:02d}/{FILES[split]}", "w") as member:
                if protocol is None:
                    np.save(member, fields, allow_pickle=True)
                else:
                    pickle.dump(fields, member, protocol)
    return path


def _record(
    rng: np.random.Generator, order: np.ndarray, responses: np.ndarray, mixing: np.ndarray
) -> dict:
    """A recording in which these images (rows from 1, or TARGET) appear, V."""
    onsets = BEFORE + SOA * np.arange(len(order))
    n_samples = onsets[-1] + AFTER
    noise = signal.lfilter([1], [1, -0.98], rng.standard_normal((len(mixing), n_samples)))
    eeg = 2e-6 * mixing @ noise + 5e-5 * rng.standard_normal((len(mixing), 1))
    time = np.arange(400) / SFREQ
    bump = np.exp(-(((time - 0.15) / 0.04) ** 2))
    stim = np.zeros((1, n_samples))
    for onset, image in zip(onsets, order, strict=True):
        stim[0, onset] = image
        if image != TARGET:
            eeg[:, onset : onset + len(time)] += 3e-6 * responses[image - 1] * bump
    return {"raw_eeg_data": np.append(eeg, stim, 0)}
