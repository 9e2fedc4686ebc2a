"""Causal depthwise convolution over time, of any width and in either direction, with lengths and carried state."""

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mambavox.errors import ConfigError
from mambavox.lengths import check_cu_seqlens, check_lengths
from mambavox.ops import conv_cpu, native
from mambavox.ops.checks import check_tensors
from mambavox.ops.conv_torch import causal_conv1d_torch


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
    _check(x, weight, bias, initial_state, cu_seqlens, activation)
    batch, time, _ = x.shape
    if lengths is not None:
        if cu_seqlens is not None:
            raise ConfigError(
                "lengths and cu_seqlens are both given; lengths are for padded, cu_seqlens for packed batches"
            )
        lengths = check_lengths(lengths, batch, time).to(x.device)
    if cu_seqlens is not None:
        cu_seqlens = check_cu_seqlens(cu_seqlens, batch, time).to(x.device)
    arguments = (x, weight, bias, initial_state, lengths, cu_seqlens, reverse, activation == "silu")
    if x.device.type == "cpu" and x.dtype in conv_cpu.DTYPES and weight.dtype in conv_cpu.DTYPES and _native():
        operator = torch.ops.mambavox.causal_conv1d if torch.compiler.is_compiling() else _CausalConv1d.apply
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
    if x.dim() != 3:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, time, d_inner)")
    batch, time, d_inner = x.shape
    if weight.dim() != 2 or weight.shape[0] != d_inner or weight.shape[1] < 1:
        raise ConfigError(f"weight has shape {tuple(weight.shape)}; expected (d_inner, width) = ({d_inner}, >= 1)")
    rows, width = batch if cu_seqlens is None else len(cu_seqlens) - 1, weight.shape[1]
    expected = (
        ("x", x, (batch, time, d_inner), "(batch, time, d_inner)"),
        ("weight", weight, (d_inner, width), "(d_inner, width)"),
        ("bias", bias, (d_inner,), "(d_inner,)"),
        ("initial_state", initial_state, (rows, d_inner, width - 1), "(rows, d_inner, width - 1)"),
    )
    check_tensors(x.device, expected)
    if activation not in (None, "silu"):
        raise ConfigError(f"activation is {activation!r}; expected 'silu' or None")


# The operators of the native kernels.

_INPUTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? lengths, Tensor? cu_seqlens, "
    "bool reverse, bool silu"
)
torch.library.define("mambavox::causal_conv1d", f"({_INPUTS}) -> (Tensor y, Tensor final_state)")
torch.library.define(
    "mambavox::causal_conv1d_backward", f"(Tensor grad_y, Tensor? grad_final_state, {_INPUTS}) -> Tensor[]"
)


@torch.library.impl("mambavox::causal_conv1d", "CPU")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return conv_cpu.forward(*arguments)


@torch.library.impl("mambavox::causal_conv1d_backward", "CPU")
def _backward(*arguments: Any) -> list[Tensor]:
    # An operator returns tensors only: an empty one stands for a tensor that was not given.
    gradients = conv_cpu.backward(*arguments)
    return [arguments[0].new_empty(0) if gradient is None else gradient for gradient in gradients]


@torch.library.register_fake("mambavox::causal_conv1d")
def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    d_inner, width = weight.shape
    return x.new_empty(x.shape), x.new_empty((rows, width - 1, d_inner)).transpose(1, 2)


@torch.library.register_fake("mambavox::causal_conv1d_backward")
def _backward_fake(
    grad_y: Tensor,
    grad_final_state: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    *_: Any,
) -> list[Tensor]:
    tensors = (x, weight, bias, initial_state)
    return [x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.given = [isinstance(value, Tensor) for value in inputs]
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]


def _autograd(ctx: Any, grad_y: Tensor | None, grad_final_state: Tensor | None) -> tuple[Tensor | None, ...]:
    following = iter(ctx.saved_tensors)
    inputs = [next(following) if given else other for given, other in zip(ctx.given, ctx.others, strict=True)]
    above = torch.zeros_like(inputs[0]) if grad_y is None else grad_y
    gradients = torch.ops.mambavox.causal_conv1d_backward(above, grad_final_state, *inputs)
    found = [gradient if given else None for gradient, given in zip(gradients, ctx.given, strict=False)]
    return (*found, None, None, None, None)


torch.library.register_autograd("mambavox::causal_conv1d", _autograd, setup_context=_setup_context)


class _CausalConv1d(torch.autograd.Function):
    """The operator outside ``torch.compile``; the autograd that torch makes for it takes 0.5 ms a call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = torch.ops.mambavox.causal_conv1d(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _autograd(ctx, *grads)


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError("causal_conv1d has no second derivative in its native kernels; float64 tensors take torch's")


torch.library.register_autograd("mambavox::causal_conv1d_backward", _no_second_derivative)


@register_flop_formula(torch.ops.mambavox.causal_conv1d)
def _forward_flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x_shape) * weight_shape[1]


@register_flop_formula(torch.ops.mambavox.causal_conv1d_backward)
def _backward_flops(*shapes: Any, **__: Any) -> int:
    return 4 * math.prod(shapes[2]) * shapes[3][1]
