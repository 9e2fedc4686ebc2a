# mypy: ignore-errors
# Triton is typed by its own compiler, and is not installed everywhere.
"""Triton kernels of the selective scan; ``scan_triton`` launches them and says how they work together.

Words used throughout: a *step* counts a row's frames in scan order from 0, a *frame* is where that step lies in the
tensors. A *tile* is ``(BLOCK_D, STATES)``: a block of channels with all of their states, ``d_state`` rounded up to a
power of two. ``x_batch`` and ``x_time`` are the strides of ``x``, and so on; every output is contiguous. An argument
that is ``None`` is left out of the compiled kernel.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Sizes that change from batch to batch: no new compilation for a length that 16 divides.
_VARYING = ["rows", "time", "first_step", "segment"]


@triton.jit
def _softplus(v):
    # log(1 + e) as 2 atanh(e / (2 + e)): full relative precision for small e, where log(1 + e) keeps none, and every
    # step size between 1e-3 and 1e-1 comes from a small e.
    e = tl.exp2(tl.abs(v) * -LOG2_E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 15
    series = series * q + 1.0 / 13
    series = series * q + 1.0 / 11
    series = series * q + 1.0 / 9
    series = series * q + 1.0 / 7
    series = series * q + 1.0 / 5
    series = series * q + 1.0 / 3
    return tl.maximum(v, 0.0) + 2.0 * (s + s * q * series)


@triton.jit
def _row_place(row, time, lengths, cu_seqlens):
    """Batch index, first frame and number of frames of a row of the state: inside the tensors, whatever is given."""
    if cu_seqlens is not None:
        batch = row * 0
        first = tl.minimum(tl.maximum(tl.load(cu_seqlens + row), 0), time)
        behind = tl.minimum(tl.maximum(tl.load(cu_seqlens + row + 1), first), time)
        length = (behind - first).to(tl.int32)
    else:
        batch = row
        first = row.to(tl.int64) * 0
        length = row * 0 + time
        if lengths is not None:
            length = tl.minimum(tl.maximum(tl.load(lengths + row), 0), time).to(tl.int32)
    return batch, first, length


@triton.jit
def _first_slot(row, first, time, span, cu_seqlens):
    """First of the slots that hold a row's parts of ``span`` steps; rows never overlap, some slots stay unused."""
    return first // span + row if cu_seqlens is not None else row.to(tl.int64) * (time // span + 1)


