"""The selective scan by the native CPU kernels: float32, bfloat16 and float16 tensors of any strides, float32 state.

Nothing of size ``batch * time * d_inner * d_state`` exists: training keeps one state in 16 frames and computes the
others again.
"""

from typing import Any

import torch
from torch import Tensor

from mambavox.ops import native
from mambavox.ops.scan_inputs import ScanInputs


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


def forward(inputs: ScanInputs, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and, for training, checkpoints."""
    x, (d_inner, d_state) = inputs.x, inputs.A.shape
    sequences = inputs.sequences
    y = native.empty(x.shape, x.dtype)
    final_state = native.empty((sequences, d_inner, d_state))
    checkpoints = native.empty(checkpoint_shape(x.shape, d_state, sequences) if training else (0,))
    initial_state = native.float32(inputs.initial_state)
    _run(
        "scan_forward",
        inputs,
        *_threads_and_block(inputs),
        initial_state=native.pointer(initial_state),
        final_state=native.pointer(final_state),
        checkpoints=native.pointer(checkpoints) if training else None,
        y=native.array(y),
    )
    return y, final_state, checkpoints


def backward(
    grad_y: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, checkpoints: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x, dt, A, B, C, D, z, dt_bias, initial_state``; ``None`` for a tensor that was not given."""
    x, dt, A, B, C, D, z, dt_bias, _, initial_state, *_ = inputs
    batch, time, d_inner = x.shape
    d_state = A.shape[1]
    sequences = inputs.sequences
    threads, block = _threads_and_block(inputs)
    blocks = -(-d_inner // block)
    if 0 in grad_y.stride():
        # The gradient of a sum is one number, expanded; the kernel reads rows of numbers.
        grad_y = grad_y.contiguous()
    above_state = native.float32(grad_final_state)
    grad_x = native.empty(x.shape, x.dtype)
    grad_dt = native.empty(dt.shape, dt.dtype)
    grad_z = None if z is None else native.empty(z.shape, z.dtype)
    grad_B, grad_C = (native.empty((blocks * batch, time, d_state)) for _ in range(2))
    grad_A, grad_initial_state = (native.empty((sequences, d_inner, d_state)) for _ in range(2))
    grad_D, grad_dt_bias = (native.empty((sequences, d_inner)) for _ in range(2))
    _run(
        "scan_backward",
        inputs,
        threads,
        block,
        checkpoints=native.pointer(checkpoints),
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
    each_block = (blocks, batch, time, d_state)
    return (
        grad_x,
        grad_dt,
        native.total(grad_A, A.dtype),
        native.total(grad_B.view(each_block), B.dtype),
        native.total(grad_C.view(each_block), C.dtype),
        None if D is None else native.total(grad_D, D.dtype),
        grad_z,
        None if dt_bias is None else native.total(grad_dt_bias, dt_bias.dtype),
        None if initial_state is None else grad_initial_state.to(initial_state.dtype),
    )


def _threads_and_block(inputs: ScanInputs) -> tuple[int, int]:
    d_inner, d_state = inputs.A.shape
    return native.threads_and_block(inputs.sequences, d_inner, inputs.x.numel() * d_state)


def _run(kernel: str, inputs: ScanInputs, threads: int, block: int, **others: Any) -> None:
    """Call a kernel: what it reads in either direction, and ``others`` as fields of ``native.Scan``."""
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, _, lengths, cu_seqlens, reverse = inputs
    # These must live until the kernel has returned.
    table = native.rows(x, lengths, cu_seqlens)
    A32, D32, bias32 = native.float32(A), native.float32(D), native.float32(dt_bias)
    scan = native.Scan(
        rows=inputs.sequences,
        d_inner=A.shape[0],
        d_state=A.shape[1],
        block=block,
        dt_softplus=dt_softplus,
        reverse=reverse,
        threads=threads,
        row=native.pointer(table),
        A=native.pointer(A32),
        D=native.pointer(D32),
        dt_bias=native.pointer(bias32),
        x=native.array(x),
        dt=native.array(dt),
        B=native.array(B),
        C=native.array(C),
        z=native.array(z),
        **others,
    )
    native.run(kernel, scan)
