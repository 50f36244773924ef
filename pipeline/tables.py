"""What can be named in params.yaml: the tables of this library together, so that a misspelt name fails at once.

Apart from `params`, because some of these tables take seconds to import.
"""

from collections.abc import Collection

from pipeline.data.datasets import DATASETS
from pipeline.eeg.encoders import EEG_ENCODERS
from pipeline.errors import InputError
from pipeline.images.models import IMAGE_MODELS
from pipeline.images.views import check_views
from pipeline.params import Params


def check_names(p: Params) -> None:
    """InputError for the first name that no table has."""
    tables: tuple[tuple[str, str, Collection[str]], ...] = (
        ("dataset", p.dataset, DATASETS),
        ("backbone", p.backbone, IMAGE_MODELS),
        ("train.eeg_encoder", p.train.eeg_encoder, EEG_ENCODERS),
    )
    for key, name, table in tables:
        if name not in table:
            raise InputError(f"params.yaml: {key} is {name!r}: should be one of {', '.join(table)}")
    check_views(p.embed.views)
    kinds = IMAGE_MODELS[p.backbone].aligned
    if p.alignment not in kinds and (kinds or p.encoder == "aligned"):
        raise InputError(
            f"params.yaml: alignment is {p.alignment!r}: of {p.backbone} there is "
            f"{', '.join(kinds) or 'only the unaligned encoder'}"
        )
