"""The recordings of a run by split, for any task: what is learned from, chosen on and reported on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress

from mambavox.data import AudioProblem, Example
from mambavox.errors import DataError

ALL = "all"
"""In place of a split's name: all recordings, however they are divided."""


@dataclass
class Split:
    """Recordings of one split.

    Attributes:
        examples: the recordings.
        targets: the class or the transcript of each, as scores compare it.
        seconds: length of each.
        written: the transcript of each as it is learned; empty where targets are classes.
    """

    examples: list[Example] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def hours(self) -> float:
        """Length of all."""
        return sum(self.seconds) / 3600

    def take(self, rows: Sequence[int]) -> "Split":
        """Some rows of it."""
        return Split(
            [self.examples[row] for row in rows],
            [self.targets[row] for row in rows],
            [self.seconds[row] for row in rows] if self.seconds else [],
            [self.written[row] for row in rows] if self.written else [],
        )


@dataclass
class RunData:
    """The recordings of a run.

    Attributes:
        splits: by name: ``train``, ``valid``, and those that are reported, ``test`` or a corpus's own names.
        left_out: name, split and reason of the recordings that are in no split.
        notes: how the splits came about.
        selects_on_test: the best epoch is chosen on the test split, as the corpus's protocol has no other.
    """

    splits: dict[str, Split]
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    selects_on_test: bool = False

    @property
    def train(self) -> Split:
        """What is learned from."""
        return self.splits["train"]

    @property
    def held_back(self) -> dict[str, Split]:
        """What is not learned from, as far as there are recordings."""
        return {name: split for name, split in self.splits.items() if name != "train" and len(split)}

    @property
    def chooses(self) -> Split:
        """What the best epoch is chosen on; it may be empty."""
        return self.splits["test" if self.selects_on_test else "valid"]


def choose_splits(data: RunData, wanted: str | None, source: str) -> dict[str, Split]:
    """The splits that are to be scored.

    Args:
        data: of the run.
        wanted: name of a split, ``all`` for each of them, or ``None``: those that are reported, else ``valid``.
        source: of the data, for the message.

    Raises:
        DataError: there is no such split, or nothing was held back.
    """
    filled = {name: split for name, split in data.splits.items() if len(split)}
    if wanted == ALL:
        return filled
    reported = [name for name in filled if name not in ("train", "valid")] or ["valid"]
    names = reported if wanted is None else [wanted]
    if not filled.keys() >= set(names):
        there = ", ".join(filled) or "no recordings"
        raise DataError(f"{source}: has no split {names[0]}; it has {there}: choose one of them, or all, with --split")
    return {name: filled[name] for name in names}


def left_out_rows(problems: Sequence[AudioProblem], split: str = "") -> list[dict[str, str]]:
    """Recordings that cannot be used, as ``metrics.json`` lists them."""
    return [{"name": problem.name, "split": split, "reason": problem.reason} for problem in problems]


@contextmanager
def checking(total: int, console: Console | None) -> Iterator[Callable[[], None]]:
    """A bar on a terminal while recordings are checked; yields what is to be called after each of them."""
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task("checking recordings", total=total)
        yield lambda: bar.advance(task)
