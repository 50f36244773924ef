"""What a check of somebody's own files finds: all problems, not the first alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.errors import InputError


@dataclass
class Findings:
    """What a check adds to: sentences by their kind, in a few words.

    * `problems`: what stops a run.
    * `left_out`: what is left out of the files, and by which rule; a run goes on.
    """

    problems: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add_problem(self, kind: str, sentence: str) -> None:
        self.problems.setdefault(kind, []).append(sentence)

    def leave_out(self, kind: str, sentence: str) -> None:
        self.left_out.setdefault(kind, []).append(sentence)

    @contextmanager
    def collecting(self, kind: str) -> Iterator[None]:
        """Note an InputError as a problem of this kind, and go on after the block."""
        try:
            yield
        except InputError as error:
            self.add_problem(kind, str(error))

    @property
    def n_problems(self) -> int:
        return sum(map(len, self.problems.values()))


def first_few(names: list[str], most: int = 3) -> str:
    """The first of these names, and how many more there are: "a, b, c and 12 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def times(count: int, name: str) -> str:
    """ "1 picture" or "3 pictures"."""
    return f"{count:,} {name}" + ("" if count == 1 else "s")
