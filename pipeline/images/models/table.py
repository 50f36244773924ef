"""The table of image models: a name of `backbone`, where its weights are, and what reads them.

Another model is an entry here, another kind of alignment a function in the entries that have it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, suggestion
from pipeline.images.models import dreamsim, glocal, published_vits, siglip2, timm_models
from pipeline.images.models.vit import ImageEncoder
from pipeline.images.stand_ins import dreamsim as dreamsim_stand_in
from pipeline.images.stand_ins import published_vits as published_vits_stand_in
from pipeline.images.stand_ins import siglip2 as siglip2_stand_in

# The checkpoint -> the encoder in evaluation mode, and facts on its alignment for the cache ({} if
# it has none)
Load = Callable[[Path], tuple[ImageEncoder, dict[str, Any]]]


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights that is downloaded.

    * `root`, `path`: `path` below the address that params.yaml has as download.`root`.
    * `name`: its name in the folder of weights.
    * `sha256`: that, or its first digits, as whoever publishes the file gives it.
    * `commit`: of a file in a git repository, that comes between address and path.
    """

    root: str
    path: str
    name: str
    sha256: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class OfCache:
    """An alignment that is a function of the unaligned embeddings: no image is embedded again.

    `write(unaligned, weights, target)` makes the aligned cache from the unaligned one. `weights` is
    the folder of weights.
    """

    write: Callable[[Path, Path, Path], None]


@dataclass(frozen=True)
class OwnCheckpoint:
    """An aligned model that is published in a checkpoint of its own, beside the unaligned one.

    `file` is its name in the folder of weights, and `load` is as `ImageModel.unaligned`. `caveat`
    stands in every report.
    """

    file: str
    load: Load
    caveat: str


@dataclass(frozen=True)
class FeaturesFile:
    """Features that the user has computed elsewhere: no picture is embedded here.

    `key` is the parameter that names the file, and `folder` where a copy lies below the folder of
    weights.
    """

    key: str
    folder: str


Alignment = Load | OfCache | OwnCheckpoint | FeaturesFile


@dataclass(frozen=True)
class ImageModel:
    """One image model.

    * `file`: the name of its checkpoint in the folder of weights.
    * `published`: the files to download; empty where the user names one (download.weights_file).
    * `stand_in(folder)`: writes random weights in the published layout, for synthetic datasets.
      None where these too need the user's own file.
    * `unaligned(checkpoint)`: returns the encoder in evaluation mode, and {}. Or a `FeaturesFile`.
    * `aligned`: the alignments; each key is a value of `alignment` in params.yaml. The value is a
      function as `unaligned`, which returns facts on the alignment in the place of {}, or an
      `OfCache`, an `OwnCheckpoint` or a `FeaturesFile`.
    """

    file: str
    published: Sequence[PublishedFile]
    stand_in: Callable[[Path], None] | None
    unaligned: Load | FeaturesFile
    aligned: Mapping[str, Alignment] = field(default_factory=dict)


def _of_dreamsim(name: str, release: str) -> ImageModel:
    file = f"dreamsim_{name}_checkpoint.zip"
    return ImageModel(
        file=file,
        published=[PublishedFile("dreamsim_releases", f"{release}/{file}", file)],
        stand_in=partial(dreamsim_stand_in.make_checkpoint, name),
        unaligned=lambda checkpoint: (dreamsim.load_encoder(checkpoint, name, "unaligned")[0], {}),
        aligned={"dreamsim": lambda checkpoint: dreamsim.load_encoder(checkpoint, name, "aligned")},
    )


def _of_dreamsim_and_glocal(name: str, release: str, transform: PublishedFile) -> ImageModel:
    """Both alignments of one base, whose pictures are prepared as DreamSim does for both."""
    model = _of_dreamsim(name, release)

    def make_stand_ins(folder: Path) -> None:
        dreamsim_stand_in.make_checkpoint(name, folder)
        size = dreamsim_stand_in.WIDTH
        published_vits_stand_in.make_transform(name, size, folder / transform.name)

    def write_glocal(unaligned: Path, weights: Path, target: Path) -> None:
        image_encoder, _ = dreamsim.load_encoder(weights / model.file, name, "unaligned")
        glocal.write_aligned(
            unaligned,
            weights / transform.name,
            target,
            caveat=glocal.CAVEATS_BESIDE_DREAMSIM[name],
            last_norm=image_encoder.vits[0].vit.norm,
        )

    return replace(
        model,
        published=[*model.published, transform],
        stand_in=make_stand_ins,
        aligned={**model.aligned, "glocal": OfCache(write_glocal)},
    )


