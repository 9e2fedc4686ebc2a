"""The public selective scan: checks shapes, chooses a backend; one operator to autograd and ``torch.compile``."""

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mambavox.errors import ConfigError
from mambavox.lengths import check_cu_seqlens, check_lengths
from mambavox.ops.backends import choose, named
from mambavox.ops.checks import check_tensors
from mambavox.ops.scan_reference import selective_scan_reference


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
    batch, time = _check(x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    if lengths is not None:
        if cu_seqlens is not None:
            raise ConfigError(
                "lengths and cu_seqlens are both given; lengths are for padded, cu_seqlens for packed batches"
            )
        lengths = check_lengths(lengths, batch, time).to(x.device)
    if cu_seqlens is not None:
        cu_seqlens = check_cu_seqlens(cu_seqlens, batch, time).to(x.device)
    float64 = any(tensor is not None and tensor.dtype == torch.float64 for tensor in (x, dt, B, C, z))
    chosen = choose(x.device.type, float64, backend)
    if chosen == "reference":
        output, final_state = selective_scan_reference(
            x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, lengths, cu_seqlens, reverse
        )
    else:
        given = (x, dt, A, B, C, D, z, dt_bias, initial_state)
        training = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given)
        operator = torch.ops.mambavox.selective_scan if torch.compiler.is_compiling() else _SelectiveScan.apply
        output, final_state, _ = operator(
            x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, lengths, cu_seqlens, reverse, training, chosen
        )
    return (output, final_state) if return_final_state else output


def _check(
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
) -> tuple[int, int]:
    if x.dim() != 3:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, time, d_inner)")
    if A.dim() != 2:
        raise ConfigError(f"A has shape {tuple(A.shape)}; expected (d_inner, d_state)")
    batch, time, d_inner = x.shape
    d_state = A.shape[1]
    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    expected = (
        ("x", x, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("dt", dt, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("A", A, (d_inner, d_state), "(d_inner, d_state)"),
        ("B", B, (batch, time, d_state), "(batch, time, d_state)"),
        ("C", C, (batch, time, d_state), "(batch, time, d_state)"),
        ("D", D, (d_inner,), "(d_inner,)"),
        ("z", z, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("dt_bias", dt_bias, (d_inner,), "(d_inner,)"),
        ("initial_state", initial_state, (rows, d_inner, d_state), "(rows, d_inner, d_state)"),
    )
    check_tensors(x.device, expected)
    return batch, time


# The operators. Whatever the backend, torch sees one opaque call: it compiles, exports and counts it as such.

_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, bool dt_softplus, "
    "Tensor? initial_state, Tensor? lengths, Tensor? cu_seqlens, bool reverse"
)
torch.library.define(
    "mambavox::selective_scan",
    f"({_INPUTS}, bool training, str backend) -> (Tensor y, Tensor final_state, Tensor checkpoints)",
)
torch.library.define(
    "mambavox::selective_scan_backward",
    f"(Tensor grad_y, Tensor grad_final_state, {_INPUTS}, Tensor checkpoints, str backend) -> Tensor[]",
)


@torch.library.impl("mambavox::selective_scan", "default")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    implementation = named(arguments[-1]).implementation
    assert implementation is not None
    return implementation.forward(*arguments[:-1])


@torch.library.impl("mambavox::selective_scan_backward", "default")
def _backward(*arguments: Any) -> list[Tensor]:
    implementation = named(arguments[-1]).implementation
    assert implementation is not None
    gradients = implementation.backward(*arguments[:-1])
    # An operator returns tensors only: an empty one stands for a tensor that was not given.
    return [arguments[0].new_empty(0) if gradient is None else gradient for gradient in gradients]


@torch.library.register_fake("mambavox::selective_scan")
def _forward_fake(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    implementation = named(backend).implementation
    assert implementation is not None
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = implementation.checkpoint_shape(x.shape, A.shape[1], rows) if training else (0,)
    return (
        x.new_empty(x.shape),
        x.new_empty((rows, *A.shape), dtype=dtype),
        x.new_empty(shape, dtype=dtype),
    )


@torch.library.register_fake("mambavox::selective_scan_backward")
def _backward_fake(
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
    *_: Any,
) -> list[Tensor]:
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return [x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors]


# Positions of the tensors that have gradients among the operator's inputs.
_DIFFERENTIABLE = (0, 1, 2, 3, 4, 5, 6, 7, 9)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, final_state, checkpoints = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(checkpoints)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors, checkpoints)
    ctx.given = [isinstance(value, Tensor) for value in inputs]
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.state = final_state.shape, final_state.dtype


def _autograd(ctx: Any, grad_y: Tensor | None, grad_final_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    following = iter(tensors)
    inputs = [next(following) if given else other for given, other in zip(ctx.given, ctx.others, strict=True)]
    x = inputs[0]
    shape, dtype = ctx.state
    gradients = torch.ops.mambavox.selective_scan_backward(
        torch.zeros_like(x) if grad_y is None else grad_y,
        x.new_zeros(shape, dtype=dtype) if grad_final_state is None else grad_final_state,
        *inputs[:-2],
        checkpoints,
        inputs[-1],
    )
    result: list[Tensor | None] = [None] * len(inputs)
    for position, gradient in zip(_DIFFERENTIABLE, gradients, strict=True):
        if ctx.given[position]:
            result[position] = gradient
    return tuple(result)


torch.library.register_autograd("mambavox::selective_scan", _autograd, setup_context=_setup_context)


class _SelectiveScan(torch.autograd.Function):
    """The operator outside ``torch.compile``; the autograd that torch makes for it takes 0.5 ms a call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.ops.mambavox.selective_scan(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _autograd(ctx, *grads)


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "selective_scan has no second derivative in its fast backends; "
        "backend='reference' differentiates any number of times"
    )


torch.library.register_autograd("mambavox::selective_scan_backward", _no_second_derivative)


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
