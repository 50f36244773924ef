"""A picture of what the EEG retrieves: the image seen beside the images nearest to the response.

Axes: N test images, each with one averaged EEG response.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.report.style import QUIET, RIGHT, short_name

N_NEAREST = 5  # images beside the one that was seen
N_QUERIES = 2  # of each of best, median and worst


def nearest(similarity: np.ndarray) -> np.ndarray:
    """For each row of (N, N) all columns from the most to the least similar.

    At a tie the match comes last, as in its rank.
    """
    match = np.eye(len(similarity), dtype=bool)
    # lexsort sorts by its last key first.
    return np.lexsort((match, -similarity), axis=1)


def match_place(order: np.ndarray) -> np.ndarray:
    """The place of the match in each row of `order` (N, N), from 0."""
    return (order == np.arange(len(order))[:, None]).argmax(1)


def typical_queries(similarity: np.ndarray, order: np.ndarray) -> list[tuple[str, int]]:
    """The best, median and worst queries, each with the name of its group.

    Queries are sorted by the rank of the match, and then by its lead over the nearest other image.
    With few images there are fewer queries, each at most once.
    """
    # Without the match itself, the largest value of a row is the nearest other image.
    mismatched = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    lead = np.diagonal(similarity) - mismatched.max(1)
    queries = np.lexsort((-lead, match_place(order))).tolist()

    # A query of two groups belongs to the first one in this order.
    middle = max((len(queries) - N_QUERIES) // 2, 0)
    groups = {
        "best": queries[:N_QUERIES],
        "worst": queries[-N_QUERIES:],
        "median": queries[middle:][:N_QUERIES],
    }
    group_of: dict[int, str] = {}
    for name, members in groups.items():
        for query in members:
            group_of.setdefault(query, name)

    return [(group_of[query], query) for query in queries if query in group_of]


def retrieval_grid(
    similarity: np.ndarray,
    concepts: Sequence[str],
    thumbnails: Sequence[Image.Image] | None,
    title: str,
) -> Figure:
    """The image seen and the five nearest images of some responses, the match framed.

    Without thumbnails the names of the concepts stand for the images.
    """
    order = nearest(similarity)
    places_of_match = match_place(order)
    queries = typical_queries(similarity, order)
    n_nearest = min(N_NEAREST, len(similarity))

    height = 1.32 if thumbnails is not None else 0.62  # inches a row
    figure = Figure(figsize=(7.2, height * len(queries) + 0.75), layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")
    axes = figure.subplots(len(queries), n_nearest + 1, squeeze=False)

    for row, (group, query) in zip(axes, queries, strict=True):
        images = [query, *order[query, :n_nearest]]
        for column, (ax, image) in enumerate(zip(row, images, strict=True)):
            right = column > 0 and image == query  # the first column is the image seen itself
            thumbnail = thumbnails[image] if thumbnails is not None else None
            _draw_image(ax, thumbnail, short_name(concepts[image]), right)
            if column > 0:
                tick = "✓ " if right else ""
                cosine = f"{tick}{similarity[query, image]:.2f}"
                ax.set_xlabel(cosine, labelpad=2, fontsize=7)

        label = f"{group}\nrank {int(places_of_match[query]) + 1}\nof {len(order)}"
        row[0].set_ylabel(label, fontsize=7.5, rotation=0, ha="right", va="center", labelpad=6)

    headings = ["seen", *(f"{n}." for n in range(1, n_nearest + 1))]
    # Points: above the name of the concept where an image has one.
    above = (0, 24 if thumbnails is not None else 4)
    for ax, heading in zip(axes[0], headings, strict=True):
        ax.annotate(
            heading, (0.5, 1), above, "axes fraction", "offset points", ha="center", weight="bold"
        )
    return figure


def _draw_image(ax: Axes, thumbnail: Image.Image | None, name: str, right: bool) -> None:
    """An image with the name of its concept, or the name alone; the frame is thick if `right`."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=RIGHT if right else QUIET, linewidth=3.5 if right else 0.6)

    max_lines = 2 if thumbnail is not None else 3
    wrapped = textwrap.fill(name, 16, max_lines=max_lines, placeholder=" …")
    if thumbnail is not None:
        ax.imshow(thumbnail)
        ax.set_title(wrapped, fontsize=6.5, fontweight="normal", pad=3, parse_math=False)
    else:
        centre: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, wrapped, fontsize=7, parse_math=False, **centre)
