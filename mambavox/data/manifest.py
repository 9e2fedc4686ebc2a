"""Read a manifest: one recording a line, as JSON objects (.jsonl) or as a table (.tsv, .csv)."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mambavox.data.columns import find_audio_column, listed, require_column, to_labels
from mambavox.data.example import Example
from mambavox.data.file_names import find_file
from mambavox.data.lhotse_cuts import flatten_cut, is_cut
from mambavox.data.segments import DURATION_COLUMN, check_segments, find_time_columns, read_segment, warn_of_unused
from mambavox.errors import DataError

MANIFEST_SUFFIXES = frozenset({".jsonl", ".tsv", ".csv"})
"""File name endings of the manifests read."""

MANIFEST_NAMES = (
    "manifest.jsonl",
    "manifest.tsv",
    "manifest.csv",
    "metadata.jsonl",
    "metadata.csv",
)
"""Manifests looked for in a folder, in this order; ``metadata`` is the name that ``datasets`` uses."""


_MOST_CHARACTERS = 1 << 24  # of a line
_MOST_DIGITS = 64  # of a whole number
_DEEPEST = 32  # lists and objects in each other


def find_manifest(folder: Path) -> Path | None:
    """The manifest of a folder, if it has one."""
    return next((folder / name for name in MANIFEST_NAMES if (folder / name).is_file()), None)


def read_manifest(
    path: Path,
    *,
    label_column: str | None = "label",
    audio_column: str | None = None,
) -> list[Example]:
    """Read the recordings that a manifest lists.

    ``.jsonl`` holds a JSON object a line; ``.csv`` a header line and quoted values (RFC 4180); ``.tsv`` a header
    line and values without quoting, as Common Voice writes them. All are UTF-8. A ``.csv`` whose header has semicolons
    or tabs and no commas is divided by these.

    A recording is a stretch of its file where columns say so (seconds): ``offset`` or ``start``, or another of
    ``segments.START_COLUMNS``, with ``end`` (or another of ``END_COLUMNS``) or ``duration``. Without ``end`` and
    ``duration`` it reaches to the file's end, and an empty start is 0. A ``duration`` without any other of them cuts
    nothing. A ``.jsonl`` may hold lhotse's cuts.

    Args:
        path: the manifest.
        label_column: column of the class; ``None`` reads no labels.
        audio_column: column of the audio file; ``None`` finds it (``path``, ``file_name``, ...).

    Returns:
        An example a line, whose ``fields`` are the whole line. Of the files nothing is looked at but the lengths of
        those that are read in part.

    Raises:
        DataError: the manifest is malformed (the message names the line), empty, or lacks a column, or a stretch is
            none of its file.

    Warns:
        DataWarning: a column that is not read would change what is heard.
    """
    where = str(path)
    numbered = read_rows(path)
    places = [f"line {number}" for number, _ in numbered]
    rows = [
        flatten_cut(row, path.parent, f"{where}, line {number}") if is_cut(row) else row for number, row in numbered
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    audio_column = find_audio_column(audio_column, columns, where)
    labels: list[str | None] = [None] * len(rows)
    if label_column is not None:
        require_column(label_column, columns, "--label-column", where)
        labels = to_labels([row.get(label_column) for row in rows], places, label_column, where)
    times = find_time_columns(rows, where)
    recordings = []
    for place, row in zip(places, rows, strict=True):
        name = row.get(audio_column)
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}, {place}: {audio_column!r} is {name!r}; expected the path of an audio file")
        file = find_file(path.parent, name, f"{where}, {place}: {audio_column!r}")
        recordings.append(read_segment(file, row, times, place, where))
    if times.used:
        check_segments(list(zip(places, recordings, strict=True)), times, where)
    warn_of_unused(rows, recordings, times, where)
    return [
        Example(recording, label, row, stated_seconds=None if times.used else _stated_seconds(row))
        for recording, label, row in zip(recordings, labels, rows, strict=True)
    ]


def _stated_seconds(row: dict[str, Any]) -> float | None:
    try:
        return float(row[DURATION_COLUMN])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read the lines of a manifest or table.

    Args:
        path: ``.jsonl``, ``.tsv`` or ``.csv``, as :func:`read_manifest` describes them.

    Returns:
        Number (from 1) and values by column of each line that holds some.

    Raises:
        DataError: it is not UTF-8, malformed (the message names the line), or empty.
    """
    try:
        numbered = list(_jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _table_rows(path))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    if not numbered:
        raise DataError(f"{path}: lists no recordings")
    return numbered


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a file, none of which may take memory without bounds."""
    number = 0
    while line := file.readline(_MOST_CHARACTERS):
        number += 1
        if len(line) == _MOST_CHARACTERS:
            raise DataError(f"{path}, line {number}: is longer than {_MOST_CHARACTERS} characters; expected a manifest")
        yield line


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_object, parse_int=_whole_number)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: is not JSON ({error.msg} at column {error.colno})") from error
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            except RecursionError as error:
                raise DataError(f"{path}, line {number}: {_TOO_DEEP}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: is {type(row).__name__}; expected a JSON object")
            if any(_depth(value) > _DEEPEST for value in row.values()):
                raise DataError(f"{path}, line {number}: {_TOO_DEEP}")
            yield number, row


_TOO_DEEP = f"holds more than {_DEEPEST} lists or objects inside each other; expected columns and their values"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"{_repeated([key for key, _ in pairs])}; expected each column once")
    return content


def _repeated(names: list[str]) -> str:
    repeated = dict.fromkeys(repr(name) for name in names if names.count(name) > 1)
    return f"has {listed(list(repeated))} more than once"


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits; expected at most {_MOST_DIGITS}")
    return int(text)


def _depth(value: Any) -> int:
    """How many lists and objects lie inside each other; the parser bounds them."""
    deepest, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, (list, dict))]:
        deepest += 1
        layer = [part for item in layer for part in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".tsv":
            reader = csv.reader(_lines(file, path), delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(_lines(file, path), delimiter=_delimiter(file), strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            named = [column for column in header if column]
            if len(set(named)) < len(named):
                raise DataError(f"{path}: its header {_repeated(named)}; rename or take out all but one")
            for values in reader:
                if not values or (len(values) == 1 and not values[0].strip()):
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: has {len(values)} values; "
                        f"the header has {len(header)} columns ({', '.join(header)})"
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: is not a well-formed table ({error})") from error


def _delimiter(file: IO[str]) -> str:
    """What divides the columns of a table: spreadsheets of many countries write semicolons."""
    header = file.readline(_MOST_CHARACTERS)
    file.seek(0)
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")
