"""A trained model put to use: what it retrieves is what the evaluation found, whatever the form of EEG and pictures."""

import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import mne
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pipeline.decode.decoding import compare, nearest, score
from pipeline.decode.gallery import embed_pictures, find_rows, read_gallery
from pipeline.decode.models import find_models
from pipeline.decode.responses import find_samples, read_epochs, read_prepared
from pipeline.errors import InputError
from pipeline.evaluate.statistics import draw_resamples
from pipeline.images.embeddings import read_embeddings
from pipeline.images.models.table import find_model
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from pipeline.params import read_params
from pipeline.preprocess.recordings import read_split
from pipeline.retrieval import rank_of_match
from pipeline.train.made_with import describe_data, read_made_with
from pipeline.train.model import ContrastiveModel, load_model
from pipeline.train.projection import project
from stages import decode, evaluate, train
from stages.embed import Paths, embed
from tests.clone import project_after_its_first_run
from tests.tiny import make_prepared

QUICK = {"epochs": 3, "batch_size": 12, "projection_size": 16, "validation_concepts": 0.25}
QUICK |= {"seeds": 2}


def write_params(folder: Path) -> Path:
    """params.yaml with a quick recipe, and few enough answers for six test images."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["train"] |= QUICK
    values["runs"] |= {"workers": 1}
    values["evaluate"] |= {"top_k": [1, 3], "resamples": 200}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return folder / "params.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    """Two subjects, the cache of the aligned encoder, and two models that learned it, evaluated."""
    base = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNED_EEG_CACHE", str(base / "cache"))
        make_prepared(base)
        make_checkpoint("synclr_vitb16", base / "weights", embed_dim=64)
        params = write_params(base)
        paths = (base / "images", base / "images.csv", base / "weights", base / "unaligned.h5")
        paths = Paths(*paths, base / "aligned.h5")
        embed(read_params(params).embed, "synclr_vitb16", "dreamsim", paths)

        train.main(params, base / "eeg", base / "aligned.h5", base / "model")
        tables = [base / "evaluation.json", base / "per_subject.csv"]
        evaluate.main(
            params,
            base / "eeg",
            base / "aligned.h5",
            base / "model",
            base / "details.json",
            base / "evaluation.h5",
            tables,
            base / "card.md",
        )

    pictures = base / "pictures"
    with zipfile.ZipFile(base / "images/test_images.zip") as archive:
        archive.extractall(pictures)
    return SimpleNamespace(
        base=base,
        params=params,
        model=base / "model/pooled-seed-42",
        pictures=pictures,
        cache=base / "aligned.h5",
        eeg=base / "eeg/sub-01.h5",
    )


@pytest.fixture(autouse=True)
def cache_folder(run, monkeypatch):
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(run.base / "cache"))


def decoded(run, tmp_path, *, model=None, eeg=None, **options) -> pd.DataFrame:
    """The table that the command writes."""
    options = {
        "embeddings": run.cache,
        "params": run.params,
        "out": tmp_path / "decoded.csv",
        "nearest": 6,
    } | options
    decode.main(model or run.model, eeg or run.eeg, **options)
    return pd.read_csv(options["out"], keep_default_na=False, na_values={"rank_of_seen": [""]})


def save_epochs(
    run,
    path: Path,
    *,
    subject: str = "sub-01",
    factor: float = 1.0,
    names: bool = True,
    change=lambda epochs: epochs,
) -> Path:
    """The test EEG of a prepared subject as single trials in a FIF file, the last channel first, and one that is no EEG."""
    recording = read_split(run.base / f"eeg/{subject}.h5", "test", average=False)
    n_images, n_repetitions, *axes = recording.eeg.shape
    eeg = recording.eeg.astype(float).reshape(-1, *axes)[:, ::-1] * factor
    with_eog = np.concatenate([eeg, np.zeros_like(eeg[:, :1])], axis=1)
    info = mne.create_info(
        [*recording.ch_names[::-1], "EOG1"], recording.sfreq, ["eeg"] * axes[0] + ["eog"]
    )
    metadata = None
    if names:
        metadata = pd.DataFrame(
            {
                "stim_file": [
                    f"stimuli/{image_id.partition('/')[2]}"
                    for image_id in recording.image_ids.repeat(n_repetitions)
                ]
            }
        )
    epochs = mne.EpochsArray(
        with_eog, info, tmin=recording.times[0], metadata=metadata, verbose="error"
    )
    change(epochs).save(path, fmt="double", verbose="error")
    return path


def test_a_prepared_subject_gets_the_score_of_the_evaluation(run, tmp_path, capsys):
    by_evaluation = pd.read_csv(run.base / "per_subject.csv").set_index(["subject", "seed"])
    for subject, seed in by_evaluation.index:
        table = decoded(
            run,
            tmp_path,
            model=run.base / f"model/pooled-seed-{seed}",
            eeg=run.base / f"eeg/{subject}.h5",
        )
        rank = table.groupby("response")["rank_of_seen"].first()
        found = by_evaluation.loc[(subject, seed)]
        assert (rank == 1).mean() == found["top1_acc"] and rank.mean() == found["mean_rank"]
        assert f"{found['top1_acc']:.3f}" in capsys.readouterr().out

        # Each row of the gallery once, the nearest first; its place is its rank.
        assert (table.groupby("response")["cosine"].diff().dropna() <= 0).all()
        seen = table[table["is_seen"]]
        assert (seen["picture"] == seen["seen"]).all() and (
            seen["place"] == seen["rank_of_seen"]
        ).all()


def test_epochs_of_mne_get_the_answers_of_the_prepared_file(run, tmp_path):
    """Channels in another order and one more, names without the folders of the gallery, single trials to average."""
    table = decoded(run, tmp_path)
    of_epochs = decoded(run, tmp_path, eeg=save_epochs(run, tmp_path / "new-epo.fif"))
    assert of_epochs["picture"].equals(table["picture"]) and of_epochs["is_seen"].equals(
        table["is_seen"]
    )
    assert np.allclose(of_epochs["cosine"], table["cosine"], atol=1e-6)
    assert set(of_epochs["n_trials"]) == {3}

    single = decoded(run, tmp_path, single_trials=True)
    single_epochs = decoded(run, tmp_path, eeg=tmp_path / "new-epo.fif", single_trials=True)
    assert len(single) == 3 * len(table) and set(single["n_trials"]) == {1}
    assert np.allclose(single_epochs["cosine"], single["cosine"], atol=1e-6)


def test_the_files_of_eeglab_get_them_too(run, tmp_path):
    """No metadata there: each epoch alone and no score, unless a CSV beside it tells the pictures."""
    pytest.importorskip("eeglabio")
    path = save_epochs(run, tmp_path / "new-epo.fif")
    epochs = mne.read_epochs(path, verbose="error").pick("eeg")
    mne.export.export_epochs(tmp_path / "new.set", epochs, verbose="error")
    table = decoded(run, tmp_path, eeg=tmp_path / "new.set", all_images=False)
    assert table["response"].nunique() == 18 and not table["is_seen"].any()
    # Without truth all images of the cache are the gallery.
    single = decoded(run, tmp_path, single_trials=True, all_images=True)
    assert np.allclose(table["cosine"], single["cosine"], atol=1e-4)

    epochs.metadata.rename(columns={"stim_file": "picture"}).to_csv(tmp_path / "new.csv")
    table = decoded(run, tmp_path, eeg=tmp_path / "new.set", image_column="picture")
    assert (
        table["picture"].equals(decoded(run, tmp_path)["picture"]) and table["is_seen"].sum() == 6
    )
    epochs.metadata[:-1].to_csv(tmp_path / "new.csv")
    with pytest.raises(InputError, match="has 17 rows below its first line, expected 18"):
        decoded(run, tmp_path, eeg=tmp_path / "new.set")


def test_pictures_of_a_folder_are_embedded_by_the_same_image_model(run, tmp_path):
    table = decoded(run, tmp_path)
    of_folder = decoded(
        run, tmp_path, embeddings=None, images=run.pictures, weights=run.base / "weights"
    )
    assert of_folder["picture"].str.removeprefix("pictures/").equals(table["picture"])
    assert np.allclose(of_folder["cosine"], table["cosine"], atol=1e-4)
    assert of_folder["rank_of_seen"].equals(table["rank_of_seen"])


def test_several_seeds_answer_by_the_mean_of_their_cosines(run, tmp_path, capsys):
    one, other = (
        decoded(run, tmp_path, model=run.base / f"model/pooled-seed-{seed}") for seed in (42, 43)
    )
    both = decoded(run, tmp_path, model=run.base / "model")
    assert "pooled-seed-42, pooled-seed-43: each cosine is the mean" in capsys.readouterr().out
    pairs = ["response", "picture"]
    first, second, mean = (
        table.set_index(pairs)["cosine"].sort_index() for table in (one, other, both)
    )
    assert np.allclose((first + second) / 2, mean, atol=1e-6)


def test_a_larger_gallery_has_more_pictures_and_no_other_cosines(run, tmp_path):
    table, larger = decoded(run, tmp_path), decoded(run, tmp_path, all_images=True, nearest=99)
    assert larger["place"].max() == 30 and set(table["picture"]) < set(larger["picture"])
    common = table.merge(larger, on=["response", "picture"])
    assert len(common) == len(table) and np.allclose(
        common["cosine_x"], common["cosine_y"], atol=1e-6
    )


# What does not fit, and what the sentence says of it


def change_file(path: Path, **attributes: object) -> Path:
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
    return path


def prepared(run, tmp_path, change) -> Path:
    path = Path(shutil.copy(run.eeg, tmp_path / "sub-01.h5"))
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace_data(file: h5py.File, name: str, values: object) -> None:
    del file[name]
    file[name] = values


WRONG_PREPARED = {
    "another unit": (lambda file: file.attrs.update({"units": "V"}), "units is V, not as released"),
    "another normalisation": (
        lambda file: file.attrs.update({"normalise": "trial"}),
        "normalise is trial, not none; prepare it anew with that (preprocess.normalise)",
    ),
    "whitened": (lambda file: file.attrs.update({"mvnn": "epochs"}), "mvnn is epochs, not none"),
    "a channel of another name": (
        lambda file: replace_data(file, "ch_names", ["O1", "OZ", "O2"]),
        "lacks 1 of the model's 3 channels, the first is Oz; it has O1, OZ, O2",
    ),
    "another rate": (
        lambda file: file.attrs.update({"sfreq": 50.0}),
        "at 50 Hz, and the model takes 100",
    ),
    "another window": (
        lambda file: replace_data(file, "times", file["times"][:] + 0.1),
        "preprocess.window=[-0.2,0.79]",
    ),
}


@pytest.mark.parametrize("case", WRONG_PREPARED)
def test_a_prepared_subject_that_does_not_fit_is_refused(case, run, tmp_path):
    change, sentence = WRONG_PREPARED[case]
    model, _ = load_model(run.model)
    with pytest.raises(InputError) as error:
        read_prepared(prepared(run, tmp_path, change), "test", model, read_made_with(run.model))
    assert sentence in str(error.value)


WRONG_EPOCHS = {
    "another rate": (
        lambda epochs: epochs.load_data().resample(50),
        "has 50 samples a second, and the model takes 100: resample it (epochs.resample(100) in MNE",
    ),
    "too short": (
        lambda epochs: epochs.crop(0, 0.5),
        "the model takes 100 samples from -0.2 to 0.79 s",
    ),
    "a channel missing": (
        lambda epochs: epochs.drop_channels(["Oz"]),
        "lacks 1 of the model's 3 channels, the first is Oz",
    ),
    "channels named otherwise": (
        lambda epochs: epochs.rename_channels({"Oz": "EEG Oz"}),
        "rename them as the model's (epochs.rename_channels in MNE)",
    ),
    "not finite": (lambda epochs: spoil(epochs), "is not finite in channel O2"),
}


def spoil(epochs):
    epochs._data[4, 0, 3] = np.nan
    return epochs


@pytest.mark.parametrize("case", WRONG_EPOCHS)
def test_epochs_that_do_not_fit_are_refused(case, run, tmp_path):
    change, sentence = WRONG_EPOCHS[case]
    model, _ = load_model(run.model)
    path = save_epochs(run, tmp_path / "new-epo.fif", change=change)
    with pytest.raises(InputError) as error:
        read_epochs(path, model, read_made_with(run.model))
    assert sentence in str(error.value)


def test_values_in_another_unit_are_refused_and_taken_once_they_are_brought_into_it(run, tmp_path):
    model, _ = load_model(run.model)
    made_with = read_made_with(run.model)
    volts = save_epochs(run, tmp_path / "volts-epo.fif", factor=1e-6)
    with pytest.raises(InputError, match="spread .*e-0. times as much .*epochs.apply_function"):
        read_epochs(volts, model, made_with)

    epochs = mne.read_epochs(volts, verbose="error").apply_function(lambda values: values * 1e6)
    epochs.save(tmp_path / "mended-epo.fif", fmt="double", verbose="error")
    expected = read_prepared(run.eeg, "test", model, made_with).eeg
    assert np.allclose(
        read_epochs(tmp_path / "mended-epo.fif", model, made_with).eeg, expected, atol=1e-5
    )


def test_longer_epochs_are_cut_to_the_window_of_the_model(run, tmp_path):
    model, _ = load_model(run.model)
    sizes = replace(model.sizes, n_times=50, start=0.1)
    times = np.arange(100) / 100 - 0.2
    assert find_samples(times, 100.0, sizes, Path("new"))[0] == slice(30, 80)
    shifted, [note] = find_samples(times + 0.003, 100.0, sizes, Path("new"))
    assert shifted == slice(30, 80) and "+3 ms beside" in note


def test_a_bad_channel_is_told(run, tmp_path):
    def mark(epochs):
        epochs.info["bads"] = ["Oz", "EOG1"]
        return epochs

    model, _ = load_model(run.model)
    path = save_epochs(run, tmp_path / "new-epo.fif", change=mark)
    responses = read_epochs(path, model, read_made_with(run.model))
    assert f"{path}: the channels Oz are marked as bad, and are used." in responses.notes


@pytest.mark.parametrize("normalised", ["trial", "average"])
def test_responses_are_normalised_as_the_models_eeg_was(normalised, run, tmp_path):
    """In the order of `preprocess.normalise`; by hand, on the trials of the first picture."""
    model, _ = load_model(run.model)
    made_with = read_made_with(run.model)
    made_with["eeg"]["normalise"] = normalised
    path = save_epochs(run, tmp_path / "new-epo.fif")
    unscaled = type(model)(model.sizes, model.recipe.model_copy(update={"standardise_eeg": False}))
    first = read_epochs(path, unscaled, made_with).eeg[0]

    trials = read_split(run.eeg, "test", average=False).eeg[0].astype(float)
    by_hand = lambda x: (x - x.mean(-1, keepdims=True)) / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    expected = by_hand(trials).mean(0) if normalised == "trial" else by_hand(trials.mean(0))
    assert np.allclose(first, expected, atol=1e-6)


def test_the_column_of_the_picture(run, tmp_path, capsys):
    path = save_epochs(run, tmp_path / "new-epo.fif")
    with pytest.raises(
        InputError, match="has no column stimfile, it has stim_file; is it stim_file"
    ):
        decoded(run, tmp_path, eeg=path, image_column="stimfile")

    # Trials without a picture, and a picture that the gallery lacks
    epochs = mne.read_epochs(path, verbose="error")
    epochs.metadata = epochs.metadata.assign(
        stim_file=["n/a", *epochs.metadata["stim_file"][1:-3], *["other.jpg"] * 3]
    )
    epochs.save(path, overwrite=True, fmt="double", verbose="error")
    table = decoded(run, tmp_path, eeg=path)
    out = capsys.readouterr().out
    assert "1 epochs without a picture are left out" in out
    assert "Of 6 responses 1 are to pictures that the gallery lacks, the first is other.jpg" in out
    assert table["n_trials"][0] == 2 and table["rank_of_seen"].isna().sum() == 5
    assert "5 responses to 5 pictures" in out
    assert "Nor is it known whether the model was trained with these pictures" in out


def test_a_gallery_of_another_image_model_is_refused(run, tmp_path):
    unaligned = Path(shutil.copy(run.cache, tmp_path / "unaligned.h5"))
    change_file(unaligned, encoder="unaligned", alignment="none", aligned_by="none")
    with pytest.raises(
        InputError, match="encoder is unaligned, expected aligned; give the cache of that one"
    ):
        decoded(run, tmp_path, embeddings=unaligned)
    other = change_file(
        Path(shutil.copy(run.cache, tmp_path / "other.h5")), checkpoint_sha256="0" * 64
    )
    with pytest.raises(InputError, match="checkpoint_sha256 is 0000"):
        decoded(run, tmp_path, embeddings=other)


def test_pictures_cannot_be_embedded_with_other_weights(run, tmp_path):
    model, _ = load_model(run.model)
    made_with = read_made_with(run.model)
    with pytest.raises(InputError, match="is not there, the weights of synclr_vitb16.*--weights"):
        embed_pictures(run.pictures, tmp_path / "gallery.h5", model, made_with, tmp_path)
    [file] = (run.base / "weights").iterdir()
    (tmp_path / file.name).write_bytes(file.read_bytes() + b" ")
    with pytest.raises(
        InputError, match="is another checkpoint than the one that the model was trained"
    ):
        embed_pictures(run.pictures, tmp_path / "gallery.h5", model, made_with, tmp_path)

    # What is in the folder
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/a.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError) as error:
        embed_pictures(
            *(tmp_path / "damaged", tmp_path / "gallery.h5", model, made_with, run.base / "weights")
        )
    assert "pictures/a.jpg: cannot be decoded as JPEG or PNG" in str(error.value)
    assert "take it out of the folder" in str(error.value) and "dvc" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures, expected .jpg"):
        embed_pictures(
            tmp_path / "empty", tmp_path / "gallery.h5", model, made_with, run.base / "weights"
        )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"embeddings": None}, "--embeddings CACHE .* or --images FOLDER"),
        ({"images": Path("pictures")}, "one of the two"),
        ({"model": Path("nothing")}, "there is no such folder"),
        ({"eeg": Path("README.md")}, "expected .fif"),
        ({"eeg": Path("new-epo.fif")}, "there is no such file"),
        ({"model": Path("tests")}, "holds no trained model; give the folder of a model"),
        ({"split": "train", "single_trials": True}, "preprocess.average_repetitions=false"),
        (
            {"model": "model", "fold": "poold"},
            "has no models of the fold poold, it has pooled; is it pooled",
        ),
    ],
)
def test_what_cannot_be_asked_is_told(options, sentence, run, tmp_path):
    if options.get("model") == "model":
        options = options | {"model": run.base / "model"}
    with pytest.raises(InputError, match=sentence):
        decoded(run, tmp_path, **options)


def test_the_fold_that_was_tested_on_the_subject_decodes_it(run, tmp_path):
    """Of leave-one-subject-out each subject has a model of its own; of an unknown subject none can be chosen."""
    folder = tmp_path / "model"
    for subject, other in (("sub-01", "sub-02"), ("sub-02", "sub-01")):
        shutil.copytree(run.model, folder / f"without-{subject}-seed-42")
        path = folder / f"without-{subject}-seed-42/model.json"
        notes = json.loads(path.read_text()) | {
            "fold": f"without-{subject}",
            "tested_on": [subject],
            "trained_on": [other],
        }
        path.write_text(json.dumps(notes))

    [(_, notes)], _ = find_models(folder, "sub-02")
    assert notes["fold"] == "without-sub-02"
    with pytest.raises(
        InputError,
        match="holds models of the folds without-sub-01, without-sub-02.*--fold without-sub-01",
    ):
        find_models(folder)
    [(_, notes)], _ = find_models(folder, fold="without-sub-01")
    assert notes["tested_on"] == ["sub-01"]


def test_a_model_that_says_less_decodes_with_a_word(run, tmp_path, capsys):
    """As one that was trained from Python: without made_with.json."""
    folder = Path(shutil.copytree(run.model, tmp_path / "pooled-seed-42"))
    (folder / "made_with.json").unlink()
    table = decoded(run, tmp_path, model=folder)
    assert table.equals(decoded(run, tmp_path))
    assert "does not say how its EEG was prepared" in capsys.readouterr().out
    with pytest.raises(
        InputError, match="no picture can be embedded for it: give an embedding cache"
    ):
        decoded(run, tmp_path, model=folder, embeddings=None, images=run.pictures)
    (folder / "made_with.json").write_text("{}")
    with pytest.raises(InputError, match="train it again"):
        decoded(run, tmp_path, model=folder)


# The parts


def test_names_find_their_pictures():
    ids = ["zip/a/Cat.jpg", "zip/b/cat.png", "zip/dog.jpg", "zip/c/owl.jpg"]
    names = [
        "zip/a/Cat.jpg",
        "a/cat",
        "b\\CAT.PNG",
        "dog",
        "stimuli/dog.jpeg",
        "owl.jpg",
        "elsewhere/owl.jpg",
        "cow",
    ]
    assert find_rows(names, ids).tolist() == [0, 0, 1, 2, 2, 3, -1, -1]
    with pytest.raises(InputError, match="cat could be zip/a/Cat.jpg or zip/b/cat.png"):
        find_rows(["cat"], ids)

    # The whole path below the zip is that picture; macOS writes an accent as a character of its own
    assert find_rows(["dog.jpg"], ["zip/old/dog.jpg", "zip/dog.jpg"]).tolist() == [1]
    assert find_rows(["cafe\u0301.jpg"], ["zip/a/caf\u00e9.jpg"]).tolist() == [0]


def test_the_score_is_that_of_numpy():
    """Unequal numbers of trials: each picture counts once. Ranks are those of the retrieval metrics."""
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((9, 7)).astype(np.float32)
    seen = np.array([0, 0, 0, 1, 2, 2, 3, 4, -1])
    result = score(similarity, seen, 500, 1)
    right = np.array([similarity[i].argmax() == seen[i] for i in range(9)])
    shares = [right[seen == image].mean() for image in range(5)]
    assert result.top_k[1] == pytest.approx(np.mean(shares))
    assert (result.n_way, result.n_images, result.n_responses) == (7, 5, 8)
    assert result.chance == {1: 1 / 7, 5: 5 / 7}

    counts = draw_resamples(1, 5, 500, 1).images
    ends = np.quantile(counts @ np.array(shares) / 5, [0.025, 0.975])
    assert (result.low[1], result.high[1]) == pytest.approx(tuple(ends))

    square = score(similarity[:7], np.arange(7), 500, 1)
    ranks = rank_of_match(torch.from_numpy(similarity[:7])).numpy()
    assert square.top_k[5] == pytest.approx((ranks <= 5).mean())


def test_p_is_small_where_all_are_found_and_large_where_the_pictures_change_places():
    perfect = np.eye(12, dtype=np.float32)
    assert score(perfect, np.arange(12), 200, 0).p == 1 / 201
    assert score(perfect, np.roll(np.arange(12), 1), 200, 0).p > 0.3
    assert score(perfect, np.full(12, -1), 200, 0) is None
    one = score(perfect, np.zeros(12, int), 200, 0)
    assert np.isnan(one.p) and np.isnan(one.low[1])


def test_a_constant_answer_is_never_right():
    """Ties count against the picture that was seen."""
    result = score(np.zeros((4, 8), np.float32), np.arange(4), 50, 0)
    assert result.top_k == {1: 0.0, 5: 0.0} and result.p == 1


def test_from_python_the_same_comes_out(run, tmp_path):
    model, notes = load_model(run.model)
    made_with = read_made_with(run.model)
    responses = read_prepared(run.eeg, "test", model, made_with)
    gallery, said = read_gallery(run.cache, model, made_with)
    values = gallery.values[gallery.rows(responses.seen)]
    similarity = compare([(model, notes)], responses.eeg, values)
    eeg_side, image_side = project(model, torch.from_numpy(responses.eeg), torch.from_numpy(values))
    assert np.allclose(similarity, eeg_side @ image_side.T, atol=1e-6) and said == []
    table = decoded(run, tmp_path)
    assert (
        table["picture"].tolist()
        == gallery.image_ids[gallery.rows(responses.seen)][nearest(similarity, 6)].ravel().tolist()
    )


def test_the_code_of_the_page_works(run, tmp_path, monkeypatch):
    """docs/decode.md, on the small files here; it finds what the command finds."""
    expected = decoded(run, tmp_path)
    for name, target in (("model", "model"), ("eeg", "eeg"), ("fetched/weights", "weights")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).symlink_to(run.base / target)
    (tmp_path / "data/embeddings").mkdir()
    (tmp_path / "data/embeddings/unaligned.h5").symlink_to(run.cache)
    (tmp_path / "pictures").symlink_to(run.pictures)
    save_epochs(run, tmp_path / "new-epo.fif")
    page = str(Path("docs/decode.md").absolute())
    monkeypatch.chdir(tmp_path)
    # The page takes all seeds; here one, as the expected table does.
    names = run_code(page, {"data/model": "data/model/pooled-seed-42"})

    assert names["similarity"].shape == (6, 30) and names["image_side"].shape == (6, 16)
    seen = names["gallery"].rows(names["responses"].seen)
    among_seen = names["similarity"][:, seen]
    found = names["gallery"].image_ids[seen][nearest(among_seen, 6)].ravel().tolist()
    assert found == expected["picture"].tolist()
    cosines = names["eeg_side"] @ names["image_side"].T
    assert np.allclose(
        cosines, compare(names["models"], names["new"].eeg, names["pictures"].values), atol=1e-6
    )


def run_code(page: str, changes: dict[str, str]) -> dict[str, object]:
    """Run the Python of a page from top to bottom, with other words; returns what it has defined."""
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", Path(page).read_text(), re.M | re.S):
        for before, after in changes.items():
            block = block.replace(before, after)
        exec(block, names)
    return names


@pytest.mark.long
def test_a_model_from_another_clone_decodes(tmp_path_factory, quick_programs, tmp_path):
    """`dvc get` brings the folder; the score is that of the evaluation there."""
    project = project_after_its_first_run(tmp_path_factory, quick_programs)
    elsewhere = tmp_path / "elsewhere"
    project.run("dvc", "get", ".", "data/model", "--out", str(elsewhere))
    assert "the dataset `things-eeg2`" in (elsewhere / "README.md").read_text()

    out = tmp_path / "decoded.csv"
    command = ["python3", "-m", "stages.decode", str(elsewhere), "data/eeg/sub-01.h5"]
    command += ["--out", str(out), "--embeddings"]
    project.run(*command, "data/embeddings/unaligned.h5")
    is_found = pd.read_csv(out).groupby("response")["rank_of_seen"].first() == 1
    by_evaluation = pd.read_csv(project.folder / "metrics/per_subject.csv").set_index("subject")
    assert is_found.mean() == by_evaluation.loc["sub-01", "top1_acc"]

    refused = project.run(*command, "data/embeddings/aligned.h5", fails=True)
    assert "error: data/embeddings/aligned.h5: is of another image model" in refused
    assert "Traceback" not in refused


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "alignment", "choice"),
    [
        ("dino_vitb16", "glocal", {"views_in_gallery": "mean"}),
        ("dino_vitb16", "dreamsim", {"block": "mix", "views_in_gallery": "blur-8"}),
        ("siglip2_vitb16", "alignet", {"block": 6}),
        ("clip_vitl14", "none", {}),
    ],
)
def test_a_folder_is_embedded_as_the_cache_was(backbone, alignment, choice, run, tmp_path):
    """By every kind of alignment, and as the blocks and views that the model needs: the same values."""
    find_model(backbone).stand_in(tmp_path / "weights")
    changes = {"blocks": [6, "last"], "views": ["original", "blur-8"]}
    parameters = read_params(run.params).embed.model_copy(update=changes)
    caches = {"none": tmp_path / "unaligned.h5", alignment: tmp_path / "aligned.h5"}
    for kind, target in caches.items():
        paths = (run.base / "images", run.base / "images.csv", tmp_path / "weights")
        embed(parameters, backbone, kind, Paths(*paths, tmp_path / "unaligned.h5", target))

    cache = caches[alignment]
    recipe = read_params(run.params).train.model_copy(update=choice)
    view = recipe.views_in_gallery
    embeddings = read_embeddings(cache, recipe.block, view, view)
    trained, _ = load_model(run.model)
    size = embeddings.values.shape[-1]
    sizes = replace(trained.sizes, embedding_size=size, blocks=embeddings.blocks)
    model = ContrastiveModel(sizes, recipe)
    made_with = describe_data("sample", {"sub-01": run.eeg}, ["sub-01"], cache)

    embed_pictures(run.pictures, tmp_path / "own.h5", model, made_with, tmp_path / "weights")
    pictures, notes = read_gallery(tmp_path / "own.h5", model, made_with)
    rows = find_rows(pictures.image_ids.tolist(), embeddings.image_ids.tolist())
    assert notes == [] and (rows >= 0).all()
    assert np.allclose(pictures.values, embeddings.values[rows], rtol=1e-3, atol=1e-4)


# The page and the card


def test_the_page_shows_what_the_table_says(run, tmp_path):
    page = tmp_path / "decoded.html"
    decoded(run, tmp_path, page=page, archives=run.base / "images")
    text = page.read_text()
    assert text.count("data:image/jpeg") == 6 * (1 + 6) and text.count('class="seen"') == 6
    assert "synthetic data" in text and "https://" not in text.split("</style>")[-1]

    # Of a dataset whose images may not be passed on, names alone
    folder = Path(shutil.copytree(run.model, tmp_path / "pooled-seed-42"))
    notes = json.loads((folder / "made_with.json").read_text()) | {"dataset": "things-eeg2"}
    (folder / "made_with.json").write_text(json.dumps(notes))
    decoded(run, tmp_path, model=folder, page=page, archives=run.base / "images")
    assert "data:image/jpeg" not in page.read_text() and "may not be passed on" in page.read_text()

    # A folder of the user's own is his to show
    decoded(
        run,
        tmp_path,
        model=folder,
        page=page,
        embeddings=None,
        images=run.pictures,
        weights=run.base / "weights",
    )
    assert page.read_text().count("data:image/jpeg") == 6 * (1 + 6)


def test_the_card_says_what_the_models_are(run):
    card = (run.base / "model/README.md").read_text()
    made_with = read_made_with(run.model)
    assert made_with["embeddings"]["checkpoint_sha256"] in card and "O1, Oz, O2" in card
    assert "synthetic" in card and "only after the stage `evaluate`" in card
    assert "| `pooled-seed-43` | sub-01, sub-02 |" in card and "seeds: 2" in card

    scored = (run.base / "card.md").read_text()
    summary = json.loads((run.base / "evaluation.json").read_text())
    assert f"| top-1 of 6 | {summary['top1_acc']:.3f} |" in scored and "only after" not in scored
    # Nothing but the score is another
    assert scored.split("## Models")[1] == card.split("## Models")[1]
