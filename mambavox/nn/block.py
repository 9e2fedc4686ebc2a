"""What the Mamba and the Mamba-2 block have in common."""

import math
from abc import ABC, abstractmethod
from typing import Literal, overload

import torch
from torch import Tensor, nn

from mambavox.errors import ConfigError
from mambavox.lengths import clear_padding
from mambavox.nn.streaming import MambaState, StreamStep, expect_state
from mambavox.ops import causal_conv1d
from mambavox.ops.linear import linear


class Block(nn.Module, ABC):
    """Two projections and between them a convolution and a scan, with lengths and carried state.

    A block sets the attributes below and mixes what ``in_proj`` gives over time in :meth:`_mix`.

    Attributes:
        d_model: width of the input and output.
        d_conv: width of the causal convolution in frames.
        in_proj: from ``d_model`` to all that is mixed.
        conv1d: depthwise; holds the parameters under mamba_ssm's names, the forward pass goes through causal_conv1d.
        out_proj: from what was mixed to ``d_model``.
    """

    d_model: int
    d_conv: int
    in_proj: nn.Linear
    conv1d: nn.Conv1d
    out_proj: nn.Linear

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")

    @property
    @abstractmethod
    def _ssm_shape(self) -> tuple[int, ...]:
        """Shape of one stream's scan state."""

    @abstractmethod
    def _mix(
        self, projected: Tensor, lengths: Tensor | None, state: MambaState | None, reverse: bool
    ) -> tuple[Tensor, MambaState]:
        """What stands between the projections, of ``(batch, time, width of in_proj)``."""

    def init_state(self, batch_size: int) -> MambaState:
        """State before the first frame: zeros, on the parameters' device.

        Args:
            batch_size: number of streams.
        """
        weight = self.in_proj.weight
        return MambaState(
            conv=weight.new_zeros(batch_size, self.conv1d.weight.shape[0], self.d_conv - 1),
            ssm=weight.new_zeros(batch_size, *self._ssm_shape, dtype=self._state_dtype),
        )

    @property
    def _state_dtype(self) -> torch.dtype:
        return torch.float64 if self.conv1d.weight.dtype == torch.float64 else torch.float32

    @overload
    def forward(
        self,
        hidden_states: Tensor,
        lengths: Tensor | None = ...,
        state: MambaState | None = ...,
        return_state: Literal[False] = ...,
        reverse: bool = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        hidden_states: Tensor,
        lengths: Tensor | None = ...,
        state: MambaState | None = ...,
        *,
        return_state: Literal[True],
        reverse: bool = ...,
    ) -> tuple[Tensor, MambaState]: ...

    def forward(
        self,
        hidden_states: Tensor,
        lengths: Tensor | None = None,
        state: MambaState | None = None,
        return_state: bool = False,
        reverse: bool = False,
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Process a batch of sequences, or the next piece of a batch of streams.

        Args:
            hidden_states: ``(batch, time, d_model)``.
            lengths: ``(batch,)`` valid frames of each row; outputs beyond are ``out_proj`` of zero and change no
                state.
            state: what an earlier call returned; a stream cut anywhere gives the uncut output.
            return_state: also return the state after each row's last valid frame.
            reverse: go through each row from its own last valid frame to its first.

        Returns:
            ``(batch, time, d_model)``, with ``return_state`` also the state.

        Raises:
            ConfigError: shapes, lengths or state that do not fit.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[-1] != self.d_model:
            raise ConfigError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; expected (batch, time, d_model={self.d_model})"
            )
        if lengths is not None:
            # Before the projection: the gradient of its weight is a sum over all frames, the padding's included.
            hidden_states = clear_padding(hidden_states, lengths)
        y, state = self._mix(linear(self.in_proj, hidden_states), lengths, state, reverse)
        output = linear(self.out_proj, y)
        return (output, state) if return_state else output

    def _convolve(
        self, x: Tensor, lengths: Tensor | None, state: MambaState | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        return causal_conv1d(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=None if state is None else state.conv,
            return_final_state=True,
            lengths=lengths,
            reverse=reverse,
            activation="silu",
        )

    def stream(self, hidden_states: Tensor, state: MambaState, step: StreamStep) -> tuple[Tensor, MambaState]:
        """Process the next piece of a batch of streams; :func:`mambavox.nn.streaming.stream_part` calls this."""
        return self.forward(hidden_states, step.lengths, expect_state(state, MambaState), return_state=True)

    def step(self, hidden_states: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Process one frame of every stream.

        Args:
            hidden_states: ``(batch, d_model)``, one frame.
            state: what ``init_state``, ``forward`` or an earlier step returned.

        Returns:
            ``(batch, d_model)`` and the new state.
        """
        output, state = self.forward(hidden_states.unsqueeze(1), state=state, return_state=True)
        return output.squeeze(1), state


def depthwise(
    channels: int, width: int, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Conv1d:
    """The convolution of a block, with mamba_ssm's parameters and initialisation."""
    return nn.Conv1d(
        channels,
        channels,
        kernel_size=width,
        groups=channels,
        padding=width - 1,
        bias=bias,
        device=device,
        dtype=dtype,
    )


def draw_dt_bias(size: int, dt_min: float, dt_max: float, dt_init_floor: float, device: torch.device) -> Tensor:
    """Biases whose softplus is log-uniform in ``dt_min .. dt_max`` and at least ``dt_init_floor``: ``(size,)``."""
    low, high = math.log(dt_min), math.log(dt_max)
    dt = torch.exp(torch.rand(size, device=device) * (high - low) + low).clamp(min=dt_init_floor)
    # The inverse of softplus.
    return dt + torch.log(-torch.expm1(-dt))
