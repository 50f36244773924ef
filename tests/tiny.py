"""Prepared EEG of two subjects and random embeddings of the images they saw: small enough to train in a second."""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.datasets.image_table import write_image_table
from pipeline.datasets.sample import Size, make_raw
from pipeline.datasets.table import SAMPLE
from pipeline.files import cache_folder
from pipeline.images.embeddings import write_embeddings
from pipeline.params import Params, read_params
from pipeline.preprocess import preparation
from pipeline.sections import Train
from pipeline.train import finished
from stages import baseline, explain, human
from tests.preparing import no_other_process

TINY = Size(
    train_concepts=12,
    images_per_concept=2,
    test_concepts=6,
    train_repetitions=2,
    test_repetitions=3,
)


@functools.cache
def shipped_params() -> Params:
    """params.yaml as it is shipped, read once: that takes as long as an epoch of a tiny training."""
    return read_params(Path("params.yaml"))


# No subject's EEG, and pictures for the embed stage alone
FEW_IMAGES = Size(
    train_concepts=4,
    images_per_concept=2,
    test_concepts=3,
    train_repetitions=1,
    test_repetitions=1,
)


def make_few_images(base: Path) -> None:
    """`base`/images with a few pictures, and `base`/images.csv, which lists them."""
    make_raw([], base / "eeg", base / "images", base / "metadata", FEW_IMAGES)
    write_image_table(base / "images.csv", SAMPLE.read_metadata(base / "metadata"))


def make_prepared(base: Path) -> np.ndarray:
    """`base`/eeg/sub-01.h5 and sub-02.h5; returns the ids of all images."""
    make_raw("all", base / "raw", base / "images", base / "image_metadata.npy", TINY)
    images = SAMPLE.read_metadata(base / "image_metadata.npy")
    write_image_table(base / "images.csv", images)
    changes = {"channels": ["O1", "Oz", "O2"], "workers": 1}
    parameters = shipped_params().preprocess.model_copy(update=changes)
    with no_other_process():
        preparation.prepare_subjects(
            SAMPLE, base / "raw", base / "images.csv", base / "eeg", parameters
        )
    return np.array(
        [image_id for split in images.values() for image_id in split["image_ids"]], dtype=object
    )


def make_embeddings(path: Path, image_ids: np.ndarray, seed: int) -> None:
    """The block last of two views; in the degraded one each image has the embedding of another."""
    values = np.random.default_rng(seed).standard_normal((len(image_ids), 20)).astype(np.float32)
    write_embeddings(path, image_ids, [("last", values, {}), ("blur-8/last", values[::-1], {})], {})


def quick_recipe(**changes: object) -> Train:
    quick = {"epochs": 3, "batch_size": 12, "projection_size": 16, "validation_concepts": 0.25}
    return Train(**shipped_params().train.model_dump() | quick | changes)


EXPLAINED = ("galleries", "calibration", "reliability", "rsa", "near_misses", "concepts")


def explain_evaluation(
    folder: Path, image_table: Path, eeg: Path, caches: Sequence[Path], model: Path
) -> list[Path]:
    """Write what the stages human, baseline and explain do; returns the tables.

    `folder` has params.yaml and evaluation.h5. `caches` are that of the evaluation, and both
    encoders'.
    """
    params = folder / "params.yaml"
    human.main(params, image_table, folder / "human")
    of_baseline = [folder / f"baseline.{suffix}" for suffix in ("h5", "json", "csv")]
    baseline.main(params, eeg, caches[0], *of_baseline)

    tables = [folder / f"{name}.csv" for name in EXPLAINED]
    explain.main(
        *(params, image_table, eeg, *caches, model, folder / "evaluation.h5"),
        *(folder / "human/similarity.h5", folder / "explanation.json", tables),
    )
    return tables


def forget_trainings() -> None:
    """Take the finished trainings out of the cache folder, so that the next ones are trained."""
    shutil.rmtree(cache_folder() / finished.KIND, ignore_errors=True)
