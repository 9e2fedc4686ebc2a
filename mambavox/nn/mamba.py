"""The Mamba block (Mamba-1, "S6"), with lengths and carried state."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.errors import ConfigError
from mambavox.nn.block import Block, depthwise, draw_dt_bias
from mambavox.nn.streaming import MambaState
from mambavox.ops import selective_scan


class Mamba(Block):
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
        self._check_sizes("d_model", "d_state", "d_conv", "expand", "dt_rank")
        if dt_init not in ("random", "constant"):
            raise ConfigError(f"dt_init is {dt_init!r}; expected 'random' or 'constant'")

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, device=device, dtype=dtype)
        self.conv1d = depthwise(self.d_inner, d_conv, conv_bias, device, dtype)
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
        self.dt_proj.bias.copy_(draw_dt_bias(self.d_inner, dt_min, dt_max, dt_init_floor, self.A_log.device))
        self.A_log.copy_(torch.arange(1, self.d_state + 1, device=self.A_log.device).float().log())
        self.D.fill_(1.0)

    @property
    def _ssm_shape(self) -> tuple[int, ...]:
        return self.d_inner, self.d_state

    def _mix(
        self, projected: Tensor, lengths: Tensor | None, state: MambaState | None, reverse: bool
    ) -> tuple[Tensor, MambaState]:
        x, z = projected.chunk(2, dim=-1)
        x, conv_state = self._convolve(x, lengths, state, reverse)
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
