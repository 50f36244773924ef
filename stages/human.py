"""Get what people say of the test images' concepts; for synthetic data, simulate it."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.datasets.human import measure_similarity, write_human, write_no_human
from pipeline.datasets.image_table import read_image_table
from pipeline.datasets.sources import HumanFiles
from pipeline.datasets.table import DATASETS
from pipeline.download.copies import open_copies
from pipeline.download.download import UserFiles, fetch_file
from pipeline.params import Params, read_params
from stages import run

SIMILARITY = "similarity.h5"


def main(
    params: Path,
    image_table: Path,
    folder: Path,
    left_in: Annotated[
        Path | None, typer.Option(help="a folder where users leave files; noticed, not used")
    ] = None,
) -> str:
    p = read_params(params)
    concepts = read_image_table(image_table)["test"]["things_concept"].tolist()
    source = DATASETS[p.dataset].human

    target = folder / SIMILARITY
    if source is None:
        why = (
            f"nobody has published how alike people find the concepts of this dataset ({p.dataset})"
        )
        write_no_human(target, why)
        print(f"{why}: what needs that is left out")
    elif isinstance(source, HumanFiles):
        fetch(source, p, folder, left_in)
        categories = folder / Path(source.categories).name
        files = folder / source.embedding, folder / source.words, categories
        write_human(target, measure_similarity(*files, concepts, source.about, synthetic=False))
    else:
        files = folder / "embedding.txt", folder / "words.csv", folder / "categories.tsv"
        source(*files)
        about = "simulated from what is in the pictures"
        write_human(target, measure_similarity(*files, concepts, about, synthetic=True))
    return str(target)


def fetch(source: HumanFiles, p: Params, folder: Path, left_in: Path | None) -> None:
    """Put the published files into the folder."""
    user_files = UserFiles(open_copies(p.download.own_copy), left_in)
    bucket = p.download.openneuro.rstrip("/")
    repository = f"{p.download.things_data.rstrip('/')}/{source.commit}"
    for root, path in (
        (bucket, f"{source.folder}/{source.embedding}"),
        (bucket, f"{source.folder}/{source.words}"),
        (repository, source.categories),
    ):
        name = Path(path).name
        # Another version of a file is taken where the user says so.
        known_file = None if p.download.accept_new_versions else source.known_files[name]
        fetch_file(
            f"{root}/{path}",
            folder,
            name,
            published_path=path,
            user_files=user_files,
            known_file=known_file,
        )


if __name__ == "__main__":
    run(main)
