"""The causal convolution by the native CPU kernels: float32, bfloat16 and float16 tensors of any strides."""

import torch
from torch import Tensor

from mambavox.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, int, int]:
    """The table of rows, taps ``(width, d_inner)``, bias, threads and channels of a task."""
    batch, time, d_inner = x.shape
    table = native.rows(batch, time, lengths, cu_seqlens)
    threads, block = native.threads_and_block(len(table), d_inner, x.numel() * weight.shape[1])
    return table, weight.float().t().contiguous(), native.float32(bias), threads, block


def _time_first(state: Tensor | None) -> Tensor | None:
    """``(rows, d_inner, width - 1)`` to contiguous float32 ``(rows, width - 1, d_inner)``."""
    return None if state is None else state.float().transpose(1, 2).contiguous()


def forward(
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
    d_inner, width = weight.shape
    table, taps, bias, threads, block = _arguments(x, weight, bias, lengths, cu_seqlens)
    state = _time_first(initial_state)
    y = native.empty(x.shape, x.dtype)
    final_state = native.empty((len(table), width - 1, d_inner))
    conv = native.Conv(
        rows=len(table),
        d_inner=d_inner,
        width=width,
        block=block,
        silu=silu,
        reverse=reverse,
        threads=threads,
        row=native.pointer(table),
        weight=native.pointer(taps),
        bias=native.pointer(bias),
        initial_state=native.pointer(state),
        final_state=native.pointer(final_state),
        x=native.array(x),
        y=native.array(y),
    )
    native.run("conv_forward", conv)
    return y, final_state.transpose(1, 2).to(x.dtype)


def backward(
    grad_y: Tensor,
    grad_final_state: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of ``x, weight, bias, initial_state``; ``None`` for a tensor that was not given."""
    d_inner, width = weight.shape
    table, taps, bias32, threads, block = _arguments(x, weight, bias, lengths, cu_seqlens)
    state, above = _time_first(initial_state), _time_first(grad_final_state)
    if 0 in grad_y.stride():
        # The gradient of a sum is one number, expanded; the kernel reads rows of numbers.
        grad_y = grad_y.contiguous()
    grad_x = native.empty(x.shape, x.dtype)
    grad_weight = native.empty((len(table), width, d_inner))
    grad_bias = native.empty((len(table), d_inner))
    grad_state = native.empty((len(table), width - 1, d_inner))
    conv = native.Conv(
        rows=len(table),
        d_inner=d_inner,
        width=width,
        block=block,
        silu=silu,
        reverse=reverse,
        threads=threads,
        row=native.pointer(table),
        weight=native.pointer(taps),
        bias=native.pointer(bias32),
        initial_state=native.pointer(state),
        x=native.array(x),
        grad_final_state=native.pointer(above),
        grad_y=native.array(grad_y),
        grad_x=native.array(grad_x),
        grad_weight=native.pointer(grad_weight),
        grad_bias=native.pointer(grad_bias),
        grad_initial_state=native.pointer(grad_state),
    )
    native.run("conv_backward", conv)
    return (
        grad_x,
        grad_weight.sum(dim=0).t().to(weight.dtype),
        None if bias is None else grad_bias.sum(dim=0).to(bias.dtype),
        None if initial_state is None else grad_state.transpose(1, 2).to(initial_state.dtype),
    )
