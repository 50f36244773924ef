"""The parameters of `params.yaml`, typed and checked; the file itself says what each key means."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import InputError

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Device = Literal["auto", "cpu", "cuda"]
Block = Literal["last"] | Count


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Download(_Section):
    osf_api: str
    dreamsim_releases: str


class Preprocess(_Section):
    average_repetitions: bool
    channels: Literal["all"] | list[str]
    window: Annotated[list[float], Field(min_length=2, max_length=2)]
    normalise: Literal["none", "trial"]
    dtype: Literal["float32", "float64"]
    workers: Count


class Embed(_Section):
    tokens: Literal["cls", "mean"]
    precision: Literal["float32", "bfloat16"]
    batch_size: Count
    device: Device
    blocks: Annotated[list[Block], Field(min_length=1)]


class Train(_Section):
    block: Block
    protocol: Literal["pooled", "within-subject", "leave-one-subject-out"]
    select_on: Literal["validation", "last", "test"]
    selection_temperature: Literal["fitted", "model"]
    validation_concepts: Share
    workers: Count
    eeg_encoder: Literal["nice-seed", "nice", "atm-s", "eegnet", "shallow", "deep4", "eegconformer"]
    first_weights: Literal["published", "torch"]
    standardise_eeg: bool
    image_projector: bool
    temperature: Literal["learned"] | Rate
    start_temperature: Rate
    normalise_embeddings: bool
    optimizer: Literal["adam", "adamw"]
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: Literal["none"] | Rate
    epochs: Count
    average_epochs: Literal["none"] | Rate
    batch_size: Annotated[int, Field(gt=1)]
    learning_rate: Rate
    final_learning_rate: Rate
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)]
    warmup_start: Share
    warmup_epochs_encoder: Annotated[int, Field(ge=0)]
    warmup_epochs_projectors: Annotated[int, Field(ge=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    projection_size: Count
    precision: Literal["float32", "bfloat16"]
    device: Device
    seeds: Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Evaluate(_Section):
    window: Rate
    window_step: Rate
    draws: Count
    resamples: Annotated[int, Field(ge=100)]
    embed_images: bool
    top_k: Annotated[list[Count], Field(min_length=1)]
    n_way: list[Annotated[int, Field(gt=1)]]
    repetitions: list[Count]


class Params(_Section):
    dataset: Literal["sample", "things-eeg2"]
    encoder: Literal["unaligned", "aligned"]
    backbone: Literal["synclr_vitb16", "dinov2_vitb14", "dino_vitb16", "clip_vitb32", "open_clip_vitb32", "ensemble"]
    subjects: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    download: Download
    preprocess: Preprocess
    embed: Embed
    train: Train
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
