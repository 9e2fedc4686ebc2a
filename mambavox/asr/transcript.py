"""What was said: words, segments and transcripts of every recogniser, and the files that are written of them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

Format: TypeAlias = Literal["txt", "srt", "vtt", "json"]
"""Name of a format, which is the ending of its files, too."""
FORMATS: tuple[Format, ...] = get_args(Format)
"""All formats."""

_LINE_CHARACTERS = 42  # the usual limit of subtitles
_LINE_SECONDS = 6.0
_PAUSE_SECONDS = 0.8  # ends a line


@dataclass(frozen=True)
class Word:
    """A word that was heard.

    Attributes:
        text: the word.
        start: seconds.
        end: seconds.
        confidence: geometric mean of its tokens' probabilities, 0 to 1; ``None`` where the model gives none.
    """

    text: str
    start: float
    end: float
    confidence: float | None

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Segment:
    """A stretch of speech.

    Attributes:
        start: where it begins, in seconds.
        end: where it ends, in seconds.
        text: what is said in it.
        words: each word of it; none where the model gives no times of words.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()

    @classmethod
    def of_words(cls, words: Sequence[Word], separator: str = " ") -> "Segment":
        """The segment of some words, at least one.

        Args:
            words: in their order.
            separator: what is written between two.
        """
        return cls(words[0].start, words[-1].end, separator.join(word.text for word in words), tuple(words))

    @property
    def confidence(self) -> float | None:
        """Mean confidence of its words; ``None`` where there is none."""
        return mean_confidence(self.words)

    def lines(self) -> "list[Segment]":
        """The segment in lines of subtitles; a single one where the words have no times."""
        return group_words(self.words, " " if " " in self.text else "") or [self]

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "confidence": self.confidence,
            "words": [word.to_mapping() for word in self.words],
        }


@dataclass(frozen=True)
class Transcript:
    """What a recording says.

    Attributes:
        text: all of it.
        segments: its stretches, in their order.
        seconds: length of the recording.
        language: code of the language; ``None`` where it is not known.
        notes: what is wrong with it, such as text that is missing, each with its place.
    """

    text: str
    segments: tuple[Segment, ...]
    seconds: float
    language: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments; none where the model gives no times of words."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def confidence(self) -> float | None:
        """Mean confidence of the words; ``None`` where there is none."""
        return mean_confidence(self.words)

    def to_mapping(self, file: str | Path | None = None) -> dict[str, Any]:
        """For JSON, the same keys whichever model heard it.

        Args:
            file: the recording; ``None`` where there is no file, as with a microphone.

        Returns:
            ``file, text, language, seconds, confidence, notes: [...], segments: [{start, end, text, confidence, words:
            [{text, start, end, confidence}]}]``. Times are in seconds, confidences between 0 and 1; both are ``null``
            or missing only where words were not asked for. A language that is not known is ``null``.
        """
        return {
            "file": None if file is None else str(file),
            "text": self.text,
            "language": self.language,
            "seconds": self.seconds,
            "confidence": self.confidence,
            "notes": list(self.notes),
            "segments": [segment.to_mapping() for segment in self.segments],
        }


def mean_confidence(words: Sequence[Word]) -> float | None:
    """Mean confidence of words; ``None`` where there is none."""
    known = [word.confidence for word in words if word.confidence is not None]
    return sum(known) / len(known) if known else None


def group_words(words: Sequence[Word], separator: str = " ") -> list[Segment]:
    """Words in lines of subtitles: a line ends with a pause, or when it is full or long enough.

    Args:
        words: in their order.
        separator: what is written between two.
    """
    lines: list[list[Word]] = []
    for word in words:
        line = lines[-1] if lines else []
        if (
            not line
            or word.start - line[-1].end > _PAUSE_SECONDS
            or sum(len(other.text) + len(separator) for other in line) + len(word.text) > _LINE_CHARACTERS
            or word.end - line[0].start > _LINE_SECONDS
        ):
            lines.append([word])
        else:
            line.append(word)
    return [Segment.of_words(line, separator) for line in lines]


def render(transcript: Transcript, form: Format, *, timestamps: bool = False, file: str | Path | None = None) -> str:
    """A transcript in a format.

    Args:
        transcript: what was said.
        form: the format. Subtitles are the lines of the segments.
        timestamps: of ``txt``: one line a subtitle, with its times. The other formats always have them.
        file: the recording, which ``json`` names.
    """
    if form == "txt" and not timestamps:
        return transcript.text + "\n"
    return _WRITERS[form](transcript, file)


def render_segment(segment: Segment, *, timestamps: bool) -> str:
    """A segment as plain text: one line, or with ``timestamps`` one line a subtitle, with its times."""
    if not timestamps:
        return segment.text + "\n"
    return "".join(f"[{clock(line.start)} - {clock(line.end)}] {line.text}\n" for line in segment.lines())


def clock(seconds: float, point: str = ".") -> str:
    """Hours, minutes, seconds and milliseconds, with ``point`` before the last."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _txt(transcript: Transcript, file: str | Path | None) -> str:
    return "".join(render_segment(segment, timestamps=True) for segment in transcript.segments)


def _json(transcript: Transcript, file: str | Path | None) -> str:
    return json.dumps(transcript.to_mapping(file), ensure_ascii=False, indent=2) + "\n"


def _srt(transcript: Transcript, file: str | Path | None) -> str:
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(_cues(transcript, ","), start=1))


def _vtt(transcript: Transcript, file: str | Path | None) -> str:
    return "\n".join(["WEBVTT\n", *_cues(transcript, ".")])


def _cues(transcript: Transcript, point: str) -> Iterator[str]:
    for segment in transcript.segments:
        for line in segment.lines():
            yield f"{clock(line.start, point)} --> {clock(line.end, point)}\n{line.text}\n"


_WRITERS: Mapping[Format, Callable[[Transcript, str | Path | None], str]] = {
    "txt": _txt,
    "srt": _srt,
    "vtt": _vtt,
    "json": _json,
}
