"""The parameters of `params.yaml`, checked; names of models are those that the tables of this library have."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pipeline.data.datasets import DATASETS
from pipeline.eeg.encoders import EEG_ENCODERS
from pipeline.errors import InputError
from pipeline.images.encoders import BACKBONES
from pipeline.sections import Download, Embed, Evaluate, Preprocess, Section, Train


def _one_of(table: Collection[str]) -> AfterValidator:
    """The value must be a name in the table as it is when the parameters are read."""

    def check(name: str) -> str:
        if name not in table:
            raise PydanticCustomError("unknown_name", "should be one of {names}", {"names": ", ".join(table)})
        return name

    return AfterValidator(check)


class _Train(Train):
    eeg_encoder: Annotated[str, _one_of(EEG_ENCODERS)]


class Params(Section):
    dataset: Annotated[str, _one_of(DATASETS)]
    encoder: Literal["unaligned", "aligned"]
    backbone: Annotated[str, _one_of(BACKBONES)]
    subjects: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    download: Download
    preprocess: Preprocess
    embed: Embed
    train: _Train
    evaluate: Evaluate


def read_params(path: Path) -> Params:
    """Read `params.yaml`; InputError names the first key that is unknown, missing or has a wrong value."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run this in the project's folder") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    """One sentence on the first thing found wrong; a misspelt key comes before the missing one that it stands for."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    key = _key(first)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}; is it misspelt?"
    if first["type"] == "missing":
        return f"the key {key} is missing"
    alternatives = [problem["msg"][0].lower() + problem["msg"][1:] for problem in problems if _key(problem) == key]
    return f"{key} is {first['input']!r}: {', or '.join(alternatives)}"


def _key(problem: ErrorDetails) -> str:
    """`train.epochs`; pydantic adds the tried alternative of a union, such as `list[str]`, which is no key."""
    return ".".join(str(part) for part in problem["loc"] if str(part).isidentifier() and part != "")
