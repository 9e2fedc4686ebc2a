"""The causal convolution in plain torch operations: any device and dtype, differentiable any number of times."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambavox.lengths import length_mask, pack, reverse_inside, unpack


def causal_conv1d_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Output and final state; arguments of :func:`mambavox.ops.causal_conv1d`."""
    inputs = x
    if cu_seqlens is not None:
        inputs = unpack(x, cu_seqlens)
        lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    batch, time, d_inner = inputs.shape
    past = weight.shape[1] - 1
    mask = None if lengths is None else length_mask(lengths, time)[:, :, None]
    if mask is not None:
        inputs = inputs.masked_fill(~mask, 0.0)
    if reverse:
        inputs = reverse_inside(inputs, lengths)
    if initial_state is None:
        initial_state = inputs.new_zeros(batch, d_inner, past)
    extended = torch.cat([initial_state.to(x.dtype), inputs.transpose(1, 2)], dim=2)
    if inputs.numel():
        taps = weight.unsqueeze(1).to(x.dtype)
        output = F.conv1d(extended, taps, None if bias is None else bias.to(x.dtype), groups=d_inner).transpose(1, 2)
    else:
        # Nothing to compute, which torch's convolution refuses; the weight still belongs to the graph.
        output = inputs * weight[:, -1].to(x.dtype)
        output = output if bias is None else output + bias.to(x.dtype)
    if silu:
        output = F.silu(output)
    if mask is not None:
        output = output.masked_fill(~mask, 0.0)
    if reverse:
        output = reverse_inside(output, lengths)
    if cu_seqlens is not None:
        output = pack(output, cu_seqlens)
    if lengths is None:
        return output, extended[:, :, time:].clone()
    # Row r's last inputs start at its own length: positions length .. length + past - 1 of the extended input.
    positions = lengths[:, None] + torch.arange(past, device=x.device)
    return output, extended.gather(2, positions[:, None, :].expand(batch, d_inner, past))
