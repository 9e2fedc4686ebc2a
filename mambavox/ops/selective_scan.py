"""The public selective scan: checks shapes, chooses a backend."""

from typing import Literal, overload

import torch
from torch import Tensor

from mambavox.errors import ConfigError
from mambavox.lengths import check_lengths
from mambavox.ops.backends import backend_for


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
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan (Mamba, "S6") over padded batches, with carried state.

    ``h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]`` and ``y[t] = (h[t] . C[t] + D x[t]) * silu(z[t])``;
    ``scan_reference.py`` is the definition in full. Frames at or beyond a row's length change neither its state nor
    its output, which is zero there. Gradients flow to every tensor, ``initial_state`` included, and back through
    the final state.

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
        initial_state: ``(batch, d_inner, d_state)`` state before the first frame; zero where not given.
        lengths: ``(batch,)`` valid frames of each row; all of them where not given.
        return_final_state: also return the state after each row's last valid frame.
        backend: a name of ``mambavox.ops.backend_report()``; the fastest that can run where not given.

    Returns:
        ``(batch, time, d_inner)`` in the dtype of ``x``; with ``return_final_state`` also the state
        ``(batch, d_inner, d_state)`` in float32 (float64 for float64 inputs).

    Raises:
        ConfigError: shapes or lengths that do not fit each other; the message names the argument.
        BackendError: the backend asked for does not exist or cannot run on the tensors' device.

    Source:
        Gu and Dao 2023 (arXiv 2312.00752).
    """
    _check_shapes(x, dt, A, B, C, D, z, dt_bias, initial_state)
    if lengths is not None:
        lengths = check_lengths(lengths, x.shape[0], x.shape[1]).to(x.device)
    chosen = backend_for(x.device, backend)
    output, final_state = chosen.scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, lengths)
    return (output, final_state) if return_final_state else output


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
) -> None:
    if x.dim() != 3:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (batch, time, d_inner)")
    if A.dim() != 2:
        raise ConfigError(f"A has shape {tuple(A.shape)}; expected (d_inner, d_state)")
    batch, time, d_inner = x.shape
    d_state = A.shape[1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...], str]] = {
        "dt": (dt, (batch, time, d_inner), "(batch, time, d_inner)"),
        "A": (A, (d_inner, d_state), "(d_inner, d_state)"),
        "B": (B, (batch, time, d_state), "(batch, time, d_state)"),
        "C": (C, (batch, time, d_state), "(batch, time, d_state)"),
        "D": (D, (d_inner,), "(d_inner,)"),
        "z": (z, (batch, time, d_inner), "(batch, time, d_inner)"),
        "dt_bias": (dt_bias, (d_inner,), "(d_inner,)"),
        "initial_state": (initial_state, (batch, d_inner, d_state), "(batch, d_inner, d_state)"),
    }
    for name, (tensor, shape, words) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ConfigError(f"{name} has shape {tuple(tensor.shape)}; expected {words} = {shape}")
        if not torch.is_floating_point(tensor):
            raise ConfigError(f"{name} has dtype {tensor.dtype}; expected a real floating-point tensor")
        if tensor.device != x.device:
            raise ConfigError(f"{name} is on {tensor.device} and x on {x.device}; move them to one device")
