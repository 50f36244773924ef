"""Of what a model was made: its EEG and its image model, in made_with.json beside the weights.

Whoever gets the folder of a model knows by it which EEG the model takes, and which image model
embeds pictures for it. No training depends on this file or on the code here.
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import h5py

from pipeline.errors import PREPARE_AGAIN, TRAIN_AGAIN, InputError
from pipeline.files import replacing, sha256, unreadable
from pipeline.images.embeddings import read_about

FILE = "made_with.json"
PACKAGES = ("torch", "numpy", "h5py", "timm")
OF_SUBJECT = ("subject", "source", "source_sha256", "caveats")  # what differs between subjects


class MadeWith(TypedDict):
    """What is in made_with.json.

    * `dataset`: its name in params.yaml.
    * `eeg`: how the EEG was prepared: the attributes that the prepared files of all subjects share,
      such as `units`, `sfreq` (Hz), `normalise` and `mvnn`.
    * `subjects`: for each subject of the training, the name and sha256 of what it was prepared from
      (`source`, `source_sha256`), and its `caveats`.
    * `embeddings`: the attributes of the embedding cache (backbone, encoder, alignment, checkpoint,
      checkpoint_sha256, tokens, preprocessing, ...), `sha256` of the file, and `blocks`: the name
      of each block in it, as `<view>/<block>` of a degraded view, and what it holds, in words.
    * `versions`: of Python and of the packages that decide the numbers.
    """

    dataset: str
    eeg: dict[str, Any]
    subjects: dict[str, dict[str, Any]]
    embeddings: dict[str, Any]
    versions: dict[str, str]


def describe_data(
    dataset: str, recordings: Mapping[str, Path], subjects: list[str], embeddings: Path
) -> MadeWith:
    """What a model is made with that is trained on these subjects and this embedding cache.

    `recordings` are the prepared files of all subjects, by name. InputError where one of the files
    cannot be read.
    """
    attributes = {subject: read_attributes(recordings[subject]) for subject in subjects}
    first = attributes[subjects[0]]
    about, blocks = read_about(embeddings)
    features = {name: block.get("feature", "") for name, block in blocks.items()}

    return MadeWith(
        dataset=dataset,
        eeg={key: value for key, value in first.items() if key not in OF_SUBJECT},
        subjects={
            subject: {key: values[key] for key in OF_SUBJECT[1:] if key in values}
            for subject, values in attributes.items()
        },
        embeddings=about | {"sha256": sha256(embeddings), "blocks": features},
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )


def write_made_with(folder: Path, made_with: MadeWith) -> None:
    """Write made_with.json into the folder of a model."""
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(made_with, indent=2) + "\n")


def read_made_with(folder: Path) -> MadeWith | None:
    """What `write_made_with` wrote; None where the folder of the model has no such file.

    InputError where the file is damaged.
    """
    path = folder / FILE
    try:
        made_with = json.loads(path.read_text())
        return MadeWith(**{key: made_with[key] for key in MadeWith.__annotations__})  # type: ignore[typeddict-item]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(error, path) or InputError(
            f"{path}: does not say of what the model was made ({error!r}); {TRAIN_AGAIN}"
        ) from error


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a prepared subject, as JSON can hold them; InputError as `read_split`."""
    try:
        with h5py.File(path, "r") as file:
            return {
                key: value.tolist() if hasattr(value, "tolist") else value
                for key, value in file.attrs.items()
            }
    except OSError as error:
        raise unreadable(error, path) or InputError(
            f"{path}: is not an EEG file of the preprocess stage ({error}); {PREPARE_AGAIN}"
        ) from error
