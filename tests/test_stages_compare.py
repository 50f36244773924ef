"""Through DVC: two evaluations are compared, and the workspace stays as it was."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clone import Project, project_after_its_first_run


@pytest.fixture(scope="module")
def project(tmp_path_factory, quick_programs) -> Project:
    return project_after_its_first_run(tmp_path_factory, quick_programs)


@pytest.mark.long
def test_both_encoders_are_compared_and_the_workspace_stays(project, tmp_path):
    """On the parameters as they are, committed or not; then the files that were compared, given by hand."""
    shipped = (project.folder / "params.yaml").read_bytes()
    project.set(train__epochs=2)
    but_its_own = ("git", "diff", "--", ".", ":!metrics/comparison.json")
    before = project.run(*but_its_own)
    try:
        output = project.run("python3", "-m", "stages.compare", "--seeds", "2")
        assert project.run(*but_its_own) == before
    finally:
        (project.folder / "params.yaml").write_bytes(shipped)
    result = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert (
        result["settings"]["train"]["epochs"] == 2
        and result["n_way"] == 6
        and result["seeds"] == [42, 43]
    )
    assert result["subjects"] == ["sub-01", "sub-02"] and result["answer"] in " ".join(
        output.split()
    )
    assert project.run("git", "status", "--porcelain") == " M metrics/comparison.json\n"
    assert "compare" not in project.run("dvc", "exp", "list", "--all-commits")
    printed = " ".join(project.run("python3", "-m", "stages.results").split())
    assert (
        result["answer"] in printed
        and "data/evaluation.h5 is another run than those compared" in printed
    )
    evaluation = "data/evaluation.h5"
    refused = project.run("python3", "-m", "stages.compare", evaluation, evaluation, fails=True)
    assert "error: the two evaluations differ in nothing" in refused and "Traceback" not in refused
    refused = project.run(
        "python3", "-m", "stages.compare", "--seeds", "2", evaluation, evaluation, fails=True
    )
    assert "error: --seeds is for evaluations that DVC makes" in refused
    project.run("git", "checkout", "metrics/comparison.json")


@pytest.mark.long
def test_two_alignments_of_one_base_are_compared_on_one_unaligned_cache(project):
    """DreamSim's and gLocal's of DINO, end to end on stand-ins and synthetic data, as few as in other tests."""
    sample, params = (
        project.folder / name for name in ("pipeline/datasets/sample.py", "params.yaml")
    )
    shipped = {path: path.read_bytes() for path in (sample, params)}
    text = sample.read_text()
    for count, value in (("train_concepts", 12), ("images_per_concept", 2), ("test_concepts", 6)):
        text = re.sub(rf"(    {count}: int = )\d+", rf"\g<1>{value}", text)
    sample.write_text(text)
    project.set(dataset="sample", backbone="dino_vitb16", embed__blocks=["last"], train__epochs=2)
    baseline, other = (f"encoder=aligned alignment={kind}" for kind in ("dreamsim", "glocal"))
    command = ("python3", "-m", "stages.compare", "--baseline", baseline, "--other", other)
    command += ("--seeds", "2")
    try:
        output = " ".join(project.run(*command).split())
        again = project.run(*command)
    finally:
        for path, content in shipped.items():
            path.write_bytes(content)

    result = json.loads((project.folder / "metrics/comparison.json").read_text())
    assert (result["differs_in"], result["backbone"]) == ("alignment", "dino_vitb16")
    assert (result["baseline"], result["other"]) == ("dreamsim", "glocal")
    assert result["synthetic"] and result["answer"] in output
    [caveat] = result["caveats"]
    assert caveat.startswith("Of glocal: gLocal's transform was fitted on people's judgements")
    assert "gets the whole picture here" in caveat and caveat in result["answer"]
    # The unaligned cache is made once, and nothing is made twice.
    assert output.count("embed unaligned:") <= 1 and "embed " not in again
    project.run("git", "checkout", "metrics/comparison.json")


@pytest.mark.long
def test_an_interrupted_comparison_leaves_the_workspace_as_it_was(project):
    shipped = (project.folder / "params.yaml").read_bytes()
    project.set(train__epochs=5000)
    before, log = project.run("git", "diff"), project.folder / "compare.log"
    try:
        with log.open("w") as out:
            command = [sys.executable, "-m", "stages.compare"]
            options = {"cwd": project.folder, "env": project.cold, "start_new_session": True}
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options)
            states = Path(project.environment["ALIGNED_EEG_CACHE"]) / "training"
            deadline = time.monotonic() + 120
            while (
                not list(states.glob("*/*/*.pt"))
                and process.poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) != 0
        assert list(states.glob("*/*/*.pt")), log.read_text()  # it was in the midst of training
        assert project.run("git", "diff") == before
    finally:
        (project.folder / "params.yaml").write_bytes(shipped)
        log.unlink()
    assert project.run("git", "status", "--porcelain") == ""
    assert "compare" not in project.run("dvc", "exp", "list", "--all-commits")
