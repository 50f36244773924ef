"""Get the checkpoint of the backbone, or for synthetic data random weights in its layout."""

from pathlib import Path

from pipeline.data.datasets import DATASETS
from pipeline.errors import InputError
from pipeline.fetch.download import fetch_release
from pipeline.images.models import find_model
from pipeline.params import read_params
from stages import run, show


def main(params: Path, backbone: str, weights: Path) -> str:
    p = read_params(params)
    model = find_model(backbone)
    if DATASETS[p.dataset].synthetic:
        model.stand_in(weights)
    elif model.release is not None:
        fetch_release(p.download.dreamsim_releases, model.release, model.file, weights)
    else:
        raise InputError(f"{backbone}: its weights are published nowhere that this can fetch them from")
    files = sorted(weights.iterdir())
    show(f"{backbone}: checkpoint", [{"file": str(path), "MB": path.stat().st_size / 1e6} for path in files])
    return ", ".join(map(str, files))


if __name__ == "__main__":
    run(main)
