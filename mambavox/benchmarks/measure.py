"""Time of the candidates: repetitions that go through all of them in turn, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mambavox.benchmarks.registry import Candidate, Operation, Pass, Problem

# In its turn a candidate is called again and again for so long, so that a call of a millisecond is not measured on the
# caches that its neighbour left behind; one that takes longer is called once.
_TURN_SECONDS = 0.05
BUDGET_SECONDS = 60.0
"""What a candidate may take for a pass at a shape; beyond it fewer repetitions are made, one at least."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a pass, one figure a repetition."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Time of one call, on a GPU between two events of its stream."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def arrange(candidate: Candidate, operation: Operation, problem: Problem) -> Problem:
    """The same problem in the layout that a candidate takes, in leaves of its own where that is another one."""
    if not candidate.channels_first:
        return problem
    tensors = {
        name: swap(tensor.detach()).contiguous().requires_grad_() if name in operation.frames else tensor
        for name, tensor in problem.tensors.items()
    }
    return Problem(tensors, swap(problem.grad_output).contiguous())


def swap(frames: Tensor) -> Tensor:
    """``(batch, time, channel)`` to ``(batch, channel, time)`` and back."""
    return frames.transpose(1, 2)


def caller(candidate: Candidate, problem: Problem, direction: Pass) -> Callable[[], tuple[Tensor, ...]]:
    """A pass of a candidate, without arguments.

    Args:
        candidate: to be called.
        problem: in its layout.
        direction: forward without gradients, or forward and backward with all of them.

    Returns:
        A function that returns the output, then the gradients in the order of the tensors.
    """

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (candidate.run(**problem.tensors),)

    def both() -> tuple[Tensor, ...]:
        output = candidate.run(**problem.tensors)
        return output, *torch.autograd.grad(output, list(problem.tensors.values()), problem.grad_output)

    return forward if direction == "forward" else both


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    repeats: int,
    budget: float = BUDGET_SECONDS,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time several calls side by side: every repetition goes once through all of them, after one that warms up.

    Args:
        calls: by name.
        device: where they run.
        repeats: repetitions, at most.
        budget: seconds that each of them may take in all; a slow one takes part in the first repetitions only.
        progress: called after each turn, ``len(calls) * (repeats + 1)`` times.
    """
    spent = dict.fromkeys(calls, 0.0)
    last = dict.fromkeys(calls, 0.0)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repeats + 1):
        for name, call in calls.items():
            if repetition < 2 or spent[name] + last[name] <= budget:
                start = time.perf_counter()
                seconds = _turn(call, device)
                last[name] = time.perf_counter() - start
                spent[name] += last[name]
                if repetition:
                    found[name].append(seconds)
            progress()
    return {name: Timing(seconds) for name, seconds in found.items()}


def _turn(call: Callable[[], Any], device: torch.device) -> float:
    seconds = [seconds_of(call, device)]
    while sum(seconds) < _TURN_SECONDS:
        seconds.append(seconds_of(call, device))
    return statistics.median(seconds[1:] or seconds)
