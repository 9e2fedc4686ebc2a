"""The signatures and the layout of mamba-ssm and causal-conv1d, for code that was written against them."""

import math
from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from mambavox.errors import ConfigError
from mambavox.ops.causal_conv1d import causal_conv1d
from mambavox.ops.checks import check_tensors
from mambavox.ops.selective_scan import selective_scan


@overload
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
) -> Tensor: ...


@overload
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    *,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``selective_scan`` behind the signature of ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn``.

    Runs on any device. Unlike there, the gradient of the last state is not dropped. ``B`` and ``C`` per frame are the
    fast form; a constant ``B`` or ``C`` takes ``d_state`` scans.

    Args:
        u: ``(batch, d_inner, time)`` input.
        delta: ``(batch, d_inner, time)`` step sizes, before bias and softplus.
        A: ``(d_inner, d_state)`` decay, real.
        B: ``(batch, d_state, time)``; ``(batch, groups, d_state, time)``, each group serving ``d_inner / groups``
            neighbouring channels; or ``(d_inner, d_state)``, the same at every frame.
        C: like ``B``; it need not have the same form.
        D: ``(d_inner,)`` skip connection.
        z: ``(batch, d_inner, time)`` gate.
        delta_bias: ``(d_inner,)`` added to ``delta``.
        delta_softplus: pass ``delta`` (with its bias) through softplus.
        return_last_state: also return the state after the last frame.

    Returns:
        ``(batch, d_inner, time)`` in the dtype of ``u``; with ``return_last_state`` also the state
        ``(batch, d_inner, d_state)`` in float32 (float64 for float64 inputs).

    Raises:
        ConfigError: a complex ``A``, or shapes or dtypes that do not fit; the message names the argument.

    Source:
        Gu and Dao 2023 (arXiv 2312.00752); state-spaces/mamba, selective_scan_interface.py, for the signature.
    """
    _check_scan(u, delta, A, B, C, D, z, delta_bias)
    x, dt = u.transpose(1, 2), delta.transpose(1, 2)
    gate = None if z is None else z.transpose(1, 2)
    constant = B.dim() == 2 or C.dim() == 2
    scan: Callable[..., tuple[Tensor, Tensor]] = _scan_each_state if constant else selective_scan
    groups = math.lcm(_groups(B), _groups(C))
    width = x.shape[2] // groups
    outputs, states = [], []
    for group in range(groups):
        channels = slice(group * width, (group + 1) * width)
        output, state = scan(
            x[..., channels],
            dt[..., channels],
            A[channels],
            _of_group(B, group, groups, channels),
            _of_group(C, group, groups, channels),
            D=None if D is None else D[channels],
            z=None if gate is None else gate[..., channels],
            dt_bias=None if delta_bias is None else delta_bias[channels],
            dt_softplus=delta_softplus,
            return_final_state=True,
        )
        outputs.append(output)
        states.append(state)
    y, last_state = (outputs[0], states[0]) if groups == 1 else (torch.cat(outputs, dim=2), torch.cat(states, dim=1))
    return (y.transpose(1, 2), last_state) if return_last_state else y.transpose(1, 2)


def _groups(matrix: Tensor) -> int:
    return matrix.shape[1] if matrix.dim() == 4 else 1


def _of_group(matrix: Tensor, group: int, groups: int, channels: slice) -> Tensor:
    """B or C of one group of channels: ``(batch, time, d_state)``, or ``(channels, d_state)`` where constant."""
    if matrix.dim() == 2:
        return matrix[channels]
    if matrix.dim() == 4:
        matrix = matrix[:, group * matrix.shape[1] // groups]
    return matrix.transpose(1, 2)


def _scan_each_state(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    return_final_state: Literal[True],
) -> tuple[Tensor, Tensor]:
    """``selective_scan`` in which B, C or both are ``(d_inner, d_state)``.

    The scan shares B and C among channels. A factor of each channel's own, constant in time, commutes with it: states
    are scanned one at a time without the constant matrices and multiplied by them afterwards.
    """
    compute_dtype = torch.promote_types(x.dtype, torch.float32)
    input_, B, C = x.to(compute_dtype), B.to(compute_dtype), C.to(compute_dtype)
    ones = input_.new_ones(*x.shape[:2], 1)
    output, states = torch.zeros_like(input_), []
    for n in range(A.shape[1]):
        y, state = selective_scan(
            input_,
            dt,
            A[:, n : n + 1],
            ones if B.dim() == 2 else B[..., n : n + 1],
            ones if C.dim() == 2 else C[..., n : n + 1],
            dt_bias=dt_bias,
            dt_softplus=dt_softplus,
            return_final_state=return_final_state,
        )
        if B.dim() == 2:
            y, state = y * B[:, n], state * B[:, n : n + 1]
        if C.dim() == 2:
            y = y * C[:, n]
        output = output + y
        states.append(state)
    if D is not None:
        output = output + D * input_
    if z is not None:
        output = output * F.silu(z.to(compute_dtype))
    return output.to(x.dtype), torch.cat(states, dim=2)


def _check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() != 3:
        raise ConfigError(f"u has shape {tuple(u.shape)}; expected (batch, d_inner, time)")
    batch, d_inner, time = u.shape
    if A.is_complex():
        raise ConfigError("A is complex; expected a real A of shape (d_inner, d_state), as Mamba models have")
    if A.dim() != 2 or A.shape[0] != d_inner:
        raise ConfigError(f"A has shape {tuple(A.shape)}; expected (d_inner, d_state) = ({d_inner}, d_state)")
    d_state = A.shape[1]
    for name, matrix in (("B", B), ("C", C)):
        forms: list[tuple[int, ...]] = [(batch, d_state, time), (d_inner, d_state)]
        if matrix.dim() == 4 and matrix.shape[1] > 0 and d_inner % matrix.shape[1] == 0:
            forms.append((batch, matrix.shape[1], d_state, time))
        if tuple(matrix.shape) not in forms:
            raise ConfigError(
                f"{name} has shape {tuple(matrix.shape)}; expected (batch, d_state, time) = "
                f"{(batch, d_state, time)}, (batch, groups, d_state, time) with groups dividing d_inner = {d_inner}, "
                f"or (d_inner, d_state) = {(d_inner, d_state)}"
            )
    expected = (
        ("u", u, (batch, d_inner, time), "(batch, d_inner, time)"),
        ("delta", delta, (batch, d_inner, time), "(batch, d_inner, time)"),
        ("D", D, (d_inner,), "(d_inner,)"),
        ("z", z, (batch, d_inner, time), "(batch, d_inner, time)"),
        ("delta_bias", delta_bias, (d_inner,), "(d_inner,)"),
    )
    check_tensors(u.device, expected)


@overload
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    return_final_states: Literal[False] = ...,
    final_states_out: Tensor | None = ...,
    activation: str | None = ...,
) -> Tensor: ...


@overload
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    *,
    return_final_states: Literal[True],
    final_states_out: Tensor | None = ...,
    activation: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``causal_conv1d`` behind the signature of ``causal_conv1d.causal_conv1d_fn``.

    Runs on any device, with any width and any memory layout of ``x``.

    Args:
        x: ``(batch, d_inner, time)`` input.
        weight: ``(d_inner, width)`` taps, the last one on the current frame.
        bias: ``(d_inner,)``.
        seq_idx: ``(batch, time)`` integer; neighbouring frames with the same number are one sequence, and no sequence
            sees another. Outputs where it is negative (padding) are zero. Goes with neither initial nor final states.
        initial_states: ``(batch, d_inner, width - 1)`` inputs before the first frame, oldest first.
        return_final_states: also return the last ``width - 1`` inputs of each row.
        final_states_out: ``(batch, d_inner, width - 1)`` where they are written and what is then returned; left alone
            without ``return_final_states``.
        activation: ``None``, ``"silu"`` or ``"swish"`` (the same).

    Returns:
        ``(batch, d_inner, time)``; with ``return_final_states`` also the states ``(batch, d_inner, width - 1)``.

    Raises:
        ConfigError: an unknown activation, ``seq_idx`` with states, or shapes that do not fit each other.

    Source:
        Dao-AILab/causal-conv1d, causal_conv1d_interface.py, for the signature.
    """
    if activation not in (None, "silu", "swish"):
        raise ConfigError(f"activation is {activation!r}; expected None, 'silu' or 'swish'")
    if x.dim() != 3:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, d_inner, time)")
    fused: Literal["silu"] | None = None if activation is None else "silu"
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ConfigError("seq_idx goes with neither initial_states nor return_final_states; leave one of them out")
        return _convolve_packed(x, weight, bias, seq_idx, fused)
    frames = x.transpose(1, 2)
    if not return_final_states:
        return causal_conv1d(frames, weight, bias, initial_states, activation=fused).transpose(1, 2)
    output, final_states = causal_conv1d(
        frames, weight, bias, initial_states, return_final_state=True, activation=fused
    )
    if final_states_out is not None:
        if final_states_out.shape != final_states.shape:
            raise ConfigError(
                f"final_states_out has shape {tuple(final_states_out.shape)}; "
                f"expected (batch, d_inner, width - 1) = {tuple(final_states.shape)}"
            )
        final_states = final_states_out.copy_(final_states)
    return output.transpose(1, 2), final_states


def _convolve_packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, activation: Literal["silu"] | None
) -> Tensor:
    batch, d_inner, time = x.shape
    if seq_idx.shape != (batch, time) or seq_idx.is_floating_point():
        raise ConfigError(
            f"seq_idx is {seq_idx.dtype} of shape {tuple(seq_idx.shape)}; "
            f"expected integers of shape (batch, time) = {(batch, time)}"
        )
    starts = torch.ones_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    cu_seqlens = F.pad(starts.flatten().nonzero().squeeze(1), (0, 1), value=batch * time)
    frames = x.transpose(1, 2).reshape(1, batch * time, d_inner)
    output = causal_conv1d(frames, weight, bias, cu_seqlens=cu_seqlens, activation=activation)
    output = output.reshape(batch, time, d_inner).transpose(1, 2)
    return output.masked_fill((seq_idx < 0)[:, None, :], 0.0)