def _of_glocal(
    name: str, root: str, path: str, transform: PublishedFile, sha256: str | None = None
) -> ImageModel:
    file = path.rpartition("/")[2]
    return ImageModel(
        file=file,
        published=[PublishedFile(root, path, file, sha256), transform],
        stand_in=partial(published_vits_stand_in.make_files, name, file, transform.name),
        unaligned=lambda checkpoint: (published_vits.load_encoder(checkpoint, name), {}),
        aligned={
            "glocal": OfCache(
                lambda unaligned, weights, target: glocal.write_aligned(
                    unaligned, weights / transform.name, target
                )
            )
        },
    )


def _of_siglip2() -> ImageModel:
    file = "siglip2_vitb16.safetensors"
    aligned_file = "alignet_siglip2_b.safetensors"
    return ImageModel(
        file=file,
        published=[
            PublishedFile(
                "hugging_face", f"timm/{siglip2.TIMM_NAME}/resolve/main/model.safetensors", file
            ),
            PublishedFile(
                "alignet",
                f"alignet-weights-v1/{aligned_file}",
                aligned_file,
                "2ce461e04ac11271c736d32477d873f7d14fe6932c73d8757fec2854c6482647",
            ),
        ],
        stand_in=partial(siglip2_stand_in.make_files, file, aligned_file),
        unaligned=siglip2.load_unaligned,
        aligned={"alignet": OwnCheckpoint(aligned_file, siglip2.load_aligned, siglip2.CAVEAT)},
    )


def _of_features() -> ImageModel:
    """A file of features as the unaligned encoder, and another one as the aligned encoder."""
    return ImageModel(
        file="unaligned",
        published=(),
        stand_in=None,
        unaligned=FeaturesFile("download.features_file", "unaligned"),
        aligned={"features": FeaturesFile("download.features_file_aligned", "aligned")},
    )


def _transform(name: str, folder: str, sha256: str) -> PublishedFile:
    """gLocal's transform for the backbone `name`."""
    path = f"transforms/{folder}/transform.npz"
    return PublishedFile("glocal", path, f"glocal_{name}.npz", sha256, glocal.COMMIT)


