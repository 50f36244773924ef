"""Where a dataset's files come from, as plain data; `pipeline.fetch` knows how each kind of server is spoken to.

A new kind of server is one more small class here, and what speaks to it there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Subjects = list[str] | Literal["all"]


@dataclass(frozen=True)
class Osf:
    """Files on https://osf.io: two nodes (by their five letters), and what is wanted from each."""

    eeg_node: str
    subject_file: str  # a regular expression for the name of a subject's file; its one group is the subject
    images_node: str
    image_files: tuple[str, ...]
    metadata_file: str


# Files that are made here: called with the subjects, the folders for EEG and for images and the path of the metadata.
Make = Callable[[Subjects, Path, Path, Path], None]
