"""Exact streaming: what a Mamba-HuBERT remembers of a batch of streams, and how new samples join it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from mambavox.errors import ConfigError
from mambavox.hubert.configuration import MambaHubertConfig
from mambavox.lengths import check_lengths
from mambavox.nn.streaming import StreamState, StreamStep

_BLOCK = 64
"""Frames by which a cache of keys and values grows, at least; beyond eight blocks it grows by an eighth."""


@dataclass(frozen=True)
class AttentionState(StreamState):
    """Keys and values of the frames that a causal attention has seen.

    There is room for more frames behind them, so that new ones are written in place. States that continue one another
    share the memory and the list ``written``; a state that is continued a second time takes a copy first.

    Attributes:
        key: ``(batch, heads, room, head_dim)``, a row's own frames first.
        value: the same shape.
        written: frames of each row in this memory, by whichever state.
    """

    key: Tensor
    value: Tensor
    written: list[int]

    def extend(self, key: Tensor, value: Tensor, step: StreamStep) -> "AttentionState":
        """The state with the frames of a new piece behind those of the past.

        Args:
            key: ``(batch, heads, time, head_dim)``.
            value: the same shape.
            step: which of them are new frames of their row.
        """
        written = [past + count for past, count in zip(step.past, step.counts, strict=True)]
        if self._may_write(step, key):
            keys, values, marks = self.key, self.value, self.written
            marks[:] = written
        else:
            keys, values = self._with_room(self.key, key, step), self._with_room(self.value, value, step)
            marks = written
        for memory, new in ((keys, key), (values, value)):
            if step.together:
                memory[:, :, step.past[0] : step.reach] = new
            else:
                rows, frames, places = step.places
                memory[rows, :, places] = new[rows, :, frames].to(memory.dtype)
        return AttentionState(keys, values, marks)

    def _may_write(self, step: StreamStep, new: Tensor) -> bool:
        memory = self.key
        differentiated = torch.is_grad_enabled() and (new.requires_grad or memory.requires_grad)
        frozen = memory.requires_grad or (memory.is_inference() and not torch.is_inference_mode_enabled())
        return memory.shape[2] >= step.reach and self.written == step.past and not differentiated and not frozen

    @staticmethod
    def _with_room(memory: Tensor, new: Tensor, step: StreamStep) -> Tensor:
        room = -(-(step.reach + step.reach // 8) // _BLOCK) * _BLOCK
        past = max(step.past)
        # Zeros, not whatever memory holds: weights of 0 do not hide a NaN.
        grown = new.new_zeros(*memory.shape[:2], room, memory.shape[3])
        grown[:, :, :past] = memory[:, :, :past]
        return grown

    @classmethod
    def _alike(cls, states: Sequence["AttentionState"]) -> list["AttentionState"]:
        room = max(state.key.shape[2] for state in states)

        def widen(memory: Tensor) -> Tensor:
            return F.pad(memory, (0, 0, 0, room - memory.shape[2]))

        return [cls(widen(state.key), widen(state.value), state.written) for state in states]


@dataclass(frozen=True)
class LayerState(StreamState):
    """What an encoder layer remembers.

    Attributes:
        mixer: of its Mamba block or attention.
        feed_forward: of its feed-forward sublayer, where an adapter beside it has a state.
    """

    mixer: StreamState
    feed_forward: StreamState | None


@dataclass(frozen=True)
class MambaHubertState(StreamState):
    """What a Mamba-HuBERT remembers of a batch of streams.

    ``init_streaming_state`` makes it, ``stream`` goes on from it.

    Attributes:
        waveform: ``(batch, receptive_field - 1)`` the samples that no finished frame has used up, from the left; zeros
            behind them.
        positions: ``(batch, kernel - 1, hidden_size)`` the last inputs of the convolutional positions.
        layers: of the encoder, first to last.
        samples: how many each row has been given.
        ended: which rows have been given their last.
        model: what the model must be like.
    """

    waveform: Tensor
    positions: Tensor
    layers: tuple[LayerState, ...]
    samples: list[int]
    ended: list[bool]
    model: str

    @property
    def batch_size(self) -> int:
        """Number of streams."""
        return len(self.samples)


@dataclass
class MambaHubertStreamingOutput(ModelOutput):
    """New frames of a batch of streams.

    Attributes:
        last_hidden_state: ``(batch, time, hidden_size)``, zero beyond a row's new frames; ``time`` may be 0.
        logits: ``(batch, time, vocab_size)`` of a CTC model, zero there too.
        lengths: ``(batch,)`` new frames of each row, on the CPU.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    lengths: Tensor | None = None


