"""The public SSD scan (Mamba-2): the recurrence as products of small matrices, chunk by chunk, in plain torch.

Inside a chunk every frame reaches every later one through a ``(chunk, chunk)`` matrix of decays; what a chunk adds to
the state is one product more, and a short loop carries the states from chunk to chunk. Each decay is the exponential
of a sum of the ``dt * A`` between two frames, never a quotient of cumulative products: with negative ``A`` all
exponents are non-positive and strong decay underflows to zero cleanly. States exist once a chunk, not once a frame.
"""

from dataclasses import dataclass
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import is_tracing

from mambavox.errors import ConfigError
from mambavox.lengths import check_rows, length_mask
from mambavox.ops.checks import check_tensors, refuse_traced_onnx


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    dt_bias: Tensor | None = ...,
    dt_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    reverse: bool = ...,
    chunk_size: int = ...,
    return_final_state: Literal[False] = ...,
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    dt_bias: Tensor | None = ...,
    dt_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    reverse: bool = ...,
    chunk_size: int = ...,
    *,
    return_final_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def ssd_scan(
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
    chunk_size: int = 64,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """State-space scan with one decay a head (Mamba-2, "SSD") over padded or packed batches, with carried state.

    ``h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T`` and ``y[t] = (h[t] C[t] + D x[t]) * silu(z[t])`` in each head;
    ``ssd_reference.py`` is the definition in full. Frames at or beyond a row's length change neither its state nor
    its output, which is zero there. Gradients flow to every tensor, ``initial_state`` included, and back through the
    final state.

    Args:
        x: ``(batch, time, heads, head_dim)`` input.
        dt: ``(batch, time, heads)`` step sizes, before bias and softplus.
        A: ``(heads,)`` continuous-time decay, negative in practice.
        B: ``(batch, time, groups, d_state)`` input matrix of each frame; ``groups`` divides ``heads``, and the first
            ``heads / groups`` heads use the first group.
        C: ``(batch, time, groups, d_state)`` output matrix of each frame.
        D: ``(heads,)`` or ``(heads, head_dim)`` skip connection.
        z: ``(batch, time, heads, head_dim)`` gate; the output is multiplied by ``silu(z)``.
        dt_bias: ``(heads,)`` added to ``dt``.
        dt_softplus: pass ``dt`` (with its bias) through softplus.
        initial_state: ``(batch, heads, head_dim, d_state)`` state before the first frame (after the last with
            ``reverse``); zero where not given. With ``cu_seqlens`` one row a sequence.
        lengths: ``(batch,)`` valid frames of each row; all of them where not given.
        cu_seqlens: ``(sequences + 1,)`` for a batch of one row that holds sequences laid end to end: the frame at
            which each begins, then ``time``. Each gives what it gives alone. Excludes ``lengths``.
        reverse: scan each row from its own last valid frame back to frame 0.
        chunk_size: frames of a chunk, at most. Changes speed and memory, not the result.
        return_final_state: also return the state after each row's last valid frame (after frame 0 with ``reverse``).

    Returns:
        ``(batch, time, heads, head_dim)`` in the dtype of ``x``; with ``return_final_state`` also the state
        ``(batch, heads, head_dim, d_state)``, with ``cu_seqlens`` ``(sequences, heads, head_dim, d_state)``, in float32
        (float64 for float64 inputs).

    Raises:
        ConfigError: shapes, dtypes, lengths or ``cu_seqlens`` that do not fit; the message names the argument.

    Source:
        Dao and Gu 2024 (arXiv 2405.21060), section 6, block decomposition of the semiseparable matrix.
    """
    if chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}; expected at least 1 frame")
    if x.dim() != 4:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, time, heads, head_dim)")
    lengths, cu_seqlens = check_rows(x, lengths, cu_seqlens)
    _check_shapes(x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)

    arguments = (x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, lengths, cu_seqlens, reverse, chunk_size)
    if is_tracing():
        refuse_traced_onnx("ssd_scan")
        y, final_state = torch.ops.mambavox.ssd_scan(*arguments)
    else:
        y, final_state = _ssd_scan(*arguments)
    return (y, final_state) if return_final_state else y


