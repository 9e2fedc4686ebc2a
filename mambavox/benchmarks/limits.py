"""What the machine allows: its measured rates, and the least time that a pass can take at them."""

import time
from dataclasses import dataclass

import torch

from mambavox.benchmarks.measure import seconds_of
from mambavox.benchmarks.registry import Operation, Pass, Sizes, stream_elements
from mambavox.ops import native

# Elements of a tensor of the triad: three of them are more than a last-level cache holds.
_TRIAD = {"cpu": 1 << 26, "cuda": 1 << 28}
# Of a thread in one attempt, about a millisecond: on a shared processor some attempts are left alone.
_ROUNDS = 200_000
# For how long a rate is tried.
_SECONDS = 2.0


@dataclass(frozen=True)
class Rates:
    """Measured rates of a machine.

    Attributes:
        vector_operations: multiply-adds a second of all threads, every lane of a vector counted; ``None`` where they
            cannot be measured.
        bandwidth: bytes of main memory a second, in a triad of two reads and one write.
        note: why a rate is missing, or empty.
    """

    vector_operations: float | None
    bandwidth: float
    note: str


@dataclass(frozen=True)
class Limit:
    """The least time of a pass.

    Attributes:
        compute: seconds that its vector operations take, or ``None`` where their rate is not known.
        memory: seconds that its traffic with main memory takes.
    """

    compute: float | None
    memory: float

    @property
    def seconds(self) -> float:
        """The longer of the two."""
        return max(self.compute or 0.0, self.memory)


def measure_rates(device: torch.device, threads: int) -> Rates:
    """Measure what a machine does at best: the best of many short attempts.

    Args:
        device: of the tensors.
        threads: that work, on a processor.
    """
    bandwidth = _bandwidth(device)
    if device.type != "cpu":
        return Rates(None, bandwidth, f"the limit on {device.type} is that of memory alone")
    reason = native.why_not()
    if reason is not None:
        return Rates(None, bandwidth, f"the limit is that of memory alone: the native library {reason}")
    return Rates(_vector_operations(threads), bandwidth, "")


def limit(operation: Operation, sizes: Sizes, direction: Pass, dtype: torch.dtype, rates: Rates) -> Limit:
    """The least time of a pass, an estimate: nothing but the arithmetic and the large tensors is counted.

    Args:
        operation: of the registry.
        sizes: of its inputs.
        direction: forward, or forward and backward.
        dtype: of the tensors in memory.
        rates: of the machine.
    """
    traffic = operation.streams[direction] * stream_elements(sizes) * dtype.itemsize
    known = rates.vector_operations
    return Limit(None if known is None else operation.work(sizes, direction) / known, traffic / rates.bandwidth)


def _vector_operations(threads: int) -> float:
    start, best = time.perf_counter(), 0.0
    while time.perf_counter() - start < _SECONDS:
        best = max(best, native.multiply_add_rate(_ROUNDS, threads))
    return best


def _bandwidth(device: torch.device) -> float:
    a, b, c = (torch.full((_TRIAD[device.type],), 1.0, device=device) for _ in range(3))
    start, best = time.perf_counter(), 0.0
    while time.perf_counter() - start < _SECONDS:
        best = max(best, 3 * a.nbytes / seconds_of(lambda: torch.add(b, c, alpha=3.0, out=a), device))
    return best
