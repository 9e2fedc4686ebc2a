"""The Mamba-2 block ("SSD"), with lengths and carried state."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.errors import ConfigError
from mambavox.nn.block import Block, depthwise, draw_dt_bias
from mambavox.nn.streaming import MambaState
from mambavox.ops import ssd_scan


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


class Mamba2(Block):
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
        self._check_sizes("d_model", "d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size")
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
        self.conv1d = depthwise(self.conv_dim, d_conv, conv_bias, device, dtype)
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
        self.dt_bias.copy_(draw_dt_bias(self.nheads, dt_min, dt_max, dt_init_floor, self.dt_bias.device))
        self.A_log.uniform_(*A_init_range).log_()
        self.D.fill_(1.0)

    @property
    def _ssm_shape(self) -> tuple[int, ...]:
        return self.nheads, self.headdim, self.d_state

    def _mix(
        self, projected: Tensor, lengths: Tensor | None, state: MambaState | None, reverse: bool
    ) -> tuple[Tensor, MambaState]:
        z, xBC, dt = projected.split([self.d_inner, self.conv_dim, self.nheads], dim=-1)
        xBC, conv_state = self._convolve(xBC, lengths, state, reverse)
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
        return y if self.norm is None else self.norm(y, z), MambaState(conv_state, ssm_state)
