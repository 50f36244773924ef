"""The one exception whose text is meant for the user."""


class InputError(Exception):
    """Something given to the program is wrong; the text is one sentence: what, where, expected, got, what to do."""
