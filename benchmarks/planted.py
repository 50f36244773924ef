"""What is planted in the sample: the table that its EEG is made of, and README's figure of what was found.

    python -m benchmarks.planted                              # prints pipeline/datasets/sample_contents.py anew
    python -m benchmarks.planted found.webp A.json B.json ... # the figure, from metrics/comparison.json of each truth

The table is what the embeddings in data/embeddings hold, as `make repro` leaves them. It changes where the pictures or
the stand-in of synclr_vitb16 do; a long test compares (tests/test_planted.py).
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pipeline.datasets.image_table import read_image_table
from pipeline.datasets.sample import N_COMPONENTS
from pipeline.images.embeddings import read_embeddings
from pipeline.report.style import COLOURS, QUIET, STYLE, save_png

TABLE = Path("pipeline/datasets/sample_contents.py")
TRUTHS = ("aligned", "unaligned")
WORDS_PER_LINE = 4
WIDTH = 1000  # pixels of the figure
MARKERS = {"unaligned": "o", "aligned": "D"}


def components(train: np.ndarray, test: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (M, D) and (N, D) -> (M, n) and (N, n): principal components with SD 1 over the training images.

    Mean, standard deviation and directions are those of the training images.
    """
    mean, std = train.mean(0), train.std(0)
    train, test = (train - mean) / std, (test - mean) / std
    directions = np.linalg.svd(train, full_matrices=False)[2][:n]  # (n, D)

    # The sign of a direction is free: its largest weight is made positive.
    largest = directions[np.arange(n), np.abs(directions).argmax(1)]
    directions *= np.sign(largest)[:, None]
    scale = (train @ directions.T).std(0)
    return train @ directions.T / scale, test @ directions.T / scale


def to_words(values: np.ndarray) -> list[str]:
    """A word a row: m is 0, one letter on is a quarter, a and y are the ends."""
    steps = np.rint(4 * values).clip(-12, 12).astype(int)
    return ["".join(chr(ord("m") + step) for step in row) for row in steps]


def words_of(cache: Path, images: Path) -> dict[str, list[str]]:
    """The words of the training and the test images, in the order of the table of images."""
    embeddings = read_embeddings(cache, "last", "original", "original")
    table = read_image_table(images)
    train, test = (
        embeddings.values[embeddings.rows(table[split]["image_ids"].to_numpy())].astype(float)
        for split in ("train", "test")
    )
    parts = components(train, test, N_COMPONENTS)
    return {split: to_words(part) for split, part in zip(("train", "test"), parts, strict=True)}


def print_table() -> None:
    docstring = TABLE.read_text().split("CONTENTS")[0]
    lines = []
    for truth in TRUTHS:
        lines.append(f'    "{truth}": {{')
        words = words_of(Path(f"data/embeddings/{truth}.h5"), Path("data/fetched/images.csv"))
        for split, of_split in words.items():
            rows = [
                " ".join(of_split[start : start + WORDS_PER_LINE])
                for start in range(0, len(of_split), WORDS_PER_LINE)
            ]
            lines += [f'        "{split}": """', *rows, '""",']
        lines.append("    },")
    print(docstring + "CONTENTS = {\n" + "\n".join(lines) + "\n}")


def draw(comparisons: list[dict[str, Any]]) -> Figure:
    """A row a comparison: top-1 of both encoders, what was planted, and what the comparison says."""
    figure = Figure(figsize=(7.2, 0.55 * len(comparisons) + 0.9), layout="constrained")
    ax = figure.subplots()
    for row, comparison in enumerate(comparisons):
        top1 = comparison["metrics"]["top1_acc"]
        ax.plot([100 * top1[side] for side in MARKERS], [row, row], color=QUIET, zorder=0)
        for side, marker in MARKERS.items():
            label = side if row == 0 else None
            ax.scatter(100 * top1[side], row, 40, COLOURS[side], marker=marker, label=label)
        verdict = (
            f"{comparison['verdict']}\n{100 * top1['difference']:+.1f} points, p = {top1['p']:.2g}"
        )
        ax.text(102, row, verdict, va="center")

    chance = 100 * comparisons[0]["chance_top1"]
    ax.axvline(chance, color=QUIET, linestyle="--", linewidth=0.8)
    ax.text(chance + 0.6, -0.62, "chance", color=QUIET, fontsize=7, va="center")
    truths = [
        comparison["planted"].split("sample.truth: ")[1].split(")")[0] for comparison in comparisons
    ]
    ax.set_yticks(range(len(truths)), [f"planted: {truth}" for truth in truths])
    ax.set(xlim=(0, 100), ylim=(len(truths) - 0.5, -0.8), xlabel="top-1 accuracy (%)")
    ax.set_title(
        f"What was planted, and what was found ({comparisons[0]['n_way']}-way, SYNTHETIC DATA)"
    )
    ax.legend(loc="lower right")
    return figure


def main(target: Path, *comparisons: str) -> None:
    png = target.with_suffix(".png")
    with matplotlib.style.context(["default", STYLE]):
        save_png(draw([json.loads(Path(path).read_text()) for path in comparisons]), png)

    with Image.open(png) as picture:
        height = round(picture.height * WIDTH / picture.width)
        picture.convert("RGB").resize((WIDTH, height)).save(target, quality=90)
    png.unlink()


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]), *sys.argv[2:])
    else:
        print_table()
