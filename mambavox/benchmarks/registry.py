"""What is compared: operations, their shapes, and the candidates for each."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mambavox.benchmarks import peers
from mambavox.ops import (
    causal_conv1d,
    native,
    selective_scan,
    selective_scan_reference,
    ssd_scan,
    ssd_scan_reference,
)
from mambavox.ops.backends import BACKENDS, Backend
from mambavox.ops.conv_torch import causal_conv1d_torch

Sizes = Mapping[str, int]
Pass = Literal["forward", "both"]
PASSES: Mapping[Pass, str] = {"forward": "forward", "both": "forward + backward"}

# What a processor does in some ten seconds; the GPUs that one would compare on do some thirty times as much.
_GPU = 30
_MOST_STEPS_BACK = 4e9
_MOST_STATES_BACK = 2e8


@dataclass(frozen=True)
class Candidate:
    """One way to an operation's result.

    Attributes:
        name: in the tables.
        run: takes the operation's tensors by name and returns its output.
        ours: whether it is a part of this package; then a failure of it ends the benchmark.
        channels_first: it takes, and returns, frames as ``(batch, d_inner, time)``.
        why_not: reason why it cannot run on a device, or ``None``.
        too_long: reason why a pass at some sizes on a device is not run, or ``None``.
    """

    name: str
    run: Callable[..., Tensor]
    ours: bool = False
    channels_first: bool = False
    why_not: Callable[[torch.device], str | None] = lambda device: None
    too_long: Callable[[Sizes, Pass, torch.device], str | None] = lambda sizes, direction, device: None


@dataclass(frozen=True)
class Operation:
    """An operation and all that its benchmark needs.

    Attributes:
        name: in the tables.
        shapes: sizes of the timed shapes by name.
        small: sizes at which every candidate is compared with the definition.
        draw: float32 inputs of some sizes from a generator, by name; ``x`` has the shape of the output.
        frames: names of the inputs that run over time.
        float32: names of the inputs that stay float32 in half precision, as in models.
        definition: the output in float64, at the small sizes.
        exact: the output in float64, at the timed sizes.
        candidates: ours first, fastest first.
        work: vector operations of a pass at some sizes, every lane counted; a multiply-add is one.
        streams: how often a pass moves a tensor of the size of ``x`` between memory and processor, at least.
    """

    name: str
    shapes: Mapping[str, Sizes]
    small: Sizes
    draw: Callable[[Sizes, torch.Generator], dict[str, Tensor]]
    frames: tuple[str, ...]
    float32: tuple[str, ...]
    definition: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    candidates: tuple[Candidate, ...]
    work: Callable[[Sizes, Pass], float]
    streams: Mapping[Pass, int]


@dataclass(frozen=True)
class Problem:
    """Inputs of an operation and the gradient of its output.

    Attributes:
        tensors: leaves by name, all with gradients.
        grad_output: of the output's shape and dtype.
    """

    tensors: dict[str, Tensor]
    grad_output: Tensor


def make_problem(operation: Operation, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    """Draw the inputs of an operation, the same at each call.

    Args:
        operation: of ``OPERATIONS``.
        sizes: of the inputs.
        device: where they go.
        dtype: of those that are not kept in float32.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = operation.draw(sizes, generator)
    grad_output = torch.randn(drawn["x"].shape, generator=generator).to(device, dtype)
    tensors = {
        name: tensor.to(device, torch.float32 if name in operation.float32 else dtype).requires_grad_()
        for name, tensor in drawn.items()
    }
    return Problem(tensors, grad_output)


def _scan_shape(batch: int, d_inner: int, d_state: int, time: int) -> Sizes:
    return {"batch": batch, "d_inner": d_inner, "d_state": d_state, "time": time}


def _conv_shape(batch: int, d_inner: int, width: int, time: int) -> Sizes:
    return {"batch": batch, "d_inner": d_inner, "width": width, "time": time}


def _ssd_shape(batch: int, heads: int, head_dim: int, d_state: int, time: int) -> Sizes:
    return {"batch": batch, "heads": heads, "head_dim": head_dim, "d_state": d_state, "time": time}


