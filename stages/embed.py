"""Embed every image once with the aligned or the unaligned encoder."""

from pathlib import Path

from pipeline.devices import pick_device
from pipeline.images.embedder import embed_images
from pipeline.images.embeddings import read_health, write_no_embeddings
from pipeline.images.models import IMAGE_MODELS
from pipeline.params import read_params
from stages import run, show


def main(params: Path, encoder: str, images: Path, image_table: Path, weights: Path, target: Path) -> str:
    p = read_params(params)
    model = IMAGE_MODELS[p.backbone]
    aligned = encoder == "aligned"
    load = model.aligned.get(p.alignment) if aligned else model.unaligned
    if load is None:  # DVC asks for both encoders, also where nobody wants the aligned one
        why = f"{p.backbone} has no alignment {p.alignment}: set encoder to unaligned, or name another backbone"
        print(why)
        write_no_embeddings(target, why)
        return str(target)
    names = {"backbone": p.backbone, "encoder": encoder, "alignment": p.alignment if aligned else "none"}
    device = pick_device(p.embed.device)
    embed_images(image_table, images, load, weights / model.file, target, names, p.embed, device)
    show(f"{p.backbone}, {encoder}", [{"block": block, **health} for block, health in read_health(target).items()])
    return str(target)


if __name__ == "__main__":
    run(main)
