"""Other libraries' ways to the same results, each called as its own model calls it."""

import inspect
from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor


def missing(module: str, name: str, hint: str) -> str | None:
    """Reason why a peer's function cannot be had, or ``None`` where it can.

    Args:
        module: where it lives.
        name: of the function.
        hint: how to get it.
    """
    try:
        getattr(import_module(module), name)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"{module}.{name} cannot be imported ({str(error).splitlines()[0]}); {hint}"
    return None


def _torch_form(module: str, name: str) -> Callable[..., Tensor]:
    """A function of transformers itself, not the compiled kernel that it takes in its place where one is installed."""
    return inspect.unwrap(getattr(import_module(module), name))


def mambapy_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan around ``mambapy.pscan``, ``(batch, time, d_inner)``.

    Source:
        mambapy 1.2.0, ``MambaBlock.ssm`` and ``MambaBlock.selective_scan``: the same arithmetic in the same order.
    """
    from mambapy.pscan import pscan

    dt = F.softplus(dt)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    update = dt.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1)
    return (pscan(decay, update) @ C.unsqueeze(-1)).squeeze(3) + D * x


def associative_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan by torch's generic associative scan, eager, ``(batch, time, d_inner)``."""
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    dt = F.softplus(dt)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    update = (dt * x).unsqueeze(-1) * B.unsqueeze(2)
    _, states = scan(combine, (decay, update), dim=1, combine_mode="generic")
    return (states @ C.unsqueeze(-1)).squeeze(-1) + D * x


def transformers_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The loop over time of transformers' Mamba, channels first: ``x, dt (batch, d_inner, time)``."""
    scan = _torch_form("transformers.models.mamba.modeling_mamba", "mamba_selective_scan")
    return scan(x, dt, A, B, C, D=D, delta_softplus=True)


def mamba_ssm_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mamba-ssm's CUDA kernel, channels first: ``x, dt (batch, d_inner, time)``."""
    module = import_module("mamba_ssm.ops.selective_scan_interface")
    return module.selective_scan_fn(x, dt, A, B, C, D=D, delta_softplus=True)


def transformers_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of transformers' Mamba in torch operations, ``(batch, d_inner, time)``."""
    convolve = _torch_form("transformers.models.mamba.modeling_mamba", "causal_conv1d_fn")
    return convolve(x, weight, bias, activation="silu")


def causal_conv1d_package(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The CUDA kernel of the package causal-conv1d, ``(batch, d_inner, time)``."""
    return import_module("causal_conv1d").causal_conv1d_fn(x, weight, bias, activation="silu")


def transformers_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The chunked scan of transformers' Mamba-2 in torch operations, at the chunk of its configuration."""
    scan = _torch_form("transformers.models.mamba2.modeling_mamba2", "mamba2_chunk_scan")
    return scan(x, dt, A, B, C, chunk_size=256, D=D, dt_softplus=True)


def mamba_ssm_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mamba-ssm's Triton kernels of Mamba-2, at the chunk of its block."""
    module = import_module("mamba_ssm.ops.triton.ssd_combined")
    return module.mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=256, D=D, dt_softplus=True)
