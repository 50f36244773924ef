"""Pictures of an evaluation for a paper or a talk, as PNG.

The same inputs and versions give the same bytes. Axes: N test images, P dimensions of the
projected space, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.report.retrieval_grid import match_place, nearest, retrieval_grid
from pipeline.report.scalp_map import place_channels, scalp_map
from pipeline.report.similarity_pictures import (
    cosine_distributions,
    embedding_map,
    similarity_matrix,
)
from pipeline.report.style import STYLE, Picture, save_png
from pipeline.untrusted.pictures import open_images

THUMBNAIL = 160  # pixels, width and height

# The heading and the description of each picture. {modality} is EEG or MEG, {typical} one run and
# subject, {subjects} all of them.
TEXTS = {
    "retrieval": (
        "What the {modality} retrieves",
        "For the two best, two median and two worst responses ({typical}): the image that was "
        "seen, then the test images nearest to the response, with their cosine similarity. The "
        "image seen is framed and ticked where it is among them.",
    ),
    "similarity": (
        "Every response with every image",
        "Cosine similarity of each {modality} response (rows) with each test image (columns), "
        "{subjects}. Sorted by concept, concepts with similar image embeddings side by side: the "
        "diagonal holds the matching pairs, blocks along it are confusions among similar images.",
    ),
    "cosines": (
        "Matching and differing pairs",
        "Distribution of the cosine similarity of {modality} responses with the image that was "
        "seen, and with all other test images, over all subjects and seeds.",
    ),
    "channels": (
        "What each channel contributes",
        "What is lost when one channel is masked ({subjects}), on the head seen from above: by "
        "how much the contrastive loss rises and top-1 drops. Channels share information, so that "
        "the losses do not add up.",
    ),
    "embeddings": (
        "Where {modality} and images meet",
        "The test images and the {modality} responses to them ({typical}) on the first two "
        "principal components of both together, each response joined to the image that was seen. "
        "Two of many dimensions: neighbours here may be far apart in the whole space.",
    ),
}


def draw_pictures(
    folder: Path,
    similarities: Similarities,
    channels: pd.DataFrame,
    cosines: dict[str, Any],
    thumbnails: Sequence[Image.Image] | None,
) -> list[Picture]:
    """Draw all pictures of an evaluation into `folder`; the map only if a channel has a position.

    retrieval.png and embeddings.png show the one run and subject whose top-1 is nearest to the
    mean. `channels` has ch_name, nice_loss_rise, top1_acc_drop and perhaps x and y. `cosines` is
    what `cosine_distributions` takes. `thumbnails` are the N test images, or None where they may
    not be shown.
    """
    results = similarities.valid_results
    typical = _typical(results)
    # The same images in the same order for all: a mean of matrices (N, N).
    mean_similarity = np.mean([result.similarity for result in results], axis=0)
    correct = match_place(nearest(typical.similarity)) == 0  # (N,) bool
    concepts = similarities.concept.tolist()
    losses = {
        "rise of the loss (nats)": channels["nice_loss_rise"].to_numpy(),
        "drop of top-1 (percentage points)": 100 * channels["top1_acc_drop"].to_numpy(),
    }

    modality = similarities.made_with.get("modality", "EEG")
    # Titles say which runs a picture is of.
    n_subjects = len({result.subject for result in results})
    names = {
        "typical": f"{typical.subject}, seed {typical.seed}",
        "subjects": f"mean of {n_subjects} subjects" if n_subjects > 1 else typical.subject,
        "modality": modality,
    }
    synthetic = ", SYNTHETIC DATA" if similarities.made_with["synthetic"] else ""
    encoder = f"{similarities.made_with['encoder']} encoder{synthetic}"
    of_typical = f"{names['typical']}, {encoder}"
    of_all = f"{names['subjects']}, {encoder}"

    # "default" first: the user's own matplotlibrc must not change a picture.
    with matplotlib.style.context(["default", STYLE]):
        # Each is of the typical run, or of all: its title says which.
        figures = {
            "retrieval": retrieval_grid(
                typical.similarity,
                concepts,
                thumbnails,
                f"Images retrieved from {modality}\n{of_typical}",
            ),
            "similarity": similarity_matrix(
                mean_similarity,
                concepts,
                typical.images,
                f"Similarity of {modality} and images\n{of_all}",
                modality,
            ),
            "cosines": cosine_distributions(
                cosines, f"Cosine similarity of {modality} and image{synthetic}", modality
            ),
            "embeddings": embedding_map(
                typical.eeg,
                typical.images,
                correct,
                f"Projected embeddings\n{of_typical}",
                modality,
            ),
        }
        # Without any position there is no map: the page says so.
        if has_positions(channels):
            title = f"Channel importance\n{of_all}"
            ch_names, sensor_positions = _names_and_positions(channels)
            figures["channels"] = scalp_map(ch_names, losses, title, sensor_positions)

        for name, figure in figures.items():
            save_png(figure, folder / f"{name}.png")

    return [
        Picture(folder / f"{name}.png", heading.format(**names), description.format(**names))
        for name, (heading, description) in TEXTS.items()
        if name in figures
    ]


def has_positions(channels: pd.DataFrame) -> bool:
    """Whether the place of any channel is known: `channels` is as for `draw_pictures`."""
    positions = place_channels(*_names_and_positions(channels))
    return bool(np.isfinite(positions).all(axis=1).any())


def _names_and_positions(channels: pd.DataFrame) -> tuple[list[str], np.ndarray | None]:
    """The names of the channels, and their positions (C, 2) if the table has them."""
    positions = channels[["x", "y"]].to_numpy() if "x" in channels else None
    return channels["ch_name"].astype(str).tolist(), positions


def read_thumbnails(images_dir: Path, image_ids: Sequence[str]) -> list[Image.Image]:
    """The images, cut to squares and made small."""
    size = (THUMBNAIL, THUMBNAIL)
    with open_images(images_dir, image_ids) as images:
        return [ImageOps.fit(images.read(image_id), size) for image_id in image_ids]


def _typical(results: list[SubjectResult]) -> SubjectResult:
    """The result whose top-1 is nearest to the mean."""
    top1 = [(match_place(nearest(result.similarity)) == 0).mean() for result in results]
    return results[int(np.abs(top1 - np.mean(top1)).argmin())]
