"""Small recordings made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

WriteTone = Callable[..., Path]


@pytest.fixture
def write_tone() -> WriteTone:
    """Writes a sine of 0.5 full scale and gives back the path; the suffix chooses the format."""

    def write(
        path: Path,
        *,
        seconds: float = 0.25,
        rate: int = 16_000,
        hertz: float = 440.0,
        channels: int = 1,
        **options: str,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
        soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate, **options)
        return path

    return write
