"""Encoder layers: one sublayer that mixes frames, and where the kind has one a feed-forward sublayer."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from mambavox.hubert.configuration import EncoderKind, MambaHubertConfig
from mambavox.hubert.streaming import AttentionState, LayerState
from mambavox.lengths import length_mask
from mambavox.nn.bidirectional import ExtBiMamba, InnBiMamba
from mambavox.nn.mamba import Mamba
from mambavox.nn.mamba2 import Mamba2
from mambavox.nn.streaming import StreamState, StreamStep, begin_part, expect_state, stream_part
from mambavox.ops.linear import linear


class SelfAttention(nn.Module):
    """Multi-head self-attention on torch's fused kernels.

    Args:
        config: of the model.
        causal: whether a frame attends to no later one.

    Source:
        Vaswani et al. 2017 (arXiv 1706.03762), section 3.2; parameter names of transformers' HuBERT.
    """

    def __init__(self, config: MambaHubertConfig, causal: bool) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.causal = causal
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Attend within each row's own frames.

        Args:
            hidden_states: ``(batch, time, hidden_size)``.
            lengths: ``(batch,)`` valid frames of each row; outputs beyond them mean nothing.

        Returns:
            ``(batch, time, hidden_size)``.
        """
        query, key, value = (
            self._heads(projection(hidden_states)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None
        # A causal row needs no mask: its padding lies behind all its frames.
        if lengths is not None and not self.causal:
            # The first frame stays visible in a row without frames: not every kernel has a softmax over nothing.
            mask = length_mask(lengths.clamp(min=1), hidden_states.shape[1])[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=self.dropout if self.training else 0.0, is_causal=self.causal
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def init_state(self, batch_size: int) -> AttentionState:
        """State before the first frame: no keys and values.

        Args:
            batch_size: number of streams.
        """
        weight = self.out_proj.weight
        nothing = weight.new_zeros(batch_size, self.heads, 0, weight.shape[0] // self.heads)
        return AttentionState(nothing, nothing, [0] * batch_size)

    def stream(self, hidden_states: Tensor, state: AttentionState, step: StreamStep) -> tuple[Tensor, AttentionState]:
        """Let the new frames of a batch of streams attend to their past and themselves; of a causal attention only.

        Args:
            hidden_states: ``(batch, time, hidden_size)``.
            state: of the frames before.
            step: which frames are new.

        Returns:
            ``(batch, time, hidden_size)`` and the new state.
        """
        query, key, value = (
            self._heads(linear(projection, hidden_states)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        state = expect_state(state, AttentionState).extend(key, value, step)
        keys, values = state.key[:, :, : step.reach], state.value[:, :, : step.reach]
        alone = step.together and step.time == 1
        begins = step.together and step.past[0] == 0
        attended = F.scaled_dot_product_attention(
            query.to(keys.dtype),
            keys,
            values,
            None if alone or begins else step.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=begins,
        )
        return linear(self.out_proj, attended.transpose(1, 2).flatten(2).to(hidden_states.dtype)), state


class FeedForward(nn.Module):
    """The feed-forward sublayer; parameter names of transformers' HuBERT.

    Args:
        config: of the model.
        intermediate_size: inner width.
    """

    def __init__(self, config: MambaHubertConfig, intermediate_size: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(intermediate_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(batch, time, hidden_size)`` to the same shape."""
        inner = self.intermediate_dropout(self.intermediate_act_fn(self.intermediate_dense(hidden_states)))
        return self.output_dropout(self.output_dense(inner))

    def stream(self, hidden_states: Tensor, state: None, step: StreamStep) -> tuple[Tensor, None]:
        """The same of a piece of a stream; it looks at one frame at a time and has no state."""
        inner = self.intermediate_dropout(self.intermediate_act_fn(linear(self.intermediate_dense, hidden_states)))
        return self.output_dropout(linear(self.output_dense, inner)), None


class EncoderLayer(GradientCheckpointingLayer):
    """What the kinds of layers share: residual connections, norms before or after sublayers, feed-forward sublayer.

    Args:
        config: of the model.
        intermediate_size: inner width of the feed-forward sublayer; none where not given.
    """

    def __init__(self, config: MambaHubertConfig, intermediate_size: int | None) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.has_feed_forward = intermediate_size is not None
        if intermediate_size is not None:
            self.feed_forward = FeedForward(config, intermediate_size)
            self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @property
    def mixer(self) -> nn.Module:
        """What mixes frames, called with hidden states and ``lengths``."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Process a batch of sequences.

        Args:
            hidden_states: ``(batch, time, hidden_size)``.
            lengths: ``(batch,)`` valid frames of each row.

        Returns:
            ``(batch, time, hidden_size)``.
        """
        mixer = self.mixer
        if self.pre_norm:
            hidden_states = hidden_states + self.dropout(mixer(self.layer_norm(hidden_states), lengths=lengths))
            if self.has_feed_forward:
                hidden_states = hidden_states + self.feed_forward(self.final_layer_norm(hidden_states))
            return hidden_states
        hidden_states = self.layer_norm(hidden_states + self.dropout(mixer(hidden_states, lengths=lengths)))
        if self.has_feed_forward:
            hidden_states = self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))
        return hidden_states

    def init_state(self, batch_size: int) -> LayerState:
        """State before the first frame.

        Args:
            batch_size: number of streams.
        """
        feed_forward = begin_part(self.feed_forward, batch_size) if self.has_feed_forward else None
        return LayerState(begin_part(self.mixer, batch_size), feed_forward)

    def stream(self, hidden_states: Tensor, state: LayerState, step: StreamStep) -> tuple[Tensor, LayerState]:
        """Process the next piece of a batch of streams, as :meth:`forward` would the whole of them.

        Args:
            hidden_states: ``(batch, time, hidden_size)``.
            state: of the frames before.
            step: which frames are new.

        Returns:
            ``(batch, time, hidden_size)`` and the new state.
        """
        inputs = self.layer_norm(hidden_states) if self.pre_norm else hidden_states
        mixed, mixer = stream_part(self.mixer, inputs, state.mixer, step)
        hidden_states = hidden_states + self.dropout(mixed)
        if not self.pre_norm:
            hidden_states = self.layer_norm(hidden_states)
        feed_forward: StreamState | None = None
        if self.has_feed_forward:
            inputs = self.final_layer_norm(hidden_states) if self.pre_norm else hidden_states
            added, feed_forward = stream_part(self.feed_forward, inputs, state.feed_forward, step)
            hidden_states = hidden_states + added
            if not self.pre_norm:
                hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states, LayerState(mixer, feed_forward)


class TransformerLayer(EncoderLayer):
    """Self-attention and feed-forward sublayer.

    Args:
        config: of the model.
        kind: ``transformer`` or ``causal-transformer``.
    """

    def __init__(self, config: MambaHubertConfig, kind: EncoderKind) -> None:
        super().__init__(config, config.intermediate_size)
        self.attention = SelfAttention(config, causal=kind.causal)

    @property
    def mixer(self) -> nn.Module:
        """Attention."""
        return self.attention


class MambaLayer(EncoderLayer):
    """A Mamba block, in one or both directions, and where the kind has it a feed-forward sublayer.

    Args:
        config: of the model.
        kind: any but the two transformers.

    Source:
        Mamba-based HuBERT (arXiv 2506.12606): the block takes the place of attention, by default without
        feed-forward sublayer.
    """

    def __init__(self, config: MambaHubertConfig, kind: EncoderKind) -> None:
        super().__init__(config, config.mamba_intermediate_size if kind.mlp else None)
        self.config = config
        self.kind = kind
        self.mamba = self.new_mamba()

    def new_mamba(self) -> nn.Module:
        """A block with fresh parameters."""
        sizes: dict[str, Any] = {
            "d_state": self.config.d_state,
            "d_conv": self.config.d_conv,
            "expand": self.config.expand,
        }
        width = self.config.hidden_size
        if self.kind.mixer == "mamba2":
            return Mamba2(width, headdim=self.config.headdim, **sizes)
        if self.kind.mixer == "ext-bimamba":
            return ExtBiMamba(width, **sizes)
        if self.kind.mixer == "inn-bimamba":
            return InnBiMamba(width, **sizes)
        return Mamba(width, **sizes)

    @property
    def mixer(self) -> nn.Module:
        """The Mamba block."""
        return self.mamba


def encoder_layer(config: MambaHubertConfig, kind: EncoderKind) -> EncoderLayer:
    """A layer of a kind.

    Args:
        config: of the model.
        kind: a value of ``ENCODER_KINDS``.
    """
    transformer = kind.mixer in ("transformer", "causal-transformer")
    return TransformerLayer(config, kind) if transformer else MambaLayer(config, kind)
