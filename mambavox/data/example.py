"""One recording of a data set, with its label."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambavox.data.audio import SAMPLING_RATE, AudioSegment, AudioSource, Waveform, read_audio
from mambavox.data.shards.archive import ShardAudio


@dataclass(frozen=True, eq=False)
class DatasetAudio:
    """The audio of one row of a ``datasets.Dataset``, left in its Arrow file until it is needed.

    Attributes:
        dataset: the data set, with ``column`` cast to ``Audio(decode=False)``.
        row: index of the row.
        column: name of the audio column.
    """

    dataset: Any
    row: int
    column: str

    def load(self) -> Mapping[str, Any]:
        """The stored recording, in a form that ``read_audio`` reads."""
        content: Mapping[str, Any] = self.dataset[self.row][self.column]
        return content


@dataclass(frozen=True, eq=False)
class Example:
    """One recording and what is known of it. Two examples are equal only when they are the same object.

    Attributes:
        audio: an audio file, its bytes, an array with its sampling rate in Hz, a row of a data set, a stretch of a
            file, or a file in a tar.
        label: its class; ``None`` where the source has no labels.
        fields: every column of the source for this recording (speaker, split, fold, ...).
        name: what messages call it; default the path.
        stated_seconds: length that the source states, which is compared with what is read; ``None``: it states none.
    """

    audio: Path | bytes | tuple[NDArray[np.generic], int] | DatasetAudio | AudioSegment | ShardAudio
    label: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    stated_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            name = str(self.audio) if isinstance(self.audio, (Path, AudioSegment)) else "a recording held in memory"
            object.__setattr__(self, "name", name)

    @property
    def source(self) -> AudioSource:
        """The recording in a form that ``read_audio`` reads."""
        if isinstance(self.audio, (DatasetAudio, ShardAudio)):
            return self.audio.load()
        return self.audio

    def read(self, sampling_rate: int = SAMPLING_RATE) -> Waveform:
        """Read the waveform.

        Args:
            sampling_rate: Hz wanted.

        Returns:
            ``(samples,)`` mono float32.

        Raises:
            AudioError: see :func:`mambavox.data.read_audio`.
        """
        return read_audio(self.source, sampling_rate, name=self.name)
