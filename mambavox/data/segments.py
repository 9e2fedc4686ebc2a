"""Stretches of files: the columns of a manifest that say where each recording begins and ends."""

import math
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambavox.data.audio import LACKING, AudioSegment, duration
from mambavox.data.audio_file import stated_format
from mambavox.data.columns import listed
from mambavox.data.example import Example
from mambavox.errors import AudioError, DataError, DataWarning

START_COLUMNS = ("offset", "start", "begin", "start_time", "begin_time", "start_seconds", "segment_start", "onset")
"""Names of the column of a recording's first second in its file, whatever their case."""

END_COLUMNS = ("end", "end_time", "end_seconds", "segment_end")
"""Names of the column of its last second."""

DURATION_COLUMN = "duration"
"""Name of the column of its length in seconds."""

_CHANNELS = ("channel", "channels_to_use", "channel_selector")
_RATES = ("sampling_rate", "sample_rate", "samplerate", "sr")
_OTHERS = frozenset(
    {
        *("speed", "gain", "gain_db", "volume", "volume_db", "trim", "trim_db", "frame_offset"),
        *("start_ms", "end_ms", "offset_ms", "duration_ms", "begin_ms", "start_frame", "end_frame"),
        *("start_sample", "end_sample", "start_samples", "end_samples", "offset_samples", "start_idx", "end_idx"),
    }
)
_MOST_DIGITS = 64  # of a time
_TOUCHING = 0.001  # seconds that two recordings may share


@dataclass(frozen=True)
class TimeColumns:
    """The columns of a manifest that say which stretch of its file a recording is.

    Attributes:
        start: seconds at which it begins; ``None``: every recording is a whole file.
        end: seconds at which it ends.
        duration: its length in seconds, where no column says the end.
    """

    start: str | None = None
    end: str | None = None
    duration: str | None = None

    @property
    def used(self) -> list[str]:
        """Those that are read."""
        return [column for column in (self.start, self.end, self.duration) if column is not None]


def find_time_columns(rows: Sequence[Mapping[str, Any]], where: str) -> TimeColumns:
    """Find the columns that say which stretch of its file each recording is.

    A ``duration`` without any other such column says how long a file is, and cuts nothing.

    Args:
        rows: the manifest's.
        where: the manifest, for messages.

    Raises:
        DataError: two columns say where a recording begins, or where it ends.
    """
    filled: dict[str, list[str]] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        if any(_is_filled(row.get(column)) for row in rows):
            filled.setdefault(column.strip().casefold(), []).append(column)
    starts: tuple[str, ...] = START_COLUMNS
    ends: tuple[str, ...] = END_COLUMNS
    if "onset" in filled and "offset" in filled:  # sound event detection: offset is the end
        starts, ends = tuple(name for name in starts if name != "offset"), (*ends, "offset")
    start, end = _one_of(starts, filled, where), _one_of(ends, filled, where)
    if start is None and end is None:
        return TimeColumns()
    return TimeColumns(start, end, None if end is not None else _one_of((DURATION_COLUMN,), filled, where))


def _is_filled(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, str) and value.isspace())


def _one_of(names: Sequence[str], filled: Mapping[str, Sequence[str]], where: str) -> str | None:
    found = [column for name in names for column in filled.get(name, ())]
    if len(found) > 1:
        raise DataError(
            f"{where}: the columns {listed([repr(column) for column in found])} say the same of a recording: expected "
            "one of them; take out or rename the others"
        )
    return found[0] if found else None


def read_segment(
    file: Path, row: Mapping[str, Any], columns: TimeColumns, place: str, where: str
) -> Path | AudioSegment:
    """The recording of one row: a stretch of its file, or all of it where the row says no time.

    Args:
        file: the row's.
        row: of the manifest.
        columns: of the manifest.
        place: of the row ("line 3"), for messages.
        where: the manifest, for messages.

    Raises:
        DataError: a time is no number of seconds, negative, or the stretch has no length.
    """
    start, end, length = (
        None if column is None else _seconds(row.get(column), column, place, where)
        for column in (columns.start, columns.end, columns.duration)
    )
    if start is None and end is None and length is None:
        return file
    begin = start or 0.0
    if length is not None:
        if not length:
            raise DataError(f"{where}, {place}: {columns.duration!r} is 0; expected the seconds of a recording")
        return AudioSegment(file, begin, begin + length)
    if end is not None and end <= begin:
        raise DataError(
            f"{where}, {place}: {columns.end!r} is {end:g}, not behind the beginning at {begin:g} s; expected the "
            "second at which the recording ends"
        )
    return AudioSegment(file, begin, end)


def _seconds(value: Any, column: str, place: str, where: str) -> float | None:
    if not _is_filled(value):
        return None
    number = math.nan
    if (isinstance(value, str) and len(value) <= _MOST_DIGITS) or (
        isinstance(value, (int, float)) and not isinstance(value, bool)
    ):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not 0 <= number < math.inf:
        shown = str(value) if isinstance(value, (int, float)) else repr(value)
        shown = shown if len(shown) <= _MOST_DIGITS else shown[:_MOST_DIGITS] + "..."
        raise DataError(
            f"{where}, {place}: {column!r} is {shown}; expected seconds, at least 0 (such as 12.5), since a column "
            "of this name says which stretch of its file a recording is. Rename it if it says something else"
        )
    return number


