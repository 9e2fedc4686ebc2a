"""Learning rates where none is given, and the grids from which they are chosen: one table for all tasks."""

from collections.abc import Mapping

METHOD_NAMES = (
    "mambadapter",
    "mambadapter-residual",
    "bottleneck",
    "conformer",
    "convpass",
    "lora",
    "dora",
    "adalora",
    "vera",
    "ia3",
    "gc-lora",
    "moa",
    "prompt",
    "prefix",
    "bitfit",
    "linear",
    "full",
)
"""Names of the methods, known before torch is imported; ``mambavox.adapters.METHODS`` has the same."""

TASK_RATES: Mapping[str, Mapping[str, float]] = {
    "classify": {},
    "ctc": {"full": 5e-5},
    "whisper": {"full": 1e-4, "*": 1e-3},
}
"""By task, peak rates of methods that differ from a method's own in ``METHODS``; ``*`` stands for all others."""

RATE_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The grid of a comparison, in multiples of the default, the same for every method."""

WHISPER_GRID = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""Peak rates for every method alike, from those of a whole Whisper to those of a small adapter; the MambAdapter paper's
differ from method to method."""


def default_learning_rate(task: str, method: str) -> float:
    """Peak learning rate of a method in a task where none is given.

    Args:
        task: such as ``"ctc"``.
        method: a key of ``mambavox.adapters.METHODS``.
    """
    from mambavox.adapters.methods import METHODS  # not at the top: `--help` must not wait for torch

    rates = TASK_RATES[task]
    return rates.get(method, rates.get("*", METHODS[method].learning_rate))
