"""Transcripts of every model are written alike."""

import json

import pytest

from mambavox.asr.transcript import FORMATS, Segment, Transcript, Word, clock, group_words, render, render_segment

TIMED = Transcript("one two", (Segment(0.0, 1.5, "one"), Segment(3661.25, 3662.0, "two")), 3662.0, "de")


def words(*times, text="word"):
    return [Word(text, start, end, 0.5) for start, end in times]


def spoken(*segments):
    """A transcript of a model that gives words."""
    parts = tuple(Segment.of_words(part) for part in segments)
    return Transcript("\n".join(part.text for part in parts), parts, 10.0)


def test_subtitles_of_segments_where_there_are_no_words():
    assert render(TIMED, "srt") == ("1\n00:00:00,000 --> 00:00:01,500\none\n\n2\n01:01:01,250 --> 01:01:02,000\ntwo\n")
    assert render(TIMED, "vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none\n\n01:01:01.250")
    assert render(TIMED, "txt") == "one two\n"
    assert render(TIMED, "txt", timestamps=True) == (
        "[00:00:00.000 - 00:00:01.500] one\n[01:01:01.250 - 01:01:02.000] two\n"
    )


def test_lines_end_with_a_pause_or_when_they_are_full_or_long():
    assert [len(line.words) for line in group_words(words((0, 1), (1.8, 2), (2.81, 3)))] == [2, 1]
    assert [len(line.words) for line in group_words(words((0, 3), (3, 6), (6, 7)))] == [2, 1]
    full = [Word("x" * 20, 0.1 * n, 0.1 * n + 0.1, 1.0) for n in range(3)]
    assert [line.text for line in group_words(full)] == ["x" * 20 + " " + "x" * 20, "x" * 20]
    assert group_words([]) == []
    for line in group_words(full):
        assert line.lines() == [line]


def test_subtitles_do_not_join_segments():
    transcript = spoken(words((0, 1), (1, 2)), words((2.1, 3)))
    assert render(transcript, "srt").count(" --> ") == 2
    printed = "".join(render_segment(segment, timestamps=True) for segment in transcript.segments)
    assert render(transcript, "txt", timestamps=True) == printed
    assert render(transcript, "txt") == "word word\nword\n"


@pytest.mark.parametrize("transcript", [TIMED, spoken(words((0, 1), (1, 2))), Transcript("", (), 1.0)])
def test_one_schema_for_all_models(transcript):
    written = json.loads(render(transcript, "json", file="a.wav"))
    assert list(written) == ["file", "text", "language", "seconds", "confidence", "notes", "segments"]
    assert (written["file"], written["seconds"]) == ("a.wav", transcript.seconds)
    assert written["confidence"] == (0.5 if transcript.words else None)
    for segment in written["segments"]:
        assert list(segment) == ["start", "end", "text", "confidence", "words"]
        assert all(list(word) == ["text", "start", "end", "confidence"] for word in segment["words"])


@pytest.mark.parametrize("form", FORMATS)
def test_of_silence_nothing_is_written(form):
    silence = Transcript("", (), 2.0)
    assert "-->" not in render(silence, form)
    assert render(silence, form) == {"txt": "\n", "srt": "", "vtt": "WEBVTT\n"}.get(form, render(silence, "json"))


def test_clock_rounds_to_milliseconds():
    assert clock(59.9996) == "00:01:00.000"
    assert clock(36_000.25, ",") == "10:00:00,250"