IMAGE_MODELS = {
    "synclr_vitb16": _of_dreamsim("synclr_vitb16", "v0.2.1-checkpoints"),
    "dinov2_vitb14": _of_dreamsim_and_glocal(
        "dinov2_vitb14",
        "v0.2.1-checkpoints",
        _transform(
            "dinov2_vitb14",
            "dinov2-vit-base-p14/norm",
            "9cf041b79d8c4e16d4c9b1a4dc50c9c32f95bdcd3321ed0bf94b128c9b99b947",
        ),
    ),
    "dinov2_vitb14_patch": _of_dreamsim("dinov2_vitb14_patch", "v0.2.1-checkpoints"),
    "dino_vitb16": _of_dreamsim_and_glocal(
        "dino_vitb16",
        "v0.2.0-checkpoints",
        _transform(
            "dino_vitb16",
            "dino-vit-base-p16/norm",
            "2bcb2d77346fbaec29326edc54bc03060145ecbb1fb5d80c3c7733241a71dd69",
        ),
    ),
    "dino_vitb16_patch": _of_dreamsim("dino_vitb16_patch", "v0.2.1-checkpoints"),
    "clip_vitb32": _of_dreamsim("clip_vitb32", "v0.2.0-checkpoints"),
    "open_clip_vitb32": _of_dreamsim("open_clip_vitb32", "v0.2.0-checkpoints"),
    "ensemble": _of_dreamsim("ensemble", "v0.2.0-checkpoints"),
    "clip_vitl14": _of_glocal(
        "clip_vitl14",
        "hugging_face",
        "openai/clip-vit-large-patch14/resolve/"
        "32bd64288804d66eefd0ccbe215aa642df71cc41/model.safetensors",
        _transform(
            "clip_vitl14",
            "clip_ViT-L/14/visual",
            "4d9f969b1cac5334e87c93a6743a50e0f7d38cb41d7e8fb701584bc29d2fe25a",
        ),
        sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    ),
    "open_clip_vitl14_laion400m": _of_glocal(
        "open_clip_vitl14_laion400m",
        "open_clip",
        "v0.2-weights/vit_l_14-laion400m_e32-3d133497.pt",
        _transform(
            "open_clip_vitl14_laion400m",
            "OpenCLIP_ViT-L-14_laion400m_e32/visual",
            "1c34c877528ea375836a2f1a8b8559070a3eadf5a5f8064bb970c1526751a915",
        ),
        sha256="3d133497",
    ),
    "open_clip_vitl14_laion2b": _of_glocal(
        "open_clip_vitl14_laion2b",
        "hugging_face",
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K/resolve/main/open_clip_pytorch_model.bin",
        _transform(
            "open_clip_vitl14_laion2b",
            "OpenCLIP_ViT-L-14_laion2b_s32b_b82k/visual",
            "38ac3e412c0b42fcdc1e545383ca6c1363472809b2611d0e4f4bf8d5878f7365",
        ),
        sha256="5ddb47339f44e4fd9cace3d3960d38af1b51a25857440cfae90afc44706d7e2b",
    ),
    "dino_vitb8": _of_glocal(
        "dino_vitb8",
        "dino",
        "dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
        _transform(
            "dino_vitb8",
            "dino-vit-base-p8/norm",
            "583ff8178d769e687f7444be935e444e831bf501c8c5343debe69b57cef660cc",
        ),
    ),
    "dinov2_vitl14": _of_glocal(
        "dinov2_vitl14",
        "dino",
        "dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        _transform(
            "dinov2_vitl14",
            "dinov2-vit-large-p14/norm",
            "b3da393252d7d8407a745762b06863333793e002970d2a143f121f75e626d694",
        ),
    ),
    "siglip2_vitb16": _of_siglip2(),
    "features": _of_features(),
}

# Before the name of a model of timm, whose weights are a file of the user's
OF_TIMM = "timm/"


def find_model(backbone: str) -> ImageModel:
    """The entry of a backbone; InputError where there is none."""
    if backbone in IMAGE_MODELS:
        return IMAGE_MODELS[backbone]

    name = backbone.removeprefix(OF_TIMM)
    if name == backbone:
        near = suggestion(backbone, IMAGE_MODELS)
        names = ", ".join(IMAGE_MODELS)
        raise InputError(
            f"backbone is {backbone!r}: should be one of {names} or {OF_TIMM}<name>{near}"
        )

    timm_models.check_name(name)
    return ImageModel(
        file=f"{name}.weights",
        published=(),
        stand_in=partial(timm_models.make_random, name, f"{name}.weights"),
        unaligned=lambda checkpoint: (timm_models.load_encoder(checkpoint, name), {}),
    )


def kinds_of_alignment() -> list[str]:
    """Every kind that some backbone has."""
    return list(dict.fromkeys(kind for model in IMAGE_MODELS.values() for kind in model.aligned))


def has_last_block_alone(load: Alignment) -> bool:
    """Whether an alignment gives the block `last` and no other."""
    return isinstance(load, OfCache | FeaturesFile)


def find_alignment(backbone: str, alignment: str) -> Alignment:
    """What makes the aligned embeddings of this kind; InputError where that backbone has none."""
    kinds = find_model(backbone).aligned
    if alignment in kinds:
        return kinds[alignment]

    all_kinds = kinds_of_alignment()
    if alignment not in all_kinds:
        near = suggestion(alignment, all_kinds)
        raise InputError(
            f"alignment is {alignment!r}: should be one of {', '.join(all_kinds)}{near}"
        )

    if kinds:
        fact = f"is aligned by {' or '.join(kinds)} alone"
        remedy = f"set alignment to {' or '.join(kinds)}"
    else:
        fact = "has only the unaligned encoder"
        remedy = "set encoder to unaligned"
    raise InputError(
        f"alignment is {alignment!r}: {backbone} {fact}; {remedy}, or name another backbone"
    )
