"""Find the audio and label columns of a table."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from mambavox.errors import DataError

AUDIO_COLUMNS = ("audio", "path", "file", "filename", "file_name", "wav", "audio_filepath", "audio_path", "audio_file")
"""Names under which a table's audio column is found, in this order."""

_SHOWN = 20  # items of a list that an error message prints


def listed(items: Sequence[Any]) -> str:
    """Comma-separated items for a message, the first of many and how many more."""
    more = len(items) - _SHOWN
    return ", ".join(map(str, items[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def require_column(column: str, columns: Sequence[str], flag: str, where: str) -> None:
    """Check that a table has a column.

    Args:
        column: the column wanted.
        columns: the columns present.
        flag: the command-line flag that names another one.
        where: the table, for the message.

    Raises:
        DataError: it has not; the message lists those it has and the flag.
    """
    if column not in columns:
        raise DataError(f"{where}: has no column {column!r}; it has {listed(columns)}. Name the right one with {flag}")


def find_audio_column(audio_column: str | None, columns: Sequence[str], where: str) -> str:
    """Name of the column with the recordings.

    Args:
        audio_column: the column asked for; ``None`` takes the first of ``AUDIO_COLUMNS`` that is there.
        columns: the columns present.
        where: the table, for messages.

    Raises:
        DataError: there is no such column.
    """
    if audio_column is not None:
        require_column(audio_column, columns, "--audio-column", where)
        return audio_column
    for column in AUDIO_COLUMNS:
        if column in columns:
            return column
    raise DataError(
        f"{where}: no column of recordings ({', '.join(AUDIO_COLUMNS)}); it has {listed(columns)}. "
        "Name the right one with --audio-column"
    )


def to_labels(values: Sequence[Any], places: Sequence[str], column: str, where: str) -> list[str | None]:
    """Turn a label column into class names.

    White space around a name is no part of it, and letters with marks are written in one way (NFC), so that no two
    classes look the same.

    Args:
        values: the column, a value a row; ``None``, NaN and text without letters mean none.
        places: where each row is ("line 3"), for messages.
        column: its name, for messages.
        where: the table, for messages.

    Returns:
        A class name a row, or ``None`` in every row where the column is empty throughout.

    Raises:
        DataError: some rows have a label and others none, or a value is a list or an object.
    """
    compound = [place for place, value in zip(places, values, strict=True) if isinstance(value, (list, dict))]
    if compound:
        raise DataError(
            f"{where}: column {column!r} holds lists or objects ({listed(compound)}); expected one class a recording. "
            "Name another column with --label-column"
        )
    labels = [to_label(value) for value in values]
    missing = [place for place, label in zip(places, labels, strict=True) if label is None]
    if len(missing) == len(values):
        return [None] * len(values)
    if missing:
        raise DataError(
            f"{where}: no {column!r} in {listed(missing)} ({len(missing)} of {len(values)} rows); "
            "label them or take them out"
        )
    return labels


def to_label(value: Any) -> str | None:
    """A class name as it is written everywhere; ``None`` where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return unicodedata.normalize("NFC", str(value)).strip() or None
