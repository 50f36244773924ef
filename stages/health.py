"""Write how sound the two embedding caches are, and how far they agree with people."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.human import read_human
from pipeline.datasets.image_table import read_image_table
from pipeline.images.embeddings import ORIGINAL, read_embeddings, read_health
from pipeline.images.health import agreement_with_people
from stages import run, show, write_json


def main(image_table: Path, human: Path, unaligned: Path, aligned: Path, metrics: Path) -> str:
    test = read_image_table(image_table)["test"]
    people = read_human(human)

    health: dict[str, dict[str, dict[str, Any]]] = {}
    for path in (unaligned, aligned):
        blocks = health[path.stem] = {name: {**block} for name, block in read_health(path).items()}
        for name, figures in blocks.items():
            if isinstance(people, str):
                figures |= {"people_spearman": None, "no_people_because": people}
            else:
                similarity = people.of(test["things_concept"].tolist())
                embeddings = embeddings_of(path, name, test["image_ids"].to_numpy())
                figures["people_spearman"] = agreement_with_people(embeddings, similarity)
    write_json(metrics, health)

    if isinstance(people, str):
        print(f"{people}: whether embeddings agree with people is left out")
        return str(metrics)
    show("Do the embeddings of the test images agree with people?", rows_of(health))
    return str(metrics)


def embeddings_of(cache: Path, name: str, image_ids: np.ndarray) -> np.ndarray:
    """The rows (N, D) of these images; the name is a block, or `<view>/<block>`."""
    view, _, block = name.rpartition("/")
    view = view or ORIGINAL
    embeddings = read_embeddings(cache, "last" if block == "last" else int(block), view, view)
    return embeddings.values[embeddings.rows(image_ids)]


def rows_of(health: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, object]]:
    """A row a cache and block."""
    return [
        {"embeddings": cache, "block": name, "Spearman with people": figures["people_spearman"]}
        for cache, blocks in health.items()
        for name, figures in blocks.items()
    ]


if __name__ == "__main__":
    run(main)
