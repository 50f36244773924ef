"""Get the files of the chosen dataset as they are published: the subjects' EEG, the images, the metadata."""

from pathlib import Path

from pipeline.data.datasets import DATASETS
from pipeline.data.image_table import write_image_table
from pipeline.fetch.download import fetch_dataset
from pipeline.params import read_params
from pipeline.tables import check_names
from stages import run, show


def main(params: Path, eeg: Path, images: Path, metadata: Path, image_table: Path) -> str:
    p = read_params(params)
    check_names(p)  # here, where a first run begins: not after hours of downloading and embedding
    dataset = DATASETS[p.dataset]
    fetch_dataset(dataset.source, p.download.osf_api, p.subjects, eeg, images, metadata)
    write_image_table(image_table, dataset.read_metadata(metadata))
    files = [*sorted(eeg.iterdir()), *sorted(images.iterdir()), metadata]
    show(f"{p.dataset}: files", [{"file": str(path), "MB": path.stat().st_size / 1e6} for path in files])
    return f"{len(list(eeg.iterdir()))} subjects to {eeg} and the images to {images}"


if __name__ == "__main__":
    run(main)
