"""Where the files of a dataset come from, as plain data.

`pipeline.download` knows how to speak to each kind of server. A new kind is one more small class
here, and a function in `pipeline/download/listings.py` that lists its files.
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
    """The user's own copy of the images of THINGS, whose download asks for the licence password."""


@dataclass(frozen=True)
class PublishedFiles:
    """The files of a dataset and their servers. Files are found by name, in any folder.

    * `eeg`, `images`, `metadata`: the servers.
    * `subject_file`: a regular expression for the name of a subject's file. Its one group is the
      subject.
    * `image_files`: the names of the zips of images.
    * `metadata_file`: the name of the table of images.
    * `files_per_subject`: where there are several, the download puts them in a folder that is named
      after the subject.
    * `subjects`: all that were published.
    * `known_files`: size and sha256 by name, for files whose server gives no hash.
    """

    eeg: Server
    subject_file: str
    images: Server | OwnCopy
    image_files: tuple[str, ...]
    metadata: Server
    metadata_file: str
    files_per_subject: int = 1
    subjects: tuple[str, ...] = ()
    known_files: KnownFiles = field(default_factory=dict)


@dataclass(frozen=True)
class OwnFiles:
    """The user's own recordings and pictures, as the stage check_own has found them."""


@dataclass(frozen=True)
class HumanFiles:
    """Published files of how alike people find the concepts, see `pipeline.datasets.human`.

    * `folder`: the folder of OpenNeuro's bucket that the embedding and its words are in.
    * `embedding`, `words`: the names of both files.
    * `commit`, `categories`: the commit of THINGS-data's repository, and the path of the categories
      in it.
    * `known_files`: sizes and sha256 of the three, by name.
    * `about`: what they are, in words, for reports.
    """

    folder: str
    embedding: str
    words: str
    commit: str
    categories: str
    known_files: KnownFiles
    about: str


# A function that makes such files on this machine. Its arguments are the paths of the embedding, of
# the words and of the categories.
MakeHumanFiles = Callable[[Path, Path, Path], None]

# A function that makes the files of a dataset on this machine. Its arguments are the subjects, the
# folder for EEG, the folder for images and the path of the metadata. Where the entry of the dataset
# says what can be planted, `truth` is one more.
Make = Callable[..., None]

# The EEG as the authors preprocessed it, and the images: two nodes of the project osf.io/3jk45.
THINGS_EEG2 = PublishedFiles(
    eeg=Osf("anp5v"),
    subject_file=r"(sub-\d+)\.zip",
    images=Osf("y63gw"),
    image_files=("training_images.zip", "test_images.zip"),
    metadata=Osf("y63gw"),
    metadata_file="image_metadata.npy",
    subjects=tuple(f"sub-{number:02}" for number in range(1, 11)),
    known_files={**known_files.THINGS_EEG2_IMAGES, **known_files.THINGS_EEG2_PREPROCESSED},
)

# The same recordings before preprocessing: 63 channels at 1000 Hz, about 10 GB a subject.
THINGS_EEG2_RAW = replace(
    THINGS_EEG2, eeg=Figshare(18470912), known_files=known_files.THINGS_EEG2_IMAGES
)

# Stand-in: the download of Alljoined-1.6M is not here yet.
ALLJOINED = replace(THINGS_EEG2, eeg=Bucket("alljoined/"), known_files={})

# OpenNeuro ds004212, https://doi.org/10.7554/eLife.82580. MNE splits a subject's epochs into four
# files, about 8 GB together.
THINGS_MEG = PublishedFiles(
    eeg=Bucket("ds004212/derivatives/preprocessed/"),
    subject_file=r"preprocessed_(P\d+)-epo(?:-\d+)?\.fif",
    files_per_subject=4,
    images=OwnCopy(),
    image_files=(),
    metadata=Bucket("ds004212/sourcedata/sample_attributes_"),
    metadata_file="sample_attributes_P1.csv",
    subjects=("P1", "P2", "P3", "P4"),
    known_files=known_files.THINGS_MEG,
)

# What people say of the concepts of THINGS, and their categories (both CC0). All the published
# datasets here show these. The repository of the categories is ViCCo-Group/THINGS-data on GitHub.
THINGS_SIMILARITY = HumanFiles(
    folder="ds004212/sourcedata/meg_paper",
    embedding="spose_embedding_66d_sorted.txt",
    words="names_1854.csv",
    commit="5e0eccac51eac78b57045f5b90b4f53814f56c32",
    categories="MRI/data/Categories_final_20200131.tsv",
    known_files={**known_files.HUMAN_SIMILARITY, **known_files.THINGS_CATEGORIES},
    about="SPoSE, 66 dimensions (doi 10.7554/eLife.82580)",
)
