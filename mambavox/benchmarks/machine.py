"""What the figures of a benchmark depend on: the machine and the settings."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from mambavox.ops import native


def machine_facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The machine and torch's settings, by name.

    Args:
        device: where the candidates run.
        dtype: of their tensors.
    """
    facts: dict[str, Any] = {"machine": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        facts["GPU"] = torch.cuda.get_device_name(device)
    elif native.instruction_sets():
        facts["instructions"] = native.instruction_sets()[-1]
    return {**facts, "torch": torch.__version__, "dtype": str(dtype).removeprefix("torch.")}


def _processor() -> str:
    """The processor's name, which only Linux has in a file."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
