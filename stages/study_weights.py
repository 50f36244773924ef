"""Get the weights of an image model of the study, once it is known that its grid can be run."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.params import read_params
from stages import run, weights
from stages.names import check_study


def main(
    params: Path,
    backbone: str,
    folder: Path,
    left_in: Annotated[
        Path | None, typer.Option(help="a folder where users leave files; noticed, not used")
    ] = None,
) -> str:
    check_study(read_params(params))
    return weights.main(params, backbone, folder, left_in)


if __name__ == "__main__":
    run(main)
