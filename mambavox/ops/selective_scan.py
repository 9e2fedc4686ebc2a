"""The public selective scan: checks shapes, chooses a backend; one operator to autograd and ``torch.compile``."""

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.jit._trace import is_tracing
from torch.utils.flop_counter import register_flop_formula

from mambavox.errors import ConfigError
from mambavox.lengths import check_rows
from mambavox.ops.backends import Implementation, choose, named
from mambavox.ops.checks import check_tensors
from mambavox.ops.scan_inputs import ScanInputs
from mambavox.ops.scan_reference import selective_scan_reference
from mambavox.ops.torch_operator import Operator


@overload
def selective_scan(
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
    return_final_state: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def selective_scan(
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
    *,
    return_final_state: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
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
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan (Mamba, "S6") over padded or packed batches, in either direction, with carried state.

    ``h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]`` and ``y[t] = (h[t] . C[t] + D x[t]) * silu(z[t])``;
    ``scan_reference.py`` is the definition in full. Frames at or beyond a row's length change neither its state nor
    its output, which is zero there. Gradients flow to every tensor, ``initial_state`` included, and back through
    the final state. The tensors may have different dtypes and any strides; the state is float32 (float64 where ``x``
    is), also under autocast.

    Args:
        x: ``(batch, time, d_inner)`` input.
        dt: ``(batch, time, d_inner)`` step sizes, before bias and softplus.
        A: ``(d_inner, d_state)`` continuous-time decay, negative in practice.
        B: ``(batch, time, d_state)`` input matrix of each frame.
        C: ``(batch, time, d_state)`` output matrix of each frame.
        D: ``(d_inner,)`` skip connection.
        z: ``(batch, time, d_inner)`` gate; the output is multiplied by ``silu(z)``.
        dt_bias: ``(d_inner,)`` added to ``dt``.
        dt_softplus: pass ``dt`` (with its bias) through softplus.
        initial_state: ``(rows, d_inner, d_state)`` state before the first frame, of each row (``batch``) or each packed
            sequence; zero where not given.
        lengths: ``(batch,)`` valid frames of each row; all of them where not given.
        cu_seqlens: ``(sequences + 1,)`` boundaries of sequences that lie end to end in a batch of one row; the results
            are those of each sequence alone.
        reverse: go through each row from its own last valid frame to its first; the final state is the one after
            frame 0.
        return_final_state: also return the state after each row's last valid frame.
        backend: a name of ``mambavox.ops.backend_report()``; the fastest that can run where not given.

    Returns:
        ``(batch, time, d_inner)`` in the dtype of ``x``; with ``return_final_state`` also the state
        ``(rows, d_inner, d_state)`` in float32 (float64 for float64 inputs).

    Raises:
        ConfigError: shapes, dtypes, lengths or boundaries that do not fit; the message names the argument.
        BackendError: the backend asked for does not exist or cannot run on the tensors' device.

    Source:
        Gu and Dao 2023 (arXiv 2312.00752).
    """
    if x.dim() != 3:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, time, d_inner)")
    lengths, cu_seqlens = check_rows(x, lengths, cu_seqlens)
    inputs = ScanInputs(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, lengths, cu_seqlens, reverse)
    _check(inputs)
    float64 = torch.float64 in (x.dtype, dt.dtype, B.dtype, C.dtype, None if z is None else z.dtype)
    chosen = choose(x.device.type, float64, backend)
    if chosen == "reference":
        if is_tracing():
            raise ConfigError(
                "backend='reference' cannot be traced: it is a loop over this input's frames; leave backend=None"
            )
        output, final_state = selective_scan_reference(*inputs)
    else:
        operator = torch.ops.mambavox.selective_scan if torch.compiler.is_compiling() else _SCAN
        output, final_state, _ = operator(*inputs, _training(inputs), chosen)
    return (output, final_state) if return_final_state else output


def _training(inputs: ScanInputs) -> bool:
    if is_tracing():
        return True  # a constant of the trace, which may be trained later
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(value, Tensor) and value.requires_grad for value in inputs)


def _check(inputs: ScanInputs) -> None:
    x, dt, A, B, C, D, z, dt_bias, _, initial_state, *_ = inputs
    if A.dim() != 2:
        raise ConfigError(f"A has shape {tuple(A.shape)}; expected (d_inner, d_state)")
    batch, time, d_inner = x.shape
    d_state = A.shape[1]
    expected = (
        ("x", x, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("dt", dt, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("A", A, (d_inner, d_state), "(d_inner, d_state)"),
        ("B", B, (batch, time, d_state), "(batch, time, d_state)"),
        ("C", C, (batch, time, d_state), "(batch, time, d_state)"),
        ("D", D, (d_inner,), "(d_inner,)"),
        ("z", z, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("dt_bias", dt_bias, (d_inner,), "(d_inner,)"),
        ("initial_state", initial_state, (inputs.sequences, d_inner, d_state), "(rows, d_inner, d_state)"),
    )
    check_tensors(x.device, expected)


# The operator. Whatever the backend, torch sees one opaque call.


def _implementation(backend: str) -> Implementation:
    implementation = named(backend).implementation
    assert implementation is not None
    return implementation


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, training, backend = arguments
    return _implementation(backend).forward(ScanInputs(*inputs), training)


def _backward(grad_y: Tensor, grad_final_state: Tensor | None, *arguments: Any) -> tuple[Tensor | None, ...]:
    *inputs, training, backend, kept = arguments
    if not training:
        raise RuntimeError(
            "selective_scan kept nothing for its backward pass, since nothing required a gradient when the graph was "
            "made; export or compile it with gradients"
        )
    return _implementation(backend).backward(grad_y, grad_final_state, ScanInputs(*inputs), *kept)


def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *values, training, backend = arguments
    inputs = ScanInputs(*values)
    x, rows, d_state = inputs.x, inputs.sequences, inputs.A.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = _implementation(backend).checkpoint_shape(x.shape, d_state, rows) if training else (0,)
    return (
        x.new_empty(x.shape),
        x.new_empty((rows, *inputs.A.shape), dtype=dtype),
        x.new_empty(shape, dtype=dtype),
    )


_SCAN = Operator(
    "selective_scan",
    inputs=(
        "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, bool dt_softplus, "
        "Tensor? initial_state, Tensor? lengths, Tensor? cu_seqlens, bool reverse, bool training, str backend"
    ),
    outputs="Tensor y, Tensor final_state, Tensor checkpoints",
    differentiable=(0, 1, 2, 3, 4, 5, 6, 7, 9),
    forward=_forward,
    backward=_backward,
    fake=_fake,
    other_way="backend='reference' differentiates any number of times",
)


def _count(x: torch.Size, d_state: int, per_state: int, per_channel: int) -> int:
    return math.prod(x) * (per_state * d_state + per_channel)


# For torch.utils.flop_counter. A frame of a channel: for each state dt A, its exponential, u B, two for the update and
# two for the output; dt x and D x besides. Backward: states again (6), then fourteen for the six gradients.


@register_flop_formula(torch.ops.mambavox.selective_scan)
def _forward_flops(x_shape: torch.Size, dt_shape: torch.Size, A_shape: torch.Size, *_: Any, **__: Any) -> int:
    return _count(x_shape, A_shape[1], per_state=7, per_channel=3)


@register_flop_formula(torch.ops.mambavox.selective_scan_backward)
def _backward_flops(*shapes: Any, **__: Any) -> int:
    return _count(shapes[2], shapes[4][1], per_state=20, per_channel=8)
