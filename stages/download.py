"""Get the files of the chosen dataset as they are published: the subjects' EEG, the images, the metadata."""

from pathlib import Path

from pipeline.data.datasets import DATASETS
from pipeline.data.image_table import SPLITS, write_image_table
from pipeline.data.sources import OwnCopy, PublishedFiles
from pipeline.fetch.download import Addresses, fetch_dataset
from pipeline.fetch.own_copy import collect_images, find_own_copy
from pipeline.params import read_params
from pipeline.tables import check_names
from stages import run, show


def main(params: Path, eeg: Path, images: Path, metadata: Path, image_table: Path) -> str:
    p = read_params(params)
    check_names(p)  # here, where a first run begins: not after hours of downloading and embedding
    dataset = DATASETS[p.dataset]
    source, own_copy = dataset.source, None
    if isinstance(source, PublishedFiles) and isinstance(source.images, OwnCopy):
        own_copy = find_own_copy(p.download.things_images)  # before hours of downloading
    addresses = Addresses(p.download.osf_api, p.download.figshare_api, p.download.openneuro)
    fetch_dataset(source, addresses, p.subjects, eeg, images, metadata)
    tables = dataset.read_metadata(metadata)
    if own_copy:
        image_ids = [image_id for split in SPLITS for image_id in tables[split]["image_ids"]]
        collect_images(own_copy, image_ids, images / "things_images.zip")
    write_image_table(image_table, tables)
    files = [path for folder in (eeg, images) for path in sorted(folder.rglob("*")) if path.is_file()]
    rows = [{"file": str(path), "MB": path.stat().st_size / 1e6} for path in [*files, metadata]]
    show(f"{p.dataset}: files", rows)
    return f"{len(list(eeg.iterdir()))} subjects to {eeg} and the images to {images}"


if __name__ == "__main__":
    run(main)
