"""Get the weights of a backbone; for synthetic data, random weights in the same file layout."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pipeline.datasets.table import DATASETS
from pipeline.download.copies import open_copies
from pipeline.download.download import UserFiles, fetch_file
from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.images.models.table import FeaturesFile, find_model
from pipeline.params import read_params
from pipeline.untrusted.features import features_files
from stages import run, show


def main(
    params: Path,
    backbone: str,
    weights: Path,
    left_in: Annotated[
        Path | None, typer.Option(help="a folder where users leave files; noticed, not used")
    ] = None,
) -> str:
    p = read_params(params)
    model = find_model(backbone)

    user_files = UserFiles(open_copies(p.download.own_copy), left_in)
    addresses = {
        "alignet": p.download.alignet,
        "dino": p.download.dino,
        "dreamsim_releases": p.download.dreamsim_releases,
        "glocal": p.download.glocal,
        "hugging_face": p.download.hugging_face,
        "open_clip": p.download.open_clip,
    }

    # No weights at all: the features of the pictures are there already.
    if isinstance(model.unaligned, FeaturesFile):
        copy_features(p.download.features_file, p.download.features_file_aligned, weights)
    # Synthetic pictures need no real model, and the sample must run without a network.
    elif DATASETS[p.dataset].synthetic and model.stand_in:
        model.stand_in(weights)
    elif model.published:
        for file in model.published:
            parts = [addresses[file.root].rstrip("/"), file.commit, file.path]
            fetch_file(
                "/".join(part for part in parts if part),
                weights,
                file.name,
                file.sha256,
                published_path=file.path,
                user_files=user_files,
            )
    # A model whose weights nobody publishes here: the user's own file.
    elif Path(p.download.weights_file).is_file():
        with replacing(weights / model.file) as copy:
            shutil.copyfile(p.download.weights_file, copy)
        print(
            f"{p.download.weights_file}: gets the pictures and activations that timm has for "
            f"{backbone}; if it was trained with others, its embeddings are wrong, and nothing in "
            "the file tells"
        )
    else:
        raise InputError(
            f"download.weights_file is {p.download.weights_file}: the weights of {backbone} are "
            "published nowhere that this fetches them from, set it to the full path of your file "
            "of them (safetensors, or saved by torch)"
        )

    files = sorted(path for path in weights.rglob("*") if path.is_file())
    rows = [{"file": str(path), "MB": path.stat().st_size / 1e6} for path in files]
    show(f"{backbone}: weights", rows)
    return ", ".join(map(str, files))


def copy_features(unaligned: str, aligned: str, weights: Path) -> None:
    """Copy the user's files of features, each encoder's into a folder of its own.

    `aligned` may be none. Raises InputError where a parameter names no file of features.
    """
    files = {"unaligned": features_files(unaligned, "download.features_file")}
    if aligned != "none":
        files["aligned"] = features_files(aligned, "download.features_file_aligned")

    for folder in ("unaligned", "aligned"):
        # A file of another name would stay beside the new one.
        shutil.rmtree(weights / folder, ignore_errors=True)
        for path in files.get(folder, []):
            with replacing(weights / folder / path.name) as copy:
                shutil.copyfile(path, copy)


if __name__ == "__main__":
    run(main)
