"""Causal depthwise convolution over time, of any width, with lengths and carried state."""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from mambavox.errors import ConfigError
from mambavox.lengths import check_lengths, length_mask


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    initial_state: Tensor | None = ...,
    return_final_state: Literal[False] = ...,
    lengths: Tensor | None = ...,
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    initial_state: Tensor | None = ...,
    *,
    return_final_state: Literal[True],
    lengths: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution in which frame ``t`` sees frames ``t - width + 1 .. t``.

    Args:
        x: ``(batch, time, d_inner)`` input.
        weight: ``(d_inner, width)`` taps, the last one on the current frame; any width from 1.
        bias: ``(d_inner,)``.
        initial_state: ``(batch, d_inner, width - 1)`` inputs before the first frame, oldest first; zero where not
            given.
        return_final_state: also return the last ``width - 1`` valid inputs of each row, for the next call.
        lengths: ``(batch,)`` valid frames of each row; beyond them the output is zero and no input is read.

    Returns:
        ``(batch, time, d_inner)``; with ``return_final_state`` also the state ``(batch, d_inner, width - 1)``.

    Raises:
        ConfigError: shapes or lengths that do not fit each other.
    """
    if x.dim() != 3:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, time, d_inner)")
    batch, time, d_inner = x.shape
    if weight.dim() != 2 or weight.shape[0] != d_inner or weight.shape[1] < 1:
        raise ConfigError(f"weight has shape {tuple(weight.shape)}; expected (d_inner, width) = ({d_inner}, >= 1)")
    if bias is not None and bias.shape != (d_inner,):
        raise ConfigError(f"bias has shape {tuple(bias.shape)}; expected (d_inner,) = ({d_inner},)")
    past = weight.shape[1] - 1
    if initial_state is None:
        initial_state = x.new_zeros(batch, d_inner, past)
    elif initial_state.shape != (batch, d_inner, past):
        raise ConfigError(
            f"initial_state has shape {tuple(initial_state.shape)}; "
            f"expected (batch, d_inner, width - 1) = {(batch, d_inner, past)}"
        )
    mask = None
    if lengths is not None:
        lengths = check_lengths(lengths, batch, time).to(x.device)
        mask = length_mask(lengths, time)[:, None, :]

    inputs = x.transpose(1, 2)
    if mask is not None:
        inputs = inputs.masked_fill(~mask, 0.0)
    inputs = torch.cat([initial_state.to(x.dtype), inputs], dim=2)
    if time:
        output = F.conv1d(inputs, weight.unsqueeze(1).to(x.dtype), _cast(bias, x.dtype), groups=d_inner)
    else:
        output = inputs.new_zeros(batch, d_inner, 0)
    if mask is not None:
        output = output.masked_fill(~mask, 0.0)
    output = output.transpose(1, 2)
    if not return_final_state:
        return output
    if lengths is None:
        return output, inputs[:, :, time:]
    # Row r's last inputs start at its own length: positions length .. length + past - 1 of the extended input.
    positions = lengths[:, None] + torch.arange(past, device=x.device)
    final_state = inputs.gather(2, positions[:, None, :].expand(batch, d_inner, past))
    return output, final_state


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
