"""Read a data folder of Kaldi or ESPnet: ``wav.scp`` and, where they are there, ``segments``, ``text``, ``utt2spk``."""

from pathlib import Path
from typing import Any

from mambavox.data.columns import require_column, to_labels
from mambavox.data.example import Example
from mambavox.data.file_names import find_file
from mambavox.data.segments import TimeColumns, check_segments, read_segment
from mambavox.errors import DataError

RECORDINGS = "wav.scp"
"""The list by which such a folder is known: name and file of each recording."""

_SEGMENTS = "segments"
_FIELDS = {"text": "text", "utt2spk": "speaker", "utt2lang": "language"}
_TIMES = TimeColumns("start", "end")


def is_kaldi(folder: Path) -> bool:
    """Whether a folder is a data folder of Kaldi."""
    return (folder / RECORDINGS).is_file()


def read_kaldi(folder: Path, *, label_column: str | None = "label") -> list[Example]:
    """Read the utterances of a data folder: those of ``segments``, or whole recordings where there is none.

    Args:
        folder: with ``wav.scp``. Relative paths in it start from the working folder, as in Kaldi, or from the folder.
        label_column: field of the class: ``speaker``, ``language``, ``text`` or ``id``; ``None`` reads no labels.

    Returns:
        Examples with the fields ``id``, ``recording`` and, where their lists are there, ``text``, ``speaker`` and
        ``language``, ``start`` and ``end``.

    Raises:
        DataError: a list is malformed or names what is not there (with the line), a recording is a command, or there is
            no such field.
    """
    files = _files(folder / RECORDINGS)
    rows, recordings, places = [], [], []
    listed_in = folder / (_SEGMENTS if (folder / _SEGMENTS).is_file() else RECORDINGS)
    for number, name, rest in _lines(listed_in):
        place = f"line {number}"
        row: dict[str, Any] = {"id": name, "recording": name}
        if listed_in.name == _SEGMENTS:
            values = rest.split()
            if len(values) not in (3, 4):
                raise DataError(f"{listed_in}, {place}: expected an utterance, its recording, start and end in seconds")
            # Kaldi writes -1 for a recording's end.
            row |= {"recording": values[0], "start": values[1], "end": None if values[2] == "-1" else values[2]}
        if row["recording"] not in files:
            raise DataError(f"{listed_in}, {place}: {row['recording']!r} is no recording of {RECORDINGS}")
        rows.append(row)
        places.append(place)
        recordings.append(read_segment(files[row["recording"]], row, _TIMES, place, str(listed_in)))
    check_segments(list(zip(places, recordings, strict=True)), _TIMES, str(listed_in))
    _add_fields(folder, rows)
    labels: list[str | None] = [None] * len(rows)
    if label_column is not None:
        require_column(
            label_column, list(dict.fromkeys(key for row in rows for key in row)), "--label-column", str(folder)
        )
        labels = to_labels([row.get(label_column) for row in rows], places, label_column, str(listed_in))
    return [Example(audio, label, row) for audio, label, row in zip(recordings, labels, rows, strict=True)]


def _add_fields(folder: Path, rows: list[dict[str, Any]]) -> None:
    for file, field in _FIELDS.items():
        if (folder / file).is_file():
            values = {name: rest for _, name, rest in _lines(folder / file)}
            for row in rows:
                if row["id"] in values:
                    row[field] = values[row["id"]]


def _files(path: Path) -> dict[str, Path]:
    files = {}
    for number, name, rest in _lines(path):
        if rest.endswith("|") or rest.startswith("|"):
            raise DataError(
                f"{path}, line {number}: {name!r} is the output of a command, which is not run; make a file of it and "
                "name that"
            )
        if not rest:
            raise DataError(f"{path}, line {number}: names no file; expected a recording and its file")
        place = f"{path}, line {number}: the file of {name!r}"
        here = find_file(Path(), rest, place)
        files[name] = here if here.is_absolute() or here.is_file() else find_file(path.parent, rest, place)
    return files


def _lines(path: Path) -> list[tuple[int, str, str]]:
    """Number, first word and rest of each line; the words are those of another list."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    found: dict[str, tuple[int, str, str]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split(maxsplit=1)
        if not words:
            continue
        name, rest = words[0], words[1].strip() if len(words) > 1 else ""
        if name in found:
            raise DataError(f"{path}, line {number}: {name!r} is in line {found[name][0]}, too; expected it once")
        found[name] = (number, name, rest)
    if not found:
        raise DataError(f"{path}: is empty; expected a line for each recording")
    return list(found.values())
