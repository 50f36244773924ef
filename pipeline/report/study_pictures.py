"""The pictures of a study as PNG: every cell and subject, and both encoders against the block."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.report.style import COLOURS, QUIET, STYLE, Picture, save_png
from pipeline.train.protocols import describe_recordings

Cells = list[dict[str, Any]]

NAMES = ("backbone", "alignment", "eeg_encoder", "block")  # of a cell, as its row is called
OFFSET = {"unaligned": 0.18, "aligned": -0.18}  # of a row, upwards
DASHES: dict[str, Literal["-", "--"]] = {"unaligned": "-", "aligned": "--"}
MARKERS = {"unaligned": "o", "aligned": "D"}
LINE_COLOURS = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#CC79A7",
    "#F0E442",
)  # Okabe and Ito, without the encoders' own
POINTS = "osD^vPX<>"
ROW = 0.27  # inches
FILLED = (
    "Filled: claimed after Holm's correction. The intervals are not corrected, so that one "
    "without 0 can belong to a hollow point. Dotted: over test images alone, of a cell that "
    "carries no claim."
)
TEXTS = {  # of each picture the heading, of a task, and the description
    "cells": (
        "Every cell: {}",
        "Left: top-1 of each subject (small, the mean over seeds) and of all (large), unaligned "
        "above as circles and aligned below as diamonds; upright strokes are ridge, where it is in "
        "the grid; the dashed line is chance. Right: the "
        "difference aligned - unaligned with its 95 % "
        "interval. " + FILLED,
    ),
    "depth": (
        "Top-1 by depth: {}",
        "Top-1 with the output of each block of the image model, unaligned in full lines and "
        "aligned in dashed ones, with 95 % intervals; a panel a backbone, a point's shape an "
        "{modality} encoder. The dotted line is chance.",
    ),
    "blocks": (
        "Which block of the image model: {}",
        "The difference aligned - unaligned of top-1, with its 95 % interval, against the block "
        "of the image model "
        "whose output the {modality} encoder learns; a panel a backbone, a line an {modality} "
        "encoder. " + FILLED,
    ),
}
# What the colour inside a point says
FILLS = {"claimed, after Holm's correction": QUIET, "not claimed": "white"}


def draw_study_pictures(
    folder: Path, summary: dict[str, Any], table: pd.DataFrame
) -> list[Picture]:
    """Draw all cells of each task; with several blocks top-1 and difference against the block.

    A task is a protocol on its recordings. `summary` and `table` are what `study.summary.summarise`
    returns; none of a task without any pair of runs.
    """
    synthetic = ", SYNTHETIC DATA" if summary["synthetic"] else ""
    subjects = table[table["status"] == "ok"].astype(
        {"block": str}
    )  # numbers, where they come from a CSV file

    pictures = []
    with matplotlib.style.context(["default", STYLE]):
        for name_of_files, (task, cells) in _tasks(summary).items():
            if not any(cell["difference"] for cell in cells):
                continue

            # With the names of recordings a line would be too long for the picture
            separator = "\n" if len(summary["datasets"]) > 1 else ", "
            about = f"{task}{separator}{summary['n_way']}-way{synthetic}"
            figures = {
                "cells": all_cells(
                    cells, subjects, summary["chance_top1"], f"Every cell and subject\n{about}"
                )
            }

            # One block alone makes no curve.
            if len({cell["block"] for cell in cells}) > 1:
                figures["depth"] = by_depth(
                    cells, summary["chance_top1"], f"Top-1 by depth of the image model\n{about}"
                )
                paired = [cell for cell in cells if cell["difference"]]
                figures["blocks"] = across_blocks(
                    paired, f"Aligned - unaligned against the block\n{about}"
                )

            for name, figure in figures.items():
                path = folder / f"{name}-{name_of_files}.png"
                save_png(figure, path)
                heading, description = TEXTS[name]
                description = description.format(modality=summary.get("modality", "EEG"))
                pictures.append(Picture(path, heading.format(task), description))
    return pictures


def _tasks(summary: dict[str, Any]) -> dict[str, tuple[str, Cells]]:
    """The cells of each task with its name in words, by its name in files.

    The recordings are in both names where the study has several.
    """
    tasks: dict[str, tuple[str, Cells]] = {}
    for cell in summary["cells"]:
        name_of_files = cell["protocol"]
        task = cell["protocol"]
        if len(summary["datasets"]) > 1:
            names = (cell["trained_dataset"], cell["tested_dataset"])
            name_of_files += "-" + "-to-".join(dict.fromkeys(names))
            task += f", {describe_recordings(*names)}"

        _, cells = tasks.setdefault(name_of_files, (task, []))
        cells.append(cell)
    return tasks


def all_cells(cells: Cells, subjects: pd.DataFrame, chance: float, title: str) -> Figure:
    """A row a cell: top-1 of both encoders by subject, and the difference with its interval.

    `subjects` has a row a run and subject.
    """
    # A row is called by what differs between cells; what all share stands in the title.
    varied = [name for name in NAMES if len({cell[name] for cell in cells}) > 1]
    labels = [_label(cell, varied) for cell in cells]
    figure = Figure(figsize=(7.2, ROW * len(cells) + 1.5), layout="constrained")
    common = ", ".join(str(cells[0][name]) for name in NAMES[:3] if name not in varied)
    figure.suptitle(f"{title}{f' ({common})' if common else ''}", fontsize=9, fontweight="bold")

    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.5, 1])
    of_cell = ["backbone", "alignment", "block", "eeg_encoder", "protocol", "trained_dataset"]
    of_cell += ["tested_dataset", "encoder"]
    means = subjects.groupby([*of_cell, "subject"])["top1_acc"].mean()  # over the seeds

    for row, cell in enumerate(cells):
        for encoder, offset in OFFSET.items():
            if "top1_acc" in cell[encoder]:  # there is a whole run of this encoder
                # `cell.get(name, encoder)`: a cell has all of these keys but "encoder".
                of_encoder = means.loc[tuple(cell.get(name, encoder) for name in of_cell)]
                _top1(left, cell, encoder, of_encoder.to_numpy(), row - offset)

        if cell["difference"]:
            _difference(right, cell, row, "black", "o", horizontal=True)
        else:
            right.text(0, row, " no pair left", va="center", color=QUIET)

        # A thin line between backbones.
        if row and cell["backbone"] != cells[row - 1]["backbone"]:
            for ax in (left, right):
                ax.axhline(row - 0.5, color=QUIET, linewidth=0.4)

    left.axvline(100 * chance, color=QUIET, linestyle="--", linewidth=0.9)
    right.axvline(0, color=QUIET, linestyle="--", linewidth=0.9)
    left.set(
        xlabel="top-1 (%)",
        ylim=(len(cells) - 0.5, -0.5),  # the first cell is on top
        yticks=range(len(cells)),
        yticklabels=labels,
    )
    left.set_xlim(left=0)
    right.set(xlabel="aligned - unaligned (points)")
    right.tick_params(axis="y", length=0)

    for ax in (left, right):
        ax.grid(axis="x", linewidth=0.3)

    encoders = [
        Line2D([], [], linestyle="", marker=MARKERS[name], color=COLOURS[name]) for name in OFFSET
    ]
    line = Line2D([], [], linestyle="--", color=QUIET)
    names = [*OFFSET, f"chance, {100 * chance:.1f} %", *FILLS]
    handles = [*encoders, line, *_filled_points()]
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _top1(ax: Axes, cell: dict[str, Any], encoder: str, of_subjects: np.ndarray, y: float) -> None:
    """Top-1 of each subject (S,) as small points, of all as a large one, and of ridge."""
    about: dict[str, Any] = {"marker": MARKERS[encoder], "color": COLOURS[encoder]}
    x = 100 * of_subjects
    ax.scatter(x, np.full(len(x), y), 7, alpha=0.5, linewidth=0, **about)

    mean = 100 * cell[encoder]["top1_acc"]
    ax.scatter(mean, y, 26, edgecolor="black", linewidth=0.6, zorder=3, **about)

    of_ridge = (cell.get("ridge") or {}).get(encoder)
    if of_ridge is not None:
        ax.plot(100 * of_ridge, y, "|", color="black", markersize=9, zorder=2)


def across_blocks(cells: Cells, title: str) -> Figure:
    """The difference against the block, `last` at the end.

    A panel a backbone, a line an EEG encoder.
    """
    blocks = _blocks(cells)
    kinds = _kinds(cells)
    figure, panels = _panels(cells, blocks, title)
    for ax, backbone in panels:
        for i, (eeg_encoder, alignment) in enumerate(kinds):
            line_cells = _cells_of(cells, backbone, eeg_encoder, alignment)
            shift = 0.12 * (i - (len(kinds) - 1) / 2)  # so that intervals do not hide each other
            x = [blocks.index(cell["block"]) + shift for cell in line_cells]

            colour = LINE_COLOURS[i % len(LINE_COLOURS)]
            point = POINTS[i % len(POINTS)]
            y = [100 * cell["difference"]["top1_acc"]["mean"] for cell in line_cells]
            ax.plot(x, y, color=colour, linewidth=1)
            for place, cell in zip(x, line_cells, strict=True):
                _difference(ax, cell, place, colour, point, horizontal=False)

        ax.axhline(0, color=QUIET, linestyle="--", linewidth=0.9)

    figure.supylabel("aligned - unaligned, top-1 (points)", fontsize=8)
    lines = [
        Line2D([], [], color=LINE_COLOURS[i % len(LINE_COLOURS)], marker=POINTS[i % len(POINTS)])
        for i in range(len(kinds))
    ]
    handles = [*lines, *_filled_points()]
    figure.legend(handles, [*_names_of(kinds), *FILLS], loc="outside lower center", ncols=3)
    return figure


def by_depth(cells: Cells, chance: float, title: str) -> Figure:
    """Top-1 of both encoders against the block, `last` at the end, each with its interval.

    A panel a backbone, a pair of lines an EEG encoder.
    """
    blocks = _blocks(cells)
    kinds = _kinds(cells)
    figure, panels = _panels(cells, blocks, title)
    for ax, backbone in panels:
        for i, (eeg_encoder, alignment) in enumerate(kinds):
            line_cells = _cells_of(cells, backbone, eeg_encoder, alignment)
            for k, encoder in enumerate(OFFSET):
                scored = [cell for cell in line_cells if "top1_acc" in cell[encoder]]
                shift = 0.08 * (2 * i + k - len(kinds) + 0.5)  # intervals side by side
                x = [blocks.index(cell["block"]) + shift for cell in scored]
                y = np.array([100 * cell[encoder]["top1_acc"] for cell in scored])
                ends = [100 * np.array(cell[encoder]["ci95"]["top1_acc"]) for cell in scored]

                about: dict[str, Any] = {"color": COLOURS[encoder], "linestyle": DASHES[encoder]}
                ax.plot(x, y, marker=POINTS[i % len(POINTS)], markersize=4, linewidth=1, **about)
                for place, (low, high) in zip(x, ends, strict=True):
                    ax.plot([place, place], [low, high], color=COLOURS[encoder], linewidth=0.8)

        ax.axhline(100 * chance, color=QUIET, linestyle=":", linewidth=0.9)
        ax.set_ylim(bottom=0)

    figure.supylabel("top-1 (%)", fontsize=8)
    lines = [Line2D([], [], color=COLOURS[name], linestyle=DASHES[name]) for name in OFFSET]
    points = [
        Line2D([], [], linestyle="", color=QUIET, marker=POINTS[i % len(POINTS)])
        for i in range(len(kinds))
    ]
    line = Line2D([], [], linestyle=":", color=QUIET)
    names = [*OFFSET, f"chance, {100 * chance:.1f} %", *_names_of(kinds)]
    figure.legend([*lines, line, *points], names, loc="outside lower center", ncols=3)
    return figure


def _filled_points() -> list[Line2D]:
    """For the legend: a point for each of `FILLS`."""
    about: dict[str, Any] = {"linestyle": "", "marker": "o", "color": QUIET, "markersize": 5}
    return [Line2D([], [], markerfacecolor=colour, **about) for colour in FILLS.values()]


def _blocks(cells: Cells) -> list[str]:
    """All blocks, the deepest last."""
    # zfill sorts numbers in text as numbers: 6, 9, 12, last.
    return sorted(
        {cell["block"] for cell in cells}, key=lambda block: (block == "last", block.zfill(9))
    )


def _kinds(cells: Cells) -> list[tuple[str, str]]:
    """Each EEG encoder and alignment, which are lines of a panel."""
    return sorted({(cell["eeg_encoder"], cell["alignment"]) for cell in cells})


def _names_of(kinds: Sequence[tuple[str, str]]) -> list[str]:
    several_alignments = len({alignment for _, alignment in kinds}) > 1
    return [
        f"{eeg_encoder}, {alignment}" if several_alignments else eeg_encoder
        for eeg_encoder, alignment in kinds
    ]


def _cells_of(cells: Cells, backbone: str, eeg_encoder: str, alignment: str) -> Cells:
    """The cells of a line, in their order."""
    about = {"backbone": backbone, "eeg_encoder": eeg_encoder, "alignment": alignment}
    return [cell for cell in cells if about.items() <= cell.items()]


def _panels(
    cells: Cells, blocks: Sequence[str], title: str
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """A figure, and a panel for each backbone, with the blocks along x."""
    backbones = sorted({cell["backbone"] for cell in cells})
    columns = min(3, len(backbones))
    rows = -(-len(backbones) // columns)  # rounded up
    figure = Figure(figsize=(max(4.0, 2.6 * columns), 2.1 * rows + 1.2), layout="constrained")
    figure.suptitle(title, fontsize=9, fontweight="bold")

    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, backbone in zip(axes, backbones, strict=False):
        ax.set_title(backbone, fontsize=8, parse_math=False)
        ax.set_xticks(range(len(blocks)), blocks)
        ax.grid(axis="y", linewidth=0.3)

    # Panels without a backbone are hidden; the lowest panel of each column names the axis.
    for ax in axes[len(backbones) :]:
        ax.set_visible(False)
    for ax in axes[len(backbones) - columns : len(backbones)]:
        ax.set_xlabel("block")
        ax.tick_params(labelbottom=True)
    return figure, list(zip(axes, backbones, strict=False))


def _difference(
    ax: Axes, cell: dict[str, Any], place: float, colour: str, marker: str, horizontal: bool
) -> None:
    """The mean with its interval, dotted if that is over test images alone; filled if claimed."""
    top1 = cell["difference"]["top1_acc"]
    # A cell without a claim has only the interval over test images.
    ends = 100 * np.array(top1["ci95"] or top1["ci95_these_models"], dtype=float)
    mean = 100 * top1["mean"]
    claimed = cell["verdict"] in ("better", "worse")

    places = [place, place]
    line = ax.plot(
        *((ends, places) if horizontal else (places, ends)), color=colour, linewidth=1.2
    )[0]

    if not top1["ci95"]:
        line.set(linewidth=0.8, linestyle=":")

    x, y = (mean, place) if horizontal else (place, mean)
    ax.scatter(
        x,
        y,
        24,
        marker=marker,
        facecolor=colour if claimed else "white",
        edgecolor=colour,
        zorder=3,
    )


def _label(cell: dict[str, Any], varied: Sequence[str]) -> str:
    parts = [
        f"block {cell[name]}" if name == "block" and cell[name] != "last" else cell[name]
        for name in varied
    ]
    return ", ".join(parts) or cell["backbone"]
