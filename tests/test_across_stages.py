"""The protocol across as a user runs it, through DVC: what is prepared, what is embedded, and what a report says."""

import json

import pytest

from tests.clone import Project, environment_of, put_code, ran

pytestmark = pytest.mark.long
CROSSED = ("train.protocol=across", "preprocess.channels=posterior", "preprocess.normalise=session")
AFTER_TRAINING = ["train", "baseline", "evaluate", "explain", "report"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The sample as it is shipped, with few epochs; nothing has run."""
    base = tmp_path_factory.mktemp("across")
    environment = environment_of(base)
    project = Project(base / "project", environment, environment)
    put_code(project)
    project.set(train__epochs=20, evaluate__resamples=200)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "code"]):
        project.run("git", *command)
    return project


def experiment(project: Project, *changes: str) -> list[str]:
    """The stages that ran; with an error of a stage, its last lines."""
    settings = [argument for change in changes for argument in ("-S", change)]
    return ran(project.run("dvc", "exp", "run", *settings))


def test_from_one_recording_to_the_other_and_back(project):
    experiment(project, "across.dataset=sample-headset", *CROSSED)
    metrics = project.metrics()
    assert (metrics["trained_dataset"], metrics["dataset"]) == ("sample", "sample-headset")
    assert (metrics["n_training_subjects"], metrics["n_subjects"]) == (2, 3)
    assert metrics["ci95_not_over"] == "seeds, training images and the people who trained"
    assert metrics["top1_acc"] > 3 * metrics["chance_top1"]
    page = (project.folder / "metrics/report.html").read_text()
    assert "trained on sample, tested on sample-headset" in page
    card = (project.folder / "data/model/README.md").read_text()
    assert "the dataset `sample`" in card

    # The other way round nothing is prepared and nothing embedded.
    turned = experiment(project, "across.train_on=second", "across.test_on=first")
    assert turned == AFTER_TRAINING
    metrics = project.metrics()
    assert (metrics["trained_dataset"], metrics["dataset"]) == ("sample-headset", "sample")

    assert experiment(project, "across.train_on=both", "across.models=pooled") == AFTER_TRAINING
    assert project.metrics()["trained_dataset"] == "sample and sample-headset"
    assert "are among those who trained" in (project.folder / "metrics/report.html").read_text()


def test_another_recording_of_the_same_images_embeds_nothing(project):
    alone = ("train.protocol=pooled", "across.dataset=none")
    experiment(project, "dataset=sample", *alone)
    ran_for_headset = experiment(project, "dataset=sample-headset", *alone)
    assert "preprocess" in ran_for_headset
    assert not [stage for stage in ran_for_headset if "embed" in stage or stage == "health"]

    # And back again, all is there.
    assert experiment(project, "dataset=sample", *alone) == []


def test_a_comparison_says_who_trained(project):
    direction = ("across.train_on=first", "across.test_on=second")
    experiment(project, "across.dataset=sample-headset", *direction, *CROSSED)
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "across")
    output = project.run("python3", "-m", "stages.compare", "--seeds", "2")
    assert "trained on sample, tested on sample-headset" in output
    comparison = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert comparison["ci95_over"] == ["seeds", "test images"]
    assert "not over the people who trained" in comparison["answer"]


def settings(changes: tuple[str, ...]) -> list[str]:
    return [argument for change in changes for argument in ("-S", change)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["train.protocol=across"], "across.dataset is none: name the second recording there"),
        (["across.dataset=sample"], "across.dataset is sample, and so is dataset: name another"),
        (["across.dataset=own"], "across.dataset is own, whose pictures are its own"),
        (["across.dataset=sample-hedset"], "; is it sample-headset?"),
        (
            ["across.dataset=sample-headset", "train.protocol=across"],
            "set preprocess.channels to posterior",
        ),
        (
            ["across.dataset=sample-headset", *CROSSED, "across.test_on=first"],
            "across.train_on and across.test_on are both first",
        ),
        (
            [
                "across.dataset=sample-headset",
                *CROSSED,
                "across.train_on=both",
                "across.models=within-subject",
            ],
            "set across.models to pooled",
        ),
    ],
)
def test_what_cannot_be_crossed_is_one_sentence(project, changes, sentence):
    project.run("git", "checkout", "-q", "params.yaml")
    alone = ["dataset=sample", "across.dataset=none", "train.protocol=pooled"]
    alone += ["preprocess.channels=all", "across.train_on=first", "across.test_on=second"]
    output = project.run("dvc", "exp", "run", *settings((*alone, *changes)), fails=True)
    assert sentence in output and "Traceback" not in output
