"""Peak memory of a candidate, forward and backward, measured in a process of its own."""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mambavox.benchmarks.measure import arrange, caller
from mambavox.benchmarks.registry import OPERATIONS, Candidate, Operation, Sizes, make_problem

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Beyond it the machine is swapping.
_TIMEOUT_SECONDS = 900


def peak_extra_bytes(
    operation: str, candidate: str, sizes: Sizes, device: torch.device, dtype: torch.dtype, threads: int
) -> int | str:
    """Most bytes that forward and backward take beyond the inputs and the gradient of the output.

    Args:
        operation: its name in the registry.
        candidate: its name there.
        sizes: of the inputs.
        device: where it runs.
        dtype: of the inputs.
        threads: that work.

    Returns:
        The bytes, or the reason why they could not be measured.
    """
    task = {
        "operation": operation,
        "candidate": candidate,
        "sizes": dict(sizes),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
    }
    return measure_apart("mambavox.benchmarks.memory", task, device)


def measure_apart(module: str, task: Mapping[str, Any], device: torch.device) -> int | str:
    """The bytes that a module's ``__main__`` prints about a task, in a process of its own.

    Args:
        module: its name.
        task: its only argument, as JSON.
        device: where it measures.

    Returns:
        The bytes, or the reason why they could not be measured.
    """
    if device.type == "cpu" and not _RESET.exists():
        return "the peak of a process can be reset on Linux only"
    command = [sys.executable, "-m", module, json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"took more than {_TIMEOUT_SECONDS} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"the process ended with {done.returncode}: {last}"
    return int(done.stdout)


def _measure(operation: Operation, candidate: Candidate, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> int:
    # What is loaded and started at the first call belongs to no call.
    small = arrange(candidate, operation, make_problem(operation, operation.small, device, dtype))
    caller(candidate, small, "both")()
    return extra_bytes(
        caller(candidate, arrange(candidate, operation, make_problem(operation, sizes, device, dtype)), "both"), device
    )


def extra_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that a call takes beyond what is there before it.

    Args:
        call: made once.
        device: where it runs; on the CPU the process must be one of the call's own, on Linux.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_free_memory()
    _RESET.write_text("5")
    before = _peak_resident()
    call()
    return _peak_resident() - before


def _give_back_free_memory() -> None:
    """Let the C library hand its free memory to the system; what it keeps would hide what the call needs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def _peak_resident() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    operation = OPERATIONS[task["operation"]]
    candidate = next(candidate for candidate in operation.candidates if candidate.name == task["candidate"])
    print(_measure(operation, candidate, task["sizes"], torch.device(task["device"]), getattr(torch, task["dtype"])))


if __name__ == "__main__":
    _main()
