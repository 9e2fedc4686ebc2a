"""The class that a run's classifier gave each recording that was held back."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mambavox.errors import RunError


class Outcome(NamedTuple):
    """What became of one recording.

    Attributes:
        part: the part that it is in, ``valid`` or ``test``.
        recording: its name.
        label: its class.
        predicted: the class that the classifier gave it.
    """

    part: str
    recording: str
    label: str
    predicted: str


def write_predictions(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes as CSV, a line a recording.

    Args:
        path: the file.
        outcomes: in the order of the parts.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Outcome._fields)
        writer.writerows(outcomes)


def read_predictions(path: str | Path) -> list[Outcome]:
    """Read what ``write_predictions`` wrote.

    Args:
        path: the file.

    Raises:
        RunError: it cannot be read, or holds something else.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
            if tuple(header) != Outcome._fields:
                raise ValueError(f"its columns are {header}")
            return [Outcome(*row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); expected what `mambavox adapt` writes") from error
