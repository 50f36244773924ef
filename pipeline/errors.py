"""The one exception whose text is meant for the user."""


class InputError(Exception):
    """Something given to the program is wrong; the text is one sentence: what, where, expected, got, what to do."""


# What mends a file that a stage wrote. Without --force DVC would lay its own copy there, which may be damaged too.
FETCH_AGAIN = (
    "fetch it again with `dvc repro --force download` (an image model: `dvc repro --force weights`), or make it again "
    "if it is your own"
)
PREPARE_AGAIN = "make it again with `dvc repro --force preprocess`"
