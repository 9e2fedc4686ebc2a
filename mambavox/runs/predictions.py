"""What became of each recording that a run held back: one CSV file for all tasks."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambavox.errors import RunError
from mambavox.files import replacing

PREDICTIONS_FILE = "predictions.csv"
"""What became of each recording that was held back."""

COLUMNS = ("split", "recording", "target", "predicted")
"""The columns that every task's file begins with: the class or transcript of a recording, and what the model said."""


def probability_column(label: str) -> str:
    """Name of the column with a class's probability, 0 to 1.

    Args:
        label: the class.
    """
    return f"p({label})"


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each recording.

    Args:
        path: the file.
        rows: with the keys of ``COLUMNS`` and, after these, figures of the task.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)


def read_predictions(path: str | Path) -> list[dict[str, str]]:
    """Read what :func:`write_predictions` wrote, every value as text.

    Raises:
        RunError: the file cannot be read, or holds something else.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            if tuple(reader.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
                raise ValueError(f"its columns are {reader.fieldnames}")
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a line has more or fewer values than there are columns")
            return rows
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path}: cannot be read ({error}); expected what a run of mambavox writes") from error


def of_split(rows: Iterable[Mapping[str, str]], split: str) -> list[Mapping[str, str]]:
    """The lines of one split."""
    return [row for row in rows if row["split"] == split]