def _ssd_scan(
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
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Output and final state, of arguments that fit."""
    batch, time, heads, head_dim = x.shape
    # Under autocast the products would run in half precision, and with them the state.
    with torch.autocast(x.device.type, enabled=False):
        output_dtype = x.dtype
        compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        x, dt, A, B, C = (tensor.to(compute_dtype) for tensor in (x, dt, A, B, C))
        z = None if z is None else z.to(compute_dtype)

        padding = None
        if lengths is not None:
            # Every tensor is cleared beyond its row's length, so that not even NaN there can reach a state or gradient.
            padding = ~length_mask(lengths, time)[:, :, None]
            x, B, C = (tensor.masked_fill(padding[..., None], 0.0) for tensor in (x, B, C))
            dt = dt.masked_fill(padding, 0.0)
            z = None if z is None else z.masked_fill(padding[..., None], 0.0)
        if dt_bias is not None:
            dt = dt + dt_bias.to(compute_dtype)
        if dt_softplus:
            dt = F.softplus(dt)
        if padding is not None:
            dt = dt.masked_fill(padding, 0.0)

        if initial_state is None:
            rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
            initial_state = x.new_zeros(rows, heads, head_dim, B.shape[3])
        moving = (dt[..., None] * x, dt * A, B, C)
        initial_state = initial_state.to(compute_dtype)
        if cu_seqlens is None:
            y, final_state = _scan_padded(*moving, initial_state, chunk_size, reverse)
        else:
            y, final_state = _scan_packed(*moving, initial_state, cu_seqlens, chunk_size, reverse)
        if D is not None:
            y = y + (D if D.dim() == 2 else D[:, None]).to(compute_dtype) * x
        if z is not None:
            y = y * F.silu(z)
        return y.to(output_dtype), final_state


# One operator for traces, which would hold the number of chunks of the traced input; autograd looks through it.
# The code that goes with a saved model makes it, too.
if not hasattr(torch.ops.mambavox, "ssd_scan"):
    torch.library.define(
        "mambavox::ssd_scan",
        "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, bool dt_softplus, "
        "Tensor? initial_state, Tensor? lengths, Tensor? cu_seqlens, bool reverse, int chunk_size) -> (Tensor, Tensor)",
    )
    torch.library.impl("mambavox::ssd_scan", "CompositeImplicitAutograd", _ssd_scan)


def _scan_padded(
    u: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, initial_state: Tensor, chunk_size: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Scan of rows of equal length; ``u`` is ``dt * x`` and ``log_decay`` is ``dt * A``."""
    batch, time = u.shape[:2]
    chunks = max(1, -(-time // chunk_size))
    # Equal chunks: 65 frames are two chunks of 33, not one of 64 and one of 1 padded to 64.
    chunk = max(1, -(-time // chunks))

    def cut(tensor: Tensor) -> Tensor:
        filled = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, chunks * chunk - time))
        return filled.reshape(batch, chunks, chunk, *tensor.shape[2:])

    y, leaving = _scan_chunks(cut(u), cut(log_decay), cut(B), cut(C), initial_state, None, reverse)
    return y.flatten(1, 2)[:, :time], leaving[0 if reverse else -1]


def _scan_packed(
    u: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor,
    cu_seqlens: Tensor,
    chunk_size: int,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Scan of sequences laid end to end in one row: each begins a chunk of its own, where its initial state enters."""
    time, sequences = u.shape[1], cu_seqlens.shape[0] - 1
    chunk = max(1, min(chunk_size, time))
    # As many chunks as any lengths can need, so that shapes do not depend on the lengths; the last may stay empty.
    chunks = time // chunk + sequences
    # An empty sequence has a chunk too: its state has to pass through.
    counts = ((cu_seqlens.diff() + chunk - 1) // chunk).clamp(min=1)
    last = counts.cumsum(0) - 1
    first = last - counts + 1

    frames = torch.arange(time, device=u.device)
    sequence_of_frame = torch.searchsorted(cu_seqlens[1:].contiguous(), frames, right=True)
    slots = first[sequence_of_frame] * chunk + frames - cu_seqlens[sequence_of_frame]
    chunk_indices = torch.arange(chunks, device=u.device)
    sequence_of_chunk = torch.searchsorted(last, chunk_indices).clamp(max=sequences - 1)
    opening, closing = (last, first) if reverse else (first, last)
    entrances = _Entrances(
        here=(chunk_indices == opening[sequence_of_chunk]),
        states=initial_state.index_select(0, sequence_of_chunk),
    )

    def cut(tensor: Tensor) -> Tensor:
        filled = tensor.new_zeros(chunks * chunk, *tensor.shape[2:]).index_copy(0, slots, tensor[0])
        return filled.view(1, chunks, chunk, *tensor.shape[2:])

    nothing = torch.zeros_like(initial_state[:1])
    y, leaving = _scan_chunks(cut(u), cut(log_decay), cut(B), cut(C), nothing, entrances, reverse)
    return y.flatten(1, 2).index_select(1, slots), torch.cat(leaving).index_select(0, closing)


@dataclass(frozen=True)
class _Entrances:
    """Where sequences of a packed row begin.

    Attributes:
        here: ``(chunks,)`` whether a state enters at the chunk, in place of what the chunk before it left.
        states: ``(chunks, heads, head_dim, d_state)`` the state of the chunk's sequence, used where it enters.
    """

    here: Tensor
    states: Tensor


def _scan_chunks(
    u: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor,
    entrances: _Entrances | None,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The chunked matrix form.

    Args:
        u: ``(batch, chunks, chunk, heads, head_dim)``, zero where a chunk has no frame, as everything else.
        log_decay: ``(batch, chunks, chunk, heads)``.
        B: ``(batch, chunks, chunk, groups, d_state)``.
        C: same shape.
        initial_state: ``(batch, heads, head_dim, d_state)``.
        entrances: where else a state enters.
        reverse: from the last chunk to the first.

    Returns:
        ``(batch, chunks, chunk, heads, head_dim)`` and the state that leaves each chunk, in the order of the chunks.
    """
    batch, chunks, chunk, heads, head_dim = u.shape
    groups, d_state = B.shape[3:]
    # Letters: b batch, c chunk, g group, r head of the group, t and s frames of the chunk, p head_dim, n d_state.
    u = u.unflatten(3, (groups, heads // groups)).permute(0, 1, 3, 4, 2, 5)  # b c g r s p
    log_decay = log_decay.unflatten(3, (groups, heads // groups)).permute(0, 1, 3, 4, 2)  # b c g r s
    B, C = B.transpose(2, 3), C.transpose(2, 3)  # b c g s n, b c g t n

    # reach[t, s]: the input of frame s is in the state of frame t.
    reach = torch.ones(chunk, chunk, dtype=torch.bool, device=u.device).tril()
    between = reach.tril(-1)
    if reverse:
        reach, between = reach.T, between.T
    reach_weight = reach.to(u.dtype)
    # Sums of the decays that lie between two frames. A difference of two cumulative sums would lose them to rounding
    # where the sums are large.
    exponents = reach_weight @ (log_decay.unsqueeze(-1) * between)  # b c g r t s
    within = exponents.masked_fill(~reach, -torch.inf).exp()
    to_end = within[..., 0 if reverse else -1, :]  # b c g r s
    from_start = (reach_weight @ log_decay.unsqueeze(-1)).exp()  # b c g r t 1
    y_inside = (within * (C @ B.mT).unsqueeze(3)) @ u  # b c g r t p

    # The heads of a group share B and C: one product of all their rows.
    arriving = (u * to_end.unsqueeze(-1)).transpose(4, 5).flatten(3, 4)  # b c g (r p) s
    added = (arriving @ B).view(batch, chunks, heads, head_dim, d_state)
    total_decay = log_decay.sum(dim=-1).exp().reshape(batch, chunks, heads, 1, 1)
    entering, leaving = _carry(added, total_decay, initial_state, entrances, reverse)
    entering = entering.view(batch, chunks, groups, heads // groups * head_dim, d_state)  # b c g (r p) n
    y_carried = (C @ entering.mT).unflatten(4, (heads // groups, head_dim)).transpose(3, 4)  # b c g r t p
    y = y_inside + from_start * y_carried
    return y.permute(0, 1, 4, 2, 3, 5).flatten(3, 4), leaving


def _carry(
    added: Tensor, decay: Tensor, initial_state: Tensor, entrances: _Entrances | None, reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    """States that enter the chunks, ``(batch, chunks, heads, head_dim, d_state)``, and those that leave them."""
    order = range(added.shape[1])
    # unbind, not indexing in the loop: the gradient of an index is as large as the whole tensor, once a chunk.
    added_by_chunk, decay_by_chunk = added.unbind(1), decay.unbind(1)
    state = initial_state
    entering, leaving = [], []
    for chunk in reversed(order) if reverse else order:
        if entrances is not None:
            state = torch.where(entrances.here[chunk], entrances.states[chunk], state)
        entering.append(state)
        state = torch.addcmul(added_by_chunk[chunk], decay_by_chunk[chunk], state)
        leaving.append(state)
    if reverse:
        entering.reverse()
        leaving.reverse()
    return torch.stack(entering, dim=1), leaving


def _check_shapes(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    if B.dim() != 4:
        raise ConfigError(f"B has shape {tuple(B.shape)}; expected (batch, time, groups, d_state)")
    batch, time, heads, head_dim = x.shape
    groups, d_state = B.shape[2:]
    if groups < 1 or heads % groups:
        raise ConfigError(
            f"B has {groups} groups and x {heads} heads; expected a number of groups that divides the heads"
        )
    rows, row = (batch, "batch") if cu_seqlens is None else (cu_seqlens.shape[0] - 1, "sequences")
    skips = (heads,) if D is not None and D.dim() == 1 else (heads, head_dim)
    expected = (
        ("x", x, (batch, time, heads, head_dim), "(batch, time, heads, head_dim)"),
        ("dt", dt, (batch, time, heads), "(batch, time, heads)"),
        ("A", A, (heads,), "(heads,)"),
        ("B", B, (batch, time, groups, d_state), "(batch, time, groups, d_state)"),
        ("C", C, (batch, time, groups, d_state), "(batch, time, groups, d_state)"),
        ("D", D, skips, "(heads,) or (heads, head_dim)"),
        ("z", z, (batch, time, heads, head_dim), "(batch, time, heads, head_dim)"),
        ("dt_bias", dt_bias, (heads,), "(heads,)"),
        ("initial_state", initial_state, (rows, heads, head_dim, d_state), f"({row}, heads, head_dim, d_state)"),
    )
    check_tensors(x.device, expected)
