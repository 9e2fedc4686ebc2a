"""The Mamba-2 block ("SSD"), with lengths and carried state."""

import math
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.errors import ConfigError
from mambavox.lengths import clear_padding
from mambavox.nn.streaming import MambaState
from mambavox.ops.causal_conv1d import causal_conv1d
from mambavox.ops.ssd_scan import ssd_scan


class GatedRMSNorm(nn.Module):
    """Root-mean-square norm over groups of channels, with a gate before it or after it.

    Args:
        d_inner: channels.
        group_size: channels normalised together; divides ``d_inner``.
        norm_before_gate: ``norm(y) * silu(z)`` in place of ``norm(y * silu(z))``.
        eps: added to the mean square.
        device: where the weight is made.
        dtype: dtype of the weight.

    Source:
        Dao and Gu 2024 (arXiv 2405.21060), section 7.1; parameter names of ``mamba_ssm``'s ``RMSNormGated``.
    """

    def __init__(
        self,
        d_inner: int,
        group_size: int,
        norm_before_gate: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_inner, device=device, dtype=dtype))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise and gate, in float32 at least.

        Args:
            y: ``(..., d_inner)``.
            z: ``(..., d_inner)`` gate.

        Returns:
            ``(..., d_inner)`` in the dtype of ``y``.
        """
        compute_dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
        gate = F.silu(z.to(compute_dtype))
        output = y.to(compute_dtype)
        if not self.norm_before_gate:
            output = output * gate
        grouped = output.unflatten(-1, (-1, self.group_size))
        grouped = grouped * torch.rsqrt(grouped.square().mean(dim=-1, keepdim=True) + self.eps)
        output = grouped.flatten(-2) * self.weight.to(compute_dtype)
        if self.norm_before_gate:
            output = output * gate
        return output.to(y.dtype)


class Mamba2(nn.Module):
    """Mamba-2 block; parameter names and initialisation are those of ``mamba_ssm.Mamba2``, state dicts interchange.

    ``(z, x, B, C, dt) = in_proj(h)``; ``(x, B, C) = silu(causal_conv1d(x, B, C))``;
    ``out_proj(norm(ssd_scan(x, dt, -exp(A_log), B, C, D), z))``.

    Args:
        d_model: width of the input and output.
        d_state: state size of each channel.
        d_conv: width of the causal convolution in frames; any width from 1.
        expand: ``d_inner = expand * d_model``.
        headdim: channels of a head, which share a step size and a decay; divides ``d_inner``.
        ngroups: groups of heads that share ``B`` and ``C`` and, in the norm, a mean square; divides the heads.
        A_init_range: decay rates at initialisation are uniform between these two, ``A = -rate``.
        D_has_hdim: a skip weight for each channel in place of one for each head.
        rmsnorm: gate and normalise the scan's output; without it the gate alone is applied.
        norm_before_gate: ``norm(y) * silu(z)`` in place of ``norm(y * silu(z))``.
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        dt_init_floor: step sizes at initialisation are at least this.
        dt_limit: smallest and largest step size that the scan is given, ever.
        bias: whether ``in_proj`` and ``out_proj`` have biases.
        conv_bias: whether the convolution has a bias.
        chunk_size: frames of a chunk of the scan; changes speed and memory, not the result.
        device: where the parameters are made.
        dtype: dtype of the parameters; ``A_log``, ``D`` and ``dt_bias`` are float32.

    Raises:
        ConfigError: a size below 1, sizes that do not divide each other, or an empty range.

    Source:
        Dao and Gu 2024 (arXiv 2405.21060), section 7.1 and Figure 6.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.headdim = headdim
        self.ngroups = ngroups
        self.dt_limit = dt_limit
        self.chunk_size = chunk_size
        for name in ("d_model", "d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        self.d_inner = expand * d_model
        if self.d_inner % headdim:
            raise ConfigError(f"headdim is {headdim}; expected a divisor of expand * d_model = {self.d_inner}")
        self.nheads = self.d_inner // headdim
        if self.nheads % ngroups:
            raise ConfigError(f"ngroups is {ngroups}; expected a divisor of the number of heads, {self.nheads}")
        if not 0 < A_init_range[0] <= A_init_range[1]:
            raise ConfigError(f"A_init_range is {A_init_range}; expected two positive rates, the smaller first")
        if not 0 <= dt_limit[0] < dt_limit[1]:
            raise ConfigError(f"dt_limit is {dt_limit}; expected two step sizes from 0, the smaller first")

        self.conv_dim = self.d_inner + 2 * ngroups * d_state
        width = self.d_inner + self.conv_dim + self.nheads
        self.in_proj = nn.Linear(d_model, width, bias=bias, device=device, dtype=dtype)
        # Holds the parameters under mamba_ssm's names; the forward pass goes through causal_conv1d.
        self.conv1d = nn.Conv1d(
            self.conv_dim,
            self.conv_dim,
            kernel_size=d_conv,
            groups=self.conv_dim,
            padding=d_conv - 1,
            bias=conv_bias,
            device=device,
            dtype=dtype,
        )
        self.dt_bias = nn.Parameter(torch.empty(self.nheads, device=device, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(self.nheads, device=device, dtype=torch.float32))
        skips = self.d_inner if D_has_hdim else self.nheads
        self.D = nn.Parameter(torch.empty(skips, device=device, dtype=torch.float32))
        self.norm = (
            GatedRMSNorm(self.d_inner, self.d_inner // ngroups, norm_before_gate, device=device, dtype=dtype)
            if rmsnorm
            else None
        )
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, device=device, dtype=dtype)
        self._reset_scan_parameters(A_init_range, dt_min, dt_max, dt_init_floor)

    @torch.no_grad()
    def _reset_scan_parameters(
        self, A_init_range: tuple[float, float], dt_min: float, dt_max: float, dt_init_floor: float
    ) -> None:
        dt = torch.exp(
            torch.rand(self.nheads, device=self.dt_bias.device) * (math.log(dt_max) - math.log(dt_min))
            + math.log(dt_min)
        ).clamp(min=dt_init_floor)
        # The inverse of softplus, so that softplus(dt_bias) is log-uniform in dt_min .. dt_max.
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.A_log.uniform_(*A_init_range).log_()
        self.D.fill_(1.0)

    def init_state(self, batch_size: int) -> MambaState:
        """State before the first frame: zeros, on the parameters' device.

        Returns:
            ``conv`` ``(batch, conv_dim, d_conv - 1)`` with ``conv_dim = d_inner + 2 * ngroups * d_state``, and ``ssm``
            ``(batch, nheads, headdim, d_state)``.
        """
        weight = self.in_proj.weight
        return MambaState(
            conv=weight.new_zeros(batch_size, self.conv_dim, self.d_conv - 1),
            ssm=torch.zeros(
                batch_size, self.nheads, self.headdim, self.d_state, device=weight.device, dtype=self._state_dtype
            ),
        )

    @property
    def _state_dtype(self) -> torch.dtype:
        return torch.float64 if self.in_proj.weight.dtype == torch.float64 else torch.float32

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
            hidden_states = clear_padding(hidden_states, lengths)
        z, xBC, dt = self.in_proj(hidden_states).split([self.d_inner, self.conv_dim, self.nheads], dim=-1)
        xBC, conv_state = causal_conv1d(
            xBC,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=None if state is None else state.conv,
            return_final_state=True,
            lengths=lengths,
            reverse=reverse,
            activation="silu",
        )
        grouped = self.ngroups * self.d_state
        x, B, C = xBC.split([self.d_inner, grouped, grouped], dim=-1)
        # The step size is made in the state's precision, also where the block runs in bfloat16.
        dt = F.softplus(dt.to(self._state_dtype) + self.dt_bias).clamp(*self.dt_limit)
        heads = (self.nheads, self.headdim)
        y, ssm_state = ssd_scan(
            x.unflatten(-1, heads),
            dt,
            -torch.exp(self.A_log.to(self._state_dtype)),
            B.unflatten(-1, (self.ngroups, self.d_state)),
            C.unflatten(-1, (self.ngroups, self.d_state)),
            D=self.D.view(heads) if self.D.shape[0] == self.d_inner else self.D,
            z=z.unflatten(-1, heads) if self.norm is None else None,
            initial_state=None if state is None else state.ssm,
            lengths=lengths,
            reverse=reverse,
            chunk_size=self.chunk_size,
            return_final_state=True,
        )
        y = y.flatten(2)
        output = self.out_proj(y if self.norm is None else self.norm(y, z))
        return (output, MambaState(conv_state, ssm_state)) if return_state else output

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
