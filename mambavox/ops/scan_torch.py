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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambavox.lengths import length_mask, pack, unpack
from mambavox.ops.scan_inputs import ScanInputs

# Frames between stored states: the training memory is batch * time * d_inner * d_state / _CHECKPOINT.
_CHECKPOINT = 8
# Elements of one working tensor (chunks * channels * d_state) above which channels are split into blocks:
# 512 KiB in float32, so that the handful of tensors of one step stays within a core's second-level cache.
_BLOCK_ELEMENTS = 1 << 17
# A GPU wants few, large launches instead.
_BLOCK_ELEMENTS_GPU = 1 << 24


class _Prepared(NamedTuple):
    """Inputs as the recurrence takes them: padded rows, compute dtype, cleared beyond each length, in scan order."""

    x: Tensor
    raw: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    state: Tensor
    padding: Tensor | None


def why_not(device: torch.device) -> str | None:
    """``None``: plain torch operations run on every device."""
    return None


def checkpoint_shape(x_shape: torch.Size, d_state: int, sequences: int) -> tuple[int, ...]:
    """Shape of the states that training keeps.

    Args:
        x_shape: ``(batch, time, d_inner)``.
        d_state: state size.
        sequences: rows of the state: ``batch``, or the sequences of a packed batch.
    """
    _, time, d_inner = x_shape
    chunk = _chunk_length(time)
    # A packed batch becomes as many rows as it has sequences, none longer than all of them together.
    rows = sequences * math.ceil(time / chunk)
    return chunk // _CHECKPOINT, rows, d_inner, d_state