def _step_sizes(*shape: int, generator: torch.Generator) -> Tensor:
    """What softplus turns into step sizes between 0.001 and 0.1, a Mamba's at initialisation."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(low + (high - low) * torch.rand(*shape, generator=generator))
    return torch.log(torch.expm1(dt))


def _draw_scan(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    batch, d_inner, d_state, time = (sizes[key] for key in ("batch", "d_inner", "d_state", "time"))
    return {
        "x": torch.randn(batch, time, d_inner, generator=generator),
        "dt": _step_sizes(batch, time, d_inner, generator=generator),
        "A": -torch.arange(1.0, d_state + 1).repeat(d_inner, 1),
        "B": torch.randn(batch, time, d_state, generator=generator),
        "C": torch.randn(batch, time, d_state, generator=generator),
        "D": torch.ones(d_inner),
    }


def _draw_conv(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    batch, d_inner, width, time = (sizes[key] for key in ("batch", "d_inner", "width", "time"))
    return {
        "x": torch.randn(batch, time, d_inner, generator=generator),
        "weight": torch.randn(d_inner, width, generator=generator) / math.sqrt(width),
        "bias": torch.randn(d_inner, generator=generator),
    }


def _draw_ssd(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    batch, heads, head_dim = sizes["batch"], sizes["heads"], sizes["head_dim"]
    d_state, time = sizes["d_state"], sizes["time"]
    return {
        "x": torch.randn(batch, time, heads, head_dim, generator=generator),
        "dt": _step_sizes(batch, time, heads, generator=generator),
        "A": -1 - 15 * torch.rand(heads, generator=generator),
        "B": torch.randn(batch, time, 1, d_state, generator=generator),
        "C": torch.randn(batch, time, 1, d_state, generator=generator),
        "D": torch.ones(heads),
    }


def _definition_of_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return selective_scan_reference(x, dt, A, B, C, D, dt_softplus=True)[0]


def _definition_of_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return causal_conv1d_torch(x, weight, bias, None, None, None, False, True)[0]


def _definition_of_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return ssd_scan_reference(x, dt, A, B, C, D, dt_softplus=True)[0]


def _loop_too_long(per_frame: Callable[[Sizes], int]) -> Callable[[Sizes, Pass, torch.device], str | None]:
    """For a loop that indexes tensors of ``per_frame`` elements a frame: each index costs a whole tensor backward."""

    def too_long(sizes: Sizes, direction: Pass, device: torch.device) -> str | None:
        most = _MOST_STEPS_BACK * (_GPU if device.type == "cuda" else 1)
        if direction == "forward" or per_frame(sizes) * sizes["time"] ** 2 <= most:
            return None
        return "its backward pass grows with the square of the time and would run for minutes"

    return too_long


def _states_too_many(sizes: Sizes, direction: Pass, device: torch.device) -> str | None:
    states = math.prod(sizes.values())
    if direction == "forward" or states <= _MOST_STATES_BACK * (_GPU if device.type == "cuda" else 1):
        return None
    return f"keeps all states of all frames, {states * 4 / 2**30:.1f} GiB a tensor, and would run for minutes"


def _frame_states(sizes: Sizes) -> int:
    return math.prod(size for key, size in sizes.items() if key != "time")


def _frame_channels(sizes: Sizes) -> int:
    return math.prod(size for key, size in sizes.items() if key not in ("time", "d_state", "width"))


def stream_elements(sizes: Sizes) -> int:
    """Elements of a tensor of the size of ``x``."""
    return _frame_channels(sizes) * sizes["time"]


def _cuda_only(module: str, name: str, hint: str) -> Callable[[torch.device], str | None]:
    return lambda device: (
        f"runs on cuda, not on {device.type}" if device.type != "cuda" else peers.missing(module, name, hint)
    )


def _installed(module: str, name: str, hint: str) -> Callable[[torch.device], str | None]:
    return lambda device: peers.missing(module, name, hint)


def _scan_backend(backend: Backend) -> Candidate:
    return Candidate(
        f"mambavox {backend.name}",
        functools.partial(selective_scan, dt_softplus=True, backend=backend.name),
        ours=True,
        why_not=backend.why_not,
    )


_NEWER_TRANSFORMERS = "pip install --upgrade transformers"
_BUILT_MAMBA = "build mamba-ssm with MAMBA_KEEP_CUDA_BUILD=TRUE"

_SCAN = Operation(
    "selective_scan",
    shapes={
        "S1-500": _scan_shape(8, 64, 16, 500),
        "S1-1500": _scan_shape(8, 64, 16, 1500),
        "S2-500": _scan_shape(2, 1536, 16, 500),
        "S2-3000": _scan_shape(2, 1536, 16, 3000),
        "S3": _scan_shape(1, 1536, 16, 15000),
    },
    small=_scan_shape(2, 24, 16, 200),
    draw=_draw_scan,
    frames=("x", "dt", "B", "C"),
    float32=("A", "D"),
    definition=_definition_of_scan,
    exact=functools.partial(selective_scan, dt_softplus=True, backend="torch"),
    candidates=(
        *(_scan_backend(backend) for backend in BACKENDS if backend.name != "reference"),
        Candidate(
            "mambapy",
            peers.mambapy_scan,
            why_not=_installed("mambapy.pscan", "pscan", "pip install mambapy"),
            too_long=_states_too_many,
        ),
        Candidate(
            "transformers",
            peers.transformers_scan,
            channels_first=True,
            why_not=_installed("transformers.models.mamba.modeling_mamba", "mamba_selective_scan", _NEWER_TRANSFORMERS),
            too_long=_loop_too_long(_frame_states),
        ),
        Candidate(
            "associative_scan",
            peers.associative_scan,
            why_not=_installed(
                "torch._higher_order_ops.associative_scan", "associative_scan", "pip install --upgrade torch"
            ),
            too_long=_states_too_many,
        ),
        Candidate(
            "mamba-ssm",
            peers.mamba_ssm_scan,
            channels_first=True,
            why_not=_cuda_only("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", _BUILT_MAMBA),
        ),
        Candidate("definition", _definition_of_scan, too_long=_loop_too_long(_frame_channels)),
    ),
    # Forward, of a vector of states: dt A, nine for its exponential, u B, one for the state, one for the output.
    # Backward: all but the output again and two more, then seven in reverse.
    work=lambda sizes, direction: math.prod(sizes.values()) * {"forward": 13, "both": 34}[direction],
    streams={"forward": 4, "both": 13},
)

_CONV = Operation(
    "causal_conv1d",
    shapes={
        "S1-500-w4": _conv_shape(8, 64, 4, 500),
        "S1-500-w24": _conv_shape(8, 64, 24, 500),
        "S2-500-w4": _conv_shape(2, 1536, 4, 500),
        "S2-500-w24": _conv_shape(2, 1536, 24, 500),
        "S2-3000-w4": _conv_shape(2, 1536, 4, 3000),
        "S2-3000-w24": _conv_shape(2, 1536, 24, 3000),
    },
    small=_conv_shape(2, 24, 5, 100),
    draw=_draw_conv,
    frames=("x",),
    float32=(),
    definition=_definition_of_conv,
    exact=_definition_of_conv,
    candidates=(
        Candidate(
            "mambavox cpu",
            functools.partial(causal_conv1d, activation="silu"),
            ours=True,
            why_not=lambda device: f"runs on cpu, not on {device.type}" if device.type != "cpu" else native.why_not(),
        ),
        Candidate("mambavox torch", _definition_of_conv, ours=True),
        Candidate(
            "transformers",
            peers.transformers_conv,
            channels_first=True,
            why_not=_installed("transformers.models.mamba.modeling_mamba", "causal_conv1d_fn", _NEWER_TRANSFORMERS),
        ),
        Candidate(
            "causal-conv1d",
            peers.causal_conv1d_package,
            channels_first=True,
            why_not=_cuda_only("causal_conv1d", "causal_conv1d_fn", "pip install causal-conv1d"),
        ),
    ),
    # A multiply-add a tap; backward one for the input's gradient and one for the tap's. SiLU is not counted.
    work=lambda sizes, direction: math.prod(sizes.values()) * {"forward": 1, "both": 3}[direction],
    streams={"forward": 2, "both": 5},
)

_SSD = Operation(
    "ssd_scan",
    shapes={
        "M1-500": _ssd_shape(8, 1, 64, 16, 500),
        "M1-1500": _ssd_shape(8, 1, 64, 16, 1500),
        "M2-500": _ssd_shape(2, 24, 64, 128, 500),
        "M2-3000": _ssd_shape(2, 24, 64, 128, 3000),
    },
    small=_ssd_shape(2, 4, 8, 16, 200),
    draw=_draw_ssd,
    frames=("x", "dt", "B", "C"),
    float32=("A", "D"),
    definition=_definition_of_ssd,
    exact=functools.partial(ssd_scan, dt_softplus=True),
    candidates=(
        Candidate("mambavox torch", functools.partial(ssd_scan, dt_softplus=True), ours=True),
        Candidate(
            "transformers",
            peers.transformers_ssd,
            why_not=_installed("transformers.models.mamba2.modeling_mamba2", "mamba2_chunk_scan", _NEWER_TRANSFORMERS),
        ),
        Candidate(
            "mamba-ssm",
            peers.mamba_ssm_ssd,
            why_not=_cuda_only(
                "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined", "pip install mamba-ssm"
            ),
        ),
        Candidate("definition", _definition_of_ssd, too_long=_loop_too_long(_frame_channels)),
    ),
    # The products that enter the state and leave it, and backward two for each; what happens inside a chunk is not
    # counted, since it depends on the chunk.
    work=lambda sizes, direction: math.prod(sizes.values()) * {"forward": 2, "both": 6}[direction],
    streams={"forward": 2, "both": 5},
)

OPERATIONS: dict[str, Operation] = {"scan": _SCAN, "conv": _CONV, "ssd": _SSD}
"""By the name that ``mambavox bench`` takes."""
