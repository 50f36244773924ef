"""Embed every image once with the aligned or the unaligned encoder."""

from pathlib import Path

from pipeline.devices import pick_device
from pipeline.embedder import embed_images
from pipeline.params import read_params
from stages import run


def main(params: Path, encoder: str, images: Path, metadata: Path, weights: Path, target: Path) -> str:
    p = read_params(params)
    rows, dimensions = embed_images(
        images,
        metadata,
        weights / f"dreamsim_{p.backbone}_checkpoint.zip",
        target,
        backbone=p.backbone,
        variant=encoder,
        precision=p.embed.precision,
        batch_size=p.embed.batch_size,
        device=pick_device(p.embed.device),
    )
    return f"{rows} embeddings of {dimensions} dimensions to {target}"


if __name__ == "__main__":
    run(main)
