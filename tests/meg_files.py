"""THINGS-MEG in its published layout at any size: epochs written and split by MNE, tables of trials, a copy of THINGS.

Each trial holds which image was seen and how often before: see `expected`.
"""

from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
import pandas as pd
from PIL import Image

TMIN, SFREQ, N_PARTS = -0.1, 200.0, 4
CENTRE, RADIUS = (
    np.array([0.0, -0.002, -0.013]),
    0.104,
)  # m, of the sphere nearest to the CTF helmet
LOWEST = np.deg2rad(105)  # from its top


def make_meg(
    folder: Path,
    subjects: Sequence[str] = ("P1",),
    n_concepts: int = 10,
    n_images: int = 12,
    n_test: int = 4,
    n_repetitions: int = 12,
    n_chans: int = 8,
    n_times: int = 281,
) -> None:
    """Write eeg/<subject>/preprocessed_<subject>-epo{,-1,-2,-3}.fif, sample_attributes_<subject>.csv and the images.

    The images lie as in a user's copy of THINGS: object_images/<concept>/<file>. `n_test` of the concepts have
    a test image, which leaves (`n_concepts` - `n_test`) x `n_images` for training.
    """
    for subject in subjects:
        trials = make_trials(subject, n_concepts, n_images, n_test, n_repetitions)
        trials.to_csv(folder / f"sample_attributes_{subject}.csv", index=False)
        save_parts(make_epochs(trials, n_chans, n_times), folder / "eeg" / subject)
    write_images(
        folder, sorted({image_id(path) for path in trials["image_path"] if "catch" not in path})
    )


