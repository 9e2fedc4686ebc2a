"""Recordings of any length in constant memory: heard block by block, written down pause by pause, taken up again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambavox.asr.decoding import words_in
from mambavox.asr.live import Endpointing, LiveDecoder, LiveSegment
from mambavox.asr.model import ctc_log_probs, shortest_input
from mambavox.asr.recognizer import Search, SpeechRecognizer
from mambavox.data import AudioSegment, Waveform, read_blocks
from mambavox.data.audio import check_samples
from mambavox.errors import ConfigError, DataError, HostError
from mambavox.hubert.approximate_streaming import Chunks
from mambavox.hubert.streaming import AttentionState
from mambavox.nn.streaming import StreamState

BLOCK_SECONDS = 5.0
"""Length of the blocks in which a recording is best given."""

_EDGE = 25  # frames of silence that a search is given before the first word


class Hearing(Protocol):
    """Samples to log probabilities, block by block."""

    def begin(self) -> Any:
        """State before the first sample."""
        ...

    def feed(self, samples: Waveform, state: Any, final: bool) -> tuple[NDArray[np.float32], Any]:
        """Log probabilities ``(frames, tokens)`` of the frames that the next samples finish, and the new state."""
        ...


class ExactHearing:
    """A causal model fed as the samples come: what it would say of the whole recording.

    Args:
        recognizer: of a causal Mamba-HuBERT, adapted or not.

    Raises:
        ConfigError: the model is not causal, has attention, or its extractor normalises whole recordings.
        HostError: the model or an adapter on it cannot be streamed.
    """

    def __init__(self, recognizer: SpeechRecognizer) -> None:
        recognizer.check_streamable()
        self._model = recognizer.model
        self._device = next(self._model.parameters()).device
        self._fresh = self._model.init_streaming_state(1)
        if any(isinstance(part, AttentionState) for part in self._fresh.states()):
            raise ConfigError("causal attention keeps every frame, in memory and time that grow with the recording")

    def begin(self) -> Any:
        """State before the first sample."""
        return self._fresh

    def feed(self, samples: Waveform, state: Any, final: bool) -> tuple[NDArray[np.float32], Any]:
        """See :class:`Hearing`."""
        if state.waveform.device != self._device:  # read from a file
            state = state.to(self._device)
        output, state = self._model.stream(torch.from_numpy(samples)[None].to(self._device), state, final=final)
        return output.logits[0].float().log_softmax(dim=-1).cpu().numpy(), state


class ChunkedHearing:
    """Any CTC model, approximately: each chunk is heard anew with some seconds around it.

    Args:
        recognizer: of the model.
        chunk: seconds of new frames at a time.
        look_ahead: seconds after a chunk that are heard with it.
        left_context: seconds before it that are heard with it.

    Raises:
        ConfigError: a length that does not fit.
    """

    def __init__(
        self, recognizer: SpeechRecognizer, chunk: float = 20.0, look_ahead: float = 4.0, left_context: float = 4.0
    ) -> None:
        self._recognizer = recognizer
        config = recognizer.base.config
        self._chunks = Chunks.of_seconds(
            int(np.prod(config.conv_stride)),
            shortest_input(config),
            recognizer.sampling_rate,
            chunk=chunk,
            look_ahead=look_ahead,
            left_context=left_context,
        )

    def begin(self) -> Any:
        """State before the first sample."""
        return self._chunks.begin()

    def feed(self, samples: Waveform, state: Any, final: bool) -> tuple[NDArray[np.float32], Any]:
        """See :class:`Hearing`."""
        chunks, state = self._chunks.feed(self._encode, torch.from_numpy(samples)[None], state, final)
        if not chunks:
            return np.zeros((0, len(self._recognizer.vocabulary.tokens)), dtype=np.float32), state
        return torch.cat(chunks, dim=1)[0].numpy(), state

    def _encode(self, samples: Tensor) -> Tensor:
        log_probs = ctc_log_probs(self._recognizer.model, self._recognizer.extractor, [samples[0].numpy()])
        return torch.from_numpy(log_probs[0])[None]


def hearing_of(recognizer: SpeechRecognizer) -> tuple[Hearing, str | None]:
    """How a model hears long recordings: exactly where it can, else in chunks.

    Returns:
        The way, and the reason why it is not exact.
    """
    try:
        return ExactHearing(recognizer), None
    except (ConfigError, HostError) as error:
        return ChunkedHearing(recognizer), str(error)


@dataclass(frozen=True)
class LongFormState(StreamState):
    """All that is needed to go on; ``save`` and ``load`` are those of every streaming state.

    Attributes:
        hearing: of the model or the chunks.
        pending: ``(1, frames, tokens)`` log probabilities that a search has yet to read.
        pending_begin: number of their first frame.
        decoder: the progress of the decoder, as JSON.
        samples: heard so far.
        segments: ended so far.
    """

    hearing: StreamState
    pending: Tensor
    pending_begin: int
    decoder: str
    samples: int
    segments: int


class LongFormStream:
    """One recording, block by block.

    Segments end with pauses. Without a search they are those of :class:`LiveDecoder`; with one, the frames of each are
    searched when it has ended.

    Args:
        recognizer: of any CTC model.
        hearing: how it hears; default as :func:`hearing_of` says.
        endpointing: when a segment is over.
        search: finds the tokens of a segment; default the likeliest alignment.
        state: of another stream of the same recording and settings, to go on from.

    Raises:
        DataError: the state is of another way of hearing, vocabulary or endpointing, or only one of both has a search.
    """

    def __init__(
        self,
        recognizer: SpeechRecognizer,
        *,
        hearing: Hearing | None = None,
        endpointing: Endpointing | None = None,
        search: Search | None = None,
        state: LongFormState | None = None,
    ) -> None:
        self._vocabulary = recognizer.vocabulary
        self._frame_seconds = recognizer.frame_seconds
        self._hearing = hearing or hearing_of(recognizer)[0]
        self._decoder = LiveDecoder(recognizer.vocabulary, recognizer.frame_seconds, endpointing)
        self._search = search
        self._heard = self._hearing.begin() if state is None else state.hearing
        self._pending = np.zeros((0, len(recognizer.vocabulary.tokens)), dtype=np.float32)
        self._pending_begin = self.samples = self._segments = 0
        if state is not None:
            self._pending, self._pending_begin = state.pending[0].numpy(), state.pending_begin
            self.samples, self._segments = state.samples, state.segments
            self._decoder.go_on(json.loads(state.decoder))
            self._check(state)

    def _check(self, state: LongFormState) -> None:
        fresh = self._hearing.begin()
        if type(state.hearing) is not type(fresh) or getattr(state.hearing, "model", "") != getattr(fresh, "model", ""):
            raise DataError("the state is of a stream that another model or in another way heard; expected the same")
        # A search has the frames from some number on before it; without one there are none.
        frames = round(self._decoder.seconds / self._frame_seconds)
        if state.pending_begin + state.pending.shape[1] != (0 if self._search is None else frames):
            with_search = "without a search" if self._search is not None else "with a search"
            raise DataError(f"the state is of a stream {with_search}; expected the same search as this one's")

    def state(self) -> LongFormState:
        """All that is needed to go on."""
        return LongFormState(
            self._heard,
            torch.from_numpy(self._pending)[None],
            self._pending_begin,
            json.dumps(self._decoder.progress()),
            self.samples,
            self._segments,
        )

    @torch.inference_mode()
    def feed(self, samples: Waveform, *, final: bool = False) -> list[LiveSegment]:
        """Go on with the next samples.

        Args:
            samples: ``(samples,)`` float32 at the model's rate, any number.
            final: whether they are the last ones.

        Returns:
            The segments that have ended.

        Raises:
            AudioError: they are no floats, or some are NaN or infinite.
        """
        check_samples(samples)
        log_probs, self._heard = self._hearing.feed(samples, self._heard, final)
        self.samples += len(samples)
        if self._search is not None:
            self._pending = np.concatenate([self._pending, log_probs])
        ended = [segment for segment in self._decoder.feed(log_probs) if segment.final]
        ended += self._decoder.finish() if final else []
        if self._search is not None:
            ended = [found for segment in ended if (found := self._searched(segment, self._search)) is not None]
            if not self._decoder.speaking:
                self._drop(len(self._pending) - _EDGE)
        numbered = [replace(segment, number=self._segments + index) for index, segment in enumerate(ended)]
        self._segments += len(numbered)
        return numbered

    def _searched(self, segment: LiveSegment, search: Search) -> LiveSegment | None:
        """What a search finds in the frames up to the middle of the pause behind a segment."""
        end = round(segment.end / self._frame_seconds) - self._pending_begin
        after = self._pending[end:].argmax(axis=1)
        spoken = [bool(self._vocabulary.tokens[token].strip()) for token in after.tolist()]
        pause = spoken.index(True) if True in spoken else len(spoken)
        log_probs = self._pending[: end + min(pause, 2 * _EDGE) // 2]
        ids = search(log_probs)
        begin = self._pending_begin * self._frame_seconds
        words = tuple(
            replace(word, start=word.start + begin, end=word.end + begin)
            for word in words_in(log_probs, ids, self._vocabulary, self._frame_seconds)
        )
        self._drop(len(log_probs))
        return replace(segment, words=words) if words else None

    def _drop(self, frames: int) -> None:
        if frames > 0:
            self._pending = self._pending[frames:].copy()
            self._pending_begin += frames


def hear_file(
    stream: LongFormStream, path: str | Path | AudioSegment, sampling_rate: int
) -> Iterator[list[LiveSegment]]:
    """Give a stream what it has not heard of a recording yet.

    Args:
        stream: new, or gone on from a state.
        path: the recording, or a stretch of one.
        sampling_rate: Hz of the model.

    Yields:
        After each block the segments that have ended.

    Raises:
        AudioError: the recording cannot be read, or not to its end.
    """
    # A resampler or an mp3 begun in the middle would give other samples: what is known is read again, not heard again.
    known = stream.samples
    for block in read_blocks(path, sampling_rate, BLOCK_SECONDS):
        new, known = block[known:], max(0, known - len(block))
        if len(new):
            yield stream.feed(new)
    yield stream.feed(np.zeros(0, dtype=np.float32), final=True)
