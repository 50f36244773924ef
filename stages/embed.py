"""Embed every image once: with the unaligned encoder, or with one that was aligned with people."""

from pathlib import Path

from pipeline.compute.devices import pick_device
from pipeline.errors import EMBED_AGAIN, InputError
from pipeline.images.embedder import embed_images
from pipeline.images.embeddings import read_about, read_health, write_no_embeddings
from pipeline.images.models.table import OfCache, find_alignment, find_model
from pipeline.params import read_params
from pipeline.sections import Embed
from stages import run, show


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
    return embed(p.embed, backbone, alignment, images, image_table, weights, unaligned, target)


def embed(
    parameters: Embed,
    backbone: str,
    alignment: str,
    images: Path,
    image_table: Path,
    weights: Path,
    unaligned: Path,
    target: Path,
) -> str:
    """`alignment` is a kind, or none; `unaligned` is the cache of the unaligned encoder, `target` the one to write."""
    model = find_model(backbone)
    encoder = "unaligned" if alignment == "none" else "aligned"
    try:
        load = model.unaligned if alignment == "none" else find_alignment(backbone, alignment)
    except (
        InputError
    ) as error:  # DVC asks for both encoders, also where nobody wants the aligned one
        print(error)
        write_no_embeddings(target, str(error))
        return str(target)
    if isinstance(load, OfCache):
        of = read_about(unaligned)[0].get("backbone")
        if of != backbone:
            raise InputError(
                f"{unaligned}: is the cache of {of}, and that of {backbone} is needed; {EMBED_AGAIN}"
            )
        load.write(unaligned, weights / load.file, target)
    else:
        names = {"backbone": backbone, "encoder": encoder, "alignment": alignment}
        device = pick_device(parameters.device)
        embed_images(
            image_table, images, load, weights / model.file, target, names, parameters, device
        )
    rows = [{"block": block, **health} for block, health in read_health(target).items()]
    if rows:
        show(f"{backbone}, {encoder}", rows)
    return str(target)


if __name__ == "__main__":
    run(main)
