"""From published archives to the sentence, in both directions: the recordings of THINGS-EEG2 and Alljoined-1.6M.

Both are simulated in their published layouts (see `pair`), at two rates, with other channels and other people.
"""

import json
from pathlib import Path

import h5py
import pytest

from pipeline.datasets.channels import POSTERIOR
from pipeline.files import sha256
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from tests.clone import Project, environment_of, publish_people, put_code, ran
from tests.osf_server import serve
from tests.pair import OF_ALLJOINED, OF_THINGS, SIZE, publish

pytestmark = pytest.mark.long
AFTER_TRAINING = ["train", "baseline", "evaluate", "explain", "report"]
ALLJOINED = ("across.dataset=alljoined", "download.accept_alljoined_licence=true")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    base = tmp_path_factory.mktemp("pair")
    publish(base)
    publish_people(base / "bucket", SIZE)
    make_checkpoint("synclr_vitb16", base / "releases/v0.2.1-checkpoints", embed_dim=64)
    environment = environment_of(base)
    project = Project(base / "project", environment, environment)
    put_code(project)
    params = Path("params/across").read_text().split()[1::2]
    folders = {"y63gw": base / "y63gw"}
    articles = {18470912: base / "figshare"}
    with serve(
        folders,
        base / "releases",
        articles=articles,
        bucket=base / "bucket",
        hub=base / "hub",
        per_page=50,
    ) as server:
        project.set(
            dataset="things-eeg2-raw",
            download__osf_api=server.api,
            download__figshare_api=server.figshare,
            download__hugging_face=server.hub,
            download__dreamsim_releases=server.releases,
            download__openneuro=server.bucket,
            download__things_data=server.bucket,
            download__accept_new_versions=True,
            train__epochs=30,
            train__batch_size=64,
            evaluate__resamples=200,
        )
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "code"]):
            project.run("git", *command)
        yield project, params, server


def experiment(project: Project, *changes: str, fails: bool = False) -> str:
    settings = [argument for change in changes for argument in ("-S", change)]
    return project.run("dvc", "exp", "run", *settings, fails=fails)


def test_from_the_archives_to_the_sentence_in_both_directions(project, tmp_path):
    project, params, server = project

    # Nothing of it is fetched before its licence is accepted.
    refused = experiment(project, "across.dataset=alljoined", *params, fails=True)
    assert "set download.accept_alljoined_licence to true" in refused
    assert not [request for request in server.log() if str(request["name"]).endswith(".edf")]

    experiment(project, *ALLJOINED, *params)
    metrics = project.metrics()
    n_test = SIZE.test_concepts
    assert (metrics["trained_dataset"], metrics["dataset"]) == ("things-eeg2-raw", "alljoined")
    assert (metrics["n_subjects"], metrics["n_way"]) == (len(OF_ALLJOINED), n_test)
    assert metrics["p_above_chance"] < 0.05 and metrics["top1_acc"] > 2 / n_test

    # Both are prepared alike: 17 channels by their names, and the same times.
    files = [*project.folder.glob("data/eeg/*.h5"), *project.folder.glob("data/eeg_second/*.h5")]
    assert len(files) == len(OF_THINGS) + len(OF_ALLJOINED)
    for path in files:
        with h5py.File(path, "r") as file:
            assert tuple(file["ch_names"].asstr()[:]) == POSTERIOR
            assert file["times"][:].tolist() == [round(0.004 * i, 9) for i in range(250)]

    turned = ran(experiment(project, "across.train_on=second", "across.test_on=first"))
    assert turned == AFTER_TRAINING
    metrics = project.metrics()
    assert (metrics["trained_dataset"], metrics["dataset"]) == ("alljoined", "things-eeg2-raw")
    assert metrics["p_above_chance"] < 0.05 and metrics["top1_acc"] > 2 / n_test

    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "across")
    answer = project.run("python3", "-m", "stages.compare", "--seeds", "2")
    comparison = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert comparison["trained_dataset"] == "alljoined" and comparison["dataset"] in answer


def test_prepared_eeg_of_alljoined_is_never_pushed(project, tmp_path):
    project, params, _ = project
    project.run("dvc", "remote", "add", "--local", "-d", "lab", str(tmp_path / "remote"))
    project.run("dvc", "push")
    pushed = {sha256(path) for path in (tmp_path / "remote").rglob("*") if path.is_file()}
    private = [*project.folder.glob("data/private_eeg_second/*.h5")]
    assert len(private) == len(OF_ALLJOINED)
    assert not pushed & {sha256(path) for path in private}
    assert pushed >= {sha256(path) for path in project.folder.glob("data/eeg/*.h5")}


def test_alljoined_alone_embeds_nothing_again(project):
    project, params, _ = project
    alone = ("train.protocol=pooled", "across.dataset=none", "dataset=alljoined")
    stages = ran(experiment(project, *alone))
    assert "private_eeg" in stages and not [name for name in stages if "embed" in name]
    back = ran(experiment(project, "dataset=things-eeg2-raw", *ALLJOINED, *params))
    assert not {*back} & {"preprocess", "preprocess_second", "private_eeg_second", "health"}
    assert not [name for name in back if "embed" in name]
