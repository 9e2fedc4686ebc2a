"""Where the commands write: results to standard output, everything else to standard error."""

import json
from typing import Any

from rich.console import Console

OUT = Console(highlight=False, soft_wrap=True)
"""Results."""

ERR = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and errors."""


def print_json(content: Any) -> None:
    """Print JSON and nothing else, for other programs."""
    OUT.print(json.dumps(content, ensure_ascii=False, indent=2), markup=False)


def tell_of_no_plots() -> None:
    """Say in one line why there are no plots, where matplotlib is not installed."""
    from mambavox.plotting import NO_MATPLOTLIB, can_draw

    if not can_draw():
        ERR.print(NO_MATPLOTLIB, markup=False)


_ERRORS = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print an error in red, even where progress is silenced."""
    _ERRORS.print(f"error: {message}", style="red", markup=False)


def print_warning(message: str) -> None:
    """Print in yellow what a user should know of the data or a result, even where progress is silenced."""
    _ERRORS.print(f"warning: {message}", style="yellow", markup=False)
