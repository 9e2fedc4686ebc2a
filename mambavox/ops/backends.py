"""Which implementation of the selective scan is used, and why not the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mambavox.errors import BackendError
from mambavox.ops.scan_reference import selective_scan_reference
from mambavox.ops.scan_torch import selective_scan_torch


@dataclass(frozen=True)
class Backend:
    """One implementation of the scan.

    Attributes:
        name: what ``backend=`` takes.
        scan: the function; arguments of ``selective_scan_reference``, returns output and final state.
        summary: one line for ``mambavox info``.
        device_types: device types it runs on, or ``None`` for any.
    """

    name: str
    scan: Callable[..., tuple[Tensor, Tensor]]
    summary: str
    device_types: tuple[str, ...] | None = None

    def why_not(self, device: torch.device) -> str | None:
        """Reason why the backend cannot run on a device, or ``None`` where it can."""
        if self.device_types is not None and device.type not in self.device_types:
            return f"runs on {', '.join(self.device_types)}, not on {device.type}"
        return None


# Fastest first: the first that can run is taken.
BACKENDS: tuple[Backend, ...] = (
    Backend("torch", selective_scan_torch, "chunked, plain torch operations, any device"),
    Backend("reference", selective_scan_reference, "the definition: one Python step a frame"),
)


class BackendStatus(NamedTuple):
    """A row of :func:`backend_report`."""

    name: str
    available: bool
    reason: str


def backend_for(device: torch.device, name: str | None = None) -> Backend:
    """Choose a backend.

    Args:
        device: where the tensors live.
        name: a backend's name, or ``None`` for the fastest that runs on the device.

    Raises:
        BackendError: no backend has that name, or it cannot run on the device.
    """
    if name is None:
        return next(backend for backend in BACKENDS if backend.why_not(device) is None)
    for backend in BACKENDS:
        if backend.name == name:
            reason = backend.why_not(device)
            if reason is not None:
                raise BackendError(f"scan backend {name!r} {reason}; leave backend=None to have one chosen")
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise BackendError(f"no scan backend is called {name!r}; there are: {known}")


def selected_backend(device: torch.device | str = "cpu") -> str:
    """Name of the backend that ``backend=None`` takes on a device."""
    return backend_for(torch.device(device)).name


def backend_report(device: torch.device | str = "cpu") -> list[BackendStatus]:
    """Every backend, fastest first: whether it can run on a device, and why it is or is not the one used."""
    device = torch.device(device)
    chosen = selected_backend(device)
    report = []
    for backend in BACKENDS:
        reason = backend.why_not(device)
        if backend.name == chosen:
            verdict = f"used: {backend.summary}"
        elif reason is None:
            verdict = f"not used, {chosen!r} is faster: {backend.summary}"
        else:
            verdict = f"not used, {reason}"
        report.append(BackendStatus(backend.name, reason is None, verdict))
    return report
