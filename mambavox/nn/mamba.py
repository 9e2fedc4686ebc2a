"""The Mamba block (Mamba-1, "S6"), with lengths and carried state."""

import math
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.errors import ConfigError
from mambavox.nn.streaming import MambaState
from mambavox.ops import causal_conv1d, selective_scan


class Mamba(nn.Module):
    """Mamba block; parameter names and initialisation are those of ``mamba_ssm.Mamba``, state dicts interchange.

    ``(x, z) = in_proj(h)``; ``x = silu(causal_conv1d(x))``; ``(dt, B, C) = x_proj(x)``;
    ``out_proj(selective_scan(x, dt_proj(dt), -exp(A_log), B, C, D, z))``.

    Args:
        d_model: width of the input and output.
        d_state: state size of each channel.
        d_conv: width of the causal convolution in frames; any width from 1.
        expand: ``d_inner = expand * d_model``.
        dt_rank: rank of the step-size projection; ``"auto"`` is ``ceil(d_model / 16)``.
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        dt_init: initialisation of ``dt_proj.weight``.
        dt_scale: its scale.
        dt_init_floor: step sizes at initialisation are at least this.
        conv_bias: whether the convolution has a bias.
        bias: whether ``in_proj`` and ``out_proj`` have biases.
        device: where the parameters are made.
        dtype: dtype of the parameters.

    Raises:
        ConfigError: a size below 1 or an unknown ``dt_init``.

    Source:
        Gu and Dao 2023 (arXiv 2312.00752), Figure 3 and section 3.6.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        for name in ("d_model", "d_state", "d_conv", "expand", "dt_rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if dt_init not in ("random", "constant"):
            raise ConfigError(f"dt_init is {dt_init!r}; expected 'random' or 'constant'")

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, device=device, dtype=dtype)
        # Holds the parameters under mamba_ssm's names; the forward pass goes through causal_conv1d.
        self.conv1d = nn.Conv1d(
            self.d_inner,
            self.d_inner,
            kernel_size=d_conv,
            groups=self.d_inner,
            padding=d_conv - 1,
            bias=conv_bias,
            device=device,
            dtype=dtype,
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, device=device, dtype=dtype)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True, device=device, dtype=dtype)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state, device=device, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.d_inner, device=device, dtype=torch.float32))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, device=device, dtype=dtype)
        self._reset_scan_parameters(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)

    @torch.no_grad()
    def _reset_scan_parameters(
        self, dt_min: float, dt_max: float, dt_init: str, dt_scale: float, dt_init_floor: float
    ) -> None:
        bound = self.dt_rank**-0.5 * dt_scale
        if dt_init == "constant":
            self.dt_proj.weight.fill_(bound)
        else:
            self.dt_proj.weight.uniform_(-bound, bound)
        dt = torch.exp(
            torch.rand(self.d_inner, device=self.A_log.device) * (math.log(dt_max) - math.log(dt_min))
            + math.log(dt_min)
        ).clamp(min=dt_init_floor)
        # The inverse of softplus, so that softplus(bias) is log-uniform in dt_min .. dt_max.
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.A_log.copy_(torch.arange(1, self.d_state + 1, device=self.A_log.device).float().log())
        self.D.fill_(1.0)

    def init_state(self, batch_size: int) -> MambaState:
        """State before the first frame: zeros, on the parameters' device."""
        weight = self.in_proj.weight
        return MambaState(
            conv=weight.new_zeros(batch_size, self.d_inner, self.d_conv - 1),
            ssm=torch.zeros(batch_size, self.d_inner, self.d_state, device=weight.device, dtype=self._state_dtype),
        )

    @property
    def _state_dtype(self) -> torch.dtype:
        return torch.float64 if self.dt_proj.weight.dtype == torch.float64 else torch.float32

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
        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)
        y, state = self._scan(x, z, lengths, state, reverse)
        output = self.out_proj(y)
        return (output, state) if return_state else output

    def _scan(
        self, x: Tensor, z: Tensor, lengths: Tensor | None, state: MambaState | None, reverse: bool
    ) -> tuple[Tensor, MambaState]:
        """What stands between the projections: ``x, z (batch, time, d_inner)`` to the gated output and the state."""
        x, conv_state = causal_conv1d(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=None if state is None else state.conv,
            return_final_state=True,
            lengths=lengths,
            reverse=reverse,
            activation="silu",
        )
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y, ssm_state = selective_scan(
            x,
            F.linear(dt, self.dt_proj.weight),
            -torch.exp(self.A_log.to(self._state_dtype)),
            B,
            C,
            D=self.D,
            z=z,
            # The bias is added in the scan, in the state's precision, also where the block runs in bfloat16.
            dt_bias=self.dt_proj.bias,
            dt_softplus=True,
            initial_state=None if state is None else state.ssm,
            lengths=lengths,
            reverse=reverse,
            return_final_state=True,
        )
        return y, MambaState(conv_state, ssm_state)

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
