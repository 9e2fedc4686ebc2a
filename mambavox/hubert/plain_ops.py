"""The operations of a Mamba block without kernels: what saved code runs on where mambavox is not installed."""

from typing import Literal

from torch import Tensor

from mambavox.ops.conv_torch import causal_conv1d_torch
from mambavox.ops.scan_reference import selective_scan_reference


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    activation: Literal["silu"] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`mambavox.ops.causal_conv1d` of padded batches in torch operations; arguments and results are its."""
    output, state = causal_conv1d_torch(x, weight, bias, initial_state, lengths, None, reverse, activation == "silu")
    return (output, state) if return_final_state else output


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`mambavox.ops.selective_scan` of padded batches, frame by frame; arguments and results are its."""
    output, state = selective_scan_reference(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, lengths, None, reverse
    )
    return (output, state) if return_final_state else output
