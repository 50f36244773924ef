"""THINGS-EEG2 as recorded and Alljoined-1.6M, small and simulated, in their published layouts, of the same images.

People of both respond to the colours and edges of the pictures. What they have in common is known: the pattern of a
content over the posterior channels is `IN_COMMON` parts the same for all people, by the names of the channels, and the
rest is a person's own.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.datasets.channels import POSTERIOR
from pipeline.datasets.sample import Size, _features, make_raw
from pipeline.datasets.sources import ALLJOINED, THINGS_EEG2_RAW, Figshare, Hub
from pipeline.datasets.things_eeg2 import read_metadata
from tests.alljoined_eeg import Contents, make_subject
from tests.raw_eeg import SFREQ, TARGET, make_raw_subject

SIZE = Size(train_concepts=40, images_per_concept=2, test_concepts=12)
IN_COMMON = 0.7
PEAK, WIDTH, LENGTH = 0.2, 0.06, 0.4  # of the response, s
STRENGTH = 6e-6  # V

# The first people of either
OF_THINGS = ("sub-01", "sub-02")
OF_ALLJOINED = ("sub-01", "sub-02", "sub-03")


def publish(base: Path) -> None:
    """The folders of the servers: `base`/y63gw (OSF), /figshare, and /hub, as tests.osf_server serves them."""
    osf = base / "y63gw"
    make_raw([], base / "nothing", osf, osf / "image_metadata.npy", SIZE)
    images = read_metadata(osf / "image_metadata.npy")
    n_images = {split: len(table) for split, table in images.items()}
    contents = _contents(
        osf, [image_id for table in images.values() for image_id in table["image_ids"]]
    )

    assert isinstance(THINGS_EEG2_RAW.eeg, Figshare) and isinstance(ALLJOINED.eeg, Hub)
    for person, subject in enumerate(OF_THINGS):
        patterns = contents @ _mixing(person)
        make_raw_subject(
            base / "figshare",
            n_images,
            subject,
            images_per_concept=SIZE.images_per_concept,
            change=_answer_in_things(patterns, n_images["train"]),
        )

    repository = base / "hub" / ALLJOINED.eeg.repo
    for person, subject in enumerate(OF_ALLJOINED, start=100):
        patterns = contents @ _mixing(person)
        made = make_subject(
            base / "edf", n_images, subject, seed=7, change=_answer_in_alljoined(patterns)
        )
        _place_as_published(made, repository / "raw_eeg" / subject)
    _write_stimuli(osf, repository / "stimuli.zip", images)
    (repository / ".large").write_text(".edf .zip")  # what lies in Git's large file storage


def _contents(images: Path, image_ids: list[str]) -> np.ndarray:
    """Colours and edges of each picture, standardised: (N, F)."""
    archives = {path.stem: zipfile.ZipFile(path) for path in images.glob("*.zip")}
    features = []
    for image_id in image_ids:
        content = archives[image_id.split("/")[0]].read(image_id)
        features.append(_features(Image.open(io.BytesIO(content))))
    values = np.stack(features)
    return (values - values.mean(0)) / values.std(0) / np.sqrt(values.shape[1])


def _mixing(person: int) -> np.ndarray:
    """How the contents (60) go into the 17 channels, in the order of POSTERIOR."""
    shared = np.random.default_rng(1).standard_normal((60, 17))
    of_person = np.random.default_rng([2, person]).standard_normal((60, 17))
    return IN_COMMON * shared + (1 - IN_COMMON) * of_person


def _bump(sfreq: float) -> np.ndarray:
    time = np.arange(round(LENGTH * sfreq)) / sfreq
    return np.exp(-(((time - PEAK) / WIDTH) ** 2))


def _answer_in_things(patterns: np.ndarray, n_training: int) -> Callable[[int, str, dict], None]:
    bump = STRENGTH * _bump(SFREQ)

    def change(session: int, split: str, fields: dict) -> None:
        eeg = fields["raw_eeg_data"]
        rows = [fields["ch_names"].index(name) for name in POSTERIOR]
        for sample in np.flatnonzero(eeg[-1]):
            row = int(eeg[-1, sample])
            if row != TARGET:
                image = row - 1 + (n_training if split == "test" else 0)
                eeg[rows, sample : sample + len(bump)] += patterns[image][:, None] * bump

    return change


def _answer_in_alljoined(patterns: np.ndarray) -> Callable[[int, int, Contents], None]:
    bump = 1e6 * STRENGTH * _bump(256)  # microvolts

    def change(session: int, block: int, contents: Contents) -> None:
        for onset, text in contents.annotations:
            kind, image, *_ = text.split(",")
            if kind.startswith("stim_") and int(image) < len(patterns):
                start = round(onset * 256)
                for name, value in zip(POSTERIOR, patterns[int(image)], strict=True):
                    contents.eeg[name][start : start + len(bump)] += value * bump

    return change


def _place_as_published(made: Path, target: Path) -> None:
    """From the names that the download gives to the folders of the repository."""
    for path in made.iterdir():
        _, session, _, block = path.stem.split("_")
        folder = target / f"session_{session}" / f"block_{block}"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / "Subject 1.edf")


def _write_stimuli(osf: Path, stimuli: Path, images: dict) -> None:
    """The same pictures, called by their numbers."""
    stimuli.parent.mkdir(parents=True, exist_ok=True)
    image_ids = [image_id for table in images.values() for image_id in table["image_ids"]]
    archives = {path.stem: zipfile.ZipFile(path) for path in osf.glob("*.zip")}
    with zipfile.ZipFile(stimuli, "w") as archive:
        for number, image_id in enumerate(image_ids):
            content = archives[image_id.split("/")[0]].read(image_id)
            archive.writestr(f"stimuli/{number:05}.jpg", content)
