"""What can be named in params.yaml: the tables of this library together, so that a misspelt name fails at once.

Apart from `params`, because some of these tables take seconds to import.
"""

from collections.abc import Collection

from pipeline.datasets.table import DATASETS
from pipeline.eeg_encoders.braindecode_networks import check_installed
from pipeline.eeg_encoders.table import EEG_ENCODERS
from pipeline.errors import InputError, suggestion
from pipeline.images.models.table import OfCache, find_alignment, find_model, kinds_of_alignment
from pipeline.images.views import check_views
from pipeline.params import Params


def check_names(p: Params) -> None:
    """InputError for the first name that no table has."""
    tables: tuple[tuple[str, str, Collection[str]], ...] = (
        ("dataset", p.dataset, DATASETS),
        ("train.eeg_encoder", p.train.eeg_encoder, EEG_ENCODERS),
    )
    for key, name, table in tables:
        if name not in table:
            near = suggestion(name, table)
            raise InputError(
                f"params.yaml: {key} is {name!r}: should be one of {', '.join(table)}{near}"
            )
    check_installed(p.train.eeg_encoder)
    check_views(p.embed.views)
    check_image_model(p.backbone, p.encoder, p.alignment)


def check_image_model(backbone: str, encoder: str, alignment: str) -> None:
    """InputError where there is no such backbone or alignment, or, of the aligned encoder, where they do not match."""
    try:
        find_model(backbone)
        if encoder == "aligned" or alignment not in kinds_of_alignment():
            find_alignment(backbone, alignment)
    except InputError as error:
        raise InputError(f"params.yaml: {error}") from error


def check_study(p: Params) -> None:
    """InputError for the first name in the grid of the study that no table has, that is there twice, or has no cell."""
    for key, names in p.study.model_dump(exclude={"seeds"}).items():
        if len(set(names)) < len(names):
            raise InputError(
                f"params.yaml: study.{key} names one twice: {', '.join(map(str, names))}"
            )
    lists: tuple[tuple[str, list[str], Collection[str]], ...] = (
        ("study.eeg_encoders", p.study.eeg_encoders, EEG_ENCODERS),
        ("study.alignments", p.study.alignments, kinds_of_alignment()),
    )
    for key, names, table in lists:
        for name in names:
            if name not in table:
                near = suggestion(name, table)
                raise InputError(
                    f"params.yaml: {key} has {name!r}: should be of {', '.join(table)}{near}"
                )

    for name in p.study.eeg_encoders:
        check_installed(name)
    for backbone in p.study.backbones:
        loads = [
            load
            for kind, load in find_model(backbone).aligned.items()
            if kind in p.study.alignments
        ]
        if (
            loads
            and "last" not in p.study.blocks
            and all(isinstance(load, OfCache) for load in loads)
        ):
            raise InputError(
                f"params.yaml: study.blocks lacks last, and of {backbone} only the block last is aligned: add it, or "
                "take that out of study.backbones"
            )
