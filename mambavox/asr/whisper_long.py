"""Recordings of any length in Whisper's windows: all at once, cut in pauses, or one after the other by timestamps."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from mambavox.asr.speech_windows import SpeechDetector, cut_windows, quietest
from mambavox.asr.text import UNSPACED, language_code
from mambavox.asr.transcript import Segment, Transcript, clock, group_words
from mambavox.asr.whisper_hearing import Asked, Heard, WindowHearing
from mambavox.data import Waveform

LongForm: TypeAlias = Literal["batched", "sequential"]
"""How what is longer than the window is heard."""
_SHORTEST = 2.0  # seconds; what is shorter is not cut because of the length of its text


@dataclass
class Recording:
    """A recording and what has been heard of it.

    Attributes:
        waveform: ``(samples,)`` at the model's rate.
        language: that is spoken; ``None`` until it has been detected, or where the model knows one only.
        windows: what was heard, with the first and the last sample of each window.
        segments: of a recording that is heard window after window.
        notes: what the user should know, each behind the second that it is about.
    """

    waveform: Waveform
    language: str | None
    windows: list[tuple[int, int, Heard]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)


class LongFormHearing:
    """Hears recordings with a Whisper.

    Args:
        hearing: of windows.
        extractor: makes spectrograms.
        batch_size: windows at a time.
        batches: divides rows, by their languages, into batches that can be heard together.
        activate: prepares the model for the languages of a batch; gives the names of its rows' adapters, if they have
            adapters of their own.
        timestamps: find out when each word is said.
        detector: finds speech; ``None``: all may be speech.
    """

    def __init__(
        self,
        hearing: WindowHearing,
        extractor: Any,
        *,
        batch_size: int,
        batches: Callable[[Sequence[str | None], int], list[list[int]]],
        activate: Callable[[Sequence[str | None]], Sequence[str] | None],
        timestamps: bool,
        detector: SpeechDetector | None = None,
    ) -> None:
        self._hearing = hearing
        self._extractor = extractor
        self._batch_size = batch_size
        self._batches = batches
        self._activate = activate
        self._timestamps = timestamps
        self._detector = detector
        self._rate = int(extractor.sampling_rate)
        self._window = int(extractor.n_samples)

    def transcribe(self, recordings: Sequence[Recording], long_form: LongForm) -> list[Transcript]:
        """Transcripts of some recordings."""
        long = [item for item in recordings if long_form == "sequential" and len(item.waveform) > self._window]
        short = [item for item in recordings if all(item is not other for other in long)]
        self._at_once(short)
        self._one_after_another(long)
        return [self._transcript(item) for item in recordings]

    # All windows at once.

    def _at_once(self, recordings: Sequence[Recording]) -> None:
        waiting = [(item, start, end) for item in recordings for start, end in self._cut(item.waveform)]
        detects = self._hearing.detects
        while waiting:
            seen: list[Recording] = []
            ready: list[tuple[Recording, int, int]] = []
            later: list[tuple[Recording, int, int]] = []
            for row in waiting:
                first = all(row[0] is not item for item in seen)
                seen.append(row[0])
                # The first window says which language the others are in.
                (ready if first or row[0].language is not None or not detects else later).append(row)
            waiting = later + list(self._hear_windows(ready))

    def _cut(self, waveform: Waveform) -> list[tuple[int, int]]:
        spans = [(0, len(waveform))] if self._detector is None else self._detector(waveform, self._rate)
        windows = cut_windows(waveform, spans, self._window, self._rate)
        # Nothing is said in digital silence, whatever a Whisper makes of it.
        return [(start, end) for start, end in windows if waveform[start:end].any()]

    def _hear_windows(self, windows: Sequence[tuple[Recording, int, int]]) -> Iterator[tuple[Recording, int, int]]:
        """Hear windows; gives those that have to be heard again, in halves."""
        order = sorted(windows, key=lambda row: row[2] - row[1])
        for batch in self._batches([row[0].language for row in order], self._batch_size):
            rows = [order[index] for index in batch]
            waveforms = [item.waveform[start:end] for item, start, end in rows]
            extracted = self._extractor(waveforms, sampling_rate=self._rate, return_tensors="pt").input_features
            frames = [math.ceil(len(waveform) / self._extractor.hop_length) for waveform in waveforms]
            heard = self._hear(extracted, frames, [item.language for item, _, _ in rows], timestamps=False)
            for (item, start, end), found in zip(rows, heard, strict=True):
                item.language = found.language
                if found.unfinished and self._hearing.fills_decoder and end - start > _SHORTEST * self._rate:
                    third = (end - start) // 3
                    middle = quietest(item.waveform, start + third, end - third, self._rate)
                    yield from ((item, start, middle), (item, middle, end))
                    continue
                self._note(item, found, start / self._rate, end / self._rate)
                item.windows.append((start, end, found))

    def _hear(
        self, features: Tensor, frames: Sequence[int], languages: Sequence[str | None], *, timestamps: bool
    ) -> list[Heard]:
        adapters = self._activate(languages)
        return self._hearing.hear(
            features, frames, Asked(languages, adapters, timestamps=timestamps, words=self._timestamps)
        )

    # One window after the other.

    def _one_after_another(self, recordings: Sequence[Recording]) -> None:
        """As Whisper's authors do: a window begins where the last sentence of the one before ended."""
        size = self._window // int(self._extractor.hop_length)
        spectra = [self._spectrum(item.waveform) for item in recordings]
        seeks = [0] * len(recordings)
        while active := [row for row, spectrum in enumerate(spectra) if seeks[row] < spectrum.shape[-1]]:
            languages = [recordings[row].language for row in active]
            for batch in self._batches(languages, self._batch_size):
                rows = [active[index] for index in batch]
                cuts = [spectra[row][:, seeks[row] : seeks[row] + size] for row in rows]
                features = torch.stack([functional.pad(cut, (0, size - cut.shape[-1])) for cut in cuts])
                frames = [cut.shape[-1] for cut in cuts]
                asked = [recordings[row].language for row in rows]
                for row, length, found in zip(
                    rows, frames, self._hear(features, frames, asked, timestamps=True), strict=True
                ):
                    item = recordings[row]
                    item.language = found.language
                    seeks[row] += self._take(item, found, seeks[row], length)

    def _spectrum(self, waveform: Waveform) -> Tensor:
        """Log-mel frames ``(mel, frames)`` of a whole recording."""
        extracted = self._extractor(
            waveform,
            sampling_rate=self._rate,
            truncation=False,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        frames = int(extracted.attention_mask.sum())
        spectrum: Tensor = extracted.input_features[0, :, :frames]
        return spectrum

    def _take(self, item: Recording, found: Heard, seek: int, frames: int) -> int:
        """Take the segments of a window; gives the frames after which the next one begins."""
        frame_seconds = self._extractor.hop_length / self._rate
        offset = seek * frame_seconds
        begin = self._hearing.timestamp_begin
        assert begin is not None
        pieces, ahead = timed_pieces(found.tokens, begin, frames)
        # What lies behind the last whole sentence is heard again.
        self._note(item, found, offset, offset + frames * frame_seconds, cut_is_lost=ahead == frames)
        first = 0
        for start, end, tokens in pieces:
            spoken = self._hearing.spoken(tokens)
            text = self._hearing.tokenizer.decode(spoken, skip_special_tokens=True).strip()
            last = first + len(spoken)
            words = self._hearing.words(found, first, last, offset) if found.times and text else ()
            first = last
            if text:
                length = len(item.waveform) / self._rate
                item.segments.append(Segment(min(offset + start, length), min(offset + end, length), text, words))
        return ahead

    # What was heard.

    def _note(self, item: Recording, found: Heard, start: float, end: float, *, cut_is_lost: bool = True) -> None:
        if found.repeats:
            what = "the text repeated itself without end and was cut behind its first round"
        elif found.unfinished and cut_is_lost:
            most = self._hearing.max_new_tokens
            what = f"the text reached {most} tokens, the most that are generated; the rest of it is missing"
        else:
            return
        item.notes.append((start, f"{clock(start)} to {clock(end)}: {what}"))

    def _transcript(self, item: Recording) -> Transcript:
        seconds = len(item.waveform) / self._rate
        segments = list(item.segments)
        language = self._hearing.written_in(item.language)
        separator = "" if language_code(language) in UNSPACED else " "
        for start, end, found in sorted(item.windows, key=lambda row: row[0]):
            if not found.text:
                continue
            offset = start / self._rate
            lines = group_words(self._hearing.words(found, offset=offset), separator) if found.times else []
            segments += lines or [Segment(offset, end / self._rate, found.text)]
        texts = [found.text for _, _, found in sorted(item.windows, key=lambda row: row[0])]
        text = separator.join(filter(None, texts or [segment.text for segment in item.segments]))
        return Transcript(text, tuple(segments), seconds, item.language, tuple(note for _, note in sorted(item.notes)))


def timed_pieces(
    tokens: Sequence[int], begin: int, frames: int
) -> tuple[list[tuple[float, float, Sequence[int]]], int]:
    """Pieces of a window's text between timestamps, as transformers cuts them.

    Args:
        tokens: of the window.
        begin: the first timestamp.
        frames: of the spectrogram in the window, 0.01 s each.

    Returns:
        First second, last second and tokens of each piece, and the frames after which the next window begins: behind
        the last piece that ended.
    """
    if not tokens:
        return [], frames
    stamps = [token >= begin for token in tokens]
    ends_once = stamps[-2:] == [False, True]
    cuts = [index + 1 for index in range(len(tokens) - 1) if stamps[index] and stamps[index + 1]]
    if not cuts:
        last = [token - begin for token in tokens if token > begin]
        seconds = 0.02 * last[-1] if stamps and last else frames * 0.01
        return [(0.0, seconds, tokens)], frames
    if ends_once:
        cuts.append(len(tokens))
    pieces = []
    start = 0
    for cut in cuts:
        piece = tokens[start:cut]
        pieces.append((0.02 * (piece[0] - begin), 0.02 * (piece[-1] - begin), piece))
        start = cut
    ahead = frames if ends_once else 2 * (tokens[cuts[-1] - 1] - begin)
    return pieces, ahead if ahead > 0 else frames
