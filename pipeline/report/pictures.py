"""Pictures of a result for a paper or a talk, as PNG: the same bytes for the same inputs and versions.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which stay apart for the colour-blind; nothing is
told by colour alone. Axes: N images, P dimensions of the projected space, C channels.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import mne
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from scipy.cluster import hierarchy

from pipeline.evaluate.similarities import Similarities, SubjectResult
from pipeline.files import replacing
from pipeline.untrusted.pictures import open_images

COLOURS = {"unaligned": "#0072B2", "aligned": "#D55E00"}
PAIR = tuple(COLOURS.values())
RIGHT, QUIET = "#009E73", "#767676"
DIVERGING = "RdBu_r"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "legend.frameon": False,
}
HEAD_RADIUS = 0.095  # m, of the drawn outline; MNE's own
RIM = 0.9  # of the drawn radius, where the equator of the 10-20 system lies
HEAD_CENTRE = (0.001, -0.016, 0.0)  # m, of the sphere nearest to the electrodes of MNE's montage
MOST_NAMED = 80  # channels that are named on the map
NEAREST = 5  # images shown beside the one that was seen
THUMBNAIL = 160  # pixels
QUERIES = 2  # shown of each of best, median and worst
TEXTS = {  # of each picture the heading and the description; `one` run and subject, or `everybody`
    "retrieval": (
        "What the EEG retrieves",
        "For the two best, two median and two worst responses ({one}): the image that was seen, then the test images "
        "nearest to the response, with their cosine similarity. The image seen is framed and ticked where it is among "
        "them.",
    ),
    "similarity": (
        "Every response with every image",
        "Cosine similarity of each EEG response (rows) with each test image (columns), {everybody}. Sorted by concept, "
        "concepts with similar image embeddings side by side: the diagonal holds the matching pairs, blocks along it "
        "are confusions among similar images.",
    ),
    "cosines": (
        "Matching and differing pairs",
        "Distribution of the cosine similarity of EEG responses with the image that was seen, and with all other test "
        "images, over all subjects and seeds.",
    ),
    "channels": (
        "What each channel contributes",
        "What is lost when one channel is masked ({everybody}), on the head seen from above: by how much the "
        "contrastive loss rises and top-1 drops. Channels share information, so that the losses do not add up.",
    ),
    "embeddings": (
        "Where EEG and images meet",
        "The test images and the EEG responses to them ({one}) on the first two principal components of both together, "
        "each response joined to the image that was seen. Two of many dimensions: neighbours here may be far apart in "
        "the whole space.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows: a heading, and a description that also serves those who do not see it."""

    path: Path
    heading: str
    description: str


def draw_pictures(
    folder: Path,
    similarities: Similarities,
    channels: pd.DataFrame,
    cosines: dict[str, Any],
    thumbnails: Sequence[Image.Image] | None,
) -> list[Picture]:
    """Draw all pictures of an evaluation into `folder`.

    retrieval.png and embeddings.png show the one run and subject whose top-1 is nearest to the mean. `channels` has
    ch_name, nice_loss_rise and top1_acc_drop, `cosines` is what `cosine_distributions` takes, `thumbnails` are the N
    test images, or None where they may not be shown.
    """
    kept, concepts = kept_runs(similarities), similarities.concept.tolist()
    typical, mean = _typical(kept), np.mean([scored.similarity for scored in kept], axis=0)
    found = match_place(nearest(typical.similarity)) == 0
    names = channels["ch_name"].tolist()
    places = channels[["x", "y"]].to_numpy() if "x" in channels else None
    lost = {
        "rise of the loss (nats)": channels["nice_loss_rise"].to_numpy(),
        "drop of top-1 (percentage points)": 100 * channels["top1_acc_drop"].to_numpy(),
    }
    n_subjects = len({scored.subject for scored in kept})
    one = f"{typical.subject}, seed {typical.seed}"
    everybody = f"mean of {n_subjects} subjects" if n_subjects > 1 else typical.subject
    synthetic = ", SYNTHETIC DATA" if similarities.made_with["synthetic"] else ""
    of_one, of_all = (
        f"{whose}, {similarities.made_with['encoder']} encoder{synthetic}"
        for whose in (one, everybody)
    )
    with matplotlib.style.context(["default", STYLE]):
        figures = {
            "retrieval": retrieval_grid(
                typical.similarity, concepts, thumbnails, f"Images retrieved from EEG\n{of_one}"
            ),
            "similarity": similarity_matrix(
                mean, concepts, typical.images, f"Similarity of EEG and images\n{of_all}"
            ),
            "cosines": cosine_distributions(
                cosines, f"Cosine similarity of EEG and image{synthetic}"
            ),
            "channels": scalp_map(names, lost, f"Channel importance\n{of_all}", places),
            "embeddings": embedding_map(
                typical.eeg, typical.images, found, f"Projected embeddings\n{of_one}"
            ),
        }
        for name, figure in figures.items():
            with replacing(folder / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.08)
    return [
        Picture(folder / f"{name}.png", heading, description.format(one=one, everybody=everybody))
        for name, (heading, description) in TEXTS.items()
    ]


