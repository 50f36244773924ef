"""The pictures that responses are compared with: from an embedding cache, or from a folder.

Axes: N images, D embedding size, K blocks.
"""

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.compute.devices import pick_device
from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.picture_names import ENDINGS, index_names
from pipeline.errors import InputError
from pipeline.files import files_below, sha256
from pipeline.images.embedder import embed_images
from pipeline.images.embeddings import (
    ORIGINAL,
    SEVERAL,
    Embeddings,
    read_about,
    read_embeddings,
)
from pipeline.images.models.table import (
    Alignment,
    FeaturesFile,
    OfCache,
    OwnCheckpoint,
    find_alignment,
    find_model,
)
from pipeline.sections import BlockChoice, Embed
from pipeline.train.made_with import FILE, MadeWith
from pipeline.train.model import ContrastiveModel

ZIP = "pictures"  # the zip of a folder's pictures, and so the first folder of their ids
NO_WEIGHTS = (
    "nothing in the model's folder tells which weights made the embeddings that it was trained "
    "with (they may be features that were computed elsewhere), so that no picture can be embedded "
    "for it: give an embedding cache in the place of pictures"
)
# What of an embedding cache must be as in the training
SAME_MODEL = [
    *("backbone", "encoder", "alignment", "aligned_by", "tokens", "preprocessing"),
    "checkpoint_sha256",
]


def read_gallery(
    cache: Path, model: ContrastiveModel, made_with: MadeWith | None
) -> tuple[Embeddings, list[str]]:
    """The block and view of a cache that the model compares EEG with, and notes for the user.

    `values` of the result are (N, D), or (N, K, D) for a mix of blocks. Raises InputError where
    the cache is of another image model than the one that the model was trained with, lacks the
    block or view, or holds embeddings of another size. A note tells where the files do not say of
    which image model they are.
    """
    notes = check_image_model(cache, made_with)
    view = model.recipe.views_in_gallery
    embeddings = read_embeddings(cache, model.recipe.block, view, view)

    blocks = tuple(model.sizes.blocks)
    if embeddings.blocks != blocks:
        raise InputError(
            f"{cache}: has the blocks {', '.join(embeddings.blocks)}, and the model mixes "
            f"{', '.join(blocks)}: embed the same with embed.blocks"
        )
    size = embeddings.values.shape[-1]
    if size != model.sizes.embedding_size:
        raise InputError(
            f"{cache}: has embeddings of {size} numbers, and the model was trained on "
            f"{model.sizes.embedding_size}: give the cache of the same image model"
        )
    return embeddings, notes


def check_image_model(cache: Path, made_with: MadeWith | None) -> list[str]:
    """InputError where a cache is of another image model than the training's.

    Returns sentences on what could not be compared.
    """
    about, _ = read_about(cache)
    if "why" in about:
        raise InputError(f"{cache}: holds no embeddings: {about['why']}")
    if made_with is None:
        return [
            f"The model's folder lacks {FILE}, so that nobody knows whether {cache} is of the "
            "image model that it was trained with."
        ]

    trained = made_with["embeddings"]
    if trained["sha256"] == sha256(cache):
        return []  # the very file
    for key in SAME_MODEL:
        if about.get(key) != trained.get(key):
            raise InputError(
                f"{cache}: is of another image model than the one that the model was trained "
                f"with: {key} is {about.get(key, 'not named')}, expected "
                f"{trained.get(key, 'not named')}; give the cache of that one"
            )
    if "checkpoint_sha256" in trained:
        return []
    return [
        f"Neither {cache} nor the model's folder names the weights of the image model, so that "
        "nobody knows whether they are the same."
    ]


def embed_pictures(
    folder: Path, cache: Path, model: ContrastiveModel, made_with: MadeWith | None, weights: Path
) -> list[str]:
    """Embed all JPEG and PNG files below a folder, with the model's own image model.

    Writes the embedding cache `cache`, for `read_gallery`, and returns the N image ids: `pictures/`
    and the path in the folder. `weights` is the folder of the image model's files, as the weights
    stage leaves it. Only the block and view that the model needs are embedded. Batches are saved
    in the cache folder: the same pictures are embedded once.

    Raises InputError where the folder has no pictures, one of them cannot be read, or the weights
    are not those that the model was trained with.
    """
    if made_with is None or "checkpoint_sha256" not in made_with["embeddings"]:
        raise InputError(NO_WEIGHTS)
    trained = made_with["embeddings"]
    image_model = find_model(trained["backbone"])
    unaligned = image_model.unaligned
    load: Alignment = unaligned
    if trained["encoder"] == "aligned":
        load = find_alignment(trained["backbone"], trained["alignment"])
    if isinstance(unaligned, FeaturesFile) or isinstance(load, FeaturesFile):
        raise InputError(NO_WEIGHTS)

    file = load.file if isinstance(load, OwnCheckpoint) else image_model.file
    _check_weights(weights / file, trained)
    names = {key: trained[key] for key in ("backbone", "encoder", "alignment")}
    if "caveat" in trained and isinstance(load, OwnCheckpoint):
        names["caveat"] = trained["caveat"]

    with tempfile.TemporaryDirectory() as temporary, _own_pictures(folder):
        table, images_dir, image_ids = _as_dataset(folder, Path(temporary))
        parameters = _parameters(model, made_with)
        device = pick_device(parameters.device)
        if isinstance(load, OfCache):
            names |= {"encoder": "unaligned", "alignment": "none"}
            unaligned_cache = Path(temporary) / "unaligned.h5"
            embed_images(
                *(table, images_dir, unaligned, weights / file, unaligned_cache, names),
                *(parameters, device),
            )
            load.write(unaligned_cache, weights, cache)
        else:
            plain = load.load if isinstance(load, OwnCheckpoint) else load
            embed_images(
                *(table, images_dir, plain, weights / file, cache, names, parameters, device)
            )
    return image_ids


