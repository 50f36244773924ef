"""The table of image models: a name of `backbone`, where its weights are, and what reads them.

Another model is an entry here, another kind of alignment a function in the entries that have it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.images.dreamsim import load_encoder
from pipeline.images.dreamsim_stand_in import make_checkpoint
from pipeline.images.vit import ImageEncoder

# The checkpoint -> the encoder in evaluation mode, and what the cache is to say of its alignment ({} if it has none).
Load = Callable[[Path], tuple[ImageEncoder, dict[str, Any]]]


@dataclass(frozen=True)
class ImageModel:
    """One image model; each value of `aligned` is a kind of alignment, chosen by `alignment` in params.yaml.

    `stand_in(folder)` writes a checkpoint of random weights in the published layout, for datasets that are synthetic.
    """

    file: str  # of its checkpoint
    release: str | None  # the tag among DreamSim's releases that has this file; None: it must be there already
    stand_in: Callable[[Path], None]
    unaligned: Load
    aligned: Mapping[str, Load] = field(default_factory=dict)


def _of_dreamsim(name: str, release: str) -> ImageModel:
    return ImageModel(
        file=f"dreamsim_{name}_checkpoint.zip",
        release=release,
        stand_in=partial(make_checkpoint, name),
        unaligned=lambda checkpoint: (load_encoder(checkpoint, name, "unaligned")[0], {}),
        aligned={"dreamsim": lambda checkpoint: load_encoder(checkpoint, name, "aligned")},
    )


IMAGE_MODELS = {
    "synclr_vitb16": _of_dreamsim("synclr_vitb16", "v0.2.1-checkpoints"),
    "dinov2_vitb14": _of_dreamsim("dinov2_vitb14", "v0.2.1-checkpoints"),
    "dino_vitb16": _of_dreamsim("dino_vitb16", "v0.2.0-checkpoints"),
    "clip_vitb32": _of_dreamsim("clip_vitb32", "v0.2.0-checkpoints"),
    "open_clip_vitb32": _of_dreamsim("open_clip_vitb32", "v0.2.0-checkpoints"),
    "ensemble": _of_dreamsim("ensemble", "v0.2.0-checkpoints"),
}


def find_model(backbone: str) -> ImageModel:
    """The entry of a backbone; InputError where there is none."""
    if backbone not in IMAGE_MODELS:
        raise InputError(f"backbone is {backbone!r}: should be one of {', '.join(IMAGE_MODELS)}")
    return IMAGE_MODELS[backbone]


def kinds_of_alignment() -> list[str]:
    """Every kind that some backbone has."""
    return list(dict.fromkeys(kind for model in IMAGE_MODELS.values() for kind in model.aligned))


def find_alignment(backbone: str, alignment: str) -> Load:
    """What loads the encoder that was aligned in this way; InputError where that backbone has none."""
    kinds = find_model(backbone).aligned
    if alignment in kinds:
        return kinds[alignment]
    there = kinds_of_alignment()
    if alignment not in there:
        raise InputError(f"alignment is {alignment!r}: should be one of {', '.join(there)}")
    has = f"is aligned by {', '.join(kinds)}" if kinds else "has only the unaligned encoder"
    raise InputError(
        f"alignment is {alignment!r}: {backbone} {has}; set alignment or encoder, or name another backbone"
    )
