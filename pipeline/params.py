"""The parameters of `params.yaml`, read and checked; whether a model of that name exists, `tables` tells."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pipeline.errors import InputError
from pipeline.sections import Download, Embed, Evaluate, Preprocess, Runs, Section, Study, Train

RENAMED = {
    "nice-seed": "nice-recipe",
    "train.workers": "runs.workers",
    "train.warmup_epochs_encoder": "train.warmup_epochs_eeg_encoder",
}


def _current(name: str) -> str:
    if name in RENAMED:
        raise PydanticCustomError("renamed", "is now called {name}", {"name": RENAMED[name]})
    return name


class _Train(Train):
    eeg_encoder: Annotated[str, AfterValidator(_current)]


class Params(Section):
    dataset: str
    encoder: Literal["unaligned", "aligned"]
    alignment: str
    backbone: str
    subjects: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    download: Download
    preprocess: Preprocess
    embed: Embed
    train: _Train
    runs: Runs
    evaluate: Evaluate
    study: Study


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
    if key in RENAMED:
        return f"the key {key} is now called {RENAMED[key]}"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}; is it misspelt?"
    if first["type"] == "missing":
        return f"the key {key} is missing"
    alternatives = [problem["msg"][0].lower() + problem["msg"][1:] for problem in problems if _key(problem) == key]
    return f"{key} is {first['input']!r}: {', or '.join(alternatives)}"


def _key(problem: ErrorDetails) -> str:
    """`train.epochs`; pydantic adds the tried alternative of a union, such as `list[str]`, which is no key."""
    return ".".join(str(part) for part in problem["loc"] if str(part).isidentifier() and part != "")
