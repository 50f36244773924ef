"""Compare two evaluations that differ in one thing, by default the image encoder.

Each side is an experiment of DVC in a temporary folder (`dvc exp run --temp`), with the parameters
of the workspace and its uncommitted changes of tracked files. The workspace stays as it is. A side
that is in DVC's run cache takes seconds; else it is trained and evaluated. The experiment is
removed once its evaluation has been read. An interrupted training resumes from its last epoch.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from dvc.api import DVCFileSystem

from pipeline.compare.comparison import compare
from pipeline.compare.explained import explain_difference
from pipeline.datasets.human import read_human
from pipeline.errors import HUMAN_AGAIN, InputError, suggestion
from pipeline.evaluate.similarities import read_similarities
from pipeline.files import sha256
from pipeline.images.models.table import find_alignment
from pipeline.params import Params, keys, read_params
from stages import run, write_json
from stages.results import print_comparison

EVALUATION = "data/evaluation.h5"


def main(
    evaluations: Annotated[
        list[Path] | None, typer.Argument(help="two files to compare, or none")
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="the parameter of one side, as -S takes it; or several, in a row")
    ] = "encoder=unaligned",
    other: Annotated[str, typer.Option(help="those of the other side")] = "encoder=aligned",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="train.seeds, where DVC makes the evaluations")
    ] = None,
    params: Path = Path("params.yaml"),
    comparison: Path = Path("metrics/comparison.json"),
    human: Path = Path("data/fetched/human/similarity.h5"),
) -> str:
    p = read_params(params)
    _check_files(evaluations or [], seeds)
    if not evaluations:
        _check_sides(baseline, other, p)

    # Nothing of the workspace is touched: the evaluations lie elsewhere.
    with tempfile.TemporaryDirectory() as folder:
        files = evaluations or [
            evaluate(baseline, seeds, Path(folder) / "baseline.h5"),
            evaluate(other, seeds, Path(folder) / "other.h5"),
        ]
        first, second = (read_similarities(path) for path in files)
        result = compare(first, second, p.evaluate, p.seed)
        people = read_human(human) if human.exists() else f"{human} is not there: {HUMAN_AGAIN}"
        result |= explain_difference(first, second, p.evaluate, p.seed, people)
        # They tell later whether data/evaluation.h5 is one of the two.
        result["sha256"] = [sha256(path) for path in files]

    print_comparison(write_json(comparison, result))
    return str(comparison)


def _check_files(evaluations: list[Path], seeds: int | None) -> None:
    """Raises InputError unless there are two files and no seeds, or no files."""
    if not evaluations:
        return
    if len(evaluations) != 2:
        raise InputError(
            f"give two evaluations, or none to have DVC make them: got {len(evaluations)}"
        )
    if seeds:
        raise InputError(
            "--seeds is for evaluations that DVC makes: the files given hold the seeds that they "
            "hold"
        )


def _check_sides(baseline: str, other: str, p: Params) -> None:
    """Raises InputError unless both set the same parameters, and can differ by them."""
    for option, side in (("--baseline", baseline), ("--other", other)):
        for assignment in assignments(side):
            _check_assignment(option, assignment)

    first, second = (
        dict(assignment.split("=", 1) for assignment in assignments(side))
        for side in (baseline, other)
    )
    if first.keys() != second.keys():
        raise InputError(
            f"--baseline and --other should set the same parameters, got {baseline} and {other}"
        )

    encoders = {values.get("encoder", p.encoder) for values in (first, second)}
    if "alignment" in first and encoders == {"unaligned"}:
        raise InputError(
            f"{baseline} and {other} give the same: the encoder is unaligned on both sides, and "
            "an alignment changes the aligned one alone; make compare BASELINE='encoder=aligned "
            f"alignment={first['alignment']}' OTHER='encoder=aligned "
            f"alignment={second['alignment']}'"
        )
    _check_alignment(baseline, first, p)
    _check_alignment(other, second, p)


def _check_alignment(side: str, values: Mapping[str, str], p: Params) -> None:
    """Raises InputError where the image model of a side has no such alignment."""
    if values.get("encoder", p.encoder) != "aligned":
        return
    try:
        find_alignment(values.get("backbone", p.backbone), values.get("alignment", p.alignment))
    except InputError as error:
        raise InputError(f"the side {side} cannot be made: {error}") from error


def assignments(side: str) -> list[str]:
    """The assignments of a side: a space before a name and `=` separates them."""
    return re.split(r"\s+(?=[\w.]+=)", side.strip())


def _check_assignment(option: str, value: str) -> None:
    """Raises InputError unless the value sets a key of params.yaml, as `encoder=aligned` does."""
    key, sign, _ = value.partition("=")
    if not sign:
        raise InputError(
            f"{option} is {value}: expected a parameter and its value, such as encoder=aligned"
        )
    if key not in keys(Params):
        near = suggestion(key, keys(Params))
        raise InputError(f"{option} is {value}: params.yaml has no key {key}{near}")


def evaluate(side: str, seeds: int | None, target: Path) -> Path:
    """Have DVC make an evaluation, and copy it to `target`.

    The parameters are those of the workspace, but for those of the side (key=value, or several with
    spaces between) and `seeds`.
    """
    print(f"{side}: taken from DVC's cache, or trained and evaluated", flush=True)
    # With the number of this process: two comparisons at once must not take one name.
    name = f"compare-{target.stem}-{os.getpid()}"
    values = assignments(side)
    if seeds:
        values.append(f"train.seeds={seeds}")
    settings = [argument for value in values for argument in ("-S", value)]
    command = ["dvc", "exp", "run", "--quiet", "--temp", "--name", name, *settings, "evaluate"]

    try:
        if subprocess.run(command).returncode:
            raise InputError(
                f"the side {side} could not be evaluated; the lines above tell why (a file "
                "that git does not know is not taken along: git add it)"
            )
        # An experiment is a commit, so that its files are read without a checkout.
        DVCFileSystem(rev=name).get_file(EVALUATION, str(target))
    finally:
        # After an error too. Where there is no such experiment, its complaint is not for the user.
        subprocess.run(["dvc", "exp", "remove", "--quiet", name], stderr=subprocess.DEVNULL)
    return target


if __name__ == "__main__":
    run(main)
