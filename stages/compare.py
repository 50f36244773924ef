"""Compare the two encoders on the parameters as they are now; DVC computes what is missing, the workspace stays.

Each encoder is an experiment of DVC in a temporary folder (`dvc exp run --temp`), which takes uncommitted changes of
tracked files along; where the run cache has it already that takes seconds. The experiment is removed once its
evaluation has been read. Interrupted, a training goes on from its last epoch next time.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from dvc.api import DVCFileSystem

from pipeline.analysis.comparison import ENCODERS, compare
from pipeline.analysis.similarities import read_similarities
from pipeline.errors import InputError
from pipeline.files import replacing, sha256
from pipeline.params import read_params
from stages import run
from stages.results import print_comparison

EVALUATION = "data/evaluation.h5"


def main(
    evaluations: Annotated[list[Path] | None, typer.Argument(help="two files: unaligned, aligned; or none")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="train.seeds, where DVC makes the evaluations")] = None,
    params: Path = Path("params.yaml"),
    comparison: Path = Path("metrics/comparison.json"),
) -> str:
    p = read_params(params)
    if evaluations and len(evaluations) != 2:
        raise InputError(
            f"give two evaluations, unaligned and aligned, or none to have DVC make them: got {evaluations}"
        )
    if evaluations and seeds:
        raise InputError("--seeds is for evaluations that DVC makes: the files given hold the seeds that they hold")
    with tempfile.TemporaryDirectory() as folder:
        files = evaluations or [evaluate(encoder, seeds, Path(folder)) for encoder in ENCODERS]
        sides = [read_similarities(path) for path in files]
        result = compare(*sides, p.evaluate, p.seed)
        result["sha256"] = {encoder: sha256(path) for encoder, path in zip(ENCODERS, files, strict=True)}
    result = json.loads(json.dumps(result), parse_constant=lambda _: None)  # what is undefined is null
    with replacing(comparison) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    print_comparison(result)
    return str(comparison)


def evaluate(encoder: str, seeds: int | None, folder: Path) -> Path:
    """The evaluation of one encoder on the parameters of the workspace, copied into `folder`; `seeds` if given."""
    name, target = f"compare-{encoder}-{os.getpid()}", folder / f"{encoder}.h5"
    print(f"{encoder}: taken from DVC's cache, or trained and evaluated", flush=True)
    values = ["-S", f"encoder={encoder}"] + (["-S", f"train.seeds={seeds}"] if seeds else [])
    command = ["dvc", "exp", "run", "--quiet", "--temp", "--name", name, *values, "evaluate"]
    try:
        if subprocess.run(command).returncode:
            raise InputError(
                f"the {encoder} encoder could not be evaluated; the lines above tell why (a file that git does not "
                "know is not taken along: git add it)"
            )
        DVCFileSystem(rev=name).get_file(EVALUATION, str(target))
    finally:
        subprocess.run(["dvc", "exp", "remove", "--quiet", name], stderr=subprocess.DEVNULL)
    return target


if __name__ == "__main__":
    run(main)
