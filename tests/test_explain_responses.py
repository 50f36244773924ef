import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.errors import InputError
from pipeline.explain.responses import ONE_REPETITION, explain_responses
from pipeline.explain.rsa import crossnobis, embedding_distances, tabulate_rsa
from pipeline.images.embeddings import Embeddings, write_embeddings, write_no_embeddings
from pipeline.preprocess.recordings import Recording
from pipeline.sections import Evaluate
from pipeline.train.model import ContrastiveModel, ModelSizes
from stages.explain import has_block
from tests.tiny import shipped_params

N, R, C, T = 10, 6, 3, 80
SUBJECTS = ["sub-01", "sub-02"]
IDS = np.array([f"test_images/{i:05}/{i}.jpg" for i in range(N)], dtype=object)


def parameters(**changes: object) -> Evaluate:
    small = {"draws": 2, "repetitions": [1, 2], "resamples": 200}
    return Evaluate(**shipped_params().evaluate.model_dump() | small | changes)


def recordings(n_repetitions: int = R) -> list[Recording]:
    """Two subjects; what they see is in the responses after onset, which is at 0.2 s."""
    rng = np.random.default_rng(0)
    axes = ("O1", "Oz", "O2"), None, np.arange(-20, 60) / 100, 100.0, ()
    signal = rng.standard_normal((N, 1, C, T)) * (np.arange(T) >= 20)
    return [
        Recording(
            subject,
            *axes,
            signal + rng.standard_normal((N, n_repetitions, C, T)),
            IDS,
            IDS,
            IDS,
        )
        for subject in SUBJECTS
    ]


def models() -> list:
    torch.manual_seed(0)
    recipe = shipped_params().train
    model = ContrastiveModel(ModelSizes(C, T, 100.0, 6), recipe).eval()
    return [(model, {"fold": "pooled", "seed": 1, "tested_on": SUBJECTS})]


def encoders(*names: str) -> dict[str, Embeddings]:
    rng = np.random.default_rng(1)
    return {
        name: Embeddings(rng.standard_normal((N, 6)).astype(np.float32), IDS)
        for name in names or ("unaligned", "aligned")
    }


def explain(subjects: list[Recording], caches: dict[str, Embeddings], **changes: object):
    return explain_responses(iter(subjects), models(), caches, parameters(**changes), 42)


def test_the_order_of_rows_changes_nothing():
    """EEG and embeddings are joined on image ids. The draws follow the first subject's order."""
    order = np.random.default_rng(2).permutation(N)
    first, second = recordings()
    caches = encoders()
    moved = dataclasses.replace(second, eeg=second.eeg[order], image_ids=second.image_ids[order])
    shuffled = {
        name: Embeddings(cache.values[order], cache.image_ids[order])
        for name, cache in caches.items()
    }
    summaries, tables = explain([first, second], caches)
    again, tables_again = explain([first, moved], shuffled)
    assert summaries == again
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, tables_again[name])


def test_the_question_is_asked_of_all_samples_after_onset_and_of_each_window():
    subjects, caches = recordings(), encoders()
    summaries, tables = explain(subjects, caches, window=0.2, window_step=0.1)

    geometries = [crossnobis(x.eeg, [slice(0, 20), slice(20, 80)]) for x in subjects]
    distances = {name: embedding_distances(cache.values) for name, cache in caches.items()}
    expected, table = tabulate_rsa(geometries, distances, [-0.105], N)
    assert summaries["rsa"] == expected
    pd.testing.assert_frame_equal(tables["rsa"].iloc[:1], table)
    # Windows of 20 samples, one every 10
    np.testing.assert_allclose(tables["rsa"]["time"], np.arange(-0.105, 0.5, 0.1))
    # The noise before onset is not the same in two subjects, what they see is.
    assert summaries["rsa"]["noise_ceiling"][0] > 0.5 > tables["rsa"]["noise_ceiling_low"][0]


def test_the_summary_of_the_halves_is_in_the_table():
    summaries, tables = explain(recordings(), encoders())
    table = tables["reliability"].set_index(["space", "subjects", "n_repetitions"])["top1_acc"]
    assert [*tables["reliability"]["n_repetitions"].unique()] == [1, 2, 3]
    for space in ("EEG", "encoder"):
        for subjects in ("within", "across"):
            figures = summaries["reliability"][space][subjects]
            assert figures["top1_acc"] == table[space, subjects, 3]
    assert "Half of the repetitions (3) finds" in summaries["reliability"]["answer"]


def test_one_repetition_is_said_and_leaves_tables_that_can_be_read(tmp_path):
    summaries, tables = explain(recordings(1), encoders())
    assert summaries == {name: {"why": ONE_REPETITION} for name in ("reliability", "rsa")}
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        assert not len(pd.read_csv(tmp_path / f"{name}.csv"))


def test_one_encoder_alone_has_a_geometry_and_no_difference():
    summaries, tables = explain(recordings(), encoders("unaligned"))
    assert "nothing to compare" in summaries["rsa"]["answer"]
    assert "unaligned" in tables["rsa"] and "difference" not in tables["rsa"]


def test_subjects_who_saw_other_images_are_refused():
    first, second = recordings()
    other = dataclasses.replace(second, image_ids=np.array([f"{i}" for i in range(N)]))
    with pytest.raises(InputError, match="sub-02: the test images are not those of the first"):
        explain([first, other], encoders())
    with pytest.raises(InputError, match="there is no test EEG to look at"):
        explain([], encoders())


def test_a_cache_without_the_block_is_passed_over(tmp_path):
    values = np.ones((N, 3), np.float32)
    path = tmp_path / "cache.h5"
    write_embeddings(path, IDS, [("last", values, {}), ("blur-8/6", values, {})], {})
    assert has_block(path, "last")
    assert not has_block(path, 6) and not has_block(path, "mix")

    write_embeddings(path, IDS, [(6, values, {}), ("last", values, {})], {})
    assert has_block(path, 6) and has_block(path, "mix")

    write_no_embeddings(path, "this image model has no alignment")
    assert not has_block(path, "last")