def check_streamable(config: MambaHubertConfig) -> None:
    """Check that a model can be streamed exactly.

    Raises:
        ConfigError: it is not causal; the message names what is not.
    """
    reasons = []
    names = [config.encoder] * config.num_hidden_layers if isinstance(config.encoder, str) else config.encoder
    layers = [f"{index} ({names[index]})" for index, kind in enumerate(config.layer_kinds) if not kind.causal]
    if layers:
        reasons.append(f"layers {', '.join(layers)} see the whole recording")
    if not config.causal_positions:
        ahead = config.num_conv_pos_embeddings - 1 - config.num_conv_pos_embeddings // 2
        reasons.append(f"the positions see {ahead} frames ahead (causal_positions is false)")
    if config.feat_extract_norm != "layer":
        reasons.append("the first norm of the front end takes statistics over the whole recording (feat_extract_norm)")
    if reasons:
        raise ConfigError(
            f"the model is not causal and cannot be streamed exactly: {'; '.join(reasons)}. Expected a model whose "
            "config.causal is true; mambavox.hubert.stream_in_chunks approximates others"
        )
    if config.receptive_field < config.inputs_to_logits_ratio:
        raise ConfigError(
            f"a frame sees {config.receptive_field} samples and comes every {config.inputs_to_logits_ratio}; expected "
            "conv_kernel and conv_stride that leave no samples out"
        )


def describe_streaming(config: MambaHubertConfig) -> str:
    """What two models have in common between which a state may be moved."""
    sizes = (config.encoder, config.num_hidden_layers, config.hidden_size, config.d_state, config.d_conv, config.expand)
    others = (config.headdim, config.num_attention_heads, config.num_conv_pos_embeddings)
    return str((sizes, others, config.conv_kernel, config.conv_stride))


@dataclass(frozen=True)
class Intake:
    """What becomes of new samples.

    Attributes:
        ready: ``(batch, samples)`` what the new frames see, zero beyond each row's; none where there is no new frame.
        step: the new frames.
        state: with the new samples, everything else as it was.
    """

    ready: Tensor | None
    step: StreamStep
    state: MambaHubertState


def take_in(
    config: MambaHubertConfig,
    state: MambaHubertState,
    input_values: Tensor,
    lengths: Tensor | None,
    final: bool | Tensor | Sequence[bool],
) -> Intake:
    """Put new samples behind those that wait, and see which frames they finish.

    Args:
        config: of the model.
        state: of the streams.
        input_values: ``(batch, samples)``.
        lengths: ``(batch,)`` new samples of each row.
        final: whether they are the last ones, of all rows or ``(batch,)`` of each.

    Raises:
        ConfigError: the state does not belong to the model, or to as many streams; samples behind a stream's last.
    """
    if not isinstance(state, MambaHubertState):
        raise ConfigError(f"state is a {type(state).__name__}; expected what init_streaming_state or stream returned")
    if state.model != describe_streaming(config):
        raise ConfigError(
            f"the state is of another model: layers and sizes {state.model}; expected {describe_streaming(config)}. "
            "Begin with init_streaming_state"
        )
    if input_values.dim() != 2 or input_values.shape[0] != state.batch_size:
        raise ConfigError(
            f"input_values has shape {tuple(input_values.shape)}; expected (batch, samples) with batch = "
            f"{state.batch_size}, the streams of the state"
        )
    if state.waveform.device != input_values.device:
        raise ConfigError(
            f"the state is on {state.waveform.device} and input_values on {input_values.device}; expected both on the "
            "model's device: state.to(device)"
        )
    longest = input_values.shape[1]
    added = [longest] * state.batch_size
    if lengths is not None:
        added = check_lengths(lengths.cpu(), state.batch_size, longest).tolist()
    late = [row for row, (ended, more) in enumerate(zip(state.ended, added, strict=True)) if ended and more]
    if late:
        raise ConfigError(
            f"rows {', '.join(map(str, late))} have had their last samples (final) and are given more; expected a "
            "length of 0 for them, state.reset(rows) to begin new streams there, or a new state"
        )

    field, stride = config.receptive_field, config.inputs_to_logits_ratio
    samples = [before + more for before, more in zip(state.samples, added, strict=True)]
    past = [_frames(count, field, stride) for count in state.samples]
    counts = [_frames(count, field, stride) - frames for count, frames in zip(samples, past, strict=True)]
    step = StreamStep(max(counts, default=0), counts, past, input_values.device)
    waiting = [count - frames * stride for count, frames in zip(state.samples, past, strict=True)]
    new = input_values.to(state.waveform.dtype)
    if len(set(waiting)) == 1 and len(set(added)) == 1:
        whole, left = _append_together(state.waveform, new[:, : added[0]], waiting[0], counts[0] * stride)
    else:
        whole, left = _append_rows(state.waveform, new, waiting, added, [count * stride for count in counts])
    ready = whole[:, : (step.time - 1) * stride + field] if step.time else None
    ends = final.tolist() if isinstance(final, Tensor) else final
    given = list(ends) if isinstance(ends, Iterable) else [ends] * state.batch_size
    if len(given) != state.batch_size:
        raise ConfigError(f"final has {len(given)} entries; expected one for each of the {state.batch_size} rows")
    ended = [before or bool(now) for before, now in zip(state.ended, given, strict=True)]
    after = MambaHubertState(left, state.positions, state.layers, samples, ended, state.model)
    return Intake(ready, step, after)


