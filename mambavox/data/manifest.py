"""Read a manifest: one recording a line, as JSON objects (.jsonl) or as a table (.tsv, .csv)."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mambavox.data.columns import find_audio_column, require_column, to_labels
from mambavox.data.example import Example
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
    line and values without quoting, as Common Voice writes them. All are UTF-8.

    Args:
        path: the manifest.
        label_column: column of the class; ``None`` reads no labels.
        audio_column: column of the audio file; ``None`` finds it (``path``, ``file_name``, ...).

    Returns:
        An example a line, whose ``fields`` are the whole line. Audio files are not looked at.

    Raises:
        DataError: the manifest is malformed (the message names the line), empty, or lacks a column.
    """
    where = str(path)
    numbered = read_rows(path)
    places = [f"line {number}" for number, _ in numbered]
    rows = [row for _, row in numbered]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    audio_column = find_audio_column(audio_column, columns, where)
    labels: list[str | None] = [None] * len(rows)
    if label_column is not None:
        require_column(label_column, columns, "--label-column", where)
        labels = to_labels([row.get(label_column) for row in rows], places, label_column, where)
    examples = []
    for place, row, label in zip(places, rows, labels, strict=True):
        file = row.get(audio_column)
        if not isinstance(file, str) or not file:
            raise DataError(f"{where}, {place}: {audio_column!r} is {file!r}; expected the path of an audio file")
        examples.append(Example(path.parent / Path(file).expanduser(), label, row))
    return examples


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


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: is not JSON ({error.msg} at column {error.colno})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: is {type(row).__name__}; expected a JSON object")
            yield number, row


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if path.suffix.lower() == ".tsv":
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: has {len(values)} values; "
                        f"the header has {len(header)} columns ({', '.join(header)})"
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: is not a well-formed table ({error})") from error
