"""Causal depthwise convolution over time, of any width and in either direction, with lengths and carried state."""

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mambavox.errors import ConfigError
from mambavox.lengths import check_rows
from mambavox.ops import conv_cpu, native
from mambavox.ops.checks import check_tensors
from mambavox.ops.conv_torch import causal_conv1d_torch
from mambavox.ops.torch_operator import Operator


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    initial_state: Tensor | None = ...,
    return_final_state: Literal[False] = ...,
    lengths: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    reverse: bool = ...,
    activation: Literal["silu"] | None = ...,
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    initial_state: Tensor | None = ...,
    *,
    return_final_state: Literal[True],
    lengths: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    reverse: bool = ...,
    activation: Literal["silu"] | None = ...,
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    activation: Literal["silu"] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution in which frame ``t`` sees frames ``t - width + 1 .. t`` (with ``reverse``: those after it).

    Args:
        x: ``(batch, time, d_inner)`` input.
        weight: ``(d_inner, width)`` taps, the last one on the current frame; any width from 1.
        bias: ``(d_inner,)``.
        initial_state: ``(rows, d_inner, width - 1)`` inputs before the first frame of each row (``batch``) or each
            packed sequence, oldest first; zero where not given.
        return_final_state: also return the last ``width - 1`` valid inputs of each row, for the next call.
        lengths: ``(batch,)`` valid frames of each row; beyond them the output is zero and no input is read.
        cu_seqlens: ``(sequences + 1,)`` boundaries of sequences that lie end to end in a batch of one row.
        reverse: go through each row from its own last valid frame to its first: an anticausal convolution.
        activation: ``"silu"`` is applied to the output.

    Returns:
        ``(batch, time, d_inner)``; with ``return_final_state`` also the state ``(rows, d_inner, width - 1)`` in the
        dtype of ``x``.

    Raises:
        ConfigError: shapes, dtypes, lengths or boundaries that do not fit, or an unknown activation.
    """
    if x.dim() != 3:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, time, d_inner)")
    lengths, cu_seqlens = check_rows(x, lengths, cu_seqlens)
    _check(x, weight, bias, initial_state, cu_seqlens, activation)
    arguments = (x, weight, bias, initial_state, lengths, cu_seqlens, reverse, activation == "silu")
    if x.device.type == "cpu" and x.dtype in native.DTYPES and weight.dtype in native.DTYPES and _native():
        operator = torch.ops.mambavox.causal_conv1d if torch.compiler.is_compiling() else _CONV
        output, final_state = operator(*arguments)
    else:
        output, final_state = causal_conv1d_torch(*arguments)
    return (output, final_state) if return_final_state else output


@torch.compiler.assume_constant_result
def _native() -> bool:
    return native.why_not() is None


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str | None,
) -> None:
    batch, time, d_inner = x.shape
    if weight.dim() != 2 or weight.shape[0] != d_inner or weight.shape[1] < 1:
        raise ConfigError(f"weight has shape {tuple(weight.shape)}; expected (d_inner, width) = ({d_inner}, >= 1)")
    rows, width = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1, weight.shape[1]
    expected = (
        ("x", x, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("weight", weight, (d_inner, width), "(d_inner, width)"),
        ("bias", bias, (d_inner,), "(d_inner,)"),
        ("initial_state", initial_state, (rows, d_inner, width - 1), "(rows, d_inner, width - 1)"),
    )
    check_tensors(x.device, expected)
    if activation not in (None, "silu"):
        raise ConfigError(f"activation is {activation!r}; expected 'silu' or None")


# The operator of the native kernels.


def _backward(grad_y: Tensor, grad_final_state: Tensor | None, *arguments: Any) -> tuple[Tensor | None, ...]:
    *inputs, _ = arguments
    return conv_cpu.backward(grad_y, grad_final_state, *inputs)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    *_: bool,
) -> tuple[Tensor, Tensor]:
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    d_inner, width = weight.shape
    return x.new_empty(x.shape), x.new_empty((rows, width - 1, d_inner)).transpose(1, 2)


_CONV = Operator(
    "causal_conv1d",
    inputs=(
        "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? lengths, Tensor? cu_seqlens, "
        "bool reverse, bool silu"
    ),
    outputs="Tensor y, Tensor final_state",
    differentiable=(0, 1, 2, 3),
    forward=conv_cpu.forward,
    backward=_backward,
    fake=_fake,
    other_way="float64 tensors take torch's convolution, which differentiates any number of times",
)


@register_flop_formula(torch.ops.mambavox.causal_conv1d)
def _forward_flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x_shape) * weight_shape[1]


@register_flop_formula(torch.ops.mambavox.causal_conv1d_backward)
def _backward_flops(*shapes: Any, **__: Any) -> int:
    return 4 * math.prod(shapes[2]) * shapes[3][1]
