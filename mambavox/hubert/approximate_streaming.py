"""Approximate streaming of models that are not causal: each chunk is encoded anew, with what is known around it.

Outputs are not those of the whole recording: a frame sees ``left_context`` before its chunk and ``look_ahead`` after
it, and nothing else. Causal models are streamed exactly, and far more cheaply, by their own ``stream``.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mambavox.errors import ConfigError
from mambavox.hubert.modeling import MambaHubertPreTrainedModel


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
    stride, rate = config.inputs_to_logits_ratio, config.sampling_rate
    frames = {"chunk": chunk, "look_ahead": look_ahead, "left_context": left_context}
    new, ahead, behind = (round(seconds * rate / stride) for seconds in frames.values())
    if new < 1 or ahead < 0 or behind < 0:
        raise ConfigError(
            f"chunk={chunk:g}, look_ahead={look_ahead:g}, left_context={left_context:g} seconds; expected a chunk of "
            f"at least one frame ({stride / rate:g} s) and the others not negative"
        )
    return _chunks(model, waveforms, new, ahead, behind)


def _chunks(model: Any, waveforms: Iterable[Tensor], new: int, ahead: int, behind: int) -> Iterator[Tensor]:
    stride, field = model.config.inputs_to_logits_ratio, model.config.receptive_field
    held: Tensor | None = None
    # The stream's frame with which ``held`` begins, and the next one to put out.
    first = following = 0
    for piece in waveforms:
        if piece.dim() != 2 or (held is not None and piece.shape[0] != held.shape[0]):
            raise ConfigError(
                f"a piece has shape {tuple(piece.shape)}; expected (batch, samples)"
                + ("" if held is None else f" with batch = {held.shape[0]}, as the first")
            )
        held = piece if held is None else torch.cat([held, piece], dim=1)
        while first + _frames(held, field, stride) >= following + new + ahead:
            samples = (following + new + ahead - first - 1) * stride + field
            yield _encode(model, held[:, :samples])[:, following - first :][:, :new]
            following += new
            begin = max(0, following - behind)
            held, first = held[:, (begin - first) * stride :], begin
    if held is not None and first + _frames(held, field, stride) > following:
        yield _encode(model, held)[:, following - first :]


def _frames(held: Tensor, field: int, stride: int) -> int:
    return max(0, (held.shape[1] - field) // stride + 1)


def _encode(model: Any, samples: Tensor) -> Tensor:
    output = model(samples)
    return output.logits if "logits" in output else output.last_hidden_state
