"""The parameters of `params.yaml`, read and checked.

Whether a dataset, model or encoder of that name exists is not checked here but in `stages.names`.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError

from pipeline.errors import InputError, suggestion
from pipeline.files import unreadable
from pipeline.sections import (
    Across,
    Download,
    Embed,
    Evaluate,
    Own,
    Preprocess,
    Runs,
    Sample,
    Section,
    Study,
    Train,
)


class Params(Section):
    dataset: str
    encoder: Literal["unaligned", "aligned"]
    alignment: str
    backbone: str
    subjects: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    sample: Sample
    own: Own
    across: Across
    download: Download
    preprocess: Preprocess
    embed: Embed
    train: Train
    runs: Runs
    evaluate: Evaluate
    study: Study


def read_params(path: Path) -> Params:
    """Read `params.yaml`; InputError names the first key that is unknown, missing or wrong.

    DVC writes and tracks the file with ruamel.yaml, so it is read with that too. Values follow
    YAML 1.2: 5e-05 is a number, 010 is ten, and `no` is text.
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
            f"{path}: is not valid YAML: {reason}; mend it there, or put it back as it came: git "
            f"checkout {path}"
        ) from error

    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    """One sentence on the first problem."""
    # An unknown key comes first: it may be a misspelling of a key that is reported as missing.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    key = _key(first)

    if first["type"] == "extra_forbidden":
        guess = suggestion(key, [*keys(Params), *Params.model_fields])
        return f"unknown key {key}{guess or '; is it misspelt?'}"
    if first["type"] == "missing":
        return f"the key {key} is missing"

    # A key that takes several types has one problem for each type.
    problems_of_key = [problem for problem in problems if _key(problem) == key]
    expected = ", or ".join(_expected(problem) for problem in problems_of_key)
    name = key or "what it holds"
    return f"{name} is {first['input']!r}: {expected}{_suggested_text(problems_of_key)}"


def _expected(problem: ErrorDetails) -> str:
    """What a key takes: pydantic's sentence, or a plainer one."""
    if problem["type"] == "bool_type":
        return "input should be true or false"
    if problem["type"] == "model_type":
        return "input should be keys, each with its value on a line of its own"
    if problem["type"] == "string_pattern_mismatch":
        return "input should be an address with its port, such as tcp://node1:8786"
    return problem["msg"][0].lower() + problem["msg"][1:]


def _suggested_text(problems: list[ErrorDetails]) -> str:
    """For a text that a key does not take, the suggestion of a similar text that it takes."""
    texts = []
    for problem in problems:
        quoted = problem.get("ctx", {}).get("expected", "")  # such as: 'last' or 'mix'
        texts += re.findall("'(.+?)'", quoted)

    value = problems[0]["input"]
    return suggestion(value, texts) if isinstance(value, str) else ""


def _key(problem: ErrorDetails) -> str:
    """The name of a key, such as `train.epochs`.

    For a key of several types pydantic adds the type that failed, such as `list[str]`: no key.
    """
    return ".".join(str(part) for part in problem["loc"] if str(part).isidentifier())


def keys(model: type[BaseModel], section: str = "") -> set[str]:
    """All keys by their full names: `encoder`, `train.epochs`. A section itself is not one."""
    names = set()
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names |= keys(annotation, f"{name}.")
        else:
            names.add(section + name)
    return names
