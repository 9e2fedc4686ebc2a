"""Which implementation of the selective scan is used, and why not the others."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mambavox.errors import BackendError
from mambavox.ops import native, scan_cpu, scan_torch, scan_triton
from mambavox.ops.scan_inputs import ScanInputs


class Implementation(Protocol):
    """What the file of a fast backend has.

    ``forward`` returns the output, the final state and, where training, the states from which ``backward`` starts;
    ``backward`` takes the gradients of the first two (``None`` for a final state that has none) and returns those of
    ``x, dt, A, B, C, D, z, dt_bias, initial_state``, ``None`` for one not given.
    """

    def forward(self, inputs: ScanInputs, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Run the scan."""
        ...

    def backward(
        self, grad_y: Tensor, grad_final_state: Tensor | None, inputs: ScanInputs, checkpoints: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Run it backwards."""
        ...

    def checkpoint_shape(self, x_shape: torch.Size, d_state: int, sequences: int) -> tuple[int, ...]:
        """Shape of the states kept for the backward pass; ``sequences`` is the number of rows of the state."""
        ...

    def why_not(self, device: torch.device) -> str | None:
        """Reason why the backend cannot run on a device, or ``None`` where it can."""
        ...


class Backend(NamedTuple):
    """One implementation of the scan.

    Attributes:
        name: what ``backend=`` takes.
        summary: one line for ``mambavox info``.
        implementation: its file; ``None`` for the definition, which autograd differentiates.
        float64: whether it takes float64 tensors.
        details: what else is to be said of it where it is used.
    """

    name: str
    summary: str
    implementation: Implementation | None
    float64: bool
    details: Callable[[], str] = str

    def why_not(self, device: torch.device, float64: bool = False) -> str | None:
        """Reason why the backend cannot run on such tensors, or ``None`` where it can."""
        if float64 and not self.float64:
            return "does not take float64"
        return None if self.implementation is None else self.implementation.why_not(device)


# The first that can run is taken. Triton can also run on a CPU, in its interpreter: a check of its kernels, not a way.
BACKENDS: tuple[Backend, ...] = (
    Backend("cpu", "native CPU kernels", scan_cpu, float64=False, details=native.describe),
    Backend("triton", "fused GPU kernels", scan_triton, float64=False),
    Backend("torch", "chunked, plain torch operations, any device", scan_torch, float64=True),
    Backend("reference", "the definition: one Python step a frame", None, float64=True),
)


class BackendStatus(NamedTuple):
    """A row of :func:`backend_report`."""

    name: str
    available: bool
    reason: str


def named(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendError: there is none.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise BackendError(f"no scan backend is called {name!r}; there are: {known}")


# A compiled graph is bound to the device it was compiled for.
@torch.compiler.assume_constant_result
def choose(device_type: str, float64: bool = False, name: str | None = None) -> str:
    """Name of the backend to use.

    Args:
        device_type: type of the device where the tensors live.
        float64: whether a tensor is float64.
        name: the backend asked for, or ``None`` for the fastest that can run.

    Raises:
        BackendError: no backend has that name, or it cannot run on such tensors.
    """
    device = torch.device(device_type)
    if name is None:
        return next(backend.name for backend in BACKENDS if backend.why_not(device, float64) is None)
    reason = named(name).why_not(device, float64)
    if reason is not None:
        raise BackendError(f"scan backend {name!r} {reason}; leave backend=None to have one chosen")
    return name


def selected_backend(device: torch.device | str = "cpu") -> str:
    """Name of the backend that ``backend=None`` takes on a device."""
    return choose(torch.device(device).type)


def backend_report(device: torch.device | str = "cpu") -> list[BackendStatus]:
    """Every backend, in the order of choice: whether it can run on a device, and why it is or is not the one used."""
    device = torch.device(device)
    chosen = selected_backend(device)
    report = []
    for backend in BACKENDS:
        reason = backend.why_not(device)
        if backend.name == chosen:
            verdict = ", ".join(filter(None, [f"used: {backend.summary}", backend.details()]))
        elif reason is None:
            verdict = f"not used, {chosen!r} is faster: {backend.summary}"
        else:
            verdict = f"not used, {reason}"
        report.append(BackendStatus(backend.name, reason is None, verdict))
    return report
