"""The exception whose text is for the user, and suggestions for misspelt names."""

import difflib
import re
from collections.abc import Iterable


class InputError(Exception):
    """The user gave the program something wrong.

    The text is one sentence: what is wrong, where, what was expected, what was found, what to do.
    """


# Ends of error texts: the command that makes a damaged file anew.
# Without --force, DVC would take its own copy of the file, which may be damaged too.
FETCH_AGAIN = (
    "fetch it again with `dvc repro --force download` (an image model: `dvc repro --force "
    "weights`, of the study `dvc repro --force study/dvc.yaml:weights`), or make it again if it "
    "is your own"
)
HUMAN_AGAIN = "fetch it again with `dvc repro --single-item --force human`"
PREPARE_AGAIN = (
    "make it again with `dvc repro --force preprocess` (of a second recording: preprocess_second)"
)
# The key that chooses subjects; people of a second recording are chosen by another one.
SUBJECTS = "`subjects` (of a second recording: across.subjects)"
# Without --single-item, DVC would also run all stages before this one.
EMBED_AGAIN = (
    "make it again with `dvc repro --single-item --force embed` (of the study: `dvc repro "
    "--single-item --force study/dvc.yaml:embed-unaligned`, and embed-aligned alike), or, if you "
    "wrote it yourself, as docs/data.md says"
)
TRAIN_AGAIN = "train it again with `dvc repro --single-item --force train`"
EVALUATE_AGAIN = "make it again with `dvc repro --single-item --force evaluate`"


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: "; is it nice?" for `nise`.

    It is empty if none of `names` is similar. Case, signs and leading zeros do not count: `oz` is
    Oz, and `sub_1` is sub-01. Names with different numbers are not similar: sub-17 is not sub-07.
    """
    plain_name = _plain(name)
    names_by_plain = {_plain(candidate): candidate for candidate in names}

    n_names = len(names_by_plain) or 1
    similar = difflib.get_close_matches(plain_name, names_by_plain, n=n_names, cutoff=0.7)
    similar = [plain for plain in similar if not _differ_in_number(plain, plain_name)]
    return f"; is it {names_by_plain[similar[0]]}?" if similar else ""


def _plain(name: str) -> str:
    """A name in lower case, without signs and without zeros in front of its numbers."""
    letters_and_digits = re.sub(r"[\W_]", "", name.casefold())
    return re.sub(r"0*(\d+)", r"\1", letters_and_digits)


def _differ_in_number(first: str, second: str) -> bool:
    """Whether both names have numbers, and only these differ."""
    first_numbers = re.findall(r"\d+", first)
    second_numbers = re.findall(r"\d+", second)
    same_letters = re.sub(r"\d", "", first) == re.sub(r"\d", "", second)
    return bool(
        first_numbers and second_numbers and first_numbers != second_numbers and same_letters
    )
