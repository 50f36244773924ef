"""The built-in miniature dataset: procedural pictures and simulated EEG.

Published: nothing; all of it is made here. With it, and with the stand-ins of the image models,
everything runs without the network. Its results say nothing about brains.
Layout: that of THINGS-EEG2, Gifford et al. 2022, doi 10.1016/j.neuroimage.2022.119754
(osf.io/3jk45).

What the EEG is made of is known, so that the answers of the pipeline can be checked: colours and
edges of the pictures, which all image models see alike, and what their aligned or their unaligned
embeddings hold (`sample_contents`); or nothing of the pictures (`sample.truth`).

Every number comes from one fixed seed. The arithmetic is float64, and what is written is rounded
far more coarsely, so that the bytes do not depend on the number of threads or the vector width of
a machine.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.datasets.sample_contents import CONTENTS
from pipeline.errors import SUBJECTS as SUBJECTS_KEY
from pipeline.errors import InputError, suggestion
from pipeline.files import replacing

SUBJECTS = ("sub-01", "sub-02")
CH_NAMES = ["Pz", "P3", "P7", "O1", "Oz", "O2", "P4", "P8", "P1", "P5"]  # in the released order
CH_NAMES += ["PO7", "PO3", "POz", "PO4", "PO8", "P6", "P2"]
TIMES = np.arange(-20, 80) / 100  # s, stimulus onset at 0

Truth = Literal["aligned", "unaligned", "nothing"]
_OF_EMBEDDINGS = (
    "the EEG was made of colours, edges and what the {truth} embeddings of synclr_vitb16 hold, so "
    "that its aligned embeddings should decode {verdict}"
)
# For each truth a sentence that stands in every answer
PLANTED: dict[str, str] = {
    truth: f"Planted in this sample (sample.truth: {truth}): {sentence}."
    for truth, sentence in (
        ("aligned", _OF_EMBEDDINGS.format(truth="aligned", verdict="better")),
        ("unaligned", _OF_EMBEDDINGS.format(truth="unaligned", verdict="worse")),
        (
            "nothing",
            "the EEG holds nothing of the pictures, so that both encoders should be at chance",
        ),
    )
}

N_FEATURES = 60  # colours and edges of a picture
N_COMPONENTS = 20  # numbers a picture in `sample_contents`
# Strength of the response to one feature, in standard deviations of the noise
OF_FEATURES = 0.023
OF_COMPONENTS = 0.016


@dataclass(frozen=True)
class Size:
    """The counts of a dataset; those of the sample unless a test wants fewer.

    Fewer images are some of those of the sample, the same ones to the last byte.
    """

    train_concepts: int = 100
    images_per_concept: int = 4
    test_concepts: int = 50  # one image each
    train_repetitions: int = 4
    test_repetitions: int = 20


@dataclass(frozen=True)
class Recording:
    """What one recording of the pictures has of its own: people, channels and noise.

    * `name`: that of the dataset.
    * `purpose`: of its random draws, so that no two recordings have the same.
    * `draw_kernel(rng)`: a subject's response to each of the F contents, (F, C, 100); `rng` draws
      what is the subject's own.
    * `noise`: standard deviation of the noise of one trial.
    """

    name: str
    purpose: str
    subjects: tuple[str, ...]
    ch_names: Sequence[str]
    draw_kernel: Callable[[np.random.Generator], np.ndarray]
    noise: float = 1


def make_raw(
    subjects: list[str] | Literal["all"],
    eeg_dir: Path,
    images_dir: Path,
    metadata: Path,
    size: Size | None = None,
    truth: Truth = "aligned",
) -> None:
    """Write the EEG, the images and the metadata as published, see `make_recording`."""
    recording = Recording("sample", "eeg", SUBJECTS, CH_NAMES, draw_kernel)
    make_recording(recording, subjects, eeg_dir, images_dir, metadata, size or Size(), truth)


def make_recording(
    recording: Recording,
    subjects: list[str] | Literal["all"],
    eeg_dir: Path,
    images_dir: Path,
    metadata: Path,
    size: Size,
    truth: Truth,
) -> None:
    """Write the EEG of a recording, the images and the metadata as published.

    These are `eeg_dir`/sub-XX.zip, training_images.zip and test_images.zip in `images_dir`, and the
    saved dictionary `metadata`. `truth` says what the EEG is made of. A subject's archive does not
    depend on which other subjects are written. Raises InputError for an unknown subject.
    """
    chosen = recording.subjects if subjects == "all" else subjects
    for subject in chosen:
        if subject not in recording.subjects:
            near = suggestion(subject, recording.subjects)
            raise InputError(
                f"{SUBJECTS_KEY}: the dataset {recording.name} has "
                f"{', '.join(recording.subjects)}, not {subject!r}{near}"
            )

    catalogue = _catalogue(size)
    train_features = _write_pictures(images_dir / "training_images.zip", catalogue, "train", size)
    test_features = _write_pictures(images_dir / "test_images.zip", catalogue, "test", size)
    with replacing(metadata) as part:
        part.write_bytes(_npy(catalogue))

    # One scale for both splits, so that a picture has the same response in either.
    mean = train_features.mean(0)
    std = train_features.std(0)
    train_contents = eeg_contents((train_features - mean) / std, truth, "train", size)
    test_contents = eeg_contents((test_features - mean) / std, truth, "test", size)
    for subject in chosen:
        # The draws of this subject: its part of the kernel, then its noise.
        rng = draws(recording.purpose, recording.subjects.index(subject))
        kernel = recording.draw_kernel(rng)
        with replacing(eeg_dir / f"{subject}.zip") as part, ZipFile(part, "w") as archive:
            for split, contents, n_repetitions in (
                ("training", train_contents, size.train_repetitions),
                ("test", test_contents, size.test_repetitions),
            ):
                eeg = simulate_eeg(contents, kernel, n_repetitions, rng, recording.noise)
                data = {
                    "preprocessed_eeg_data": eeg,
                    "ch_names": list(recording.ch_names),
                    "times": TIMES,
                }
                name = f"{subject}/preprocessed_eeg_{split}.npy"
                archive.writestr(_member(name), _npy(data), ZIP_DEFLATED, compresslevel=1)


def draws(purpose: str, index: int = 0) -> np.random.Generator:
    """A generator of its own for each purpose, so that one part never shifts another."""
    return np.random.default_rng([20220, *purpose.encode(), index])


def _member(name: str) -> ZipInfo:
    """An entry dated 1980, so that an archive has the same bytes on every run."""
    return ZipInfo(name)


def _npy(content: dict[str, Any]) -> bytes:
    """A dict as published: numpy.save pickles it as an object array without axes."""
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=object))
    return file.getvalue()


# Pictures


def _catalogue(size: Size) -> dict[str, list[str]]:
    """The metadata.

    As published, the numbers in front of names restart in each split. Only the _THINGS names are
    the same in both.
    """
    n_concepts = size.train_concepts + size.test_concepts
    # Test concepts are drawn at random, not the last ones: no name tells the split.
    test_concepts = draws("split").permutation(n_concepts)[: size.test_concepts]
    is_test = np.isin(np.arange(n_concepts), test_concepts)

    catalogue = {}
    for split, indices, n_images in (
        ("train", np.flatnonzero(~is_test), size.images_per_concept),
        ("test", np.flatnonzero(is_test), 1),
    ):
        # (number within the split, index of the concept, number of the image)
        rows = [
            (number, index, image)
            for number, index in enumerate(indices, 1)
            for image in range(1, n_images + 1)
        ]

        catalogue[f"{split}_img_concepts"] = [
            f"{number:05d}_pattern_{index:04d}" for number, index, _ in rows
        ]
        catalogue[f"{split}_img_files"] = [
            f"pattern_{index:04d}_{image:02d}s.jpg" for _, index, image in rows
        ]
        catalogue[f"{split}_img_concepts_THINGS"] = [
            f"{index + 1:05d}_pattern_{index:04d}" for _, index, _ in rows
        ]
    return catalogue


def _of_size(values: np.ndarray, split: str, size: Size) -> np.ndarray:
    """The rows of the images of `size`, of one row for each image of the sample."""
    n_concepts = size.train_concepts if split == "train" else size.test_concepts
    n_images = size.images_per_concept if split == "train" else 1

    by_concept = values.reshape(-1, _images_per_concept(split), values.shape[-1])
    return by_concept[:n_concepts, :n_images].reshape(-1, values.shape[-1])


def _images_per_concept(split: str) -> int:
    return Size().images_per_concept if split == "train" else 1


def _latents(split: str) -> np.ndarray:
    """What is in the pictures of the sample, (N, 20) in 0..1.

    A concept is a random point, and its images lie near that point.
    """
    n_concepts = Size().train_concepts if split == "train" else Size().test_concepts
    rng = draws(f"latents of {split}")
    # Concepts are spread over 0..1, and the images of a concept only 0.06 around it.
    near = rng.random((n_concepts, 1, 20)) + 0.06 * rng.standard_normal(
        (n_concepts, _images_per_concept(split), 20)
    )
    # Reflect at 0 and 1, so that all values lie between them.
    return 1 - np.abs(1 - np.abs(near.reshape(-1, 20)))


def _write_pictures(
    path: Path, catalogue: dict[str, list[str]], split: str, size: Size
) -> np.ndarray:
    """Write the JPEG archive. Return colours and edges of each picture, (N, F) float64."""
    all_latents = _latents(split)
    all_shapes = draws(f"sizes of {split}").integers(480, 521, size=(len(all_latents), 2))
    latents = _of_size(all_latents, split, size)
    shapes = _of_size(all_shapes, split, size).tolist()

    features = []
    names = zip(catalogue[f"{split}_img_concepts"], catalogue[f"{split}_img_files"], strict=True)
    with replacing(path) as part, ZipFile(part, "w") as archive:
        for (concept, file), latent, shape in zip(
            tqdm(names, f"{split} pictures", len(latents), disable=None),
            latents,
            shapes,
            strict=True,
        ):
            picture = _draw(latent, *shape)
            features.append(_features(picture))

            jpeg = io.BytesIO()
            picture.save(jpeg, "JPEG", quality=90)
            archive.writestr(_member(f"{path.stem}/{concept}/{file}"), jpeg.getvalue())
    return np.stack(features)


def _draw(latent: np.ndarray, width: int, height: int) -> Image.Image:
    """A colour gradient, a bent grating or check over it, and a ring of flowers on top."""
    hue1, turn, hue2, hue3, sat1, sat2, sat3, val1, val2, val3 = latent[:10]
    slope, tilt, frequency, bend, check, contrast, count, petals, radius, spin = latent[10:]
    # Half the size in both directions: a quarter of the pixels to compute.
    rows = np.linspace(-1, 1, height // 2)
    columns = np.linspace(-1, 1, width // 2)
    y, x = np.meshgrid(rows, columns, indexing="ij")

    # The gradient
    slope = 2 * np.pi * slope
    first = _colour(hue1, 0.25 + 0.75 * sat1, 0.35 + 0.65 * val1)
    second = _colour(hue1 + turn / 2, 0.2 + 0.8 * sat2, 0.25 + 0.75 * val2)
    # (H, W, 3), RGB in 0..1; all that follows is painted over it.
    pixels = _mix(first, second, _step(1.5 * (x * np.cos(slope) + y * np.sin(slope))))

    # The grating or check, in axes that are turned by `tilt`
    tilt = np.pi * tilt
    frequency = 1.5 * np.pi * 6**frequency
    along = x * np.cos(tilt) + y * np.sin(tilt)
    across = y * np.cos(tilt) - x * np.sin(tilt)
    wave = np.sin(frequency * along + 2.5 * bend * np.sin(3 * across)) + check * np.sin(
        frequency * across
    )
    ink = _colour(hue2, 0.3 + 0.7 * sat3, 1 - 0.8 * val3)
    pixels = _mix(pixels, ink, (0.15 + 0.75 * contrast) * _step(2.5 * wave))

    # The flowers: fold the angle, so that one formula draws all of them
    count = 1 + int(5.999 * count)
    petals = 2 + int(5.999 * petals)
    radius = (0.22 + 0.5 * radius) / np.sqrt(count)
    ring = 0.55 * (count > 1)
    sector = 2 * np.pi / count
    angle = (np.arctan2(y, x) - 2 * np.pi * spin) % sector - np.pi / count
    distance = np.hypot(x, y)
    dx = distance * np.cos(angle) - ring
    dy = distance * np.sin(angle)

    distance = np.hypot(dx, dy)
    edge = radius * (1 + 0.3 * np.cos(petals * np.arctan2(dy, dx)))
    shaded = _colour(hue3, 0.9, 0.95) * np.clip(1.1 - 0.5 * distance / radius, 0.2, 1)[..., None]
    pixels = _mix(pixels, shaded, _step(45 * (edge - distance)))

    half = Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
    return half.resize((width, height), Image.Resampling.BICUBIC)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    # Red, green and blue are three cosines of the hue, a third of a turn apart.
    return value * (1 - saturation * (0.5 - 0.5 * np.cos(2 * np.pi * (hue - np.arange(3) / 3))))


def _mix(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """One colour (3,) or picture (H, W, 3) over another; `cover` (H, W) is 1 where it hides it."""
    return below + (above - below) * cover[..., None]


def _step(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x)  # from 0 to 1, with a soft edge


# EEG


def _features(picture: Image.Image) -> np.ndarray:
    """Mean colours on a 4 x 4 grid, then edges in 4 directions at 3 scales: (60,) float64."""
    pixels = np.asarray(picture.resize((96, 96), Image.Resampling.BOX)) / 255  # (96, 96, 3)
    colours = pixels.reshape(4, 24, 4, 24, 3).mean((1, 3)).ravel()

    edges = []
    for scale in (1, 2, 4):
        light = pixels.reshape(96 // scale, scale, 96 // scale, scale, 3).mean((1, 3, 4))
        # Differences between neighbours, both cut to the same shape.
        dy = light[1:, :-1] - light[:-1, :-1]
        dx = light[:-1, 1:] - light[:-1, :-1]
        edges += [np.abs(np.cos(a) * dx + np.sin(a) * dy).mean() for a in np.pi * np.arange(4) / 4]
    return np.concatenate([colours, edges])


def eeg_contents(features: np.ndarray, truth: Truth, split: str, size: Size) -> np.ndarray:
    """What the EEG responds to: standardised features (N, 60) of pictures -> (N, F).

    `split` and `size` say which pictures these are. If the EEG holds nothing of the pictures, all
    rows are the same.
    """
    if truth == "nothing":
        return np.full((len(features), N_FEATURES + N_COMPONENTS), OF_FEATURES)

    # A letter is a number: m is 0, and one letter on is a quarter of a standard deviation.
    words = CONTENTS[truth][split].split()
    components = np.array([[ord(letter) - ord("m") for letter in word] for word in words]) / 4
    held = _of_size(components, split, size)
    return np.concatenate([OF_FEATURES * features, OF_COMPONENTS * held], axis=1)


def draw_kernel(rng: np.random.Generator) -> np.ndarray:
    """The response to each of the F contents, (F, 17, 100): by channels and times.

    The mixing into channels is in part the subject's own, drawn with `rng`.
    """
    bumps, mixing = shared_kernel()
    return mix(bumps, mixing, rng)


def shared_kernel() -> tuple[np.ndarray, np.ndarray]:
    """What all people share: two bumps after 80 ms, and how these are mixed into `CH_NAMES`.

    Shapes: (2, F, 100) and (2, F, 17).
    """
    shared = draws("kernel")
    n = N_FEATURES + N_COMPONENTS
    peaks = shared.uniform(0.11, 0.5, size=(2, n, 1))  # s
    rise = np.clip((TIMES - 0.08) / (peaks - 0.08), 0, None)
    # A bump rises from 80 ms on and falls after its peak.
    bumps = (rise * np.exp(1 - rise)) ** 2  # 1 at the peak
    return bumps, shared.standard_normal((2, n, 17))


def mix(bumps: np.ndarray, mixing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The kernel of a subject, (F, C, 100).

    `bumps` (2, F, 100) are mixed into channels by what people share, `mixing` (2, F, C), and by
    what is the subject's own, drawn with `rng`.
    """
    of_subject = mixing + 0.4 * rng.standard_normal(mixing.shape)
    return np.einsum("bft,bfc->fct", bumps, of_subject)


