"""What benchmarks/epochs.py computes of curves, and that each of its models has the data of its own scene."""

import numpy as np
import pandas as pd
import torch

from benchmarks.epochs import SIZES, compare_epochs, divide, join, simulated_scene
from benchmarks.simulated import recipe


def test_compares_the_epochs_of_curves():
    trainings = pd.MultiIndex.from_tuples([(1, 0), (1, 1)], names=["sub", "run"])
    validation = pd.DataFrame([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]], index=trainings)
    test = pd.DataFrame([[10.0, 20.0, 30.0], [40.0, 60.0, 50.0]], index=trainings)

    compared = compare_epochs(validation, test)

    assert compared["last"].tolist() == [30, 50]
    assert compared["validation"].tolist() == [20, 40]  # of two equal epochs the first
    assert compared["best"].tolist() == [30, 60]


def test_each_model_has_the_data_of_its_scene():
    scenes = [simulated_scene(SIZES["800"], 0.3, seed) for seed in (0, 1)]
    samples, embeddings, rows = join(scenes)
    parameters = recipe(select_on="validation")

    for scene, scene_rows in zip(scenes, rows, strict=True):
        partition = divide(samples, scene_rows, scene.runs[0], parameters)
        used = np.sort(np.concatenate([partition.rows, partition.selection_rows]))

        alone = scene.data.samples
        assert torch.equal(samples.eeg[used], alone.eeg)
        assert torch.equal(embeddings[samples.image_row[used]], scene.embeddings[alone.image_row])


def test_the_last_epoch_learns_from_all_samples():
    scene = simulated_scene(SIZES["800"], 0.3, 0)
    samples, _, [rows] = join([scene])

    partition = divide(samples, rows, scene.runs[0], recipe(select_on="last"))

    assert partition.selection is None
    assert np.array_equal(partition.rows, np.arange(len(scene.data.samples.eeg)))
