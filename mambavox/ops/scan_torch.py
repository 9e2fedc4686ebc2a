"""Selective scan in plain torch operations, for any device: chunks of a row run side by side.

A row of ``time`` frames is cut into chunks. One loop over the frames *inside* a chunk advances all chunks of all
rows together, first from a zero state, which gives what each chunk adds to its state; a short loop over chunks
carries the states; a second loop over frames, now from the right states, gives the outputs. The number of Python
steps is about ``2 * chunk + time / chunk`` in place of ``time``.

Only non-positive exponents ``dt * A`` are ever taken (no cumulative products are divided), so strong decay underflows
to zero cleanly. The backward pass recomputes states from a checkpoint every ``_CHECKPOINT`` frames; nothing of
size ``batch * time * d_inner * d_state`` exists. Channels are worked off in blocks that stay in cache.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambavox.lengths import length_mask

# Frames between stored states: the training memory is batch * time * d_inner * d_state / _CHECKPOINT.
_CHECKPOINT = 8
# Elements of one working tensor (chunks * channels * d_state) above which channels are split into blocks:
# 512 KiB in float32, so that the handful of tensors of one step stays within a core's second-level cache.
_BLOCK_ELEMENTS = 1 << 17
# A GPU wants few, large launches instead.
_BLOCK_ELEMENTS_GPU = 1 << 24


def selective_scan_torch(
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
) -> tuple[Tensor, Tensor]:
    """Selective scan by chunks; arguments, shapes and results of ``selective_scan_reference``."""
    output_dtype = x.dtype
    compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dt, A, B, C = (tensor.to(compute_dtype) for tensor in (x, dt, A, B, C))
    if z is not None:
        z = z.to(compute_dtype)
    batch, time, d_inner = x.shape

    padding = None
    if lengths is not None:
        # Every tensor is cleared beyond its row's length, so that not even NaN there can reach a state or gradient.
        padding = ~length_mask(lengths, time)[:, :, None]
        x, dt, B, C = (tensor.masked_fill(padding, 0.0) for tensor in (x, dt, B, C))
        if z is not None:
            z = z.masked_fill(padding, 0.0)
    if dt_bias is not None:
        dt = dt + dt_bias.to(compute_dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    if padding is not None:
        dt = dt.masked_fill(padding, 0.0)

    state = x.new_zeros(batch, d_inner, A.shape[1]) if initial_state is None else initial_state.to(compute_dtype)
    y: Tensor
    if x.numel():
        y, state = _ChunkedScan.apply(dt, dt * x, A, B, C, state)
    else:
        y = x
    if D is not None:
        y = y + D.to(compute_dtype) * x
    if z is not None:
        y = y * F.silu(z)
    return y.to(output_dtype), state


def _chunk_length(time: int) -> int:
    """Frames of a chunk: a multiple of the checkpoint distance that keeps ``2 * chunk + time / chunk`` small."""
    ideal = math.sqrt(time / 2)
    chunk = _CHECKPOINT * max(1, round(ideal / _CHECKPOINT))
    return min(chunk, _CHECKPOINT * math.ceil(time / _CHECKPOINT))


def _blocks(d_inner: int, elements_per_channel: int, device: torch.device) -> list[slice]:
    """Channel blocks whose working tensors stay below the limit."""
    limit = _BLOCK_ELEMENTS if device.type == "cpu" else _BLOCK_ELEMENTS_GPU
    count = max(1, math.ceil(d_inner * elements_per_channel / limit))
    width = math.ceil(d_inner / count)
    return [slice(start, min(start + width, d_inner)) for start in range(0, d_inner, width)]


def _to_chunks(tensor: Tensor, chunks: int, chunk: int) -> Tensor:
    """``(batch, time, width)`` to ``(chunk, batch * chunks, width)`` contiguous, zero-padded at the end."""
    batch, time, width = tensor.shape
    if chunks * chunk != time:
        tensor = F.pad(tensor, (0, 0, 0, chunks * chunk - time))
    return tensor.reshape(batch * chunks, chunk, width).transpose(0, 1).contiguous()


def _from_chunks(tensor: Tensor, batch: int, time: int) -> Tensor:
    """Inverse of ``_to_chunks``: drops the padding."""
    chunk, rows, width = tensor.shape
    return tensor.transpose(0, 1).reshape(batch, rows // batch * chunk, width)[:, :time]


class _ChunkedScan(torch.autograd.Function):
    """``h[t] = exp(dt[t] A) h[t-1] + u[t] B[t]``, ``y[t] = h[t] C[t]``; returns ``y`` and the last ``h``."""

    @staticmethod
    def forward(
        ctx: Any, dt: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, time, d_inner = dt.shape
        d_state = A.shape[1]
        chunk = _chunk_length(time)
        chunks = math.ceil(time / chunk)
        rows = batch * chunks
        B_c, C_c = _to_chunks(B, chunks, chunk), _to_chunks(C, chunks, chunk)
        needs_backward = any(ctx.needs_input_grad)
        checkpoints = dt.new_empty(chunk // _CHECKPOINT, rows, d_inner, d_state) if needs_backward else None
        y = dt.new_empty(batch, time, d_inner)
        final_state = torch.empty_like(initial_state)

        for block in _blocks(d_inner, rows * d_state, dt.device):
            dt_c = _to_chunks(dt[:, :, block], chunks, chunk)
            u_c = _to_chunks(u[:, :, block], chunks, chunk)
            A_b = A[block]
            width = A_b.shape[0]
            decay = dt.new_empty(rows, width, d_state)
            state = dt.new_zeros(rows, width, d_state)
            if chunks > 1:
                for t in range(chunk):
                    torch.mul(dt_c[t].unsqueeze(-1), A_b, out=decay).exp_()
                    state.mul_(decay).addcmul_(u_c[t].unsqueeze(-1), B_c[t].unsqueeze(1))
            torch.mul(dt_c.sum(dim=0).unsqueeze(-1), A_b, out=decay).exp_()
            states = state.view(batch, chunks, width, d_state)
            _carry(states, decay.view_as(states), initial_state[:, block], reverse=False)

            y_c = torch.empty_like(u_c)
            for t in range(chunk):
                if checkpoints is not None and t % _CHECKPOINT == 0:
                    checkpoints[t // _CHECKPOINT, :, block] = state
                torch.mul(dt_c[t].unsqueeze(-1), A_b, out=decay).exp_()
                state.mul_(decay).addcmul_(u_c[t].unsqueeze(-1), B_c[t].unsqueeze(1))
                torch.bmm(state, C_c[t].unsqueeze(-1), out=y_c[t].unsqueeze(-1))
            y[:, :, block] = _from_chunks(y_c, batch, time)
            final_state[:, block] = states[:, -1]

        if checkpoints is not None:
            ctx.save_for_backward(dt, u, A, B, C, checkpoints)
        return y, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        grad_y, grad_final_state = grads
        dt, u, A, B, C, checkpoints = ctx.saved_tensors
        batch, time, d_inner = dt.shape
        d_state = A.shape[1]
        chunk = _chunk_length(time)
        chunks = math.ceil(time / chunk)
        rows = batch * chunks
        B_c, C_c = _to_chunks(B, chunks, chunk), _to_chunks(C, chunks, chunk)
        grad_B_c, grad_C_c = torch.zeros_like(B_c), torch.zeros_like(C_c)
        grad_dt, grad_u = torch.empty_like(dt), torch.empty_like(u)
        grad_A = torch.empty_like(A)
        grad_initial_state = dt.new_empty(batch, d_inner, d_state)

        # One working tensor a frame of a checkpoint span: blocks are that much narrower than in the forward pass.
        for block in _blocks(d_inner, rows * d_state * 2, dt.device):
            dt_c = _to_chunks(dt[:, :, block], chunks, chunk)
            u_c = _to_chunks(u[:, :, block], chunks, chunk)
            grad_y_c = _to_chunks(grad_y[:, :, block], chunks, chunk)
            A_b = A[block]
            width = A_b.shape[0]
            decay = dt.new_empty(rows, width, d_state)
            # grad: the gradient with respect to the state that leaves frame t, times the decay of frame t + 1.
            grad = dt.new_zeros(rows, width, d_state)
            if chunks > 1:
                for t in reversed(range(chunk)):
                    grad.addcmul_(grad_y_c[t].unsqueeze(-1), C_c[t].unsqueeze(1))
                    grad.mul_(torch.mul(dt_c[t].unsqueeze(-1), A_b, out=decay).exp_())
            torch.mul(dt_c.sum(dim=0).unsqueeze(-1), A_b, out=decay).exp_()
            grads_c = grad.view(batch, chunks, width, d_state)
            _carry(grads_c, decay.view_as(grads_c), grad_final_state[:, block], reverse=True)

            grad_A_rows = dt.new_zeros(rows, width, d_state)
            grad_dt_c, grad_u_c = torch.empty_like(dt_c), torch.empty_like(u_c)
            decays = dt.new_empty(_CHECKPOINT, rows, width, d_state)
            states = dt.new_empty(_CHECKPOINT + 1, rows, width, d_state)
            for span in reversed(range(chunk // _CHECKPOINT)):
                first = span * _CHECKPOINT
                span_dt = dt_c[first : first + _CHECKPOINT]
                torch.mul(span_dt.unsqueeze(-1), A_b, out=decays).exp_()
                states[0] = checkpoints[span, :, block]
                for i in range(_CHECKPOINT):
                    t = first + i
                    torch.mul(states[i], decays[i], out=states[i + 1])
                    states[i + 1].addcmul_(u_c[t].unsqueeze(-1), B_c[t].unsqueeze(1))
                for i in reversed(range(_CHECKPOINT)):
                    t = first + i
                    grad.addcmul_(grad_y_c[t].unsqueeze(-1), C_c[t].unsqueeze(1))
                    grad_C_c[t] += torch.bmm(grad_y_c[t].unsqueeze(1), states[i + 1]).squeeze(1)
                    grad_B_c[t] += torch.bmm(u_c[t].unsqueeze(1), grad).squeeze(1)
                    torch.bmm(grad, B_c[t].unsqueeze(-1), out=grad_u_c[t].unsqueeze(-1))
                    grad.mul_(decays[i])
                    # d/d(dt A) of the decay: grad * decay * previous state.
                    exponent = torch.mul(grad, states[i], out=decays[i])
                    grad_A_rows.addcmul_(exponent, dt_c[t].unsqueeze(-1))
                    torch.sum(exponent.mul_(A_b), dim=-1, out=grad_dt_c[t])
            grad_dt[:, :, block] = _from_chunks(grad_dt_c, batch, time)
            grad_u[:, :, block] = _from_chunks(grad_u_c, batch, time)
            grad_A[block] = grad_A_rows.sum(dim=0)
            grad_initial_state[:, block] = grads_c[:, 0]

        grad_B, grad_C = _from_chunks(grad_B_c, batch, time), _from_chunks(grad_C_c, batch, time)
        return grad_dt, grad_u, grad_A, grad_B, grad_C, grad_initial_state


def _carry(states: Tensor, decay: Tensor, incoming: Tensor, *, reverse: bool) -> None:
    """Turn what each chunk adds to a zero state into the state with which each chunk begins, in place.

    Args:
        states: ``(batch, chunks, channels, d_state)``; chunk's own contribution in, chunk's starting state out.
        decay: same shape, total decay over each chunk.
        incoming: ``(batch, channels, d_state)`` state before the first chunk (after the last where ``reverse``).
        reverse: carry from the last chunk to the first, for gradients.
    """
    carried = incoming
    order = range(states.shape[1])
    for index in reversed(order) if reverse else order:
        leaving = torch.addcmul(states[:, index], decay[:, index], carried)
        states[:, index] = carried
        carried = leaving
