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


@dataclass(frozen=True)
class Hub:
    """A repository of data at https://huggingface.co, by its owner and name."""

    repo: str

    def __str__(self) -> str:
        return f"Hugging Face repository {self.repo}"


Server = Osf | Figshare | Bucket | Hub


@dataclass(frozen=True)
class OwnCopy:
    """The user's own copy of the images of THINGS, whose download asks for the licence password."""


@dataclass(frozen=True)
class Licence:
    """Terms that the user must accept before anything is fetched.

    * `name`: the licence and what it asks for, in words.
    * `terms`: the address where it can be read.
    * `key`: the key of params.yaml that accepts it. It is off until the user sets it.
    """

    name: str
    terms: str
    key: str


@dataclass(frozen=True)
class PublishedFiles:
    """The files of a dataset and their servers. Files are found by name, in any folder.

    * `eeg`, `images`, `metadata`: the servers.
    * `subject_file`: a regular expression for the end of the path of a subject's file. It names as
      many folders as are needed to know the file. Its first group is the subject.
    * `image_files`: the names of the zips of images.
    * `metadata_file`: the name of the table of images.
    * `file_name`: the name that a subject's file gets here, as a template of the groups of
      `subject_file`. Without one, the file keeps its name.
    * `files_of_subject`: where a subject has several files, the names that these get here, with
      `{subject}` for the subject. They lie in a folder that is named after the subject.
    * `subjects`: all that were published.
    * `known_files`: size and sha256 by name, for files whose server gives no hash.
    * `shown_images_file`: the name of a zip of the images that the subjects saw. It lies on the
      server of the EEG. It is compared with `image_files` (`pipeline.datasets.shown_images`), where
      these come from another dataset.
    * `licence`: where there are terms that the user must accept.
    """

    eeg: Server
    subject_file: str
    images: Server | OwnCopy
    image_files: tuple[str, ...]
    metadata: Server
    metadata_file: str
    file_name: str = r"\g<0>"  # all that `subject_file` matched
    files_of_subject: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    known_files: KnownFiles = field(default_factory=dict)
    shown_images_file: str = ""
    licence: Licence | None = None


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

ALLJOINED_LICENCE = Licence(
    name="a Creative Commons licence for non-commercial use (BY-NC-ND 4.0 at NEMAR)",
    terms="https://huggingface.co/datasets/Alljoined/Alljoined-1.6M",
    key="download.accept_alljoined_licence",
)

# Alljoined-1.6M, about 5 MB a file, and the images of THINGS-EEG2. The EEG is not taken from NEMAR
# (nm000134): the tables of events there hold no training trial. Here each EDF holds its own events.
# Folders alone say which recording a file is: some files of sub-08 have names of subject 19. The
# folder `session_02 old` of sub-08 was recorded again and is not used.
ALLJOINED = replace(
    THINGS_EEG2,
    eeg=Hub("Alljoined/Alljoined-1.6M"),
    # No name that begins with a dot: macOS writes such files beside the recordings.
    subject_file=r"(sub-\d\d)/session_(\d\d)/block_(\d\d)/(?!\.).+\.edf",
    file_name=r"session_\2_block_\3.edf",
    files_of_subject=tuple(
        f"session_{session:02}_block_{block:02}.edf"
        for session in range(1, 5)
        for block in range(1, 20)
    ),
    subjects=tuple(f"sub-{number:02}" for number in range(1, 21)),
    known_files=known_files.THINGS_EEG2_IMAGES,
    shown_images_file="stimuli.zip",
    licence=ALLJOINED_LICENCE,
)

# OpenNeuro ds004212, https://doi.org/10.7554/eLife.82580. MNE splits a subject's epochs into four
# files, about 8 GB together.
THINGS_MEG = PublishedFiles(
    eeg=Bucket("ds004212/derivatives/preprocessed/"),
    subject_file=r"preprocessed_(P\d+)-epo(?:-\d+)?\.fif",
    files_of_subject=tuple(
        f"preprocessed_{{subject}}-epo{part}.fif" for part in ("", "-1", "-2", "-3")
    ),
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
