"""Pictures of the similarity of EEG and images: as a matrix, as distributions and as a map.

Axes: N test images, P dimensions of the projected space, K bins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from pipeline.report.style import COLOURS, DIVERGING, QUIET, RIGHT, colours_of, short_name

MAX_NAMES = 50  # concepts that are named along an axis of the matrix


def sort_concepts(concepts: Sequence[str], images: np.ndarray) -> np.ndarray:
    """An order of N images: by concept, with concepts of similar embeddings (N, P) side by side."""
    names, index = np.unique(np.asarray(concepts, dtype=str), return_inverse=True)
    if len(names) < 3:  # nothing to order
        return np.argsort(index, kind="stable")

    means = np.stack([images[index == i].mean(0) for i in range(len(names))])
    leaves = hierarchy.leaves_list(hierarchy.linkage(means, "average", optimal_ordering=True))
    # argsort of an order gives the place of each concept in it; stable within a concept.
    return np.argsort(np.argsort(leaves)[index], kind="stable")


def similarity_matrix(
    similarity: np.ndarray,
    concepts: Sequence[str],
    images: np.ndarray,
    title: str,
    modality: str = "EEG",
) -> Figure:
    """Cosine similarity of each response (rows) with each image (columns), sorted by concept."""
    order = sort_concepts(concepts, images)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    ax = figure.subplots()
    # Zero is white, also where all values are positive.
    limit = float(np.abs(similarity).max())
    matrix = ax.imshow(
        similarity[np.ix_(order, order)],
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )

    # More names than MAX_NAMES would overlap.
    step = -(-len(order) // MAX_NAMES)  # rounded up
    ticks = range(0, len(order), step)
    names = [short_name(concepts[order[tick]])[:20] for tick in ticks]
    size = 5.5 if len(names) > 20 else 7
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(ticks, names, fontsize=size, parse_math=False)
    ax.tick_params(axis="x", rotation=90)

    note = "" if step == 1 else f"; every {step}th is named"
    ax.set(xlabel=f"image{note}", ylabel=f"{modality} response to the image")
    ax.set_title(title)
    figure.colorbar(matrix, ax=ax, label="cosine similarity", shrink=0.8)
    return figure


def cosine_distributions(cosines: dict[str, Any], title: str, modality: str = "EEG") -> Figure:
    """The distributions of matched and mismatched cosines, a panel for each side.

    A side is an encoder, or a value of another factor that was compared. `cosines` has `edges`
    (K + 1), and for each side the counts `matched` and `mismatched` (K) and the means
    `matched_cosine` and `mismatched_cosine`.
    """
    edges = np.asarray(cosines["edges"])
    colours = colours_of([side for side in cosines if side != "edges"])
    figure = Figure(figsize=(6.4, 0.9 + 2 * len(colours)), layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")
    axes = figure.subplots(len(colours), 1, sharex=True, squeeze=False)[:, 0]

    occupied = []  # left edges of the bins that are not empty
    for ax, (side, side_colour) in zip(axes, colours.items(), strict=True):
        for kind, label in (("mismatched", "other images"), ("matched", "image seen")):
            matched = kind == "matched"
            colour = side_colour if matched else QUIET
            counts = np.asarray(cosines[side][kind], dtype=np.float64)
            # Densities compare although there are N - 1 times as many mismatched pairs.
            density = counts / (counts.sum() * np.diff(edges))
            alpha = 0.45 if matched else 1
            ax.stairs(density, edges, fill=matched, alpha=alpha, color=colour, linewidth=1.4)

            mean = cosines[side][f"{kind}_cosine"]
            dash = "-" if matched else "--"
            ax.axvline(mean, color=colour, linestyle=dash, label=f"{label}, mean {mean:.3f}")
            occupied.append(edges[:-1][counts > 0])

        ax.set_ylabel(f"{side}\ndensity")
        ax.legend(loc="upper left")

    # 0.1 of room on both sides; `occupied` holds left edges, and a bin is 0.05 wide.
    axes[0].set_xlim(np.concatenate(occupied).min() - 0.1, np.concatenate(occupied).max() + 0.15)
    axes[-1].set_xlabel(f"cosine similarity of {modality} and image")
    return figure


def embedding_map(
    eeg: np.ndarray, images: np.ndarray, correct: np.ndarray, title: str, modality: str = "EEG"
) -> Figure:
    """EEG and image embeddings (N, P) on the first two principal components of both together.

    A line joins each response to its image. `correct` (N,) bool: this image is the nearest one.
    """
    points, share = _principal_plane(np.concatenate([eeg, images]).astype(np.float64))
    eeg_points, image_points = np.split(points, 2)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    ax = figure.subplots()

    for eeg_point, image_point, right in zip(eeg_points, image_points, correct, strict=True):
        x, y = zip(eeg_point, image_point, strict=True)
        colour, width, dash = (RIGHT, 0.9, "-") if right else (QUIET, 0.5, ":")
        ax.plot(x, y, color=colour, alpha=0.7, linewidth=width, linestyle=dash)

    image_style: dict[str, Any] = {"marker": "s", "facecolor": "white", "edgecolor": "black"}
    ax.scatter(
        image_points[:, 0],
        image_points[:, 1],
        s=26,
        linewidth=0.8,
        label="image",
        zorder=3,
        **image_style,
    )

    eeg_style: dict[str, Any] = {"marker": "o", "color": COLOURS["unaligned"]}
    ax.scatter(
        eeg_points[:, 0],
        eeg_points[:, 1],
        s=16,
        label=f"{modality} response",
        zorder=3,
        **eeg_style,
    )

    # Empty lines for the legend
    n_correct = int(np.sum(correct))
    ax.plot([], [], color=RIGHT, label=f"its image is the nearest ({n_correct} of {len(correct)})")
    ax.plot([], [], color=QUIET, linestyle=":", label="another image is nearer")
    ax.set(
        xlabel=f"principal component 1 ({share[0]:.0%} of variance)",
        ylabel=f"principal component 2 ({share[1]:.0%})",
    )
    ax.set_title(title)
    ax.set_aspect("equal", "datalim")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    return figure


def _principal_plane(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (M, P) on their first two principal components, (M, 2).

    Also returns the share of the variance of each component, (2,).
    """
    centred = values - values.mean(0)
    _, singular_values, axes = np.linalg.svd(centred, full_matrices=False)

    # The sign of a component is arbitrary: make its largest weight positive.
    axes = axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(1)].diagonal())[:, None]

    total = max((singular_values**2).sum(), np.finfo(float).tiny)  # all points may be one
    return centred @ axes.T, singular_values[:2] ** 2 / total
