"""Approximate streaming of models that are not causal: each chunk is encoded anew, with what is known around it.

Outputs are not those of the whole recording: a frame sees ``left_context`` before its chunk and ``look_ahead`` after
it, and nothing else. Causal models are streamed exactly, and far more cheaply, by their own ``stream``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mambavox.errors import ConfigError
from mambavox.hubert.modeling import MambaHubertPreTrainedModel
from mambavox.nn.streaming import StreamState


@dataclass(frozen=True)
class ChunkState(StreamState):
    """What has been heard of streams and is still needed.

    Attributes:
        held: ``(batch, samples)`` the last samples.
        first: the stream's frame with which they begin.
        following: the next frame to put out.
    """

    held: Tensor
    first: int
    following: int


@dataclass(frozen=True)
class Chunks:
    """How a stream is cut.

    Attributes:
        stride: samples between frames.
        field: samples that a frame of the front end sees.
        chunk: new frames at a time.
        look_ahead: frames after a chunk that are waited for.
        left_context: frames before it that are encoded again.
    """

    stride: int
    field: int
    chunk: int
    look_ahead: int
    left_context: int

    @classmethod
    def of_seconds(
        cls, stride: int, field: int, rate: int, *, chunk: float, look_ahead: float, left_context: float
    ) -> "Chunks":
        """The same from seconds, at a sampling rate in Hz.

        Raises:
            ConfigError: a length that is negative or, of the chunk, shorter than a frame.
        """
        new, ahead, behind = (round(seconds * rate / stride) for seconds in (chunk, look_ahead, left_context))
        if new < 1 or ahead < 0 or behind < 0:
            raise ConfigError(
                f"chunk={chunk:g}, look_ahead={look_ahead:g}, left_context={left_context:g} seconds; expected a chunk "
                f"of at least one frame ({stride / rate:g} s) and the others not negative"
            )
        return cls(stride, field, new, ahead, behind)

    def begin(self, batch_size: int = 1) -> ChunkState:
        """State before the first samples."""
        return ChunkState(torch.zeros(batch_size, 0), 0, 0)

    def feed(
        self, encode: Callable[[Tensor], Tensor], piece: Tensor, state: ChunkState, final: bool = False
    ) -> tuple[list[Tensor], ChunkState]:
        """Go on with the next samples.

        Args:
            encode: ``(batch, samples)`` to ``(batch, frames, channels)``.
            piece: ``(batch, samples)``, any number of samples.
            state: of the streams.
            final: whether they are the last ones.

        Returns:
            What was encoded of each chunk that is complete, ``(batch, frames, channels)``, and the new state.
        """
        # The first piece says where the samples are and of what kind.
        held = torch.cat([state.held, piece], dim=1) if state.held.shape[1] else piece
        first, following, found = state.first, state.following, []
        while first + self._frames(held) >= following + self.chunk + self.look_ahead:
            samples = (following + self.chunk + self.look_ahead - first - 1) * self.stride + self.field
            found.append(encode(held[:, :samples])[:, following - first :][:, : self.chunk])
            following += self.chunk
            begin = max(0, following - self.left_context)
            held, first = held[:, (begin - first) * self.stride :], begin
        if final and first + self._frames(held) > following:
            found.append(encode(held)[:, following - first :])
            following += found[-1].shape[1]
        # In memory of its own: a view would keep all that was ever given.
        return found, ChunkState(held.clone(), first, following)

    def _frames(self, held: Tensor) -> int:
        return max(0, (held.shape[1] - self.field) // self.stride + 1)


def stream_in_chunks(
    model: MambaHubertPreTrainedModel,
    waveforms: Iterable[Tensor],
    chunk: float = 0.64,
    look_ahead: float = 0.32,
    left_context: float = 5.12,
) -> Iterator[Tensor]:
    """Encode a stream approximately, chunk by chunk; memory does not grow with its length.

    The frames put out are as many as those of the whole recording, each once and in order. A frame waits for at most
    ``chunk + look_ahead`` seconds and the receptive field. With a context and look-ahead as long as the recording
    the outputs are those of the whole.

    Args:
        model: an encoder or CTC model of any kind, in evaluation mode.
        waveforms: pieces ``(batch, samples)`` of the streams, of any lengths, as they arrive.
        chunk: seconds of new frames at a time.
        look_ahead: seconds after a chunk that are waited for.
        left_context: seconds before it that are encoded again.

    Yields:
        Logits of a CTC model, hidden states of an encoder: ``(batch, frames, channels)`` of each chunk.

    Raises:
        ConfigError: a length that is negative or, of the chunk, shorter than a frame; pieces of other shapes.
    """
    config = model.config
    chunks = Chunks.of_seconds(
        config.inputs_to_logits_ratio,
        config.receptive_field,
        config.sampling_rate,
        chunk=chunk,
        look_ahead=look_ahead,
        left_context=left_context,
    )
    return _encode_all(model, waveforms, chunks)


def _encode_all(model: Any, waveforms: Iterable[Tensor], chunks: Chunks) -> Iterator[Tensor]:
    def encode(samples: Tensor) -> Tensor:
        output = model(samples)
        return output.logits if "logits" in output else output.last_hidden_state

    state: ChunkState | None = None
    for piece in waveforms:
        if piece.dim() != 2 or (state is not None and piece.shape[0] != state.held.shape[0]):
            raise ConfigError(
                f"a piece has shape {tuple(piece.shape)}; expected (batch, samples)"
                + ("" if state is None else f" with batch = {state.held.shape[0]}, as the first")
            )
        found, state = chunks.feed(encode, piece, state or chunks.begin(piece.shape[0]))
        yield from found
    if state is not None:
        yield from chunks.feed(encode, state.held[:, :0], state, final=True)[0]
