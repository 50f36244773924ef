"""Download the second recording of protocol across: its EEG, which shows the images of the first.

No image of it is fetched: those of the first recording are embedded already. Without a second
recording (across.dataset: none) the output holds a note alone.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from pipeline.datasets.image_table import SPLITS, Split, read_image_table, write_image_table
from pipeline.datasets.shown_images import check_shown_images
from pipeline.datasets.sources import ALLJOINED_LICENCE, OwnFiles, PublishedFiles
from pipeline.datasets.table import DATASETS
from pipeline.download.copies import open_copies
from pipeline.download.download import Addresses, UserFiles, fetch_dataset, require_licence
from pipeline.errors import InputError
from pipeline.params import read_params
from stages import run, show, write_note
from stages.names import check_second


def main(
    params: Path,
    images: Path,
    image_table: Path,
    second: Path,
    left_in: Annotated[
        Path | None, typer.Option(help="a folder where users leave files; noticed, not used")
    ] = None,
) -> str:
    """`images` and `image_table` are those of the first recording; all else goes to `second`."""
    p = read_params(params)
    if p.across.dataset == "none":
        write_note(second, "Empty: there is no second recording (across.dataset: none).")
        return ""
    check_second(p.dataset, p.across.dataset)

    dataset = DATASETS[p.across.dataset]
    source = dataset.source
    assert not isinstance(source, OwnFiles)
    if isinstance(source, PublishedFiles):
        require_licence(source, {ALLJOINED_LICENCE: p.download.accept_alljoined_licence})
    elif dataset.planted:
        source = partial(source, truth=p.sample.truth)

    metadata = second / "image_metadata"

    # Called as soon as the metadata are there, so that nothing more is fetched in vain.
    def check_metadata(metadata: Path) -> None:
        tables = dataset.read_metadata(metadata)
        require_the_same_images(p.across.dataset, tables, image_table)

    def check_images(shown: Path) -> None:
        check_shown_images(shown, images, dataset.read_metadata(metadata))

    fetch_dataset(
        source,
        Addresses(
            p.download.osf_api,
            p.download.figshare_api,
            p.download.openneuro,
            p.download.hugging_face,
        ),
        p.across.subjects,
        second / "eeg",
        None,
        metadata,
        user_files=UserFiles(
            open_copies(p.download.own_copy), left_in, p.download.accept_new_versions
        ),
        check_metadata=check_metadata,
        check_shown_images=check_images,
    )

    check_metadata(metadata)  # of what is made here, too
    tables = dataset.read_metadata(metadata)
    write_image_table(second / "images.csv", tables)

    files = sorted((second / "eeg").iterdir())
    show(f"{p.across.dataset}, the second recording", [{"subject": path.stem} for path in files])
    return f"{len(files)} subjects to {second}"


def require_the_same_images(
    name: str, tables: dict[Split, pd.DataFrame], image_table: Path
) -> None:
    """InputError unless the second recording shows the first one's images, in the same split."""
    first = read_image_table(image_table)
    for split in SPLITS:
        differing = set(tables[split]["image_ids"]) ^ set(first[split]["image_ids"])
        if differing:
            raise InputError(
                f"across.dataset is {name}: its {split} images are not those of the first "
                f"recording, {len(differing)} are of one alone, such as {min(differing)}; expected "
                "the same images in the same split: name another across.dataset, or none"
            )


if __name__ == "__main__":
    run(main)
