import dataclasses

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.evaluate.evaluation import tabulate
from pipeline.evaluate.masking import average_some, keep_window, mask_channel
from pipeline.evaluate.scoring import score
from pipeline.images.embeddings import Embeddings
from pipeline.preprocess.normalisation import normalise
from pipeline.preprocess.recordings import Recording
from pipeline.retrieval import rank_of_match
from pipeline.sections import Evaluate
from pipeline.train.model import ContrastiveModel, ModelSizes
from pipeline.train.projection import project
from tests.tiny import shipped_params

SUBJECTS = ["sub-01", "sub-02"]
NOTES = {
    "fold": "pooled",
    "seed": 1,
    "selected_epoch": 2,
    "collapsed": False,
    "tested_on": SUBJECTS,
}
Scene = tuple[list[Recording], list[tuple[ContrastiveModel, dict]], Embeddings]


def parameters(**changes: object) -> Evaluate:
    small = {
        "window": 0.2,
        "window_step": 0.1,
        "draws": 2,
        "repetitions": [1, 2, 9],
        "resamples": 200,
    }
    return Evaluate(**shipped_params().evaluate.model_dump() | small | changes)


@pytest.fixture
def scene() -> Scene:
    """Two subjects who saw 12 images 4 times; an untrained model."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ids = np.array([f"test_images/{i:05}/{i}.jpg" for i in range(12)], dtype=object)
    axes = (("O1", "O2", "Oz"), None, np.arange(70) / 100, 100.0)
    recordings = [
        Recording(
            subject,
            *axes,
            (),
            rng.standard_normal((12, 4, 3, 70)).astype(np.float32),
            ids,
            ids,
            ids,
        )
        for subject in SUBJECTS
    ]
    embeddings = Embeddings(rng.standard_normal((12, 6)).astype(np.float32), ids)
    recipe = shipped_params().train
    return (
        recordings,
        [(ContrastiveModel(ModelSizes(3, 70, 100.0, 6), recipe).eval(), NOTES)],
        embeddings,
    )


def shuffled(recording: Recording, order: np.ndarray) -> Recording:
    return dataclasses.replace(
        recording, eeg=recording.eeg[order], image_ids=recording.image_ids[order]
    )


def test_the_order_of_rows_changes_nothing(scene):
    """EEG and embeddings are joined on image ids: shuffling any side, ids with it, gives the same figures."""
    recordings, models, embeddings = scene
    order = np.random.default_rng(1).permutation(12)
    scores, axes = score(recordings, models, embeddings, parameters(), 0)
    reversed_rows = Embeddings(embeddings.values[::-1].copy(), embeddings.image_ids[::-1])
    again, axes_again = score(
        [recordings[0], shuffled(recordings[1], order)], models, reversed_rows, parameters(), 0
    )
    assert (axes.image_ids == axes_again.image_ids).all()
    for one, other in zip(scores, again, strict=True):
        assert one.result.similarity == pytest.approx(other.result.similarity, abs=1e-6)
        for kind in ("full", "windows", "channels"):
            losses = [getattr(of, kind)["nice_loss"] for of in (one, other)]
            assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("to_normalise", [False, True])
def test_every_variant_is_scored_as_if_it_were_the_eeg(scene, to_normalise):
    """The whole average, each window, each channel and each draw, against the plain way: project, multiply, rank.

    What is to be normalised is so after repetitions are averaged, and before anything is masked.
    """
    recordings, models, embeddings = scene
    amplitudes = np.geomspace(1, 50, 4, dtype=np.float32)[:, None, None]  # of the repetitions
    recordings = [
        dataclasses.replace(
            recording, eeg=recording.eeg * amplitudes + 2, to_normalise=to_normalise
        )
        for recording in recordings
    ]
    prepared = normalise if to_normalise else np.array
    scores, axes = score(recordings, models, embeddings, parameters(), 7)

    def ranks(eeg: np.ndarray) -> list[int]:
        eeg_side, image_side = project(
            models[0][0], torch.from_numpy(eeg), torch.from_numpy(embeddings.values)
        )
        return rank_of_match((eeg_side.double() @ image_side.double().T).float()).tolist()

    for recording, one in zip(recordings, scores, strict=True):
        whole = prepared(recording.eeg.mean(1, dtype=np.float64)).astype(np.float32)
        assert one.full["rank"].tolist() == ranks(whole)
        parts = [keep_window(whole, slice(start, start + 20)) for start in range(0, 51, 10)]
        assert one.windows["rank"].tolist() == [ranks(part) for part in parts]
        assert one.channels["rank"].tolist() == [
            ranks(mask_channel(whole, channel)) for channel in range(3)
        ]
        assert list(one.repetitions) == [1, 2]
        for n, queries in one.repetitions.items():
            rng = np.random.default_rng([7, n, *recording.subject.encode()])
            assert queries["rank"].tolist() == [
                ranks(prepared(some)) for some in average_some(recording.eeg, n, 2, rng)
            ]
    assert [(window.start, window.stop) for window in axes.windows][-1] == (50, 70)


def test_a_number_of_repetitions_draws_the_same_whatever_the_others_are(scene):
    recordings, models, embeddings = scene
    alone, both = (
        score(iter(recordings), models, embeddings, parameters(repetitions=numbers), 7)[0]
        for numbers in ([2], [1, 2])
    )
    for first, second in zip(alone, both, strict=True):
        assert np.array_equal(first.repetitions[2]["rank"], second.repetitions[2]["rank"])


def test_each_model_is_tested_on_its_own_subjects(scene):
    recordings, models, embeddings = scene
    folds = [
        (models[0][0], NOTES | {"fold": subject, "tested_on": [subject]}) for subject in SUBJECTS
    ]
    scores, _ = score(iter(recordings), folds, embeddings, parameters(), 0)
    assert [(one.result.fold, one.result.subject) for one in scores] == [(s, s) for s in SUBJECTS]


def test_mixed_blocks_are_scored_as_the_mix(scene):
    """The similarities are those of the projected mix; embeddings of other blocks are refused."""
    recordings, [(plain, notes)], embeddings = scene
    mixing = ContrastiveModel(ModelSizes(3, 70, 100.0, 6, ("4", "last")), plain.recipe).eval()
    values = np.random.default_rng(3).standard_normal((12, 2, 6)).astype(np.float32)
    mixing.block_mix.standardise(torch.from_numpy(values))
    cache = Embeddings(values, embeddings.image_ids, ("4", "last"))
    scores, _ = score(recordings, [(mixing, notes)], cache, parameters(), 0)
    expected = mixing.embed_image(torch.from_numpy(values)).detach().numpy()
    assert [one.result.images for one in scores] == [pytest.approx(expected, abs=1e-6)] * 2
    for other in (dataclasses.replace(cache, blocks=("5", "last")), embeddings):
        with pytest.raises(
            InputError, match="trained on a mix of the blocks 4, last and these embeddings are of"
        ):
            score(recordings, [(mixing, notes)], other, parameters(), 0)
    with pytest.raises(
        InputError,
        match="trained on one block and these embeddings are of a mix of the blocks 4, last",
    ):
        score(recordings, [(plain, notes)], cache, parameters(), 0)


def test_the_time_course_of_a_model_that_sees_a_window(scene):
    """Outside it all images look alike, which is chance; inside it is that of a model and EEG of the window alone."""
    recordings, [(plain, notes)], embeddings = scene
    rng = np.random.default_rng(5)
    times, eeg = np.arange(120) / 100 - 0.2, rng.standard_normal((12, 4, 3, 120)).astype(np.float32)
    whole = dataclasses.replace(recordings[0], times=times, eeg=eeg)
    cut = dataclasses.replace(whole, times=times[50:], eeg=eeg[..., 50:])
    recipe = plain.recipe.model_copy(
        update={"eeg_window": [0.3, 0.99], "smoothing": 0.02, "remove_dc": True}
    )
    of_cut = ContrastiveModel(ModelSizes(3, 70, 100.0, 6, start=0.3), recipe).eval()
    of_whole = ContrastiveModel(ModelSizes(3, 120, 100.0, 6, start=-0.2), recipe).eval()
    of_whole.load_state_dict(of_cut.state_dict())
    [one], axes = score([whole], [(of_whole, notes)], embeddings, parameters(), 0)
    [expected], _ = score([cut], [(of_cut, notes)], embeddings, parameters(), 0)
    inside = [window.start >= 50 for window in axes.windows]
    outside = [window.stop <= 50 for window in axes.windows]
    assert (sum(inside), sum(outside), len(axes.windows)) == (6, 4, 11)
    assert ((one.windows["rank"][outside] == 1).sum(1) == 1).all()
    assert np.array_equal(one.windows["rank"][inside], expected.windows["rank"])
    assert np.array_equal(one.full["rank"], expected.full["rank"])
    with pytest.raises(
        InputError,
        match="trained on EEG from -0.2 s on and the test EEG starts at 0 s; train it again",
    ):
        score(
            [dataclasses.replace(whole, times=times + 0.2)],
            [(of_whole, notes)],
            embeddings,
            parameters(),
            0,
        )


def test_one_repetition_and_one_subject(scene):
    recordings, models, embeddings = scene
    once = dataclasses.replace(recordings[0], eeg=recordings[0].eeg[:, :1])
    scores, axes = score([once], models, embeddings, parameters(), 0)
    assert axes.n_repetitions == 1 and scores[0].repetitions == {}


def test_two_test_images(scene):
    """With top-1 alone, the only question that two images leave; the figures follow."""
    recordings, models, embeddings = scene
    two = [shuffled(recording, np.arange(2)) for recording in recordings]
    chosen = parameters(top_k=[1])
    scores, axes = score(two, models, embeddings, chosen, 0)
    made_with = {"protocol": "pooled", "selected_on": "validation"}
    summary, tables = tabulate(scores, axes, made_with, chosen, 0)
    assert tables["n_way"]["n_way"].tolist() == [2] and tables["n_way"]["chance"].tolist() == [0.5]
    assert summary["top1_acc"] in (0, 0.25, 0.5, 0.75, 1) and 1 <= summary["mean_rank"] <= 2


def test_equal_embeddings_of_two_images_count_against_the_match(scene):
    recordings, models, embeddings = scene
    values = embeddings.values.copy()
    values[5] = values[9]
    scores, _ = score(recordings, models, Embeddings(values, embeddings.image_ids), parameters(), 0)
    for one in scores:
        assert (one.full["rank"][[5, 9]] >= 2).all()


def test_constant_embeddings_score_nothing(scene):
    recordings, models, embeddings = scene
    constant = Embeddings(np.ones_like(embeddings.values), embeddings.image_ids)
    scores, _ = score(recordings, models, constant, parameters(), 0)
    assert all((one.full["rank"] == 12).all() for one in scores)


def with_eeg(recording: Recording, eeg: np.ndarray) -> Recording:
    return dataclasses.replace(recording, eeg=eeg)


def test_a_model_of_other_channels_is_refused(scene):
    (first, _), models, embeddings = scene
    other = dataclasses.replace(first, eeg=first.eeg[:, :, :2], ch_names=("O1", "O2"))
    with pytest.raises(
        InputError, match="sub-01: the model was trained on 3 channels x 70 samples .* has 2 x 70"
    ):
        score([other], models, embeddings, parameters(), 0)


def test_a_model_of_other_embeddings_is_refused(scene):
    recordings, models, embeddings = scene
    other = Embeddings(embeddings.values[:, :4], embeddings.image_ids)
    with pytest.raises(InputError, match="embeddings of 6 dimensions and these have 4"):
        score(recordings, models, other, parameters(), 0)


def test_no_eeg_is_refused(scene):
    _, models, embeddings = scene
    with pytest.raises(InputError, match="there is no test EEG to score"):
        score([], models, embeddings, parameters(), 0)


def test_ids_without_embedding_are_named(scene):
    recordings, models, embeddings = scene
    short = Embeddings(embeddings.values[1:], embeddings.image_ids[1:])
    with pytest.raises(
        InputError, match="1 of the 12 images seen have no embedding, first test_images/00000/0.jpg"
    ):
        score(recordings, models, short, parameters(), 0)


def test_values_that_are_not_finite_are_refused(scene):
    recordings, models, embeddings = scene
    broken = recordings[1].eeg.copy()
    broken[3, 2, 1, 0] = np.nan
    with pytest.raises(InputError, match="sub-02: the test EEG holds values that are not finite"):
        score([recordings[0], with_eeg(recordings[1], broken)], models, embeddings, parameters(), 0)
    values = embeddings.values.copy()
    values[0, 0] = np.inf
    with pytest.raises(
        InputError, match="embeddings of the test images hold values that are not finite"
    ):
        score(recordings, models, Embeddings(values, embeddings.image_ids), parameters(), 0)


def test_subjects_who_saw_other_images_are_refused(scene):
    (first, second), models, embeddings = scene
    other = shuffled(second, np.arange(11))
    with pytest.raises(
        InputError, match="sub-02: the test images are not those of the first .*set `subjects` to"
    ):
        score([first, other], models, embeddings, parameters(), 0)
    for subjects in ([first], [other]):
        assert score(subjects, models, embeddings, parameters(), 0)


def test_subjects_with_other_repetitions_are_refused(scene):
    (first, second), models, embeddings = scene
    with pytest.raises(InputError, match="sub-02: channels, times or repetitions"):
        score([first, with_eeg(second, second.eeg[:, :3])], models, embeddings, parameters(), 0)
    with pytest.raises(InputError, match="or preprocess.normalise does"):
        other = dataclasses.replace(second, to_normalise=True)
        score([first, other], models, embeddings, parameters(), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": [1, 12]}, "evaluate.top_k holds 12, which among 12 test images is every answer"),
        ({"top_k": [3]}, "evaluate.top_k must hold 1"),
        ({"window": 0.8}, "evaluate.window = 0.8 s is more than the 0.7 s of EEG"),
    ],
)
def test_parameters_that_the_data_cannot_have_are_refused(scene, changes, message):
    with pytest.raises(InputError, match=message):
        score(*scene, parameters(**changes), 0)