def make_trials(
    subject: str, n_concepts: int = 10, n_images: int = 12, n_test: int = 4, n_repetitions: int = 12
) -> pd.DataFrame:
    """The table of trials, in an order of the subject's own, with the published columns."""
    kinds = ("object", "coat_rack", "bat_2")  # underscores and digits, as some concepts have
    concepts = sorted(f"{kinds[i % 3]}{i:04d}" for i in range(n_concepts))
    rng = np.random.default_rng([*subject.encode()])
    tested = np.random.default_rng(0).permutation(n_concepts)[:n_test]
    rows = []
    for number, concept in enumerate(concepts, 1):
        for i in range(1, n_images + 1):
            rows.append(
                (
                    "exp",
                    number,
                    i,
                    np.nan,
                    f"images_meg/{concept}/{concept}_{i:02d}{'b' if i == 1 else 's'}.jpg",
                )
            )
    for test, index in enumerate(tested, 1):
        path = f"images_test_meg/{concepts[index]}_{n_images + 1 + index % 3:02d}s.jpg"
        rows += [("test", index + 1, np.nan, test, path)] * n_repetitions
    rows += [
        ("catch", 999999, np.nan, np.nan, f"images_catch_meg/catch{i:03d}.jpg")
        for i in range(len(rows) // 10)
    ]
    trials = pd.DataFrame(
        rows, columns=["trial_type", "category_nr", "exemplar_nr", "test_image_nr", "image_path"]
    )
    trials = trials.iloc[rng.permutation(len(trials))].reset_index(drop=True)
    shown = trials["trial_type"] != "catch"
    session, run = (
        np.arange(len(trials)) * 12 // len(trials) + 1,
        np.arange(len(trials)) * 120 // len(trials) % 10 + 1,
    )
    trials = trials.assign(
        image_nr=np.arange(len(trials)) + 1,
        things_category_nr=trials["category_nr"].where(shown),
        things_image_nr=trials["image_path"].rank(method="dense").where(shown),
        things_exemplar_nr=trials["exemplar_nr"],
        onset=np.arange(len(trials)) * 1.5,
        image_on=np.arange(len(trials)) * 1.5,
        image_off=np.arange(len(trials)) * 1.5 + 0.5,
        responded=(~shown).astype(int),
        key_id=np.nan,
        key_time=np.nan,
        RT=np.nan,
        session_nr=session,
        run_nr=run,
    )
    published = (
        "trial_type image_nr category_nr exemplar_nr test_image_nr things_category_nr "
        "things_image_nr things_exemplar_nr image_path onset image_on image_off responded key_id "
        "key_time RT session_nr run_nr"
    )
    return trials[published.split()]


def image_id(path: str) -> str:
    """`coat_rack/coat_rack_01b.jpg` from the `image_path` of an exp or test trial."""
    file = path.rsplit("/", 1)[1]
    return f"{file.rsplit('_', 1)[0]}/{file}"


def numbers(trials: pd.DataFrame) -> dict[str, int]:
    """A number for each image and catch trial, the same for all subjects."""
    return {path: i for i, path in enumerate(sorted(set(trials["image_path"])))}


def expected(number: int, repetition: int, n_chans: int, n_times: int) -> np.ndarray:
    """(C, T) of a trial, exact in float32: the image, how often it was seen before, channel and sample."""
    return 16 * number + repetition + np.arange(n_chans)[:, None] / 512 + np.arange(n_times) / 2


def sensors(n_chans: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, places in the picture (C, 2) with the outermost at 1, and positions in metres (C, 3) of CTF sensors."""
    layout = mne.channels.read_layout("CTF275")
    chosen = np.linspace(0, len(layout.names) - 1, n_chans).astype(int)
    flat = layout.pos[:, :2] - (layout.pos[:, :2].min(0) + layout.pos[:, :2].max(0)) / 2
    flat = flat[chosen] / np.hypot(*flat[chosen].T).max()
    far = np.hypot(*flat.T)
    aside = flat / np.maximum(far, 1e-9)[:, None] * np.sin(LOWEST * far)[:, None]
    xyz = CENTRE + RADIUS * np.column_stack([aside, np.cos(LOWEST * far)])
    return [f"{layout.names[i]}-1609" for i in chosen], flat, xyz


def make_info(n_chans: int) -> mne.Info:
    names, _, xyz = sensors(n_chans)
    info = mne.create_info(names, SFREQ, "mag", verbose="error")
    for channel, position in zip(info["chs"], xyz, strict=True):
        channel["coil_type"] = 5001  # FIFFV_COIL_CTF_GRAD
        channel["loc"] = np.concatenate([position, np.eye(3).ravel()])
    return info


def make_epochs(trials: pd.DataFrame, n_chans: int = 8, n_times: int = 281) -> mne.EpochsArray:
    number, before = (
        trials["image_path"].map(numbers(trials)),
        trials.groupby("image_path").cumcount(),
    )
    data = np.stack(
        [expected(*pair, n_chans, n_times) for pair in zip(number, before, strict=True)]
    )
    events = np.column_stack(
        [300 * np.arange(len(trials)) + 100, np.zeros(len(trials), int), number + 1]
    )
    return mne.EpochsArray(data, make_info(n_chans), events, TMIN, metadata=trials, verbose="error")


def save_parts(epochs: mne.BaseEpochs, folder: Path) -> None:
    """Save as preprocessed_<subject>-epo.fif and what MNE splits off; the size of a part is sought that gives four."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"preprocessed_{folder.name}-epo.fif"
    small, large = (
        1 << 20,
        (1 << 21) + 2 * epochs.get_data(copy=False).nbytes,
    )  # MNE leaves 1 MiB of a part empty
    while large - small > 1:
        size = (small + large) // 2
        try:
            files = [Path(file) for file in epochs.save(path, split_size=size, verbose="error")]
        except ValueError:  # it fits no trial, or gives more than 100 parts
            small = size
            continue
        if len(files) == N_PARTS:
            return
        small, large = (size, large) if len(files) > N_PARTS else (small, size)
        for file in files:
            file.unlink()
    raise ValueError(f"{len(epochs)} trials cannot be split into {N_PARTS} parts")


def write_images(folder: Path, image_ids: Sequence[str]) -> None:
    """A small JPEG an image, each of another colour and stripe."""
    for i, name in enumerate(image_ids):
        rng = np.random.default_rng(i)
        pixels = np.full((48, 48, 3), rng.integers(0, 256, 3), np.uint8)
        pixels[:, rng.integers(48) :] = rng.integers(0, 256, 3)
        path = folder / "object_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
