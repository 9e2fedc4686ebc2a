"""What the figures of a benchmark depend on: the machine and the settings."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mambavox.errors import ConfigError
from mambavox.ops import native

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""By the name that ``mambavox bench --dtype`` takes."""


def find_dtype(name: str) -> torch.dtype:
    """Of what to measure.

    Args:
        name: a key of ``DTYPES``.

    Raises:
        ConfigError: it is something else.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype: there is no {name!r}; expected {', '.join(DTYPES)}")
    return DTYPES[name]


@contextmanager
def working_threads(number: int | None) -> Iterator[None]:
    """Let so many threads of torch work.

    Args:
        number: of threads; as many as now where not given.

    Raises:
        ConfigError: it is below 1.
    """
    if number is not None and number < 1:
        raise ConfigError(f"threads={number}; expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
