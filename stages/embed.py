"""Embed every image once, with the unaligned image encoder or with one that is aligned."""

from pathlib import Path
from typing import NamedTuple

from pipeline.compute.devices import pick_device
from pipeline.errors import EMBED_AGAIN, InputError
from pipeline.images.embedder import embed_images
from pipeline.images.embeddings import read_about, read_health, write_no_embeddings
from pipeline.images.features import check_embed, write_cache
from pipeline.images.models.table import (
    FeaturesFile,
    OfCache,
    OwnCheckpoint,
    find_alignment,
    find_model,
)
from pipeline.params import read_params
from pipeline.sections import Embed
from pipeline.untrusted.features import ENDINGS
from stages import run, show


class Paths(NamedTuple):
    """The files that embedding reads, and the one that it writes."""

    images: Path
    image_table: Path
    weights: Path  # the folder of the backbone's files
    unaligned: Path  # the cache of the unaligned encoder
    target: Path  # the cache to write


def main(
    params: Path,
    backbone: str,
    alignment: str,
    images: Path,
    image_table: Path,
    weights: Path,
    unaligned: Path,
    target: Path,
) -> str:
    p = read_params(params)
    paths = Paths(images, image_table, weights, unaligned, target)
    return embed(p.embed, backbone, alignment, paths)


def embed(parameters: Embed, backbone: str, alignment: str, paths: Paths) -> str:
    """Write the cache `paths.target` and print how sound it is; `alignment` is a kind, or none.

    The cache is empty where the backbone has no such alignment.
    """
    model = find_model(backbone)
    encoder = "unaligned" if alignment == "none" else "aligned"
    notes = {"backbone": backbone, "encoder": encoder, "alignment": alignment}
    try:
        load = model.unaligned if alignment == "none" else find_alignment(backbone, alignment)
    except InputError as error:
        # DVC runs this for both encoders, also where the user needs only the unaligned one.
        print(error)
        write_no_embeddings(paths.target, str(error))
        return str(paths.target)

    # Some alignments are computed from the unaligned embeddings, and no image is read.
    if isinstance(load, OfCache):
        _check_backbone(paths.unaligned, backbone)
        load.write(paths.unaligned, paths.weights, paths.target)
    elif isinstance(load, FeaturesFile):
        check_embed(parameters)
        take_features(load, paths, notes)
    else:
        file = model.file
        if isinstance(load, OwnCheckpoint):
            file = load.file
            notes["caveat"] = load.caveat
            load = load.load
        embed_images(
            paths.image_table,
            paths.images,
            load,
            paths.weights / file,
            paths.target,
            notes,
            parameters,
            pick_device(parameters.device),
        )

    # None for a cache without embeddings.
    rows = [{"block": block, **health} for block, health in read_health(paths.target).items()]
    if rows:
        show(f"{backbone}, {encoder}", rows)
    return str(paths.target)


def take_features(load: FeaturesFile, paths: Paths, notes: dict[str, str]) -> None:
    """Write the cache from the user's file of features; an empty one where he named none."""
    folder = paths.weights / load.folder
    files = [path for path in folder.glob("*") if path.suffix.lower() in ENDINGS]
    if files:
        write_cache(files[0], load.key, paths.image_table, paths.target, notes)
        return

    # Only that of the aligned encoder may be missing: who decodes the unaligned one needs no other.
    reason = (
        f"{load.key} is none: set it to the full path of the features of the same images by the "
        "aligned model"
    )
    print(reason)
    write_no_embeddings(paths.target, reason)


def _check_backbone(cache: Path, backbone: str) -> None:
    """Raises InputError if the cache is of another backbone."""
    found_backbone = read_about(cache)[0].get("backbone")
    if found_backbone != backbone:
        raise InputError(
            f"{cache}: is the cache of {found_backbone}, and that of {backbone} is needed; "
            f"{EMBED_AGAIN}"
        )


if __name__ == "__main__":
    run(main)
