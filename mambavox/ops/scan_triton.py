"""Selective scan in Triton, for CUDA: one program runs a block of channels with all their states in registers.

A program is one warp that walks over the frames of a row. Frames are read channels-last, ``B`` and ``C`` once a block,
not once a channel; bias, softplus, skip and gate are part of the same pass, and ``reverse`` and packed rows are index
arithmetic. States, decays and sums are float32 whatever the inputs are.

**Two ways over time.** Where rows times channel blocks fill the device, each program runs its whole row: every
exponential is taken once. Where they do not (one adapter at batch 1, one recording of five minutes) rows are cut into
segments that run side by side: a first kernel gives what each segment adds to a zero state, a small second one
carries the states over segments, the third is the one of the first way with a right state to start from. That takes
the exponentials twice, so it is the choice only where the device would otherwise be less than half full. The backward
pass does the same with the gradient of the state, from the end.

**Backward.** The forward pass keeps the state every ``CHUNK`` steps. A program recomputes the states of one chunk,
writes every second one to a scratch tile of its own, then walks back over the chunk, one pair of frames at a time.
Registers cannot be indexed in Triton, and a chunk of states would not fit them; shared memory cannot be addressed
either. The scratch belongs to the program and is used again for every chunk, so it stays in the second-level cache
and its size does not grow with time; recomputing the other state of each pair costs one multiply-add and halves the
traffic. What a program finds for ``B`` and ``C`` (summed over channels), ``A``, ``D`` and ``dt_bias`` (over time) is
stored once per block or segment and added up afterwards in a fixed order: no atomics, the same bits every run.

Decays are ``exp2(dt * A * log2(e))`` of non-positive exponents and products of such: strong decay underflows to zero.

Without a GPU the same kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), slowly: a check, not a backend.
"""

import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mambavox.ops.scan_inputs import ScanInputs

# Steps between stored states: training memory is batch * time * d_inner * d_state / CHUNK elements of float32.
CHUNK = 32
# Elements of a tile (channels, d_state) that one warp takes: 16 a lane, so that a state, its gradient, its decay and
# their sums fit the registers.
_WARP_TILE = 512
# Channels of a tile: enough to make a load worth its while, not so many that small models have one block.
_LEAST_CHANNELS, _MOST_CHANNELS = 8, 128
# Programs on a multiprocessor that hide each other's latency; in the backward pass registers allow few more.
_PROGRAMS_PER_PROCESSOR = 8


def why_not(device: torch.device) -> str | None:
    """Reason why the backend cannot run on a device, or ``None`` where it can."""
    if device.type != "cuda" and not _interpreted():
        return f"runs on cuda, not on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def checkpoint_shape(x_shape: tuple[int, ...], d_state: int, sequences: int) -> tuple[int, ...]:
    """Shape of the states that the forward pass keeps for the backward pass, known without looking at lengths.

    Args:
        x_shape: ``(batch, time, d_inner)``.
        d_state: states of a channel.
        sequences: rows of the state: the batch size, or the number of packed sequences.

    Returns:
        ``(slots, d_inner, d_state)``: room for one state every ``CHUNK`` steps of each row, its first included.
    """
    batch, time, d_inner = x_shape
    return _slots(batch, time, sequences, CHUNK), d_inner, d_state


