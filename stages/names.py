"""Check the names in params.yaml against the library's tables, before any long work begins.

Not part of `pipeline.params`, because some of the tables take seconds to import.
"""

from collections.abc import Collection

from pipeline.datasets.sources import OwnFiles
from pipeline.datasets.table import DATASETS
from pipeline.eeg_encoders.braindecode_networks import check_installed, require_braindecode
from pipeline.eeg_encoders.table import (
    EEG_ENCODERS,
    check_recipe,
    has_closed_form,
    is_pretrained,
    weight_files,
)
from pipeline.errors import InputError, suggestion
from pipeline.images.features import check_embed
from pipeline.images.models.table import (
    FeaturesFile,
    find_alignment,
    find_model,
    has_last_block_alone,
    kinds_of_alignment,
)
from pipeline.images.views import check_views
from pipeline.params import Params
from pipeline.sections import Train
from pipeline.untrusted.features import check_setting


def check_names(p: Params) -> None:
    """Raises InputError for the first name of the pipeline's parameters that no table has.

    Also where the files are missing that a pretrained EEG encoder starts from.
    """
    _check_name(f"dataset is {p.dataset!r}", p.dataset, DATASETS)
    if p.across.dataset != "none":
        check_second(p.dataset, p.across.dataset)

    eeg_encoder = p.train.eeg_encoder
    _check_name(f"train.eeg_encoder is {eeg_encoder!r}", eeg_encoder, EEG_ENCODERS)
    _check_eeg_encoder(eeg_encoder, p.train)

    check_views(p.embed.views)
    check_image_model(p.backbone, p.encoder, p.alignment)
    _check_features(p)


def check_second(first: str, second: str) -> None:
    """Raises InputError where the dataset `second` cannot be a second recording beside `first`."""
    _check_name(f"across.dataset is {second!r}", second, DATASETS)
    if second == first:
        raise InputError(
            f"params.yaml: across.dataset is {second}, and so is dataset: name another recording "
            "of the same images, or none"
        )
    if isinstance(DATASETS[second].source, OwnFiles):
        raise InputError(
            f"params.yaml: across.dataset is {second}, whose pictures are its own: expected a "
            "recording of the images of `dataset`, or none"
        )


def check_image_model(backbone: str, encoder: str, alignment: str) -> None:
    """Raises InputError for an unknown backbone or alignment.

    With the aligned encoder also where the backbone has no such alignment.
    """
    try:
        find_model(backbone)
        # Of an unaligned run the alignment is not used, but a misspelt one is no less a mistake.
        if encoder == "aligned" or alignment not in kinds_of_alignment():
            find_alignment(backbone, alignment)
    except InputError as error:
        raise InputError(f"params.yaml: {error}") from error


def _check_features(p: Params) -> None:
    """Raises InputError where a file of features is to be the image model, and none is named.

    Also where it is asked for other blocks or views than it has.
    """
    model = find_model(p.backbone)
    if not isinstance(model.unaligned, FeaturesFile):
        return

    check_embed(p.embed)
    check_setting(p.download.features_file, "params.yaml: download.features_file")
    if p.encoder == "aligned":
        key = "params.yaml: download.features_file_aligned"
        check_setting(p.download.features_file_aligned, key)


def check_study(p: Params) -> None:
    """Raises InputError for the first name in the study's grid that is wrong.

    That is an unknown name, a name that is listed twice, a recording that is not there, or a
    backbone that has no aligned block in the grid.
    """
    for key, names in p.study.model_dump(exclude={"seeds"}).items():
        if len(set(names)) < len(names):
            listed = ", ".join(map(str, names))
            raise InputError(f"params.yaml: study.{key} names one twice: {listed}")
    _check_study_recordings(p)

    for name in p.study.eeg_encoders:
        _check_name(f"study.eeg_encoders has {name!r}", name, EEG_ENCODERS)
    for name in p.study.alignments:
        _check_name(f"study.alignments has {name!r}", name, kinds_of_alignment())

    pretrained = [name for name in p.study.eeg_encoders if is_pretrained(name)]
    if len(pretrained) > 1:
        raise InputError(
            f"params.yaml: study.eeg_encoders has {' and '.join(pretrained)}, and "
            "train.eeg_weights can name the folder of one: make a study of each"
        )
    # The grid has blocks of its own
    recipe = p.train.model_copy(update={"block": "last"})
    for name in p.study.eeg_encoders:
        _check_eeg_encoder(name, recipe)
    if p.study.blocks == ["mix"] and all(map(has_closed_form, p.study.eeg_encoders)):
        raise InputError(
            f"params.yaml: study.blocks is mix alone, and {', '.join(p.study.eeg_encoders)} learns "
            "no weights of blocks: name single blocks, or another EEG encoder"
        )
    for backbone in p.study.backbones:
        _check_aligned_blocks(p, backbone)


def _check_study_recordings(p: Params) -> None:
    """Raises InputError where the grid uses a second recording, and none can be used."""
    if p.across.dataset != "none":
        check_second(p.dataset, p.across.dataset)
        return

    for key, name, is_used in (
        ("study.recordings", "second", "second" in p.study.recordings),
        ("study.protocols", "across", "across" in p.study.protocols),
    ):
        if is_used:
            raise InputError(
                f"params.yaml: {key} has {name}, and there is no second recording: name it in "
                f"across.dataset, or take {name} out of {key}"
            )


def _check_eeg_encoder(name: str, recipe: Train) -> None:
    """Raises InputError where something is missing that this EEG encoder needs."""
    check_installed(name)
    check_recipe(name, recipe)
    if is_pretrained(name):
        require_braindecode(name)
        weight_files(name, recipe.eeg_weights)


def _check_name(setting: str, name: str, table: Collection[str]) -> None:
    """Raises InputError unless the table has this name; `setting` is how the sentence begins."""
    if name not in table:
        near = suggestion(name, table)
        raise InputError(f"params.yaml: {setting}: should be one of {', '.join(table)}{near}")


def _check_aligned_blocks(p: Params, backbone: str) -> None:
    """Raises InputError where the grid has no block of a backbone that can be aligned.

    An alignment that is computed from the unaligned cache exists only for the last block.
    """
    loads = []
    for kind, load in find_model(backbone).aligned.items():
        if kind in p.study.alignments:
            loads.append(load)

    only_last = bool(loads) and all(map(has_last_block_alone, loads))
    if only_last and "last" not in p.study.blocks:
        raise InputError(
            f"params.yaml: study.blocks lacks last, and of {backbone} only the block last is "
            "aligned: add it, or take that out of study.backbones"
        )