def _frames(samples: int, field: int, stride: int) -> int:
    return (samples - field) // stride + 1 if samples >= field else 0


def _append_together(waveform: Tensor, new: Tensor, waiting: int, used: int) -> tuple[Tensor, Tensor]:
    """Rows that go together: waiting and new samples, and what is left of them, zeros behind."""
    whole = torch.cat([waveform[:, :waiting], new], dim=1)
    left = whole[:, used:]
    return whole, F.pad(left, (0, waveform.shape[1] - left.shape[1]))


def _append_rows(
    waveform: Tensor, new: Tensor, waiting: list[int], added: list[int], used: list[int]
) -> tuple[Tensor, Tensor]:
    """The same of rows that have their own numbers of samples."""
    device = new.device
    both = torch.cat([waveform, new], dim=1)
    held, more, gone = (torch.tensor(numbers, device=device)[:, None] for numbers in (waiting, added, used))
    longest = max(map(int.__add__, waiting, added))

    def take(samples: Tensor) -> Tensor:
        source = torch.where(samples < held, samples, samples - held + waveform.shape[1])
        there = samples < held + more
        # What lies behind a row's samples may be anything, NaN included.
        return both.gather(1, source.masked_fill(~there, 0)).masked_fill(~there, 0.0)

    whole = take(torch.arange(longest, device=device).expand(len(waiting), -1))
    return whole, take(gone + torch.arange(waveform.shape[1], device=device))


def shift_rows(context: Tensor, kept: int, step: StreamStep) -> Tensor:
    """The last frames that each row has, of what it kept before with the new frames behind.

    Args:
        context: ``(batch, kept + time, channels)``.
        kept: how many.
        step: how many of the new frames are each row's own.

    Returns:
        ``(batch, kept, channels)`` in memory of its own.
    """
    if step.lengths is None:
        return context[:, step.time :].clone()
    frames = step.lengths[:, None] + torch.arange(kept, device=context.device)
    return context.gather(1, frames[:, :, None].expand(-1, -1, context.shape[2]))


def clear_rows(frames: Tensor, step: StreamStep) -> Tensor:
    """Zeros in ``(batch, time, channels)`` beyond each row's new frames."""
    if step.lengths is None:
        return frames
    valid = torch.arange(step.time, device=frames.device) < step.lengths[:, None]
    return frames.masked_fill(~valid[:, :, None], 0.0)


def nothing_new(batch: int, width: int, like: Any) -> Tensor:
    """Frames of a step that has none: ``(batch, 0, width)``, of the dtype and device of ``like``."""
    return like.new_empty(batch, 0, width)
