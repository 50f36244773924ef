"""The sections of `params.yaml`, typed; the file itself says what each key means."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Numbers
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]  # start and end, in seconds

# Choices
Device = Literal["auto", "cpu", "cuda"]
Protocol = Literal["pooled", "within-subject", "leave-one-subject-out", "across"]
BlockChoice = Literal["last"] | Count  # a block of the image model, counted from 1
# How many seeds, counted from `seed`, or a list of them
SeedChoice = Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Names = Annotated[list[str], Field(min_length=1)]

# The address of a Dask scheduler, with its port: tcp://node1:8786, tcp://[::1]:8786
Address = Annotated[str, Field(pattern=r"\w:\d+$|\]:\d+$")]


class Section(BaseModel):
    """Refuses unknown keys, values of another type, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sample(Section):
    truth: Literal["aligned", "unaligned", "nothing"]


class Own(Section):
    eeg: str
    images: str
    image_column: str
    concept: str
    split: str
    test_concepts: Share
    split_seed: Annotated[int, Field(ge=0)]


class Across(Section):
    dataset: str
    subjects: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    train_on: Literal["first", "second", "both"]
    models: Literal["pooled", "within-subject"]
    test_on: Literal["first", "second"]


class Download(Section):
    own_copy: str
    accept_new_versions: bool
    accept_alljoined_licence: bool
    osf_api: str
    figshare_api: str
    openneuro: str
    things_data: str
    things_images: str
    dreamsim_releases: str
    glocal: str
    alignet: str
    hugging_face: str
    open_clip: str
    dino: str
    weights_file: str
    features_file: str
    features_file_aligned: str


class Preprocess(Section):
    sessions: Literal["all"] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    average_repetitions: bool
    channels: Literal["all", "posterior"] | list[str]
    sfreq: Literal["published"] | Rate
    window: Literal["published"] | Interval
    baseline: Literal["none"] | Interval
    mvnn: Literal["none", "time", "epochs"]
    mvnn_from: Literal["training", "training-and-test"]
    normalise: Literal["none", "trial", "average", "session"]
    dtype: Literal["float16", "float32", "float64"]
    workers: Count


class Embed(Section):
    tokens: Literal["cls", "mean"]
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: Literal["auto"] | Count
    device: Device
    blocks: Annotated[list[BlockChoice], Field(min_length=1)]
    views: Annotated[list[str], Field(min_length=1)]


class ResolvedEmbed(Embed):
    """`Embed` once the device is known: precision and batch size are no longer `auto`."""

    precision: Literal["float32", "bfloat16"]
    batch_size: Count


class Train(Section):
    control: Literal["none", "shuffled"]
    block: Literal["mix"] | BlockChoice
    views: str
    views_in_gallery: str
    protocol: Protocol
    select_on: Literal["validation", "last", "test"]
    selection_temperature: Literal["fitted", "model"]
    validation_concepts: Share
    eeg_encoder: str
    eeg_weights: str
    eeg_encoder_frozen: bool
    first_weights: Literal["published", "torch"]
    standardise_eeg: bool
    eeg_window: Literal["all"] | Interval
    smoothing: Literal["none"] | Rate
    remove_dc: bool
    average_random_repetitions: Literal["none", "any"] | Count
    channel_dropout: Annotated[float, Field(ge=0, lt=1)]
    time_shift: Literal["none"] | Rate
    image_projector: Literal["none", "linear", "mlp"]
    eeg_hidden_size: Literal["none", "embedding"] | Count
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
    cosine_epochs: Literal["rest"] | Count
    warmup_start: Annotated[float, Field(gt=0, le=1)]
    warmup_epochs_eeg_encoder: Annotated[int, Field(ge=0)]
    warmup_epochs_projectors: Annotated[int, Field(ge=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    projection_size: Count
    precision: Literal["float32", "tf32", "bfloat16"]
    device: Device
    seeds: SeedChoice


class Runs(Section):
    where: Literal["local", "slurm"] | Address
    workers: Literal["auto"] | Count


class Study(Section):
    backbones: Names
    alignments: Names
    blocks: Annotated[list[Literal["mix"] | BlockChoice], Field(min_length=1)]
    eeg_encoders: Names
    protocols: Annotated[list[Protocol], Field(min_length=1)]
    recordings: Annotated[list[Literal["first", "second"]], Field(min_length=1)]
    seeds: SeedChoice


class Evaluate(Section):
    window: Rate
    window_step: Rate
    draws: Count
    resamples: Annotated[int, Field(ge=100)]
    embed_images: bool
    top_k: Annotated[list[Count], Field(min_length=1)]
    n_way: list[Annotated[int, Field(gt=1)]]
    repetitions: list[Count]
