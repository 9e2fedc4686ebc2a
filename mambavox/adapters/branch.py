"""What an adapter adds beside a sublayer: projections, mixer and gate."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.adapters.cache import DecodedState
from mambavox.adapters.config import AdapterConfig, DownInit, TemporalAdapterConfig
from mambavox.adapters.hosts import Sublayer
from mambavox.adapters.sharing import parse_sharing
from mambavox.errors import HostError
from mambavox.nn.block import Block
from mambavox.nn.streaming import StreamState, StreamStep, begin_part, stream_part

CANNOT_STREAM = (
    "an adapter on the model cannot be streamed: its {} lets a frame depend on those after it or keeps no state. "
    "Expected a causal adapter (MambAdapter with mixer='mamba' or 'mamba2') or one that sees each frame alone; "
    "mambavox.hubert.stream_in_chunks approximates others"
)


class Projections(nn.Module):
    """Down and up projection.

    The up projection starts at zero: a new adapter adds exactly nothing, and its first gradient reaches the up
    projection.

    Args:
        width: size of the host's hidden states.
        down_features: what the down projection puts out.
        up_features: what the up projection takes in.
        down_init: how the down projection starts: ``"paper"``: at ``N(0, 0.01)`` with its bias; ``"unit"``: so that
            frames of unit variance keep it.

    Source:
        MambAdapter (arXiv 2606.15638), the authors' code.
    """

    def __init__(self, width: int, down_features: int, up_features: int, down_init: DownInit = "paper") -> None:
        super().__init__()
        self.down = nn.Linear(width, down_features)
        self.up = nn.Linear(up_features, width)
        if down_init == "unit":
            nn.init.normal_(self.down.weight, std=1 / math.sqrt(width))
            nn.init.zeros_(self.down.bias)
        else:
            for parameter in self.down.parameters():
                nn.init.normal_(parameter, std=0.01)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)


def make_projections(config: AdapterConfig, width: int) -> Projections:
    """The projections that a configuration asks for.

    Args:
        config: the adapter's.
        width: size of the host's hidden states.
    """
    return Projections(width, config.down_features(), config.bottleneck_dim, config.down_init)


class LowRankDelta(nn.Module):
    """Low-rank correction of a shared projection, ``expand(reduce(x))``; ``expand`` starts at zero.

    Args:
        in_features: size of the projection's input.
        out_features: size of its output.
        rank: size between the two.

    Source:
        Hu et al. 2021, LoRA (arXiv 2106.09685), section 4.1, without its scale.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(in_features, rank, bias=False)
        self.expand = nn.Linear(rank, out_features, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(self, features: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return self.expand(self.reduce(features))


class Branch(nn.Module):
    """One adapter's own part in one sublayer: mixer, gate, corrections, and its projections unless they are shared.

    Args:
        config: the adapter's configuration.
        sublayer: where it stands.
    """

    def __init__(self, config: AdapterConfig, sublayer: Sublayer) -> None:
        super().__init__()
        width, inner = sublayer.width, config.bottleneck_dim
        sharing = parse_sharing(config.sharing)
        self.sequential = config.insertion == "sequential"
        self.context = config.context()
        self.tokens = sublayer.stack.tokens
        self.token_order = config.token_order if isinstance(config, TemporalAdapterConfig) else "frequency"
        self.input_norm = nn.LayerNorm(width) if config.norm_input else None
        self.projections = make_projections(config, width) if sharing.kind == "none" else None
        self.down_delta = self.up_delta = None
        if sharing.kind == "low-rank-delta":
            self.down_delta = LowRankDelta(width, config.down_features(), sharing.number)
            self.up_delta = LowRankDelta(inner, width, sharing.number)
        self.mixer_width = config.mixer_width()
        self.mixer_norm = config.make_mixer_norm()
        self.mixer = config.make_mixer(self.tokens)
        self.residual = config.make_residual()
        self.dropout = nn.Dropout(config.dropout)
        self.scale = self.gate = None
        if config.gate in ("scalar", "channel"):
            # One element, not a scalar: sharded training refuses scalars.
            size = width if config.gate == "channel" else 1
            self.scale = nn.Parameter(torch.full((size,), config.scale_init))
        elif config.gate == "token":
            self.gate = nn.Linear(config.down_features(), 1)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, math.log(config.scale_init / (1 - config.scale_init)))

    def forward(
        self,
        hidden_states: Tensor,
        projections: Projections,
        lengths: Tensor | None,
        decoded: DecodedState | None = None,
    ) -> Tensor:
        """What the adapter adds.

        Args:
            hidden_states: ``(batch, time, width)``.
            projections: its own or the shared ones.
            lengths: ``(batch,)`` valid frames of each row; all of them where not given.
            decoded: what the mixer remembers of the frames before these, and where it puts what it will remember.

        Returns:
            ``(batch, time, width)``.

        Raises:
            HostError: ``decoded`` is given, and the mixer cannot go on from a state.
        """
        return self._around(hidden_states, projections, lambda narrow: self._mix(narrow, lengths, decoded))

    def init_state(self, batch_size: int) -> StreamState | None:
        """State before the first frame; none where each frame is seen alone.

        Args:
            batch_size: number of streams.

        Raises:
            HostError: a frame depends on those after it.
        """
        if self.context == "frame":
            return None
        state: StreamState | None = begin_part(self.mixer, batch_size) if self.context == "past" else None
        if state is None:
            raise HostError(CANNOT_STREAM.format(type(self.mixer).__name__))
        return state

    def stream(
        self, hidden_states: Tensor, projections: Projections, state: Any, step: StreamStep
    ) -> tuple[Tensor, Any]:
        """What the adapter adds to the next piece of a batch of streams.

        Args:
            hidden_states: ``(batch, time, width)``.
            projections: its own or the shared ones.
            state: of the frames before.
            step: which frames are new.

        Returns:
            ``(batch, time, width)`` and the new state.
        """
        carried: list[Any] = []

        def mix(narrow: Tensor) -> Tensor:
            if self.context == "frame":
                return self._mix(narrow, None, None)
            mixed, new_state = stream_part(self.mixer, narrow, state, step)
            carried.append(new_state)
            return mixed

        output = self._around(hidden_states, projections, mix)
        return output, carried[0] if carried else None

    def _around(self, hidden_states: Tensor, projections: Projections, mix: Callable[[Tensor], Tensor]) -> Tensor:
        if self.input_norm is not None:
            hidden_states = self.input_norm(hidden_states)
        narrow = projections.down(hidden_states)
        if self.down_delta is not None:
            narrow = narrow + self.down_delta(hidden_states)
        into = narrow[..., : self.mixer_width]
        mixed = mix(into if self.mixer_norm is None else self.mixer_norm(into))
        if self.residual is not None:
            beside = self.residual(narrow)
            mixed = beside + F.pad(mixed, (0, beside.shape[-1] - mixed.shape[-1]))
        mixed = self.dropout(mixed)
        output = projections.up(mixed)
        if self.up_delta is not None:
            output = output + self.up_delta(mixed)
        if self.gate is not None:
            return torch.sigmoid(self.gate(narrow)) * output
        return output if self.scale is None else self.scale * output

    def _mix(self, narrow: Tensor, lengths: Tensor | None, decoded: DecodedState | None) -> Tensor:
        if self.context == "frame":
            return self.mixer(narrow)
        if decoded is not None:
            if not isinstance(self.mixer, Block):
                raise HostError(
                    f"the mixer of an adapter in the decoder, {type(self.mixer).__name__}, carries no state from one "
                    "cached step to the next; expected a mambavox.nn block, or generate(use_cache=False)"
                )
            mixed, decoded.state = self.mixer(narrow, lengths, decoded.state, return_state=True)
            return mixed
        if self.token_order == "frequency":
            return self.mixer(narrow, lengths)
        # Only hosts with a grid of tokens get here, and their rows have no padding.
        in_time = self.tokens.by_time(narrow)
        if self.token_order == "time":
            return self.tokens.by_frequency(self.mixer(in_time, None))
        by_frequency, by_time = self.mixer(torch.cat([narrow, in_time]), None).chunk(2)
        return (by_frequency + self.tokens.by_frequency(by_time)) / 2
