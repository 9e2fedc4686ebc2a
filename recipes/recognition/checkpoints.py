"""What an interrupted training continues from."""

from pathlib import Path
from typing import Any

import torch

from mambavox.files import replacing


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Write the states of modules, optimiser and schedule by name: the new file or, if that fails, the old."""
    with replacing(path) as partial:
        torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)


def load_state(path: Path, **parts: Any) -> int:
    """Put what was saved into the same parts.

    Returns:
        Updates that were made; 0 where nothing was saved.
    """
    if not path.is_file():
        return 0
    kept = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    return int(kept["step"])