def forward(inputs: ScanInputs, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan.

    Args:
        inputs: what to scan.
        training: keep checkpoints for :func:`backward`.

    Returns:
        ``y`` ``(batch, time, d_inner)`` in the dtype of ``x``, zero outside the rows; the state after each row's last
        step ``(sequences, d_inner, d_state)`` in float32; the checkpoints, of :func:`checkpoint_shape`, empty where not
        training.
    """
    x, A, plan = inputs.x, inputs.A, _plan(inputs)
    kept = checkpoint_shape(x.shape, A.shape[1], plan.rows) if training else (0,)
    y = plan.new_frames(x.shape, x.dtype)
    final_state, checkpoints = plan.new(plan.rows, *A.shape), plan.new(*kept)
    frames = {**_strided(x=x, dt=inputs.dt, B=inputs.B), **_step(inputs)}
    starts = _contiguous(inputs.initial_state)
    if plan.slots > plan.rows:
        starts = plan.carry("segment_states_kernel", starts, backward=False, **frames)
    plan.launch(
        "scan_kernel",
        plan.slots,
        **frames,
        **_strided(C=inputs.C, z=inputs.z),
        D=_contiguous(inputs.D),
        starts=starts,
        y=y,
        final_state=final_state,
        checkpoints=checkpoints if training else None,
        CHUNK=CHUNK,
    )
    return y, final_state, checkpoints


def backward(
    grad_y: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, checkpoints: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of :func:`forward`.

    Args:
        grad_y: ``(batch, time, d_inner)`` gradient of the output.
        grad_final_state: ``(sequences, d_inner, d_state)`` gradient of the final state, if it has one.
        inputs: what was scanned.
        checkpoints: what :func:`forward` returned.

    Returns:
        Gradients of ``x, dt, A, B, C, D, z, dt_bias, initial_state``, each of its tensor's shape and dtype; ``None``
        for a tensor that was not given.
    """
    x, dt, A, B, C, D, z, dt_bias, _, initial_state, *_ = inputs
    plan = _plan(inputs)
    d_inner, d_state = A.shape
    frames = {**_strided(grad_y=grad_y, dt=dt, C=C, z=z), **_step(inputs)}
    starts = _contiguous(grad_final_state)
    if plan.slots > plan.rows:
        starts = plan.carry("segment_gradients_kernel", starts, backward=True, **frames)

    grad_x, grad_dt = plan.new_frames(x.shape, x.dtype), plan.new_frames(dt.shape, dt.dtype)
    grad_z = None if z is None else plan.new_frames(z.shape, z.dtype)
    grad_B, grad_C = (plan.new_frames((plan.blocks, *B.shape), torch.float32) for _ in range(2))
    grad_A = plan.new(plan.slots, d_inner, d_state)
    grad_D, grad_bias = (plan.new(plan.slots, d_inner) for _ in range(2))
    grad_state = plan.new(plan.rows, d_inner, d_state)
    plan.launch(
        "gradient_kernel",
        plan.slots,
        **frames,
        **_strided(x=x, B=B),
        D=_contiguous(D),
        checkpoints=checkpoints,
        starts=starts,
        scratch=plan.new(plan.slots * plan.blocks, CHUNK // 2, plan.channels, plan.states),
        grad_x=grad_x,
        grad_dt=grad_dt,
        grad_A=grad_A,
        grad_B=grad_B,
        grad_C=grad_C,
        grad_D=grad_D,
        grad_z=grad_z,
        grad_bias=grad_bias,
        grad_initial_state=grad_state,
        batch_size=x.shape[0],
        CHUNK=CHUNK,
    )
    return (
        grad_x,
        grad_dt,
        grad_A.sum(dim=0).to(A.dtype),
        grad_B.sum(dim=0).to(B.dtype),
        grad_C.sum(dim=0).to(C.dtype),
        None if D is None else grad_D.sum(dim=0).to(D.dtype),
        grad_z,
        None if dt_bias is None else grad_bias.sum(dim=0).to(dt_bias.dtype),
        None if initial_state is None else grad_state.to(initial_state.dtype),
    )


@dataclass(frozen=True)
class _Plan:
    """How a scan is cut into programs.

    Attributes:
        rows: rows of the state.
        slots: segments of all rows, some of them empty; as many as rows where each row is one segment.
        segment: steps of a segment, a multiple of ``CHUNK``.
        channels: channels of a tile.
        states: states of a tile, ``d_state`` rounded up to a power of two.
        blocks: tiles that cover the channels.
        covered: every frame belongs to a row.
        device: where the tensors live.
        arguments: what every kernel takes.
    """

    rows: int
    slots: int
    segment: int
    channels: int
    states: int
    blocks: int
    covered: bool
    device: torch.device
    arguments: dict[str, Any]

    def new(self, *shape: int) -> Tensor:
        """Fresh float32 memory."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def new_frames(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for one value a frame; zero where kernels do not reach every frame."""
        make = torch.empty if self.covered else torch.zeros
        return make(shape, dtype=dtype, device=self.device)

    def carry(self, kernel: str, incoming: Tensor | None, *, backward: bool, **arguments: Any) -> Tensor:
        """What each segment starts from, ``(slots, d_inner, d_state)``, given what its row starts from."""
        d_inner, d_state = self.arguments["A"].shape
        starts, dt_sums = self.new(self.slots, d_inner, d_state), self.new(self.slots, d_inner)
        self.launch(kernel, self.slots, states=starts, dt_sums=dt_sums, **arguments)
        self.launch("carry_kernel", self.rows, states=starts, dt_sums=dt_sums, incoming=incoming, BACKWARD=backward)
        return starts

    def launch(self, kernel: str, count: int, **arguments: Any) -> None:
        """Run a kernel with one program for each of ``count`` rows or slots and each block of channels."""
        from mambavox.ops import scan_triton_kernels  # triton is optional

        grid = (count * self.blocks,)
        if grid == (0,):
            return
        warps = max(1, self.channels * self.states // _WARP_TILE)
        with _current(self.device):
            getattr(scan_triton_kernels, kernel)[grid](
                **arguments, **self.arguments, num_warps=warps, enable_fp_fusion=True
            )


def _plan(inputs: ScanInputs) -> _Plan:
    x, rows, d_state = inputs.x, inputs.sequences, inputs.A.shape[1]
    batch, time, d_inner = x.shape
    states = _power_of_two(d_state)
    channels = min(_power_of_two(d_inner), max(_LEAST_CHANNELS, min(_MOST_CHANNELS, _WARP_TILE // states)))
    blocks = -(-d_inner // channels)
    segment = _segment(batch, time, rows, blocks, x.device)
    arguments = {
        "A": inputs.A.contiguous(),
        "lengths": inputs.lengths,
        "cu_seqlens": inputs.cu_seqlens,
        "rows": rows,
        "time": time,
        "first_step": _power_of_two(rows) // 2,
        "segment": segment,
        "d_inner": d_inner,
        "blocks": blocks,
        "D_STATE": d_state,
        "STATES": states,
        "BLOCK_D": channels,
    }
    slots = _slots(batch, time, rows, segment)
    covered = inputs.lengths is None and inputs.cu_seqlens is None
    return _Plan(rows, slots, segment, channels, states, blocks, covered, x.device, arguments)


def _slots(batch: int, time: int, rows: int, span: int) -> int:
    """Places enough for all parts of ``span`` steps of all rows, wherever packed sequences begin and end.

    A row of a padded batch has ``time // span + 1`` of them. A packed sequence that begins at frame ``first`` has those
    from ``first // span + row`` on: the next one begins at least as many places later as this one has parts.
    """
    return batch * (time // span) + rows


def _segment(batch: int, time: int, rows: int, blocks: int, device: torch.device) -> int:
    """Steps that one program runs: all of a row where that keeps the device half busy, else fewer."""
    wanted = programs_to_fill(device)
    whole = CHUNK * (time // CHUNK + 1)
    if 2 * rows * blocks >= wanted:
        return whole
    steps = batch * time * blocks / wanted
    return min(whole, CHUNK * max(1, math.ceil(steps / CHUNK)))


def programs_to_fill(device: torch.device) -> int:
    """Programs that keep every multiprocessor of a device busy; the interpreter runs one at a time."""
    if device.type != "cuda":
        return 1
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _strided(**tensors: Tensor | None) -> dict[str, Any]:
    """Frames and their strides, by the names the kernels use; channels must lie side by side."""
    arguments: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape[2] > 1 and tensor.stride(2) != 1:
            tensor = tensor.contiguous()
        arguments[name] = tensor
        arguments[f"{name}_batch"], arguments[f"{name}_time"] = tensor.stride()[:2] if tensor is not None else (0, 0)
    return arguments


def _step(inputs: ScanInputs) -> dict[str, Any]:
    """How the kernels that walk over frames make a step size, and which way they go."""
    return {"dt_bias": _contiguous(inputs.dt_bias), "SOFTPLUS": inputs.dt_softplus, "REVERSE": inputs.reverse}


def _power_of_two(size: int) -> int:
    """The power of two at or above a size."""
    return 1 << max(size - 1, 0).bit_length()
