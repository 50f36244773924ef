"""Every image of the dataset through the frozen encoder once."""

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.embeddings import Embeddings, write_embeddings
from pipeline.encoders import ImageEncoder, load_encoder, preprocess
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.things_eeg2 import decode_image, open_image_zip, read_metadata
from pipeline.untrusted import read_member

DECODERS = 2  # threads that decode and resize the next batch while the model works on this one


def embed_images(
    images_dir: Path,
    metadata: Path,
    checkpoint: Path,
    target: Path,
    *,
    backbone: str,
    variant: Literal["unaligned", "aligned"],
    precision: Literal["float32", "bfloat16"],
    batch_size: int,
    device: torch.device,
) -> tuple[int, int]:
    """Embed the training and test images that the metadata names and write the cache; return its shape (N, D).

    The images are read from their two zips. The file is byte-identical for the same inputs, device and versions.
    """
    splits = read_metadata(metadata)
    encoder, adapter = load_encoder(checkpoint, backbone, variant)
    encoder = encoder.to(device)
    image_ids = [image_id for split in ("train", "test") for image_id in splits[split]["image_ids"]]
    batches = []
    with (
        open_image_zip(images_dir / "training_images.zip", splits["train"]["image_ids"]) as train,
        open_image_zip(images_dir / "test_images.zip", splits["test"]["image_ids"]) as test,
        tqdm(total=len(image_ids), unit="image", desc=f"embed {variant}", disable=None) as bar,
    ):
        archive_of = {"training_images": train, "test_images": test}
        for batch in _decoded(archive_of, image_ids, batch_size):
            batches.append(_embed(encoder, batch, precision, device))
            bar.update(len(batch))
    values = np.concatenate(batches)
    if not np.isfinite(values).all():
        raise InputError(f"{checkpoint}: the {variant} encoder gives embeddings that are not finite; fetch it again")
    attributes = {
        "backbone": backbone,
        "encoder": variant,
        "feature": "CLS token after the last block, before the last LayerNorm",
        "preprocessing": "whole image resized to 224 x 224 (bicubic), ImageNet mean and std",
        "precision": precision,
        "device": device.type,
        "checkpoint_sha256": sha256(checkpoint),
        "lora": str(dict(sorted(adapter.items()))) if variant == "aligned" else "none",
        "versions": " ".join(f"{package} {version(package)}" for package in ("torch", "timm", "pillow")),
    }
    write_embeddings(target, Embeddings(values, np.array(image_ids, dtype=object)), attributes)
    return values.shape


def _decoded(archives: dict[str, zipfile.ZipFile], image_ids: list[str], batch_size: int) -> Iterator[Tensor]:
    """Batches (B, 3, 224, 224) uint8 in the order of the ids; the next one is decoded while the caller works."""

    def decode(image_id: str) -> Tensor:
        archive = archives[image_id.split("/")[0]]
        return preprocess(decode_image(read_member(archive, image_id), image_id))

    starts = range(0, len(image_ids), batch_size)
    with ThreadPoolExecutor(DECODERS) as pool:
        pending = [pool.submit(decode, image_id) for image_id in image_ids[:batch_size]]
        for start in starts:
            following = image_ids[start + batch_size : start + 2 * batch_size]
            current, pending = pending, [pool.submit(decode, image_id) for image_id in following]
            yield torch.stack([future.result() for future in current])


@torch.inference_mode()
def _embed(encoder: ImageEncoder, images: Tensor, precision: str, device: torch.device) -> np.ndarray:
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        [embedded] = encoder(images.to(device).float() / 255)
    return embedded.float().cpu().numpy()