def colours_of(sides: Sequence[str]) -> dict[str, str]:
    """The colour of each side of a comparison, or of the encoder of a single run."""
    return {side: COLOURS.get(side, PAIR[place]) for place, side in enumerate(sides)}


def kept_runs(similarities: Similarities) -> list[SubjectResult]:
    """Without those that collapsed, unless all did: the same as in the metrics."""
    return [
        scored for scored in similarities.results if not scored.collapsed
    ] or similarities.results


def read_thumbnails(images_dir: Path, image_ids: Sequence[str]) -> list[Image.Image]:
    """The images, cut to squares and made small."""
    with open_images(images_dir, image_ids) as images:
        return [
            ImageOps.fit(images.read(image_id), (THUMBNAIL, THUMBNAIL)) for image_id in image_ids
        ]


def _typical(scored: list[SubjectResult]) -> SubjectResult:
    top1 = [(match_place(nearest(one.similarity)) == 0).mean() for one in scored]
    return scored[int(np.abs(top1 - np.mean(top1)).argmin())]


def short_name(concept: str) -> str:
    """`aircraft carrier` from `00001_aircraft_carrier`."""
    number, _, name = concept.partition("_")
    return (name if number.isdigit() and name else concept).replace("_", " ")


def nearest(similarity: np.ndarray) -> np.ndarray:
    """For each row of (N, N) all columns from the most to the least similar; at a tie the match comes last."""
    match = np.eye(len(similarity), dtype=bool)
    return np.lexsort((match, -similarity), axis=1)


def typical_queries(similarity: np.ndarray, order: np.ndarray) -> list[tuple[str, int]]:
    """The best, median and worst queries, by the rank of the match and then by its lead over the nearest other image.

    Fewer than asked for where there are few images, each at most once.
    """
    others = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    lead = np.diagonal(similarity) - others.max(1)
    queries = np.lexsort((-lead, match_place(order))).tolist()
    middle = (len(queries) - QUERIES) // 2
    groups = {
        "best": queries[:QUERIES],
        "worst": queries[-QUERIES:],
        "median": queries[max(middle, 0) :][:QUERIES],
    }
    chosen: dict[int, str] = {}
    for name, members in groups.items():
        for query in members:
            chosen.setdefault(query, name)
    return [(chosen[query], query) for query in queries if query in chosen]


def match_place(order: np.ndarray) -> np.ndarray:
    """The place of the match in each row of `order`, from 0."""
    return (order == np.arange(len(order))[:, None]).argmax(1)


def retrieval_grid(
    similarity: np.ndarray,
    concepts: Sequence[str],
    thumbnails: Sequence[Image.Image] | None,
    title: str,
) -> Figure:
    """The image seen and the five that its EEG retrieves, the right one framed; concept names where no thumbnails."""
    order = nearest(similarity)
    queries, n_shown = typical_queries(similarity, order), min(NEAREST, len(similarity))
    height = 1.32 if thumbnails is not None else 0.62
    figure = Figure(figsize=(7.2, height * len(queries) + 0.75), layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")
    axes = figure.subplots(len(queries), n_shown + 1, squeeze=False)
    for row, (group, query) in zip(axes, queries, strict=True):
        place = int(match_place(order)[query])
        for column, (ax, image) in enumerate(
            zip(row, [query, *order[query, :n_shown]], strict=True)
        ):
            right = column > 0 and image == query
            _cell(
                ax,
                thumbnails[image] if thumbnails is not None else None,
                short_name(concepts[image]),
                right,
            )
            if column > 0:
                ax.set_xlabel(
                    f"{'✓ ' if right else ''}{similarity[query, image]:.2f}", labelpad=2, fontsize=7
                )
        label = f"{group}\nrank {place + 1}\nof {len(order)}"
        row[0].set_ylabel(label, fontsize=7.5, rotation=0, ha="right", va="center", labelpad=6)
    headings = ["seen", *(f"{n}." for n in range(1, n_shown + 1))]
    for ax, heading in zip(axes[0], headings, strict=True):
        above = (0, 24 if thumbnails is not None else 4)
        ax.annotate(
            heading, (0.5, 1), above, "axes fraction", "offset points", ha="center", weight="bold"
        )
    return figure


def _cell(ax: Axes, thumbnail: Image.Image | None, name: str, right: bool) -> None:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=RIGHT if right else QUIET, linewidth=3.5 if right else 0.6)
    wrapped = textwrap.fill(name, 16, max_lines=2 if thumbnail is not None else 3, placeholder=" …")
    if thumbnail is None:
        ax.text(
            0.5,
            0.5,
            wrapped,
            ha="center",
            va="center",
            fontsize=7,
            transform=ax.transAxes,
            parse_math=False,
        )
    else:
        ax.imshow(thumbnail)
        ax.set_title(wrapped, fontsize=6.5, fontweight="normal", pad=3, parse_math=False)


