"""Text while it is spoken: CTC decoding frame by frame, segments that end with pauses, many streams at once."""

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import Vocabulary
from mambavox.asr.transcript import Segment, Word, mean_confidence
from mambavox.data import Waveform
from mambavox.data.audio import check_samples
from mambavox.errors import ConfigError, DataError


@dataclass(frozen=True)
class Endpointing:
    """When a segment of speech is over.

    Attributes:
        pause_seconds: a pause of this length, without a letter, ends a segment.
        segment_seconds: a segment of this length ends behind its last whole word, even without a pause.

    Raises:
        ConfigError: a value is not positive.
    """

    pause_seconds: float = 0.8
    segment_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name}={value}; expected seconds above 0")


@dataclass(frozen=True)
class LiveSegment:
    """What was said between two pauses, so far.

    Attributes:
        number: of the segment in its stream, from 0.
        words: with times since the beginning of the stream; the last one may still grow.
        final: nothing of it will change any more.
    """

    number: int
    words: tuple[Word, ...]
    final: bool

    @property
    def text(self) -> str:
        """The words."""
        return " ".join(word.text for word in self.words)

    @property
    def start(self) -> float:
        """Seconds at which its first word begins."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """Seconds at which its last word ends."""
        return self.words[-1].end

    @property
    def confidence(self) -> float | None:
        """Mean confidence of its words."""
        return mean_confidence(self.words)

    def to_segment(self) -> Segment:
        """The segment as a transcript holds it."""
        return Segment.of_words(self.words)

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "segment": self.number,
            "final": self.final,
            "text": self.text,
            "start": self.start,
            "end": self.end,
            "confidence": self.confidence,
            "words": [word.to_mapping() for word in self.words],
        }


_SETTINGS = {"vocabulary", "frame_seconds", "_pause", "_longest"}  # of a decoder: what its stream does not change


class LiveDecoder:
    """The likeliest alignment of one stream, written down as its frames come.

    Letters are those that ``words_in`` finds in the whole recording for ``greedy_search``. Words are, too, but where a
    pause ends one without a space, and where ``segment_seconds`` cuts one without end. A text never takes back what it
    has shown: a later one of the same segment begins with it. Memory is bounded by ``segment_seconds``.

    Args:
        vocabulary: of the model.
        frame_seconds: from one frame to the next.
        endpointing: when a segment is over.
    """

    def __init__(self, vocabulary: Vocabulary, frame_seconds: float, endpointing: Endpointing | None = None) -> None:
        endpointing = endpointing or Endpointing()
        self.vocabulary = vocabulary
        self.frame_seconds = frame_seconds
        self._pause = max(1, round(endpointing.pause_seconds / frame_seconds))
        self._longest = max(1, round(endpointing.segment_seconds / frame_seconds))
        self._frame = 0  # number of the next frame
        self._heard = 0  # the frame after the last one that was neither blank nor space
        self._token = vocabulary.blank  # of the last frame
        self._number = 0
        self._words: list[Word] = []  # whole ones of this segment
        self._begun = 0  # first frame of this segment
        self._letters, self._start, self._end = "", 0, 0  # the word that is being said
        self._tokens: list[tuple[float, int]] = []  # its tokens: sum of log probabilities, frames
        self._shown = ""

    @property
    def seconds(self) -> float:
        """How much of the stream has been decoded."""
        return self._frame * self.frame_seconds

    @property
    def speaking(self) -> bool:
        """Whether a segment has begun and not ended."""
        return bool(self._words or self._letters)

    def progress(self) -> dict[str, Any]:
        """What it remembers of its stream, and of what settings it is, for JSON; :meth:`go_on` takes it up."""
        remembered = {name: value for name, value in vars(self).items() if name not in _SETTINGS}
        return {**remembered, "_words": [asdict(word) for word in self._words], "settings": self._describe()}

    def _describe(self) -> dict[str, Any]:
        return {
            "vocabulary": zlib.crc32("\n".join(self.vocabulary.tokens).encode()),
            "frame_seconds": self.frame_seconds,
            "pause": self._pause,
            "longest": self._longest,
        }

    def go_on(self, progress: Mapping[str, Any]) -> None:
        """Go on where another decoder of the same settings was.

        Args:
            progress: what its :meth:`progress` returned.

        Raises:
            DataError: it is nothing of the kind, or of other settings.
        """
        known = {*(set(vars(self)) - _SETTINGS), "settings"}
        if set(progress) != known:
            raise DataError(
                f"a decoder's progress with {', '.join(progress) or 'nothing'}; expected {', '.join(known)}"
            )
        settings = self._describe()
        others = [name for name, value in settings.items() if progress["settings"].get(name) != value]
        if others:
            raise DataError(f"a decoder's progress of another {', another '.join(others)}; expected the same")
        vars(self).update({name: value for name, value in progress.items() if name != "settings"})
        self._words = [Word(**word) for word in progress["_words"]]
        self._tokens = [(total, frames) for total, frames in progress["_tokens"]]

    def feed(self, log_probs: NDArray[np.floating]) -> list[LiveSegment]:
        """Go on with the next frames.

        Args:
            log_probs: ``(time, tokens)``, any number of frames.

        Returns:
            The segments that ended, then the one that goes on if its text has changed.
        """
        if not len(log_probs):
            return []
        best = log_probs.argmax(axis=1)
        ended = []
        for token, log_prob in zip(best.tolist(), log_probs[np.arange(len(best)), best].tolist(), strict=True):
            self._take(token, log_prob)
            if (self._words or self._letters) and self._frame - self._heard >= self._pause:
                ended.append(self._end_segment())
            elif (self._words or self._letters) and self._frame - self._begun >= self._longest:
                ended.append(self._cut_segment())
        now = self._segment(final=False)
        if now is None or now.text == self._shown:
            return ended
        self._shown = now.text
        return [*ended, now]

    def finish(self) -> list[LiveSegment]:
        """End the stream.

        Returns:
            The last segment, unless nothing was said since the one before.
        """
        return [self._end_segment()] if self._words or self._letters else []

    def _take(self, token: int, log_prob: float) -> None:
        frame, self._frame = self._frame, self._frame + 1
        again, self._token = token == self._token, token
        text = self.vocabulary.tokens[token]
        if token == self.vocabulary.blank:
            return
        if text and not text.strip():
            self._end_word()
            return
        self._heard = frame + 1
        if not text:
            return
        if again:
            if self._letters:  # else the word was cut in the middle of the token
                total, frames = self._tokens[-1]
                self._tokens[-1] = (total + log_prob, frames + 1)
                self._end = frame + 1
            return
        if text[0] == " ":
            self._end_word()
        if not self._letters:
            self._start = frame
            if not self._words:
                self._begun = frame
        self._letters += text.strip()
        self._end = frame + 1
        self._tokens.append((log_prob, 1))

    def _word(self) -> Word:
        confidence = math.exp(sum(total / frames for total, frames in self._tokens) / len(self._tokens))
        return Word(self._letters, self._start * self.frame_seconds, self._end * self.frame_seconds, confidence)

    def _end_word(self) -> None:
        if self._letters:
            self._words.append(self._word())
            self._letters, self._tokens = "", []

    def _segment(self, *, final: bool) -> LiveSegment | None:
        words = (*self._words, self._word()) if self._letters else tuple(self._words)
        return LiveSegment(self._number, words, final) if words else None

    def _end_segment(self) -> LiveSegment:
        self._end_word()
        segment = LiveSegment(self._number, tuple(self._words), final=True)
        self._words, self._shown = [], ""
        self._number += 1
        return segment

    def _cut_segment(self) -> LiveSegment:
        """End a segment in the middle of speech; the word that is being said begins the next one."""
        if not self._words:
            return self._end_segment()
        letters, tokens = self._letters, self._tokens
        self._letters = ""
        segment = self._end_segment()
        self._letters, self._tokens, self._begun = letters, tokens, self._start
        return segment


class LiveRecognizer:
    """Recognises streams that begin and end when they like, each as if it were alone, in one batch.

    Not for several threads at a time.

    Args:
        recognizer: of a causal Mamba-HuBERT with a CTC head, adapted or not.
        endpointing: when a segment is over.

    Raises:
        HostError: the model cannot be streamed.
        ConfigError: the model is not causal, or its extractor normalises whole recordings.
    """

    def __init__(self, recognizer: SpeechRecognizer, endpointing: Endpointing | None = None) -> None:
        recognizer.check_streamable()
        self._recognizer = recognizer
        self._endpointing = endpointing or Endpointing()
        self._fresh = recognizer.model.init_streaming_state(1)
        self._state: Any = None  # of all streams, in the order of their decoders
        self._decoders: dict[int, LiveDecoder] = {}
        self._next = 0

    @property
    def sampling_rate(self) -> int:
        """Samples per second that it expects."""
        return self._recognizer.sampling_rate

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._decoders)

    @property
    def nbytes(self) -> int:
        """Bytes of what the model remembers of all streams."""
        return 0 if self._state is None else self._state.nbytes

    def open(self) -> int:
        """Begin a stream.

        Returns:
            Its key.
        """
        key, self._next = self._next, self._next + 1
        recognizer = self._recognizer
        self._decoders[key] = LiveDecoder(recognizer.vocabulary, recognizer.frame_seconds, self._endpointing)
        self._state = self._fresh if self._state is None else type(self._fresh).join([self._state, self._fresh])
        return key

    def close(self, *streams: int) -> None:
        """Forget streams, whether they have ended or not."""
        kept = [row for row, key in enumerate(self._decoders) if key not in streams]
        if len(kept) < len(self._decoders):
            self._state = self._state.reorder(kept) if kept else None
            self._decoders = {key: decoder for key, decoder in self._decoders.items() if key not in streams}

    @torch.inference_mode()
    def feed(self, pieces: Mapping[int, Waveform], last: Collection[int] = ()) -> dict[int, list[LiveSegment]]:
        """Go on with the next samples of some streams; the others stay as they are.

        Args:
            pieces: new samples of each stream, ``(samples,)`` float32 at ``sampling_rate``; any number, none included.
            last: streams among them that end with these samples; they are closed.

        Returns:
            For each of the streams its segments that ended, then the one that goes on if its text has changed.

        Raises:
            ConfigError: a stream is not open.
            AudioError: samples are no floats, or some are NaN or infinite; no stream has heard anything then.
        """
        for key, samples in pieces.items():
            check_samples(samples, f"the samples of stream {key}")
        for key in {*pieces, *last}:
            if key not in self._decoders or key not in pieces:
                raise ConfigError(f"stream {key} is not open or has no samples; expected keys of open() in pieces")
        if not pieces:
            return {}
        keys = list(self._decoders)
        rows = [row for row, key in enumerate(keys) if key in pieces]
        chosen = [keys[row] for row in rows]
        state = self._state if len(rows) == len(keys) else self._state.reorder(rows)
        lengths = [len(pieces[key]) for key in chosen]
        batch = np.zeros((len(rows), max(lengths)), dtype=np.float32)
        for row, key in enumerate(chosen):
            batch[row, : lengths[row]] = pieces[key]
        model = self._recognizer.model
        output, state = model.stream(
            torch.from_numpy(batch).to(next(model.parameters()).device),
            state,
            lengths=torch.tensor(lengths),
            final=torch.tensor([key in last for key in chosen]),
        )
        self._state = state if len(rows) == len(keys) else self._state.put(rows, state)
        log_probs = output.logits.float().log_softmax(dim=-1).cpu().numpy()
        found = {}
        for key, frames, count in zip(chosen, log_probs, output.lengths.tolist(), strict=True):
            found[key] = self._decoders[key].feed(frames[:count])
            if key in last:
                # A partial text right before the final one says nothing.
                found[key] = [segment for segment in found[key] if segment.final] + self._decoders[key].finish()
        self.close(*last)
        return found
