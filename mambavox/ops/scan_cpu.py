"""The selective scan by the native CPU kernels: float32, bfloat16 and float16 tensors of any strides, float32 state.

Nothing of size ``batch * time * d_inner * d_state`` exists: training keeps one state in 16 frames and computes the
others again.
"""

import torch
from torch import Tensor

from mambavox.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device: torch.device) -> str | None:
    """Reason why this backend cannot run on a device, or ``None`` where it can."""
    if device.type != "cpu":
        return f"runs on cpu, not on {device.type}"
    return native.why_not()


def checkpoint_shape(x_shape: torch.Size, d_state: int, sequences: int) -> tuple[int, ...]:
    """Shape of the states that training keeps.

    Args:
        x_shape: ``(batch, time, d_inner)``.
        d_state: state size.
        sequences: rows of the state: ``batch``, or the sequences of a packed batch.
    """
    batch, time, d_inner = x_shape
    return native.spans(batch, time, sequences), native.padded(d_inner), d_state


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and, for training, checkpoints; arguments of ``selective_scan_reference``."""
    batch, time, d_inner = x.shape
    d_state = A.shape[1]
    table = native.rows(batch, time, lengths, cu_seqlens)
    A32, D32, bias32, state32 = (native.float32(tensor) for tensor in (A, D, dt_bias, initial_state))
    y = native.empty(x.shape, x.dtype)
    final_state = native.empty((len(table), d_inner, d_state))
    checkpoints = native.empty(checkpoint_shape(x.shape, d_state, len(table)) if training else (0,))
    threads, block = native.threads_and_block(len(table), d_inner, x.numel() * d_state)
    scan = native.Scan(
        rows=len(table),
        d_inner=d_inner,
        d_state=d_state,
        block=block,
        dt_softplus=dt_softplus,
        reverse=reverse,
        threads=threads,
        row=native.pointer(table),
        A=native.pointer(A32),
        D=native.pointer(D32),
        dt_bias=native.pointer(bias32),
        initial_state=native.pointer(state32),
        final_state=native.pointer(final_state),
        checkpoints=native.pointer(checkpoints) if training else None,
        x=native.array(x),
        dt=native.array(dt),
        B=native.array(B),
        C=native.array(C),
        z=native.array(z),
        y=native.array(y),
    )
    native.run("scan_forward", scan)
    return y, final_state, checkpoints


def backward(
    grad_y: Tensor,
    grad_final_state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x, dt, A, B, C, D, z, dt_bias, initial_state``; ``None`` for a tensor that was not given."""
    batch, time, d_inner = x.shape
    d_state = A.shape[1]
    table = native.rows(batch, time, lengths, cu_seqlens)
    threads, block = native.threads_and_block(len(table), d_inner, x.numel() * d_state)
    blocks = -(-d_inner // block)
    if 0 in grad_y.stride():
        # The gradient of a sum is one number, expanded; the kernel reads rows of numbers.
        grad_y = grad_y.contiguous()
    A32, D32, bias32, above_state = (native.float32(tensor) for tensor in (A, D, dt_bias, grad_final_state))
    grad_x = native.empty(x.shape, x.dtype)
    grad_dt = native.empty(dt.shape, dt.dtype)
    grad_z = None if z is None else native.empty(z.shape, z.dtype)
    grad_B, grad_C = (native.empty((blocks, batch, time, d_state)) for _ in range(2))
    grad_A, grad_initial_state = (native.empty((len(table), d_inner, d_state)) for _ in range(2))
    grad_D, grad_dt_bias = (native.empty((len(table), d_inner)) for _ in range(2))
    scan = native.Scan(
        rows=len(table),
        d_inner=d_inner,
        d_state=d_state,
        block=block,
        dt_softplus=dt_softplus,
        reverse=reverse,
        threads=threads,
        row=native.pointer(table),
        A=native.pointer(A32),
        D=native.pointer(D32),
        dt_bias=native.pointer(bias32),
        checkpoints=native.pointer(checkpoints),
        x=native.array(x),
        dt=native.array(dt),
        B=native.array(B),
        C=native.array(C),
        z=native.array(z),
        grad_final_state=native.pointer(above_state),
        grad_y=native.array(grad_y),
        grad_x=native.array(grad_x),
        grad_dt=native.array(grad_dt),
        grad_z=native.array(grad_z),
        grad_A=native.pointer(grad_A),
        grad_D=native.pointer(grad_D),
        grad_dt_bias=native.pointer(grad_dt_bias),
        grad_initial_state=native.pointer(grad_initial_state),
        grad_B=native.array(grad_B),
        grad_C=native.array(grad_C),
        block_stride=batch * time * d_state,
    )
    native.run("scan_backward", scan)
    return (
        grad_x,
        grad_dt,
        grad_A.sum(dim=0).to(A.dtype),
        _over_blocks(grad_B).to(B.dtype),
        _over_blocks(grad_C).to(C.dtype),
        None if D is None else grad_D.sum(dim=0).to(D.dtype),
        grad_z,
        None if dt_bias is None else grad_dt_bias.sum(dim=0).to(dt_bias.dtype),
        None if initial_state is None else grad_initial_state.to(initial_state.dtype),
    )


def _over_blocks(partial: Tensor) -> Tensor:
    return partial[0] if len(partial) == 1 else partial.sum(dim=0)