def simulate_eeg(
    contents: np.ndarray,
    kernel: np.ndarray,
    n_repetitions: int,
    rng: np.random.Generator,
    noise_sd: float = 1,
) -> np.ndarray:
    """Responses to contents (N, F) plus 1/f noise: (N, R, C, T) float64.

    The strength of the noise differs between repetitions; in the middle it is `noise_sd`.
    """
    responses = np.tensordot(contents, kernel, 1)  # (N, C, T)
    shape = (n_repetitions, *kernel.shape[1:])  # (R, C, T)

    frequency = np.fft.rfftfreq(shape[-1])
    frequency[0] = np.inf  # no offset
    # A filter that turns white noise of unit variance into 1/f noise of unit variance.
    pink = frequency**-0.5 / np.sqrt(2 * (1 / frequency).sum() / shape[-1])

    eeg = np.empty((len(contents), *shape))
    for condition, response in enumerate(responses):
        noise = np.fft.irfft(pink * np.fft.rfft(rng.standard_normal(shape)), shape[-1])
        strength = noise_sd * np.exp(0.4 * rng.standard_normal((n_repetitions, 1, 1)))
        eeg[condition] = response + noise * strength
    # Rounded coarsely, as the header says: other machines sum in another order.
    return np.rint(eeg * 4096) / 4096