def check_segments(segments: Sequence[tuple[str, Path | AudioSegment]], columns: TimeColumns, where: str) -> None:
    """Check that stretches lie inside their files, of which the headers are read.

    Files that are missing or cannot be read are passed over: they are told of where recordings are.

    Args:
        segments: place of each row ("line 3"), and its recording.
        columns: of the manifest.
        where: the manifest, for messages.

    Raises:
        DataError: one begins or ends beyond its file's end.
    """
    lengths: dict[Path, float] = {}
    beyond = []
    for place, segment in segments:
        if not isinstance(segment, AudioSegment):
            continue
        if segment.path not in lengths:
            try:
                lengths[segment.path] = duration(segment.path)
            except (AudioError, OSError):
                lengths[segment.path] = math.inf
        whole = lengths[segment.path]
        if segment.start >= whole:
            column, value = columns.start, segment.start
        elif segment.end is not None and segment.end > whole + LACKING:
            column = columns.end or columns.duration
            value = segment.end if columns.end else segment.end - segment.start
        else:
            continue
        beyond.append(f"{place}: {column!r} is {value:g}, and {segment.path} ends at {whole:.3f} s")
    if beyond:
        more = "" if len(beyond) == 1 else f" ({len(beyond)} recordings)"
        raise DataError(
            f"{where}, {listed(beyond)}; expected stretches of the files{more}. Mend them, or rename the columns if "
            "they say something else"
        )


def warn_of_unused(
    rows: Sequence[Mapping[str, Any]], recordings: Sequence[Path | AudioSegment], columns: TimeColumns, where: str
) -> None:
    """Name the columns that would change what is heard, and that are not read.

    Args:
        rows: the manifest's.
        recordings: of each row.
        columns: that are read.
        where: the manifest, for messages.

    Warns:
        DataWarning: there are some.
    """
    unused = []
    for column in dict.fromkeys(column for row in rows for column in row):
        name = column.strip().casefold()
        values = [row.get(column) for row in rows]
        if column in columns.used or not any(map(_is_filled, values)):
            continue
        if name in _OTHERS:
            unused.append(f"{column!r}")
        elif name == DURATION_COLUMN and columns.end is not None and _disagrees(values, recordings):
            unused.append(f"{column!r} (which is not the time between {columns.start or 0!r} and {columns.end!r})")
        elif name in _CHANNELS and (several := _differing(values, recordings, 1)):
            unused.append(f"{column!r} (all channels of {several} are averaged)")
        elif name in _RATES and (several := _differing(values, recordings, 0)):
            unused.append(f"{column!r} (which is not the rate that {several} states)")
    if unused:
        warnings.warn(
            f"{where}: not read, though the name says that it changes what is heard: {listed(unused)}",
            DataWarning,
            stacklevel=4,
        )


def notes_on_segments(parts: Mapping[str, Sequence[Example]]) -> list[str]:
    """Sentences for the user on stretches of files: that there are some, and which splits hear the same sound.

    Args:
        parts: the recordings of each split, ``train`` among them.
    """
    intervals = {part: [_interval(example) for example in examples] for part, examples in parts.items()}
    segments = [example.audio for part in parts.values() for example in part if isinstance(example.audio, AudioSegment)]
    if not segments:
        return []
    files = len({segment.path for segment in segments})
    notes = [f"{len(segments)} recordings are stretches of {files} files, as the columns of times say"]
    train: dict[Path, list[tuple[float, float]]] = {}
    for path, start, end in filter(None, intervals.get("train", ())):
        train.setdefault(path, []).append((start, end))
    joined = {path: _joined(spans) for path, spans in train.items()}
    for part, examples in parts.items():
        shared = [
            example
            for example, interval in zip(examples, intervals[part], strict=True)
            if part != "train" and interval is not None and _overlaps(joined.get(interval[0], []), *interval[1:])
        ]
        if shared:
            notes.append(
                f"{len(shared)} of {len(examples)} recordings of {part} overlap recordings of train, such as "
                f"{shared[0].name}: its scores are not those of unknown sound (keep files together: --group-column)"
            )
    return notes


def _interval(example: Example) -> tuple[Path, float, float] | None:
    audio = example.audio
    if isinstance(audio, AudioSegment):
        return audio.path, audio.start, math.inf if audio.end is None else audio.end
    return (audio, 0.0, math.inf) if isinstance(audio, Path) else None


def _joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans in order of time, those that meet made one."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _overlaps(spans: list[tuple[float, float]], start: float, end: float) -> bool:
    place = bisect_left(spans, (end - _TOUCHING,))
    return place > 0 and spans[place - 1][1] > start + _TOUCHING


def _disagrees(values: Sequence[Any], recordings: Sequence[Path | AudioSegment]) -> bool:
    for value, recording in zip(values, recordings, strict=True):
        if isinstance(recording, AudioSegment) and recording.end is not None and _is_filled(value):
            number = _number(value)
            if number is None or abs(number - (recording.end - recording.start)) > LACKING:
                return True
    return False


def _differing(values: Sequence[Any], recordings: Sequence[Path | AudioSegment], what: int) -> Path | None:
    """The first file that has several channels, or another rate than a column says."""
    seen: dict[Path, tuple[int, int] | None] = {}
    for value, recording in zip(values, recordings, strict=True):
        if not _is_filled(value):
            continue
        path = recording.path if isinstance(recording, AudioSegment) else recording
        if path not in seen:
            seen[path] = stated_format(path)
        stated = seen[path]
        if stated is not None and (stated[1] > 1 if what else _number(value) != stated[0]):
            return path
    return None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
