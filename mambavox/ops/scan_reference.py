"""The definition of the selective scan: one readable loop over time. Every other backend must agree with it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambavox.lengths import length_mask


def selective_scan_reference(
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
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan, frame by frame.

    With ``dt`` biased and passed through softplus as asked, the recurrence at frame ``t`` of a row is ::

        h[t] = exp(dt[t] * A) * h[t-1] + dt[t] * x[t] * B[t]      (d_inner, d_state)
        y[t] = sum over d_state of h[t] * C[t] + D * x[t]         (d_inner,)
        y[t] = y[t] * silu(z[t])                                  where z is given

    for ``t < length``; from the row's length on the state stands still and ``y`` is zero. With ``reverse`` the frames
    are gone through from the row's last valid frame to its first.

    Args and shapes are those of :func:`mambavox.ops.selective_scan`.

    Returns:
        ``y`` ``(batch, time, d_inner)`` in the dtype of ``x``, and the state after each row's last valid frame
        ``(batch, d_inner, d_state)`` in float32 (float64 where ``x`` is float64).

    Source:
        Gu and Dao 2023 (arXiv 2312.00752), Algorithm 2 with the simplified discretisation of B.
    """
    if cu_seqlens is not None:
        return _packed(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, cu_seqlens, reverse)
    output_dtype = x.dtype
    compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dt, A, B, C = (tensor.to(compute_dtype) for tensor in (x, dt, A, B, C))
    batch, time, d_inner = x.shape

    if dt_bias is not None:
        dt = dt + dt_bias.to(compute_dtype)
    if dt_softplus:
        dt = F.softplus(dt)

    state = x.new_zeros(batch, d_inner, A.shape[1]) if initial_state is None else initial_state.to(compute_dtype)
    valid = None if lengths is None else length_mask(lengths, time)

    frames: list[Tensor] = [x.new_empty(0)] * time
    for t in reversed(range(time)) if reverse else range(time):
        decay = torch.exp(dt[:, t, :, None] * A)
        update = decay * state + (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        y = (update * C[:, t, None, :]).sum(dim=-1)
        if D is not None:
            y = y + D.to(compute_dtype) * x[:, t]
        if z is not None:
            y = y * F.silu(z[:, t].to(compute_dtype))
        if valid is None:
            state = update
        else:
            inside = valid[:, t]
            state = torch.where(inside[:, None, None], update, state)
            y = torch.where(inside[:, None], y, torch.zeros_like(y))
        frames[t] = y

    output = torch.stack(frames, dim=1) if frames else x.new_zeros(batch, 0, d_inner)
    return output.to(output_dtype), state


def _packed(
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
    cu_seqlens: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Every sequence of a packed batch by itself."""
    outputs, states = [], []
    for index in range(len(cu_seqlens) - 1):
        part = slice(int(cu_seqlens[index]), int(cu_seqlens[index + 1]))
        output, state = selective_scan_reference(
            x[:, part],
            dt[:, part],
            A,
            B[:, part],
            C[:, part],
            D,
            None if z is None else z[:, part],
            dt_bias,
            dt_softplus,
            None if initial_state is None else initial_state[index : index + 1],
            reverse=reverse,
        )
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states)