# People


def make_human(embedding: Path, words: Path, categories: Path, size: Size | None = None) -> None:
    """Write simulated judgements of people on the concepts, in the layout of SPoSE.

    People are made to find two concepts alike if what is in their pictures is alike: each of the 20
    latents of a concept gives two dimensions, one for much and one for little of it. The concepts
    with the most of a latent are a category: 20 of them, in the layout of THINGS' categories.
    """
    size = size or Size()
    catalogue = _catalogue(size)
    by_name: dict[str, np.ndarray] = {}
    for split, n_concepts in (("train", size.train_concepts), ("test", size.test_concepts)):
        # The first draw of `_latents`: the point that the images of a concept lie near.
        points = draws(f"latents of {split}").random((n_concepts, 20))
        names = dict.fromkeys(catalogue[f"{split}_img_concepts_THINGS"])
        by_name |= dict(zip(names, points, strict=True))

    # In the order of THINGS, whose names begin with their number here.
    points = np.stack([by_name[name] for name in sorted(by_name)])
    dimensions = 1.2 * np.hstack([points, 1 - points])
    with replacing(embedding) as part:
        np.savetxt(part, dimensions, fmt="%.4f")

    # The word of 00001_pattern_0000 is `pattern 0000`.
    word_list = [name.partition("_")[2].replace("_", " ") for name in sorted(by_name)]
    with replacing(words) as part:
        part.write_text("".join(f"{word}\n" for word in word_list))

    # So many are in no category: (1 - 0.073) ** 20, which is 22 %, as in THINGS.
    is_member = points > 1 - 0.073
    header = ["Word", "Definition", *(f"much of latent {i}" for i in range(1, 21))]
    rows = [
        [word, "", *("1" if member else "" for member in of_concept)]
        for word, of_concept in zip(word_list, is_member, strict=True)
    ]
    totals = ["", "", *map(str, is_member.sum(0))]
    with replacing(categories) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *rows, totals])
