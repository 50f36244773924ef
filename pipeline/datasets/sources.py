"""Where a dataset's files come from, as plain data; `pipeline.download` knows how each kind of server is spoken to.

A new kind of server is one more small class here, and what lists its files there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline.datasets import known_files
from pipeline.datasets.known_files import KnownFiles

Subjects = list[str] | Literal["all"]


@dataclass(frozen=True)
class Osf:
    """A node of https://osf.io, by its five letters."""

    node: str

    def __str__(self) -> str:
        return f"OSF node {self.node}"


@dataclass(frozen=True)
class Figshare:
    """An article of https://figshare.com or https://plus.figshare.com, by its number."""

    article: int

    def __str__(self) -> str:
        return f"Figshare article {self.article}"


@dataclass(frozen=True)
class Bucket:
    """The files of a public S3 bucket whose keys begin with `prefix`."""

    prefix: str

    def __str__(self) -> str:
        return f"bucket folder {self.prefix}"


Server = Osf | Figshare | Bucket


@dataclass(frozen=True)
class OwnCopy:
    """The user's own copy of the images of THINGS: a password, which is their licence, is in front of the download."""


@dataclass(frozen=True)
class PublishedFiles:
    """What is wanted of a dataset from which servers; files are known by their names, in whatever folder they lie."""

    eeg: Server
    subject_file: (
        str  # a regular expression for the name of a subject's file; its one group is the subject
    )
    images: Server | OwnCopy
    image_files: tuple[str, ...]
    metadata: Server
    metadata_file: str
    # Where there are several, they get a folder that is named after the subject
    files_per_subject: int = 1
    subjects: tuple[str, ...] = ()  # all that were published
    known: KnownFiles = field(
        default_factory=dict
    )  # by name: what is known of files that a server names no hash of


# Files that are made here: called with the subjects, the folders for EEG and for images and the path of the metadata.
Make = Callable[[Subjects, Path, Path, Path], None]

THINGS_EEG2 = PublishedFiles(
    eeg=Osf("anp5v"),
    subject_file=r"(sub-\d+)\.zip",
    images=Osf("y63gw"),
    image_files=("training_images.zip", "test_images.zip"),
    metadata=Osf("y63gw"),
    metadata_file="image_metadata.npy",
    subjects=tuple(f"sub-{number:02}" for number in range(1, 11)),
    known={**known_files.THINGS_EEG2_IMAGES, **known_files.THINGS_EEG2_PREPROCESSED},
)

# The same recordings before preprocessing: 63 channels at 1000 Hz, about 10 GB a subject.
THINGS_EEG2_RAW = replace(THINGS_EEG2, eeg=Figshare(18470912), known=known_files.THINGS_EEG2_IMAGES)

# OpenNeuro ds004212, https://doi.org/10.7554/eLife.82580: MNE splits a subject's epochs into four files, about 8 GB.
THINGS_MEG = PublishedFiles(
    eeg=Bucket("ds004212/derivatives/preprocessed/"),
    subject_file=r"preprocessed_(P\d+)-epo(?:-\d+)?\.fif",
    files_per_subject=4,
    images=OwnCopy(),
    image_files=(),
    metadata=Bucket("ds004212/sourcedata/sample_attributes_"),
    metadata_file="sample_attributes_P1.csv",
    subjects=("P1", "P2", "P3", "P4"),
    known=known_files.THINGS_MEG,
)
