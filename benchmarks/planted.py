"""What the embeddings of the sample's pictures hold, in letters: the table in pipeline/datasets/sample_contents.py.

    python -m benchmarks.planted     # prints the module anew, from what `make repro` left in data/

The EEG of the sample is made of it (`sample.truth`). It changes where the pictures or the stand-in of synclr_vitb16 do;
a long test compares (tests/test_sample.py).
"""

from pathlib import Path

import numpy as np

from pipeline.datasets.image_table import read_image_table
from pipeline.datasets.sample import N_COMPONENTS
from pipeline.images.embeddings import read_embeddings

TABLE = Path("pipeline/datasets/sample_contents.py")
TRUTHS = ("aligned", "unaligned")
WORDS_PER_LINE = 4


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


def main() -> None:
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


if __name__ == "__main__":
    main()
