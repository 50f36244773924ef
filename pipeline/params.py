"""The parameters of `params.yaml`, read and checked; whether a model of that name exists, `tables` tells."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML, YAMLError

from pipeline.errors import InputError, suggestion
from pipeline.files import unreadable
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
    """Read `params.yaml`; InputError names the first key that is unknown, missing or has a wrong value.

    By the reader that DVC has, so that a stage takes for a number what DVC wrote and tracks as one: YAML 1.2, in which
    5e-05 is a number, 010 is ten, and `no` is text.
    """
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(error, path) or InputError(
            f"{path}: cannot be read ({error.strerror}); run this in the project's folder"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not text in UTF-8 ({error.reason}); save it as UTF-8"
        ) from error
    except (YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-45
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: is not valid YAML: {reason}; mend it there, or put it back as it came: git checkout {path}"
        ) from error

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
        return f"unknown key {key}" + (
            suggestion(key, [*keys(Params), *Params.model_fields]) or "; is it misspelt?"
        )
    if first["type"] == "missing":
        return f"the key {key} is missing"

    of_key = [problem for problem in problems if _key(problem) == key]
    alternatives = [_expected(problem) for problem in of_key]
    return f"{key or 'what it holds'} is {first['input']!r}: {', or '.join(alternatives)}" + _meant(
        of_key
    )


def _expected(problem: ErrorDetails) -> str:
    if problem["type"] == "bool_type":
        return "input should be true or false"
    if problem["type"] == "model_type":
        return "input should be keys, each with its value on a line of its own"
    if problem["type"] == "string_pattern_mismatch":
        return "input should be an address with its port, such as tcp://node1:8786"
    return problem["msg"][0].lower() + problem["msg"][1:]


def _meant(problems: list[ErrorDetails]) -> str:
    """The suggestion of one of the texts that a key takes, for another text."""
    texts = [
        text
        for problem in problems
        for text in re.findall("'(.+?)'", problem.get("ctx", {}).get("expected", ""))
    ]
    given = problems[0]["input"]
    return suggestion(given, texts) if isinstance(given, str) else ""


def _key(problem: ErrorDetails) -> str:
    """`train.epochs`; pydantic adds the tried alternative of a union, such as `list[str]`, which is no key."""
    return ".".join(str(part) for part in problem["loc"] if str(part).isidentifier() and part != "")


def keys(model: type[BaseModel], section: str = "") -> set[str]:
    """`encoder`, `train.epochs` and all others."""
    found = set()
    for name, field in model.model_fields.items():
        of_key = field.annotation
        if isinstance(of_key, type) and issubclass(of_key, BaseModel):
            found |= keys(of_key, f"{name}.")
        else:
            found.add(section + name)
    return found