@contextmanager
def _own_pictures(folder: Path) -> Iterator[None]:
    """Say of a picture that cannot be used what helps where it lies in somebody's own folder."""
    try:
        yield
    except InputError as error:
        problem, is_of_picture, _ = str(error).partition("; put an RGB picture")
        if not is_of_picture:
            raise
        raise InputError(
            f"{folder}: {problem}; put an RGB picture (JPEG or PNG) in its place, or take it out "
            "of the folder"
        ) from error


def find_rows(names: Sequence[str], image_ids: Sequence[str]) -> np.ndarray:
    """The row of the gallery that each name means: (M,) int64, -1 where it has no such picture.

    A name means the image of this id, else what `picture_names` says, where the id of an image is
    its path and names need not have its first folder, which is a zip. Upper and lower case do not
    count: of one's own data a name in the other case is told as a mistake, here it would lose its
    score without a word. Raises InputError where a name could mean several.
    """
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    pictures = index_names([image_id.casefold() for image_id in image_ids], n_outer=1)

    rows = np.full(len(names), -1, dtype=np.int64)
    for position, name in enumerate(names):
        matching = pictures.matching(name.strip().casefold())
        if name in row_of:
            matching = [row_of[name]]
        if len(matching) > 1:
            first, second = (image_ids[row] for row in matching[:2])
            raise InputError(
                f"the picture {name} could be {first} or {second} of the gallery: name it with its "
                "folder and extension"
            )
        if matching:
            rows[position] = matching[0]
    return rows


def _check_weights(file: Path, trained: dict[str, str]) -> None:
    """InputError unless this is the checkpoint of the training."""
    if not file.is_file():
        raise InputError(
            f"{file}: is not there, the weights of {trained['backbone']}, which embed the "
            "pictures; fetch them with `dvc repro weights` (backbone in params.yaml as in the "
            "training), or name the folder that has them with --weights"
        )
    digest = sha256(file)
    if digest != trained.get("checkpoint_sha256"):
        raise InputError(
            f"{file}: is another checkpoint than the one that the model was trained with (sha256 "
            f"{digest[:12]}..., expected {str(trained.get('checkpoint_sha256'))[:12]}...): give "
            "the folder with that one by --weights"
        )


def _as_dataset(folder: Path, base: Path) -> tuple[Path, Path, list[str]]:
    """A table of images and a zip of the folder's pictures, in the form of a dataset."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of pictures")
    files = [
        Path(name)
        for name in files_below(folder)
        if Path(name).suffix.casefold() in ENDINGS and not Path(name).name.startswith(".")
    ]
    if not files:
        raise InputError(f"{folder}: holds no pictures, expected .jpg, .jpeg or .png files")

    image_ids = [f"{ZIP}/{path.relative_to(folder).as_posix()}" for path in files]
    (base / "images").mkdir()
    # Stored as they are: they are compressed pictures already.
    with zipfile.ZipFile(base / "images" / f"{ZIP}.zip", "w", zipfile.ZIP_STORED) as archive:
        for path, image_id in zip(files, image_ids, strict=True):
            archive.write(path, image_id)

    concept = [Path(image_id).stem for image_id in image_ids]
    pictures = pd.DataFrame({"image_ids": image_ids, "concept": concept, "things_concept": concept})
    write_image_table(base / "images.csv", {"train": pictures.iloc[:0], "test": pictures})
    return base / "images.csv", base / "images", image_ids


def _parameters(model: ContrastiveModel, made_with: MadeWith) -> Embed:
    """The section `embed` that gives the block and view that the model compares EEG with."""
    recipe = model.recipe
    trained = made_with["embeddings"]
    names = [name.rpartition("/") for name in trained["blocks"]]
    available_views = list(dict.fromkeys(view or ORIGINAL for view, _, _ in names))

    blocks: list[BlockChoice] = [
        "last" if name == "last" else int(name)
        for name in (model.sizes.blocks or [str(recipe.block)])
    ]
    choice = recipe.views_in_gallery
    views = available_views if choice in SEVERAL else list(dict.fromkeys([ORIGINAL, choice]))
    return Embed(
        tokens=trained["tokens"],
        precision=trained.get("precision", "auto"),
        batch_size="auto",
        device="auto",
        blocks=blocks,
        views=views,
    )
