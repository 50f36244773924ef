"""Every image of the dataset through the frozen encoder, each view once, into the embedding cache.

How `embed_images` works:

1. A few images are embedded the plain way, by the encoder as it was loaded: the reference.
2. The encoder is made faster, and `batches` embeds all images.
3. All embeddings are compared with the reference, and written.

A finished batch is saved at once in the user's cache folder. Its file is named by the names and
checksums of its images; the folder is named by everything else that decides the numbers. So after
an interruption, or when one image was replaced, only the missing batches are computed. The files
stay for good: DVC runs the pipeline and the study as different stages, and each stage can use what
another stage has computed. Two runs that need the same folder take turns.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.compute.devices import device_name
from pipeline.compute.unfinished import unfinished
from pipeline.datasets.image_table import read_image_table
from pipeline.errors import InputError
from pipeline.files import check_folders, sha256
from pipeline.images import health
from pipeline.images.acceleration import accelerate
from pipeline.images.batches import embed_batches, make_pool, make_replicas
from pipeline.images.decoding import Batch, Decoder
from pipeline.images.embeddings import ORIGINAL, Attributes, write_embeddings
from pipeline.images.models.table import Load
from pipeline.images.models.vit import ImageEncoder
from pipeline.images.views import check_views
from pipeline.sections import BlockChoice, Embed, ResolvedEmbed
from pipeline.untrusted.pictures import Images, open_images

N_REFERENCE_IMAGES = 8
N_TIMED_IMAGES = 64  # the time for all images is estimated from these
PACKAGES = ("torch", "torchvision", "timm", "pillow")  # their versions decide the numbers

# What `auto` means on each kind of device
AUTO: dict[str, dict[str, Any]] = {
    "cpu": {"precision": "float32", "batch_size": 32},
    "cuda": {"precision": "bfloat16", "batch_size": 256},
}


@dataclass(frozen=True)
class Reference:
    """Some images embedded one at a time, in float32 on the CPU, by the encoder as it was loaded.

    `rows` (M,) are their rows in the cache. `values` holds (M, D) float32 for each block of each
    view.
    """

    rows: np.ndarray
    values: list[list[np.ndarray]]

    @property
    def sizes(self) -> list[int]:
        """The embedding size of each block."""
        return [block_values.shape[1] for block_values in self.values[0]]

    def is_finite(self) -> bool:
        return all(
            np.isfinite(block_values).all()
            for view_values in self.values
            for block_values in view_values
        )


def embed_images(
    image_table: Path,
    images_dir: Path,
    load: Load,
    checkpoint: Path,
    target: Path,
    names: dict[str, str],
    parameters: Embed,
    device: torch.device,
) -> None:
    """Embed all images of the image table, training and test, and write the cache `target`.

    `load` makes the encoder of the checkpoint. `names` (backbone, encoder, alignment, and a caveat
    if there is one) are stored in the cache. On a CPU the bytes of the file depend only on the
    inputs, parameters, versions and kind of CPU: not on the number of cores, nor on interruptions.
    InputError, and no file, where an image is damaged or the embeddings are not sound.
    """
    if len(set(parameters.blocks)) < len(parameters.blocks):
        raise InputError(f"embed.blocks names a block twice: {parameters.blocks}; name each once")
    check_views(parameters.views)

    image_ids = read_image_ids(image_table)
    image_encoder, alignment = load(checkpoint)
    resolved = resolve(parameters, device)
    attributes = describe(image_encoder, alignment, checkpoint, names, resolved, device)

    decided_by = [attributes, parameters.blocks, parameters.views]
    chosen = {"IMAGE_MODELS": [names["backbone"]]}
    with (
        open_images(images_dir, image_ids) as images,
        unfinished("embedding", __file__, PACKAGES, chosen, decided_by, keep=True) as folder,
    ):
        decoder = Decoder(images, image_encoder.framing, parameters.views)
        reference = embed_reference(image_encoder, decoder, image_ids, parameters)
        if not reference.is_finite():
            raise InputError(
                f"{checkpoint}: the {names['encoder']} encoder gives values that are not finite "
                "for a picture, though its weights are finite: they grow too large; name another "
                "backbone, or another file of weights"
            )

        accelerate(image_encoder, parameters.blocks, parameters.tokens, resolved.precision, device)
        batches = split_into_batches(image_ids, images, folder, resolved.batch_size)
        embed_missing(image_encoder, batches, decoder, reference.sizes, resolved, device, target)

        features = {
            block: image_encoder.feature(block, parameters.tokens) for block in parameters.blocks
        }
        label = f"{target} (from {checkpoint.name})"
        blocks = read_blocks(batches, parameters.views, features, reference, label)
        write_embeddings(target, image_ids, blocks, attributes)


def read_image_ids(image_table: Path) -> list[str]:
    """The ids of all images, those of the training first."""
    splits = read_image_table(image_table)
    return [image_id for split in ("train", "test") for image_id in splits[split]["image_ids"]]


def resolve(parameters: Embed, device: torch.device) -> ResolvedEmbed:
    """The parameters with what suits this kind of device in the place of `auto`."""
    values = parameters.model_dump()
    chosen = {key: value for key, value in AUTO[device.type].items() if values[key] == "auto"}
    return ResolvedEmbed(**values | chosen)


def describe(
    image_encoder: ImageEncoder,
    alignment: dict[str, Any],
    checkpoint: Path,
    names: dict[str, str],
    parameters: ResolvedEmbed,
    device: torch.device,
) -> Attributes:
    """The attributes of the cache: what its numbers were made with."""
    return {
        **names,
        "tokens": parameters.tokens,
        "preprocessing": image_encoder.preprocessing,
        "precision": parameters.precision,
        "batch_size": parameters.batch_size,
        "device": device_name(device),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256(checkpoint),
        "aligned_by": json.dumps(alignment, sort_keys=True) if alignment else "none",
        "versions": " ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def embed_reference(
    image_encoder: ImageEncoder, decoder: Decoder, image_ids: list[str], parameters: Embed
) -> Reference:
    """Embed a few images, evenly spread over all rows, before the encoder is made faster."""
    rows = np.unique(np.linspace(0, len(image_ids) - 1, N_REFERENCE_IMAGES).astype(int))

    views = decoder.empty(len(rows))
    for i, row in enumerate(rows):
        decoder.decode(image_ids[row], views[:, i])
    return Reference(
        rows, [_embed_one_by_one(image_encoder, pixels, parameters) for pixels in views]
    )


@torch.inference_mode()
def _embed_one_by_one(
    image_encoder: ImageEncoder, images: Tensor, parameters: Embed
) -> list[np.ndarray]:
    """Images (M, 3, side, side) uint8 -> (M, D) float32 for each block."""
    outputs = [
        image_encoder(image[None].float() / 255, parameters.blocks, parameters.tokens)
        for image in images
    ]
    return [torch.cat(rows).numpy() for rows in zip(*outputs, strict=True)]


def split_into_batches(
    image_ids: list[str], images: Images, folder: Path, batch_size: int
) -> list[Batch]:
    """The images in order, with the file of each batch in the folder."""
    batches = []
    for start in range(0, len(image_ids), batch_size):
        batch_ids = image_ids[start : start + batch_size]

        # A replaced image has another checksum, and so its batch has another file.
        fingerprints = [images.fingerprint(image_id) for image_id in batch_ids]
        name = hashlib.sha256(repr(fingerprints).encode()).hexdigest()[:32]
        batches.append(Batch(folder / f"{name}.npy", batch_ids))
    return batches


def embed_missing(
    image_encoder: ImageEncoder,
    batches: list[Batch],
    decoder: Decoder,
    sizes: list[int],
    parameters: ResolvedEmbed,
    device: torch.device,
    target: Path,
) -> None:
    """Embed the batches that have no file yet.

    `sizes` are the embedding sizes of the blocks. InputError where the disk has no room for the
    embeddings.
    """
    n_views = len(parameters.views)
    n_features = sum(sizes)
    missing = [
        batch
        for batch in batches
        if not _is_saved(batch.file, (n_views, len(batch.image_ids), n_features))
    ]

    n_images = sum(len(batch.image_ids) for batch in batches)
    n_missing = sum(len(batch.image_ids) for batch in missing)
    n_bytes = 4 * n_images * n_views * n_features  # float32
    in_cache = {missing[0].file.parent: n_bytes * n_missing // n_images} if missing else {}
    check_folders({target.parent: n_bytes} | in_cache)

    replicas = make_replicas(image_encoder, device)
    # Each replica embeds one batch at least: a first batch takes longer.
    n_timed = max(len(replicas) * parameters.batch_size, N_TIMED_IMAGES)
    label = f"embed {target.stem}"
    counts = f"{n_views} x {len(sizes)} x {n_images} (views x blocks x images)"
    with (
        make_pool(decoder, parameters.batch_size, replicas) as pool,
        tqdm(
            total=n_images, initial=n_images - n_missing, unit="image", desc=label, disable=None
        ) as bar,
    ):
        size = f"{label}: {counts} = {n_bytes / 1e6:.2f} MB"
        progress = _Progress(bar, size, n_missing, min(n_timed, n_missing))
        progress.count(0)
        embed_batches(replicas, missing, pool, parameters, progress.count)


@dataclass
class _Progress:
    """Moves a bar, and says once how long the missing images take: after `n_timed` of them."""

    bar: tqdm
    size: str
    n_missing: int
    n_timed: int
    n_done: int = 0
    is_told: bool = False
    started: float = field(default_factory=time.monotonic)

    def count(self, n_images: int) -> None:
        """So many more images are embedded and saved."""
        self.bar.update(n_images)
        self.n_done += n_images
        if self.is_told or self.n_done < self.n_timed:
            return

        seconds_per_image = (time.monotonic() - self.started) / max(1, self.n_done)
        seconds_left = seconds_per_image * (self.n_missing - self.n_done)
        time_left = timedelta(seconds=round(seconds_left))  # printed as h:mm:ss
        tqdm.write(f"{self.size}, done in about {time_left}")
        self.is_told = True


def _is_saved(file: Path, shape: tuple[int, int, int]) -> bool:
    """Whether the file holds a batch of this shape, (V, B, sum of D); a damaged file does not."""
    if not file.exists():
        return False

    try:
        values = np.load(file)
    except (ValueError, EOFError):  # cut short, or not a file of numpy
        values = np.empty(0)
    if values.shape == shape and np.isfinite(values).all():
        return True

    tqdm.write(f"{file}: damaged, and computed again")
    return False


def read_blocks(
    batches: list[Batch],
    views: list[str],
    features: dict[BlockChoice, str],
    reference: Reference,
    label: str,
) -> Iterator[tuple[BlockChoice | str, np.ndarray, Attributes]]:
    """Each block of each view, the deepest first: name in the cache, values (N, D), attributes.

    `features` says in words what each block holds; `label` names the cache in an InputError.
    InputError where the values are not sound (`health`). A degraded view is kept even where its
    embeddings hardly tell images apart, so that little but rounding is left of them: a line tells
    the user.
    """
    deepest = max(features, key=_depth)
    columns = dict(zip(features, _column_slices(reference.sizes), strict=True))

    for v, view in enumerate(views):
        expected = dict(zip(features, reference.values[v], strict=True))
        for block in sorted(features, key=_depth, reverse=True):
            name = block if view == ORIGINAL else f"{view}/{block}"
            parts = [np.load(batch.file, mmap_mode="r")[v, :, columns[block]] for batch in batches]
            values = np.concatenate(parts)

            measures = health.measure(values, reference.rows, expected[block])
            try:
                health.check(
                    measures, f"{label}: block {name}", tells_images_apart=block == deepest
                )
            except InputError:
                if view == ORIGINAL or _is_wrong(measures):
                    raise
                print(
                    f"{name}: the embeddings hardly tell images apart (median cosine "
                    f"{measures['median_cosine']}, {measures['duplicates']} repeat another one, "
                    "centred cosine with a recomputation "
                    f"{measures['reference_cosine_centred']}); kept, as this is a degraded view"
                )
            yield name, values, {"feature": features[block], **measures}


def _column_slices(sizes: Sequence[int]) -> list[slice]:
    """Where each block lies in the files of batches, in which all blocks stand side by side."""
    ends = np.cumsum(sizes)
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _is_wrong(measures: health.Health) -> bool:
    """Whether embeddings are not those of the reference, however alike the images are."""
    # Written so that a cosine of NaN is wrong.
    return bool(measures["non_finite"]) or not measures["reference_cosine"] >= health.AGREEMENT


def _depth(block: BlockChoice) -> float:
    return math.inf if block == "last" else block
