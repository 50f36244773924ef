"""Compare two evaluations that differ in one thing, by default the encoder; DVC computes what is missing.

The parameters are those of the workspace, which stays as it is. Each side is an experiment of DVC in a temporary folder
(`dvc exp run --temp`), which takes uncommitted changes of tracked files along; where the run cache has it already that
takes seconds. The experiment is removed once its evaluation has been read. Interrupted, a training goes on from its
last epoch next time.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from dvc.api import DVCFileSystem

from pipeline.compare.comparison import compare
from pipeline.errors import InputError, suggestion
from pipeline.evaluate.similarities import read_similarities
from pipeline.files import sha256
from pipeline.params import Params, keys, read_params
from stages import run, write_json
from stages.results import print_comparison

EVALUATION = "data/evaluation.h5"


def main(
    evaluations: Annotated[
        list[Path] | None, typer.Argument(help="two files to compare, or none")
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="the parameter of one side, as -S takes it")
    ] = "encoder=unaligned",
    other: Annotated[str, typer.Option(help="that of the other side")] = "encoder=aligned",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="train.seeds, where DVC makes the evaluations")
    ] = None,
    params: Path = Path("params.yaml"),
    comparison: Path = Path("metrics/comparison.json"),
) -> str:
    p = read_params(params)
    if evaluations and len(evaluations) != 2:
        raise InputError(
            f"give two evaluations, or none to have DVC make them: got {len(evaluations)}"
        )
    if evaluations and seeds:
        raise InputError(
            "--seeds is for evaluations that DVC makes: the files given hold the seeds that they hold"
        )
    for option, value in (("--baseline", baseline), ("--other", other)):
        _check_assignment(option, value)
    if baseline.partition("=")[0] != other.partition("=")[0]:
        raise InputError(
            f"--baseline and --other should set the same parameter, got {baseline} and {other}"
        )

    with tempfile.TemporaryDirectory() as folder:
        wanted = {"baseline": baseline, "other": other}
        files = evaluations or [
            evaluate(value, seeds, Path(folder) / f"{side}.h5") for side, value in wanted.items()
        ]
        first, second = (read_similarities(path) for path in files)
        result = compare(first, second, p.evaluate, p.seed)
        result["sha256"] = [sha256(path) for path in files]
    print_comparison(write_json(comparison, result))
    return str(comparison)


def _check_assignment(option: str, value: str) -> None:
    """InputError unless it sets a key of params.yaml, as `encoder=aligned` does."""
    key, sign, _ = value.partition("=")
    if not sign:
        raise InputError(
            f"{option} is {value}: expected a parameter and its value, such as encoder=aligned"
        )
    if key not in keys(Params):
        raise InputError(
            f"{option} is {value}: params.yaml has no key {key}" + suggestion(key, keys(Params))
        )


def evaluate(value: str, seeds: int | None, target: Path) -> Path:
    """The evaluation on the parameters of the workspace but for `value` (key=value), and `seeds` if given."""
    name = f"compare-{target.stem}-{os.getpid()}"
    print(f"{value}: taken from DVC's cache, or trained and evaluated", flush=True)
    values = ["-S", value] + (["-S", f"train.seeds={seeds}"] if seeds else [])
    command = ["dvc", "exp", "run", "--quiet", "--temp", "--name", name, *values, "evaluate"]
    try:
        if subprocess.run(command).returncode:
            raise InputError(
                f"the side {value} could not be evaluated; the lines above tell why (a file that git does not "
                "know is not taken along: git add it)"
            )
        DVCFileSystem(rev=name).get_file(EVALUATION, str(target))
    finally:
        subprocess.run(["dvc", "exp", "remove", "--quiet", name], stderr=subprocess.DEVNULL)
    return target


if __name__ == "__main__":
    run(main)