def forward(inputs: ScanInputs, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state and, for training, checkpoints."""
    x, p = inputs.x, _prepare(inputs)
    checkpoints = p.x.new_empty(checkpoint_shape(x.shape, p.A.shape[1], len(p.state)) if training else (0,))
    if not p.x.numel():
        return torch.zeros_like(x), p.state.clone(), checkpoints
    y, state = _scan_chunks(
        p.dt, p.dt * p.x, p.A, p.B, p.C, p.state, checkpoints if training else None, chunk=_chunk_length(x.shape[1])
    )
    if p.D is not None:
        y += p.D * p.x
    if p.z is not None:
        y *= F.silu(p.z)
    return _restore(y, p.padding, inputs).to(x.dtype), state, checkpoints


def backward(
    grad_y: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, checkpoints: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x, dt, A, B, C, D, z, dt_bias, initial_state``; ``None`` for a tensor that was not given."""
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, *_ = inputs
    p = _prepare(inputs)
    above_state = torch.zeros_like(p.state) if grad_final_state is None else grad_final_state.to(p.x.dtype)
    above = _arrange(grad_y.to(p.x.dtype), inputs)
    if p.padding is not None:
        above = above.masked_fill(p.padding, 0.0)
    grad_gate = above
    if p.z is not None:
        above = above * F.silu(p.z)
    if p.x.numel():
        by_dt, by_u, by_A, by_B, by_C, by_state, y = _scan_chunks_backward(
            above,
            above_state,
            p.dt,
            p.dt * p.x,
            p.A,
            p.B,
            p.C,
            checkpoints,
            chunk=_chunk_length(x.shape[1]),
            want_y=p.z is not None,
        )
    else:
        by_dt, by_u, y = torch.zeros_like(p.x), torch.zeros_like(p.x), torch.zeros_like(p.x)
        by_A, by_B, by_C = torch.zeros_like(p.A), torch.zeros_like(p.B), torch.zeros_like(p.C)
        by_state = above_state
    by_x = by_u * p.dt
    by_dt = by_dt + by_u * p.x
    if p.D is not None:
        by_x = by_x + p.D * above
    if dt_softplus:
        by_dt = by_dt * torch.sigmoid(p.raw)
    if p.padding is not None:
        by_dt = by_dt.masked_fill(p.padding, 0.0)
    by_z = None
    if p.z is not None:
        if p.D is not None:
            y = y + p.D * p.x
        gate = torch.sigmoid(p.z)
        by_z = grad_gate * y * gate * (1 + p.z * (1 - gate))

    def restore(gradient: Tensor, like: Tensor) -> Tensor:
        return _restore(gradient, p.padding, inputs).to(like.dtype)

    return (
        restore(by_x, x),
        restore(by_dt, dt),
        by_A.to(A.dtype),
        restore(by_B, B),
        restore(by_C, C),
        None if D is None else (above * p.x).sum(dim=(0, 1)).to(D.dtype),
        None if z is None or by_z is None else restore(by_z, z),
        None if dt_bias is None else by_dt.sum(dim=(0, 1)).to(dt_bias.dtype),
        None if initial_state is None else by_state.to(initial_state.dtype, copy=True),
    )


def _prepare(inputs: ScanInputs) -> _Prepared:
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, lengths, cu_seqlens, reverse = inputs
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    A = A.to(dtype)
    x, dt, B, C = (_arrange(tensor.to(dtype), inputs) for tensor in (x, dt, B, C))
    z = None if z is None else _arrange(z.to(dtype), inputs)
    batch, time, d_inner = x.shape
    if cu_seqlens is not None:
        lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    padding = None
    if lengths is not None:
        # Every tensor is cleared beyond its row's length, so that not even NaN there can reach a state or gradient.
        padding = ~length_mask(lengths, time)[:, :, None]
        if reverse:
            padding = padding.flip(1)
        x, dt, B, C = (tensor.masked_fill(padding, 0.0) for tensor in (x, dt, B, C))
        z = None if z is None else z.masked_fill(padding, 0.0)
    raw = dt if dt_bias is None else dt + dt_bias.to(dtype)
    dt = F.softplus(raw) if dt_softplus else raw
    if padding is not None:
        # A step of length zero leaves the state as it is.
        dt = dt.masked_fill(padding, 0.0)
    state = x.new_zeros(batch, d_inner, A.shape[1]) if initial_state is None else initial_state.to(dtype)
    return _Prepared(x, raw, dt, A, B, C, None if D is None else D.to(dtype), z, state, padding)


def _arrange(tensor: Tensor, inputs: ScanInputs) -> Tensor:
    """To padded rows in the order of the scan; where reversed, a row's padding comes first."""
    if inputs.cu_seqlens is not None:
        tensor = unpack(tensor, inputs.cu_seqlens)
    return tensor.flip(1) if inputs.reverse else tensor


def _restore(tensor: Tensor, padding: Tensor | None, inputs: ScanInputs) -> Tensor:
    """Inverse of ``_arrange``, zero in the padding."""
    if padding is not None:
        tensor = tensor.masked_fill(padding, 0.0)
    if inputs.reverse:
        tensor = tensor.flip(1)
    return tensor if inputs.cu_seqlens is None else pack(tensor, inputs.cu_seqlens)


def _chunk_length(time: int) -> int:
    """Frames of a chunk: a multiple of the checkpoint distance that keeps ``2 * chunk + time / chunk`` small."""
    ideal = math.sqrt(time / 2)
    chunk = _CHECKPOINT * max(1, round(ideal / _CHECKPOINT))
    return max(_CHECKPOINT, min(chunk, _CHECKPOINT * math.ceil(time / _CHECKPOINT)))


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


def _scan_chunks(
    dt: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, first_state: Tensor, checkpoints: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """``h[t] = exp(dt[t] A) h[t-1] + u[t] B[t]``, ``y[t] = h[t] C[t]``; returns ``y`` and the last ``h``."""
    batch, time, d_inner = dt.shape
    d_state = A.shape[1]
    # A row of one chunk ends where its frames end: a step of a stream is one frame, not a chunk of them.
    chunk = min(chunk, time)
    chunks = math.ceil(time / chunk)
    rows = batch * chunks
    B_c, C_c = _to_chunks(B, chunks, chunk), _to_chunks(C, chunks, chunk)
    y = dt.new_empty(batch, time, d_inner)
    final_state = torch.empty_like(first_state)

    for block in _blocks(d_inner, rows * d_state, dt.device):
        dt_c = _to_chunks(dt[:, :, block], chunks, chunk)
        u_c = _to_chunks(u[:, :, block], chunks, chunk)
        A_b = A[block]
        width = A_b.shape[0]
        decay = dt.new_empty(rows, width, d_state)
        state = dt.new_zeros(rows, width, d_state)
        states = state.view(batch, chunks, width, d_state)
        if chunks > 1:
            for t in range(chunk):
                torch.mul(dt_c[t].unsqueeze(-1), A_b, out=decay).exp_()
                state.mul_(decay).addcmul_(u_c[t].unsqueeze(-1), B_c[t].unsqueeze(1))
            torch.mul(dt_c.sum(dim=0).unsqueeze(-1), A_b, out=decay).exp_()
            _carry(states, decay.view_as(states), first_state[:, block], reverse=False)
        else:
            state.copy_(first_state[:, block])

        y_c = torch.empty_like(u_c)
        for t in range(chunk):
            if checkpoints is not None and t % _CHECKPOINT == 0:
                checkpoints[t // _CHECKPOINT, :rows, block] = state
            torch.mul(dt_c[t].unsqueeze(-1), A_b, out=decay).exp_()
            state.mul_(decay).addcmul_(u_c[t].unsqueeze(-1), B_c[t].unsqueeze(1))
            torch.bmm(state, C_c[t].unsqueeze(-1), out=y_c[t].unsqueeze(-1))
        y[:, :, block] = _from_chunks(y_c, batch, time)
        final_state[:, block] = states[:, -1]

    return y, final_state


def _scan_chunks_backward(
    grad_y: Tensor,
    grad_final_state: Tensor,
    dt: Tensor,
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    checkpoints: Tensor,
    chunk: int,
    want_y: bool,
) -> tuple[Tensor, ...]:
    """Gradients of ``dt, u, A, B, C`` and the initial state, and where wanted ``y`` again."""
    batch, time, d_inner = dt.shape
    d_state = A.shape[1]
    chunks = math.ceil(time / chunk)
    rows = batch * chunks
    B_c, C_c = _to_chunks(B, chunks, chunk), _to_chunks(C, chunks, chunk)
    grad_B_c, grad_C_c = torch.zeros_like(B_c), torch.zeros_like(C_c)
    grad_dt, grad_u = torch.empty_like(dt), torch.empty_like(u)
    grad_A = torch.empty_like(A)
    y = torch.empty_like(dt) if want_y else dt
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
        y_c = torch.empty_like(u_c) if want_y else u_c
        decays = dt.new_empty(_CHECKPOINT, rows, width, d_state)
        states = dt.new_empty(_CHECKPOINT + 1, rows, width, d_state)
        for span in reversed(range(chunk // _CHECKPOINT)):
            first = span * _CHECKPOINT
            span_dt = dt_c[first : first + _CHECKPOINT]
            torch.mul(span_dt.unsqueeze(-1), A_b, out=decays).exp_()
            states[0] = checkpoints[span, :rows, block]
            for i in range(_CHECKPOINT):
                t = first + i
                torch.mul(states[i], decays[i], out=states[i + 1])
                states[i + 1].addcmul_(u_c[t].unsqueeze(-1), B_c[t].unsqueeze(1))
                if want_y:
                    torch.bmm(states[i + 1], C_c[t].unsqueeze(-1), out=y_c[t].unsqueeze(-1))
            for i in reversed(range(_CHECKPOINT)):
                t = first + i
                grad.addcmul_(grad_y_c[t].unsqueeze(-1), C_c[t].unsqueeze(1))
                # In place, which autocast leaves alone: it would round these products to half precision.
                grad_C_c[t].unsqueeze(1).baddbmm_(grad_y_c[t].unsqueeze(1), states[i + 1])
                grad_B_c[t].unsqueeze(1).baddbmm_(u_c[t].unsqueeze(1), grad)
                torch.bmm(grad, B_c[t].unsqueeze(-1), out=grad_u_c[t].unsqueeze(-1))
                grad.mul_(decays[i])
                # d/d(dt A) of the decay: grad * decay * previous state.
                exponent = torch.mul(grad, states[i], out=decays[i])
                grad_A_rows.addcmul_(exponent, dt_c[t].unsqueeze(-1))
                torch.sum(exponent.mul_(A_b), dim=-1, out=grad_dt_c[t])
        grad_dt[:, :, block] = _from_chunks(grad_dt_c, batch, time)
        grad_u[:, :, block] = _from_chunks(grad_u_c, batch, time)
        if want_y:
            y[:, :, block] = _from_chunks(y_c, batch, time)
        grad_A[block] = grad_A_rows.sum(dim=0)
        grad_initial_state[:, block] = grads_c[:, 0]

    grad_B, grad_C = _from_chunks(grad_B_c, batch, time), _from_chunks(grad_C_c, batch, time)
    return grad_dt, grad_u, grad_A, grad_B, grad_C, grad_initial_state, y


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
