"""Download the chosen dataset as published: the EEG of the subjects, the images, the metadata.

Of the user's own files (dataset: own) the paths of the recordings, and a copy of the pictures.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.datasets.image_table import SPLITS, without_split, write_image_table
from pipeline.datasets.shown_images import check_shown_images
from pipeline.datasets.sources import ALLJOINED_LICENCE, OwnCopy, OwnFiles, PublishedFiles
from pipeline.datasets.table import DATASETS
from pipeline.download.copies import open_copies
from pipeline.download.download import Addresses, UserFiles, fetch_dataset, require_licence
from pipeline.download.own_copy import check_images, collect_images, find_own_copy
from pipeline.download.own_files import place_own_files
from pipeline.params import read_params
from stages import run, show
from stages.names import check_names


def main(
    params: Path,
    eeg: Path,
    images: Path,
    metadata: Path,
    image_table: Path,
    left_in: Annotated[
        Path | None, typer.Option(help="a folder where users leave files; noticed, not used")
    ] = None,
    own_check: Annotated[
        Path | None, typer.Option(help="what the stage check_own has found of your own files")
    ] = None,
    to_embed: Annotated[
        Path | None, typer.Option(help="the table of images, as the embedding reads it")
    ] = None,
) -> str:
    p = read_params(params)
    check_names(p)  # a first run begins here: a wrong name must not show only after hours

    dataset = DATASETS[p.dataset]
    source = dataset.source
    if isinstance(source, OwnFiles):
        assert own_check
        place_own_files(own_check, p.own.images, p.subjects, eeg, images, metadata)
        return finish(p.dataset, eeg, images, metadata, image_table, to_embed)
    if dataset.planted and not isinstance(source, PublishedFiles):
        source = partial(source, truth=p.sample.truth)
    if isinstance(source, PublishedFiles):
        require_licence(source, {ALLJOINED_LICENCE: p.download.accept_alljoined_licence})

    # The user's own files are checked before hours of downloading.
    user_files = UserFiles(
        open_copies(p.download.own_copy), left_in, p.download.accept_new_versions
    )

    # THINGS' images need a licence, so that no server is asked for them.
    own_images = None
    if isinstance(source, PublishedFiles) and isinstance(source.images, OwnCopy):
        own_images = find_own_copy(p.download.things_images)

    # Called before the large files come: the metadata alone tell which images are needed.
    def check_metadata(metadata: Path) -> None:
        assert own_images
        check_images(own_images, image_ids_of(p.dataset, metadata))

    # Called before the EEG comes, with the metadata and the images in place.
    def check_images_again(shown: Path) -> None:
        check_shown_images(shown, images, DATASETS[p.dataset].read_metadata(metadata))

    addresses = Addresses(
        p.download.osf_api,
        p.download.figshare_api,
        p.download.openneuro,
        p.download.hugging_face,
    )
    fetch_dataset(
        source,
        addresses,
        p.subjects,
        eeg,
        images,
        metadata,
        user_files=user_files,
        check_metadata=check_metadata if own_images else None,
        check_shown_images=check_images_again,
    )
    if own_images:
        collect_images(own_images, image_ids_of(p.dataset, metadata), images / "things_images.zip")
    return finish(p.dataset, eeg, images, metadata, image_table, to_embed)


def finish(
    dataset: str,
    eeg: Path,
    images: Path,
    metadata: Path,
    image_table: Path,
    to_embed: Path | None,
) -> str:
    """Write the tables of images, and show all files."""
    tables = DATASETS[dataset].read_metadata(metadata)
    # All later stages read this table, and none of them the metadata of a dataset.
    write_image_table(image_table, tables)

    # A published split never changes. That of the user's own pictures may, and embeds none again.
    if to_embed and isinstance(DATASETS[dataset].source, OwnFiles):
        write_image_table(to_embed, without_split(tables))
    elif to_embed:
        write_image_table(to_embed, tables)

    files = [
        path for folder in (eeg, images) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    rows = [{"file": str(path), "MB": path.stat().st_size / 1e6} for path in [*files, metadata]]
    show(f"{dataset}: files", rows)
    return f"{len(list(eeg.iterdir()))} subjects to {eeg} and the images to {images}"


def image_ids_of(dataset: str, metadata: Path) -> list[str]:
    """The ids of all training and then all test images."""
    tables = DATASETS[dataset].read_metadata(metadata)
    return [image_id for split in SPLITS for image_id in tables[split]["image_ids"]]


if __name__ == "__main__":
    run(main)