def sort_concepts(concepts: Sequence[str], images: np.ndarray) -> np.ndarray:
    """An order of N images: those of a concept together, concepts with similar embeddings (N, P) side by side."""
    names, index = np.unique(np.asarray(concepts, dtype=str), return_inverse=True)
    if len(names) < 3:
        return np.argsort(index, kind="stable")
    means = np.stack([images[index == i].mean(0) for i in range(len(names))])
    leaves = hierarchy.leaves_list(hierarchy.linkage(means, "average", optimal_ordering=True))
    return np.argsort(np.argsort(leaves)[index], kind="stable")


def similarity_matrix(
    similarity: np.ndarray, concepts: Sequence[str], images: np.ndarray, title: str
) -> Figure:
    """Cosine similarity of each response (rows) with each image (columns), sorted by concept."""
    order = sort_concepts(concepts, images)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    ax = figure.subplots()
    limit = float(np.abs(similarity).max())
    shown = ax.imshow(
        similarity[np.ix_(order, order)],
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    step = -(-len(order) // 50)
    ticks = range(0, len(order), step)
    names = [short_name(concepts[order[tick]])[:20] for tick in ticks]
    size = 5.5 if len(names) > 20 else 7
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(ticks, names, fontsize=size, parse_math=False)
    ax.tick_params(axis="x", rotation=90)
    each = "" if step == 1 else f"; every {step}th is named"
    ax.set(xlabel=f"image{each}", ylabel="EEG response to the image")
    ax.set_title(title)
    figure.colorbar(shown, ax=ax, label="cosine similarity", shrink=0.8)
    return figure


def cosine_distributions(cosines: dict[str, Any], title: str) -> Figure:
    """How matching and differing pairs are spread, a panel a side: an encoder, or what else was compared.

    `cosines` has `edges` (K + 1), and for each side the counts `matched` and `mismatched` (K) and the means
    `matched_cosine` and `mismatched_cosine`.
    """
    edges = np.asarray(cosines["edges"])
    colours = colours_of([side for side in cosines if side != "edges"])
    figure = Figure(figsize=(6.4, 0.9 + 2 * len(colours)), layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")
    axes, drawn = figure.subplots(len(colours), 1, sharex=True, squeeze=False)[:, 0], []
    for ax, (side, own_colour) in zip(axes, colours.items(), strict=True):
        for kind, colour, filled in (("mismatched", QUIET, False), ("matched", own_colour, True)):
            counts = np.asarray(cosines[side][kind], dtype=np.float64)
            density = counts / (counts.sum() * np.diff(edges))
            what = "image seen" if filled else "other images"
            mean = cosines[side][f"{kind}_cosine"]
            ax.stairs(
                density,
                edges,
                fill=filled,
                alpha=0.45 if filled else 1,
                color=colour,
                linewidth=1.4,
            )
            ax.axvline(
                mean,
                color=colour,
                linestyle="-" if filled else "--",
                label=f"{what}, mean {mean:.3f}",
            )
            drawn.append(edges[:-1][counts > 0])
        ax.set_ylabel(f"{side}\ndensity")
        ax.legend(loc="upper left")
    axes[0].set_xlim(np.concatenate(drawn).min() - 0.1, np.concatenate(drawn).max() + 0.15)
    axes[-1].set_xlabel("cosine similarity of EEG and image")
    return figure


def embedding_map(eeg: np.ndarray, images: np.ndarray, correct: np.ndarray, title: str) -> Figure:
    """EEG and image embeddings (N, P) on the two principal components of both, a line from each response to its image.

    `correct` (N,) says whose image is the nearest.
    """
    points, share = _principal_plane(np.concatenate([eeg, images]).astype(np.float64))
    eeg_points, image_points = np.split(points, 2)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    ax = figure.subplots()
    for eeg_point, image_point, right in zip(eeg_points, image_points, correct, strict=True):
        x, y = zip(eeg_point, image_point, strict=True)
        colour, width, dash = (RIGHT, 0.9, "-") if right else (QUIET, 0.5, ":")
        ax.plot(x, y, color=colour, alpha=0.7, linewidth=width, linestyle=dash)
    x, y = image_points.T
    ax.scatter(
        x,
        y,
        s=26,
        marker="s",
        facecolor="white",
        edgecolor="black",
        linewidth=0.8,
        label="image",
        zorder=3,
    )
    x, y = eeg_points.T
    ax.scatter(x, y, s=16, marker="o", color=COLOURS["unaligned"], label="EEG response", zorder=3)
    ax.plot(
        [],
        [],
        color=RIGHT,
        label=f"its image is the nearest ({int(np.sum(correct))} of {len(correct)})",
    )
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
    """Points (M, P) on their two principal components, (M, 2), and the share of the variance of each."""
    centred = values - values.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    # A sign is arbitrary: fix it
    axes = axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(1)].diagonal())[:, None]
    return centred @ axes.T, spread[:2] ** 2 / max((spread**2).sum(), np.finfo(float).tiny)


def _places_by_name(ch_names: Sequence[str]) -> np.ndarray:
    """Places (C, 2) on a head seen from above, its rim at 1; NaN for a name that the 10-05 system does not have.

    By the angle from the vertex (azimuthal equidistant), of the positions in MNE's montage.
    """
    known = mne.channels.make_standard_montage("standard_1005").get_positions()["ch_pos"]
    position_of = {name.lower(): position - HEAD_CENTRE for name, position in known.items()}
    x, y, z = np.array([position_of.get(name.lower(), np.full(3, np.nan)) for name in ch_names]).T
    from_vertex, across = np.arctan2(np.hypot(x, y), z), np.maximum(np.hypot(x, y), 1e-9)
    return (RIM * from_vertex / (np.pi / 2) / across)[:, None] * np.stack([x, y], 1)


def scalp_map(
    ch_names: Sequence[str],
    losses: dict[str, np.ndarray],
    title: str,
    places: np.ndarray | None = None,
) -> Figure:
    """What is lost when a channel is masked, on the head seen from above: a panel for each of `losses`, label to (C,).

    `places` (C, 2), the rim of the head at 1; without them the 10-05 system tells, as MNE has it. Channels that it does
    not name are listed below the map; between fewer than four channels, or such as lie on a line, nothing is
    interpolated. The names of very many channels would hide the map, and are left out.
    """
    if places is None:
        places = _places_by_name(ch_names)
    placed = np.flatnonzero(np.isfinite(places).all(1)).tolist()
    xy, crowded = HEAD_RADIUS * places[placed], len(placed) > MOST_NAMED
    names = [] if crowded else [ch_names[i] for i in placed]
    figure = Figure(figsize=(3.9 * len(losses), 4.2), layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")
    for ax, (label, values) in zip(
        figure.subplots(1, len(losses), squeeze=False)[0], losses.items(), strict=True
    ):
        values = np.asarray(values, dtype=np.float64)
        limit = max(np.abs(values).max(), 1e-3)
        norm, (x, y) = Normalize(-limit, limit), xy.T
        _head(ax, xy, values[placed], norm)
        size = 14 if crowded else 90
        discs = ax.scatter(
            x,
            y,
            size,
            values[placed],
            cmap=DIVERGING,
            norm=norm,
            edgecolor="black",
            linewidth=0.6,
            zorder=5,
        )
        for point, name in zip(xy, names, strict=not crowded):
            below = {"xytext": (0, -6), "textcoords": "offset points", "ha": "center", "va": "top"}
            ax.annotate(name, point, fontsize=5.5, zorder=6, parse_math=False, **below)
        figure.colorbar(discs, ax=ax, label=label, location="bottom", shrink=0.8)
        rest = [f"{name} {values[i]:+.3f}" for i, name in enumerate(ch_names) if i not in placed]
        if rest:
            note = textwrap.fill(f"without a position in the 10-05 system: {', '.join(rest)}", 55)
            ax.set_title(note, fontsize=6.5, fontweight="normal", parse_math=False)
    return figure


def _head(ax: Axes, xy: np.ndarray, values: np.ndarray, norm: Normalize) -> None:
    """The outline of a head, and faintly what lies between the channels."""
    between = len(xy) > 3 and np.linalg.matrix_rank(xy - xy.mean(0), tol=0.1 * HEAD_RADIUS) == 2
    if not between:  # MNE wants some points: these are for the outline alone
        xy, values = HEAD_RADIUS / 2 * np.array([[0, 1], [1, 0], [0, -1], [0, 0]]), np.zeros(4)
    field, _ = mne.viz.plot_topomap(
        values,
        xy,
        axes=ax,
        show=False,
        sensors=False,
        contours=0,
        extrapolate="local",
        sphere=HEAD_RADIUS,
        cmap=DIVERGING,
        cnorm=norm,
    )
    field.set(visible=between, alpha=0.5)
