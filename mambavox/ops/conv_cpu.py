"""The causal convolution by the native CPU kernels: float32, bfloat16 and float16 tensors of any strides."""

from typing import Any

from torch import Tensor

from mambavox.ops import native


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
    table = native.rows(x, lengths, cu_seqlens)
    y = native.empty(x.shape, x.dtype)
    final_state = native.empty((table.shape[0], width - 1, d_inner))
    _run(
        "conv_forward",
        x,
        weight,
        bias,
        initial_state,
        table,
        reverse=reverse,
        silu=silu,
        final_state=native.pointer(final_state),
        y=native.array(y),
    )
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
    table = native.rows(x, lengths, cu_seqlens)
    sequences = table.shape[0]
    above_state = _time_first(grad_final_state)
    if 0 in grad_y.stride():
        # The gradient of a sum is one number, expanded; the kernel reads rows of numbers.
        grad_y = grad_y.contiguous()
    grad_x = native.empty(x.shape, x.dtype)
    grad_weight = native.empty((sequences, width, d_inner))
    grad_bias = native.empty((sequences, d_inner))
    grad_state = native.empty((sequences, width - 1, d_inner))
    _run(
        "conv_backward",
        x,
        weight,
        bias,
        initial_state,
        table,
        reverse=reverse,
        silu=silu,
        grad_final_state=native.pointer(above_state),
        grad_y=native.array(grad_y),
        grad_x=native.array(grad_x),
        grad_weight=native.pointer(grad_weight),
        grad_bias=native.pointer(grad_bias),
        grad_initial_state=native.pointer(grad_state),
    )
    return (
        grad_x,
        native.total(grad_weight, weight.dtype).t(),
        None if bias is None else native.total(grad_bias, bias.dtype),
        None if initial_state is None else grad_state.transpose(1, 2).to(initial_state.dtype),
    )


def _run(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    table: Tensor,
    **others: Any,
) -> None:
    """Call a kernel: what it reads in either direction, and ``others`` as fields of ``native.Conv``."""
    d_inner, width = weight.shape
    sequences = table.shape[0]
    threads, block = native.threads_and_block(sequences, d_inner, x.numel() * width)
    # These must live until the kernel has returned.
    taps, bias, state = native.float32(weight.t()), native.float32(bias), _time_first(initial_state)
    conv = native.Conv(
        rows=sequences,
        d_inner=d_inner,
        width=width,
        block=block,
        threads=threads,
        row=native.pointer(table),
        weight=native.pointer(taps),
        bias=native.pointer(bias),
        initial_state=native.pointer(state),
        x=native.array(x),
        **others,
    )
    native.run(kernel, conv)


def _time_first(state: Tensor | None) -> Tensor | None:
    """``(rows, d_inner, width - 1)`` to contiguous float32 ``(rows, width - 1, d_inner)``."""
    return None if state is None else native.float32(state.transpose(1, 2))
