"""Transcripts as text files: plain, JSON, SubRip and WebVTT subtitles."""

import json
from collections.abc import Sequence

from mambavox.asr.decoding import Word
from mambavox.asr.recognizer import Transcript

FORMATS = ("txt", "json", "srt", "vtt")
"""Names of the formats, which are the file endings, too."""
_LONGEST_LINE = 42  # characters, the usual limit of subtitles
_LONGEST_SECONDS = 6.0
_PAUSE = 0.8  # seconds that end a line


def render(transcript: Transcript, form: str, *, timestamps: bool = False) -> str:
    """A transcript in a format.

    Args:
        transcript: what was said.
        form: one of ``FORMATS``.
        timestamps: of ``txt``: one line a subtitle, with its times. The other formats always have them.
    """
    if form == "json":
        return json.dumps(transcript.to_mapping(), ensure_ascii=False, indent=2) + "\n"
    lines = group_words(transcript.words)
    if form == "srt":
        blocks = [
            f"{number}\n{clock(line[0].start, ',')} --> {clock(line[-1].end, ',')}\n{_text(line)}\n"
            for number, line in enumerate(lines, start=1)
        ]
        return "\n".join(blocks)
    if form == "vtt":
        blocks = [f"{clock(line[0].start, '.')} --> {clock(line[-1].end, '.')}\n{_text(line)}\n" for line in lines]
        return "\n".join(["WEBVTT\n", *blocks])
    if timestamps:
        return render_segment(transcript.words, timestamps=True)
    return transcript.text + "\n"


def render_segment(words: Sequence[Word], *, timestamps: bool) -> str:
    """Words as plain text: one line, or with ``timestamps`` one line a subtitle, with its times."""
    if not timestamps:
        return _text(words) + "\n"
    return "".join(
        f"[{clock(line[0].start, '.')} - {clock(line[-1].end, '.')}] {_text(line)}\n" for line in group_words(words)
    )


def group_words(words: Sequence[Word]) -> list[list[Word]]:
    """Words in lines of subtitles: ended by a pause, the length of a line or its time."""
    lines: list[list[Word]] = []
    for word in words:
        line = lines[-1] if lines else []
        if (
            not line
            or word.start - line[-1].end > _PAUSE
            or len(_text(line)) + 1 + len(word.text) > _LONGEST_LINE
            or word.end - line[0].start > _LONGEST_SECONDS
        ):
            lines.append([word])
        else:
            line.append(word)
    return lines


def _text(line: Sequence[Word]) -> str:
    return " ".join(word.text for word in line)


def clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds, with ``point`` before the last."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