@triton.jit
def _row_of_slot(slot, rows, time, first_step, span, cu_seqlens):
    """The row whose parts of ``span`` steps include a slot."""
    if cu_seqlens is not None:
        row = slot * 0
        step = slot * 0 + first_step
        while step > 0:
            candidate = row + step
            known = candidate < rows
            first = tl.load(cu_seqlens + candidate, mask=known, other=0)
            row = tl.where(known & (first // span + candidate <= slot), candidate, row)
            step = step // 2
    else:
        row = slot // (time // span + 1)
    return row


@triton.jit
def _segment(rows, time, first_step, segment, blocks, lengths, cu_seqlens, REVERSE: tl.constexpr):
    """What a program runs: its slot, its row with batch index, first frame and length, its steps, the frame of step 0.

    The steps are ``begin .. end``; step ``s`` lies in frame ``origin + TURN * s``.
    """
    slot = tl.program_id(0) // blocks
    row = _row_of_slot(slot, rows, time, first_step, segment, cu_seqlens)
    batch, first, length = _row_place(row, time, lengths, cu_seqlens)
    # Below 0 only where boundaries fall.
    begin = tl.maximum((slot - _first_slot(row, first, time, segment, cu_seqlens)).to(tl.int32), 0) * segment
    end = tl.minimum(begin + segment, length)
    origin = first + length - 1 if REVERSE else first
    return slot, row, batch.to(tl.int64), first, length, begin, end, origin


@triton.jit
def _tile(blocks, d_inner, D_STATE: tl.constexpr, STATES: tl.constexpr, BLOCK_D: tl.constexpr):
    """A program's channels and states, which of them exist, and the same of its tile of ``(d_inner, d_state)``."""
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, STATES)
    d_mask = d < d_inner
    n_mask = n < D_STATE
    return d, n, d_mask, n_mask, d[:, None] * D_STATE + n[None, :], d_mask[:, None] & n_mask[None, :]


@triton.jit
def _load(pointers, mask):
    """Values in float32; zero where the mask says that there is none."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _vector(vector, d, d_mask):
    """``(BLOCK_D,)`` of a parameter in float32; zero where it is not given."""
    return _load(vector + d, d_mask) if vector is not None else tl.zeros(d.shape, tl.float32)


@triton.jit
def _state(states, slot, tile, tile_mask, d_inner, D_STATE: tl.constexpr):
    """Tile of a ``(slots, d_inner, d_state)`` tensor in float32; zero where it is not given."""
    if states is not None:
        values = _load(states + slot.to(tl.int64) * (d_inner * D_STATE) + tile, tile_mask)
    else:
        values = tl.zeros(tile.shape, tl.float32)
    return values


@triton.jit
def _store_state(states, slot, values, tile, tile_mask, d_inner, D_STATE: tl.constexpr):
    tl.store(states + slot.to(tl.int64) * (d_inner * D_STATE) + tile, values, mask=tile_mask)


@triton.jit
def _step_size(dt, bias, SOFTPLUS: tl.constexpr):
    size = dt.to(tl.float32) + bias
    if SOFTPLUS:
        size = _softplus(size)
    return size


@triton.jit(do_not_specialize=_VARYING)
def segment_states_kernel(
    x,
    dt,
    A,
    B,
    dt_bias,
    lengths,
    cu_seqlens,
    states,
    dt_sums,
    x_batch,
    x_time,
    dt_batch,
    dt_time,
    B_batch,
    B_time,
    rows,
    time,
    first_step,
    segment,
    d_inner,
    blocks,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    D_STATE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What each segment adds to a zero state, and its sum of step sizes (the exponent of its total decay)."""
    slot, _, batch, _, _, begin, end, origin = _segment(
        rows, time, first_step, segment, blocks, lengths, cu_seqlens, REVERSE
    )
    TURN: tl.constexpr = -1 if REVERSE else 1

    d, n, d_mask, n_mask, tile, tile_mask = _tile(blocks, d_inner, D_STATE, STATES, BLOCK_D)
    x_row = x + batch * x_batch + d
    dt_row = dt + batch * dt_batch + d
    B_row = B + batch * B_batch + n

    decay = _load(A + tile, tile_mask) * LOG2_E
    bias = _vector(dt_bias, d, d_mask)
    state = tl.zeros([BLOCK_D, STATES], tl.float32)
    dt_sum = tl.zeros([BLOCK_D], tl.float32)
    for step in tl.range(begin, end, loop_unroll_factor=4):
        frame = origin + TURN * step
        size = _step_size(_load(dt_row + frame * dt_time, d_mask), bias, SOFTPLUS)
        x_t = _load(x_row + frame * x_time, d_mask)
        B_t = _load(B_row + frame * B_time, n_mask)
        state = tl.exp2(size[:, None] * decay) * state + (size * x_t)[:, None] * B_t[None, :]
        dt_sum += size
    _store_state(states, slot, state, tile, tile_mask, d_inner, D_STATE)
    tl.store(dt_sums + slot.to(tl.int64) * d_inner + d, dt_sum, mask=d_mask)


@triton.jit(do_not_specialize=_VARYING)
def segment_gradients_kernel(
    grad_y,
    dt,
    A,
    C,
    z,
    dt_bias,
    lengths,
    cu_seqlens,
    states,
    dt_sums,
    grad_y_batch,
    grad_y_time,
    dt_batch,
    dt_time,
    C_batch,
    C_time,
    z_batch,
    z_time,
    rows,
    time,
    first_step,
    segment,
    d_inner,
    blocks,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    D_STATE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient each segment hands to the state before it where none comes from behind, and its step-size sum."""
    slot, _, batch, _, _, begin, end, origin = _segment(
        rows, time, first_step, segment, blocks, lengths, cu_seqlens, REVERSE
    )
    TURN: tl.constexpr = -1 if REVERSE else 1

    d, n, d_mask, n_mask, tile, tile_mask = _tile(blocks, d_inner, D_STATE, STATES, BLOCK_D)
    grad_y_row = grad_y + batch * grad_y_batch + d
    dt_row = dt + batch * dt_batch + d
    C_row = C + batch * C_batch + n

    decay = _load(A + tile, tile_mask) * LOG2_E
    bias = _vector(dt_bias, d, d_mask)
    grad = tl.zeros([BLOCK_D, STATES], tl.float32)
    dt_sum = tl.zeros([BLOCK_D], tl.float32)
    for back in tl.range(0, end - begin, loop_unroll_factor=4):
        frame = origin + TURN * (end - 1 - back)
        size = _step_size(_load(dt_row + frame * dt_time, d_mask), bias, SOFTPLUS)
        grad_t = _load(grad_y_row + frame * grad_y_time, d_mask)
        if z is not None:
            z_t = _load(z + batch * z_batch + d + frame * z_time, d_mask)
            grad_t *= z_t * tl.sigmoid(z_t)
        C_t = _load(C_row + frame * C_time, n_mask)
        grad = tl.exp2(size[:, None] * decay) * (grad + grad_t[:, None] * C_t[None, :])
        dt_sum += size
    _store_state(states, slot, grad, tile, tile_mask, d_inner, D_STATE)
    tl.store(dt_sums + slot.to(tl.int64) * d_inner + d, dt_sum, mask=d_mask)


@triton.jit(do_not_specialize=_VARYING)
def carry_kernel(
    states,
    dt_sums,
    A,
    incoming,
    lengths,
    cu_seqlens,
    rows,
    time,
    first_step,
    segment,
    d_inner,
    blocks,
    BACKWARD: tl.constexpr,
    D_STATE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Turn what each segment adds into what it starts from, in place, along each row; from its end for gradients."""
    row = tl.program_id(0) // blocks
    _, first, length = _row_place(row, time, lengths, cu_seqlens)
    # An empty row has one part too: it hands its initial state on.
    parts = tl.maximum(tl.cdiv(length, segment), 1)
    slot = _first_slot(row, first, time, segment, cu_seqlens)

    d, _, d_mask, _, tile, tile_mask = _tile(blocks, d_inner, D_STATE, STATES, BLOCK_D)
    decay = _load(A + tile, tile_mask) * LOG2_E
    carried = _state(incoming, row, tile, tile_mask, d_inner, D_STATE)
    for part in range(0, parts):
        here = slot + (parts - 1 - part) if BACKWARD else slot + part
        added = _state(states, here, tile, tile_mask, d_inner, D_STATE)
        dt_sum = _load(dt_sums + here * d_inner + d, d_mask)
        _store_state(states, here, carried, tile, tile_mask, d_inner, D_STATE)
        carried = tl.exp2(dt_sum[:, None] * decay) * carried + added


@triton.jit(do_not_specialize=_VARYING)
def scan_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    dt_bias,
    starts,
    lengths,
    cu_seqlens,
    y,
    final_state,
    checkpoints,
    x_batch,
    x_time,
    dt_batch,
    dt_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    z_batch,
    z_time,
    rows,
    time,
    first_step,
    segment,
    d_inner,
    blocks,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    D_STATE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Run each segment from the state it starts from: output, a checkpoint every CHUNK steps, the row's last state."""
    slot, row, batch, first, length, begin, end, origin = _segment(
        rows, time, first_step, segment, blocks, lengths, cu_seqlens, REVERSE
    )
    TURN: tl.constexpr = -1 if REVERSE else 1
    checkpoint = _first_slot(row, first, time, CHUNK, cu_seqlens)

    d, n, d_mask, _, tile, tile_mask = _tile(blocks, d_inner, D_STATE, STATES, BLOCK_D)
    x_row = x + batch * x_batch + d
    dt_row = dt + batch * dt_batch + d
    B_row = B + batch * B_batch + n
    C_row = C + batch * C_batch + n
    y_row = y + batch * time * d_inner + d

    decay = _load(A + tile, tile_mask) * LOG2_E
    bias = _vector(dt_bias, d, d_mask)
    skip = _vector(D, d, d_mask)
    state = _state(starts, slot, tile, tile_mask, d_inner, D_STATE)

    # Each frame is loaded one step ahead: a load that follows the store of y would have to wait for it.
    d_next = d < tl.where(begin < end, d_inner, 0)
    n_next = n < tl.where(begin < end, D_STATE, 0)
    frame = origin + TURN * begin
    dt_next = tl.load(dt_row + frame * dt_time, mask=d_next, other=0.0)
    x_next = tl.load(x_row + frame * x_time, mask=d_next, other=0.0)
    B_next = tl.load(B_row + frame * B_time, mask=n_next, other=0.0)
    C_next = tl.load(C_row + frame * C_time, mask=n_next, other=0.0)
    if z is not None:
        z_next = tl.load(z + batch * z_batch + d + frame * z_time, mask=d_next, other=0.0)
    for step in range(begin, end):
        size = _step_size(dt_next, bias, SOFTPLUS)
        x_t = x_next.to(tl.float32)
        B_t = B_next.to(tl.float32)
        C_t = C_next.to(tl.float32)
        if z is not None:
            z_t = z_next.to(tl.float32)
        here = frame
        frame = origin + TURN * (step + 1)
        d_next = d < tl.where(step + 1 < end, d_inner, 0)
        n_next = n < tl.where(step + 1 < end, D_STATE, 0)
        dt_next = tl.load(dt_row + frame * dt_time, mask=d_next, other=0.0)
        x_next = tl.load(x_row + frame * x_time, mask=d_next, other=0.0)
        B_next = tl.load(B_row + frame * B_time, mask=n_next, other=0.0)
        C_next = tl.load(C_row + frame * C_time, mask=n_next, other=0.0)
        if z is not None:
            z_next = tl.load(z + batch * z_batch + d + frame * z_time, mask=d_next, other=0.0)

        if checkpoints is not None:  # noqa: SIM102 (one test is the compiler's, one the device's)
            if step % CHUNK == 0:
                _store_state(checkpoints, checkpoint + step // CHUNK, state, tile, tile_mask, d_inner, D_STATE)
        state = tl.exp2(size[:, None] * decay) * state + (size * x_t)[:, None] * B_t[None, :]
        y_t = tl.sum(state * C_t[None, :], axis=1) + skip * x_t
        if z is not None:
            y_t *= z_t * tl.sigmoid(z_t)
        tl.store(y_row + here * d_inner, y_t, mask=d_mask)

    # The row ends in this segment; an empty row in its first.
    if ((begin < length) | (begin == 0)) & (begin + segment >= length):
        _store_state(final_state, row, state, tile, tile_mask, d_inner, D_STATE)


@triton.jit
def _gradient_step(
    grad,
    grad_A,
    grad_D,
    grad_bias,
    before,
    after,
    factor,
    decay,
    skip,
    x_t,
    size,
    slope,
    B_t,
    C_t,
    grad_y_t,
    z_t,
    grad_x,
    grad_dt,
    grad_B,
    grad_C,
    grad_z,
    frame,
    d_inner,
    d_mask,
    n_mask,
    D_STATE: tl.constexpr,
):
    """Carry the gradient of the state over one frame and store what the frame's inputs get.

    ``before`` and ``after`` are the states around the frame and ``factor`` its decay; ``slope`` is the derivative of
    the step size. The pointers stand at frame 0 of the row.
    """
    if grad_z is not None:
        sigmoid = tl.sigmoid(z_t)
        ungated = tl.sum(after * C_t[None, :], axis=1) + skip * x_t
        grad_z_t = grad_y_t * ungated * sigmoid * (1.0 + z_t * (1.0 - sigmoid))
        tl.store(grad_z + frame * d_inner, grad_z_t, mask=d_mask)
        grad_y_t *= z_t * sigmoid
    grad += grad_y_t[:, None] * C_t[None, :]
    tl.store(grad_C + frame * D_STATE, tl.sum(after * grad_y_t[:, None], axis=0), mask=n_mask)
    tl.store(grad_B + frame * D_STATE, tl.sum(grad * (size * x_t)[:, None], axis=0), mask=n_mask)
    grad_u = tl.sum(grad * B_t[None, :], axis=1)
    grad *= factor
    # With respect to the exponent, whose decay is in units of log2(e).
    exponent = grad * before
    grad_A += exponent * size[:, None]
    grad_D += grad_y_t * x_t
    grad_size = (tl.sum(exponent * decay, axis=1) * LN_2 + grad_u * x_t) * slope
    grad_bias += grad_size
    tl.store(grad_dt + frame * d_inner, grad_size, mask=d_mask)
    tl.store(grad_x + frame * d_inner, grad_u * size + grad_y_t * skip, mask=d_mask)
    return grad, grad_A, grad_D, grad_bias


@triton.jit(do_not_specialize=_VARYING)
def gradient_kernel(
    grad_y,
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    dt_bias,
    lengths,
    cu_seqlens,
    checkpoints,
    starts,
    scratch,
    grad_x,
    grad_dt,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_z,
    grad_bias,
    grad_initial_state,
    grad_y_batch,
    grad_y_time,
    x_batch,
    x_time,
    dt_batch,
    dt_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    z_batch,
    z_time,
    batch_size,
    rows,
    time,
    first_step,
    segment,
    d_inner,
    blocks,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    D_STATE: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Run each segment backwards from the gradient of the state behind it, recomputing states chunk by chunk."""
    slot, row, batch, first, _, begin, end, origin = _segment(
        rows, time, first_step, segment, blocks, lengths, cu_seqlens, REVERSE
    )
    TURN: tl.constexpr = -1 if REVERSE else 1
    checkpoint = _first_slot(row, first, time, CHUNK, cu_seqlens)

    d, n, d_mask, n_mask, tile, tile_mask = _tile(blocks, d_inner, D_STATE, STATES, BLOCK_D)
    grad_y_row = grad_y + batch * grad_y_batch + d
    x_row = x + batch * x_batch + d
    dt_row = dt + batch * dt_batch + d
    B_row = B + batch * B_batch + n
    C_row = C + batch * C_batch + n
    grad_x_row = grad_x + batch * time * d_inner + d
    grad_dt_row = grad_dt + batch * time * d_inner + d
    grad_B_row = grad_B + (tl.program_id(0) % blocks * batch_size + batch) * time * D_STATE + n
    grad_C_row = grad_C + (tl.program_id(0) % blocks * batch_size + batch) * time * D_STATE + n
    if z is not None:
        z_row = z + batch * z_batch + d
        grad_z_row = grad_z + batch * time * d_inner + d
    else:
        grad_z_row = None
    kept = scratch + tl.program_id(0).to(tl.int64) * (CHUNK // 2 * BLOCK_D * STATES)
    kept += tl.arange(0, BLOCK_D)[:, None] * STATES + n[None, :]

    decay = _load(A + tile, tile_mask) * LOG2_E
    bias = _vector(dt_bias, d, d_mask)
    skip = _vector(D, d, d_mask)
    grad = _state(starts, slot, tile, tile_mask, d_inner, D_STATE)
    sum_A = tl.zeros([BLOCK_D, STATES], tl.float32)
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    sum_bias = tl.zeros([BLOCK_D], tl.float32)

    chunks = tl.cdiv(tl.maximum(end - begin, 0), CHUNK)
    for chunk_back in range(0, chunks):
        chunk = chunks - 1 - chunk_back
        start = begin + chunk * CHUNK
        pairs = tl.cdiv(tl.minimum(end - start, CHUNK), 2)

        state = _state(checkpoints, checkpoint + start // CHUNK, tile, tile_mask, d_inner, D_STATE)
        # The scratch may be read by another thread than the one that wrote it.
        tl.debug_barrier()
        for pair in range(0, pairs):
            tl.store(kept + pair * (BLOCK_D * STATES), state)
            step = start + 2 * pair
            frame = origin + TURN * step
            size = _step_size(_load(dt_row + frame * dt_time, d_mask), bias, SOFTPLUS)
            x_t = _load(x_row + frame * x_time, d_mask)
            B_t = _load(B_row + frame * B_time, n_mask)
            state = tl.exp2(size[:, None] * decay) * state + (size * x_t)[:, None] * B_t[None, :]
            # The state behind a last lone frame is never read.
            frame = origin + TURN * (step + 1)
            d_inside = d < tl.where(step + 1 < end, d_inner, 0)
            n_inside = n < tl.where(step + 1 < end, D_STATE, 0)
            size = _step_size(_load(dt_row + frame * dt_time, d_inside), bias, SOFTPLUS)
            x_t = _load(x_row + frame * x_time, d_inside)
            B_t = _load(B_row + frame * B_time, n_inside)
            state = tl.exp2(size[:, None] * decay) * state + (size * x_t)[:, None] * B_t[None, :]
        tl.debug_barrier()

        for pair_back in range(0, pairs):
            pair = pairs - 1 - pair_back
            step = start + 2 * pair
            # A lone frame's partner has no step size: it changes nothing, and nothing is stored for it.
            inside = step + 1 < end
            d_inside = d < tl.where(inside, d_inner, 0)
            n_inside = n < tl.where(inside, D_STATE, 0)
            frame_0 = origin + TURN * step
            frame_1 = origin + TURN * (step + 1)
            before = tl.load(kept + pair * (BLOCK_D * STATES))
            dt_0 = _load(dt_row + frame_0 * dt_time, d_mask) + bias
            dt_1 = _load(dt_row + frame_1 * dt_time, d_inside) + bias
            x_0 = _load(x_row + frame_0 * x_time, d_mask)
            x_1 = _load(x_row + frame_1 * x_time, d_inside)
            B_0 = _load(B_row + frame_0 * B_time, n_mask)
            B_1 = _load(B_row + frame_1 * B_time, n_inside)
            C_0 = _load(C_row + frame_0 * C_time, n_mask)
            C_1 = _load(C_row + frame_1 * C_time, n_inside)
            grad_y_0 = _load(grad_y_row + frame_0 * grad_y_time, d_mask)
            grad_y_1 = _load(grad_y_row + frame_1 * grad_y_time, d_inside)
            if z is not None:
                z_0 = _load(z_row + frame_0 * z_time, d_mask)
                z_1 = _load(z_row + frame_1 * z_time, d_inside)
            else:
                z_0 = grad_y_0
                z_1 = grad_y_1
            if SOFTPLUS:
                slope_0 = tl.sigmoid(dt_0)
                slope_1 = tl.sigmoid(dt_1)
                dt_0 = _softplus(dt_0)
                dt_1 = _softplus(dt_1)
            else:
                slope_0 = tl.full([BLOCK_D], 1.0, tl.float32)
                slope_1 = tl.full([BLOCK_D], 1.0, tl.float32)
            dt_1 = tl.where(inside, dt_1, 0.0)
            slope_1 = tl.where(inside, slope_1, 0.0)

            factor_0 = tl.exp2(dt_0[:, None] * decay)
            factor_1 = tl.exp2(dt_1[:, None] * decay)
            between = factor_0 * before + (dt_0 * x_0)[:, None] * B_0[None, :]
            after = factor_1 * between + (dt_1 * x_1)[:, None] * B_1[None, :]
            grad, sum_A, sum_D, sum_bias = _gradient_step(
                grad,
                sum_A,
                sum_D,
                sum_bias,
                between,
                after,
                factor_1,
                decay,
                skip,
                x_1,
                dt_1,
                slope_1,
                B_1,
                C_1,
                grad_y_1,
                z_1,
                grad_x_row,
                grad_dt_row,
                grad_B_row,
                grad_C_row,
                grad_z_row,
                frame_1,
                d_inner,
                d_inside,
                n_inside,
                D_STATE,
            )
            grad, sum_A, sum_D, sum_bias = _gradient_step(
                grad,
                sum_A,
                sum_D,
                sum_bias,
                before,
                between,
                factor_0,
                decay,
                skip,
                x_0,
                dt_0,
                slope_0,
                B_0,
                C_0,
                grad_y_0,
                z_0,
                grad_x_row,
                grad_dt_row,
                grad_B_row,
                grad_C_row,
                grad_z_row,
                frame_0,
                d_inner,
                d_mask,
                n_mask,
                D_STATE,
            )

    # Empty segments store too: their zeros are summed with the others.
    _store_state(grad_A, slot, sum_A, tile, tile_mask, d_inner, D_STATE)
    vector = slot.to(tl.int64) * d_inner + d
    if D is not None:
        tl.store(grad_D + vector, sum_D, mask=d_mask)
    if dt_bias is not None:
        tl.store(grad_bias + vector, sum_bias, mask=d_mask)
    if grad_initial_state is not None:  # noqa: SIM102 (as above)
        if begin == 0:
            _store_state(grad_initial_state, row, grad, tile, tile_mask, d_inner, D_STATE)
