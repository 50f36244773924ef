"""Embed every image once with the aligned or the unaligned encoder."""

from pathlib import Path

from pipeline.data.datasets import DATASETS
from pipeline.devices import pick_device
from pipeline.images.embedder import embed_images
from pipeline.images.embeddings import read_health
from pipeline.params import read_params
from stages import run, show


def main(params: Path, encoder: str, images: Path, metadata: Path, weights: Path, target: Path) -> str:
    p = read_params(params)
    checkpoint = weights / f"dreamsim_{p.backbone}_checkpoint.zip"
    dataset = DATASETS[p.dataset]
    embed_images(
        dataset, images, metadata, checkpoint, target, p.backbone, encoder, p.embed, pick_device(p.embed.device)
    )
    show(f"{p.backbone}, {encoder}", [{"block": block} | health for block, health in read_health(target).items()])
    return str(target)


if __name__ == "__main__":
    run(main)
