"""The definition of the SSD scan (Mamba-2): one readable loop over time. The chunked form must agree with it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mambavox.lengths import length_mask


def ssd_scan_reference(
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
    """SSD scan, frame by frame.

    With ``dt`` biased and passed through softplus as asked, and ``B`` and ``C`` those of the head's group, the
    recurrence of one head at frame ``t`` of a row is ::

        h[t] = exp(dt[t] * A) * h[t-1] + dt[t] * x[t] B[t]^T      (head_dim, d_state)
        y[t] = h[t] C[t] + D * x[t]                               (head_dim,)
        y[t] = y[t] * silu(z[t])                                  where z is given

    for ``t < length``; from the row's length on the state stands still and ``y`` is zero. With ``reverse`` the state
    of frame ``t`` follows from that of frame ``t + 1``, and the scan begins at the row's last valid frame.

    Args and shapes are those of :func:`mambavox.ops.ssd_scan.ssd_scan`.

    Returns:
        ``y`` ``(batch, time, heads, head_dim)`` in the dtype of ``x``, and the state after each row's last valid frame
        (after frame 0 with ``reverse``) ``(batch, heads, head_dim, d_state)`` in float32 (float64 where ``x`` is
        float64); with ``cu_seqlens`` one state a sequence.

    Source:
        Dao and Gu 2024 (arXiv 2405.21060), section 5.1 (one decay a head) and 7.2 (groups of heads that share B and C).
    """
    if cu_seqlens is not None:
        ends = cu_seqlens.tolist()
        pieces = []
        for index, (start, end) in enumerate(pairwise(ends)):
            piece = slice(start, end)
            pieces.append(
                ssd_scan_reference(
                    x[:, piece],
                    dt[:, piece],
                    A,
                    B[:, piece],
                    C[:, piece],
                    D,
                    None if z is None else z[:, piece],
                    dt_bias,
                    dt_softplus,
                    None if initial_state is None else initial_state[index : index + 1],
                    reverse=reverse,
                )
            )
        outputs, states = zip(*pieces, strict=True)
        return torch.cat(outputs, dim=1), torch.cat(states)

    output_dtype = x.dtype
    compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dt, A, B, C = (tensor.to(compute_dtype) for tensor in (x, dt, A, B, C))
    batch, time, heads, head_dim = x.shape
    groups, d_state = B.shape[2:]
    z = None if z is None else z.to(compute_dtype)
    D = None if D is None else (D if D.dim() == 2 else D[:, None]).to(compute_dtype)

    valid = None if lengths is None else length_mask(lengths, time)
    if valid is not None:
        # Cleared before anything is computed: NaN in the padding would pass a mask applied later, as a gradient.
        x, B, C = (tensor.masked_fill(~valid[:, :, None, None], 0.0) for tensor in (x, B, C))
        dt = dt.masked_fill(~valid[:, :, None], 0.0)
        z = None if z is None else z.masked_fill(~valid[:, :, None, None], 0.0)
    B, C = (tensor.repeat_interleave(heads // groups, dim=2) for tensor in (B, C))
    if dt_bias is not None:
        dt = dt + dt_bias.to(compute_dtype)
    if dt_softplus:
        dt = F.softplus(dt)

    state = x.new_zeros(batch, heads, head_dim, d_state) if initial_state is None else initial_state.to(compute_dtype)
    frames: list[Tensor] = []
    for t in reversed(range(time)) if reverse else range(time):
        decay = torch.exp(dt[:, t] * A)[:, :, None, None]
        update = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        y = (update * C[:, t, :, None, :]).sum(dim=-1)
        if D is not None:
            y = y + D * x[:, t]
        if z is not None:
            y = y * F.silu(z[:, t])
        if valid is None:
            state = update
        else:
            inside = valid[:, t, None, None]
            state = torch.where(inside[..., None], update, state)
            y = torch.where(inside, y, torch.zeros_like(y))
        frames.append(y)

    if reverse:
        frames.reverse()
    output = torch.stack(frames, dim=1) if frames else torch.zeros_like(x)
    return output.to(output_dtype), state
