"""A recording of any length as windows of one length, in memory that does not grow with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mambavox.data.audio import AudioSegment, AudioSource, Waveform, read_audio, read_blocks


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a recording.

    Attributes:
        start: seconds from the recording's beginning.
        end: seconds.
        waveform: ``(samples,)`` of it.
    """

    start: float
    end: float
    waveform: Waveform


def cut_windows(source: AudioSource, samples: int, sampling_rate: int, *, name: str | None = None) -> Iterator[Window]:
    """Cut a recording into windows that lie end to end.

    The last one reaches back into the one before it, so that it is whole, too. A recording that is no longer than a
    window is one, however short.

    Args:
        source: the recording; files are read block by block.
        samples: length of a window.
        sampling_rate: Hz wanted.
        name: what error messages call the recording; default its path.

    Yields:
        At least one window, in the order of time.

    Raises:
        AudioError: see :func:`mambavox.data.read_audio`; some errors are only found at the recording's end.
    """
    before = waiting = np.zeros(0, dtype=np.float32)
    start = 0
    for block in _blocks(source, sampling_rate, name):
        waiting = np.concatenate([waiting, block])
        while len(waiting) > samples:
            before, waiting = waiting[:samples], waiting[samples:]
            yield _window(start, before, sampling_rate)
            start += samples
    if start and (missing := samples - len(waiting)):
        waiting = np.concatenate([before[-missing:], waiting])
        start -= missing
    yield _window(start, waiting, sampling_rate)


def _window(start: int, waveform: Waveform, rate: int) -> Window:
    return Window(start / rate, (start + len(waveform)) / rate, waveform)


def _blocks(source: AudioSource, sampling_rate: int, name: str | None) -> Iterator[Waveform]:
    if isinstance(source, str | Path | AudioSegment):
        yield from read_blocks(source, sampling_rate)
    else:
        yield read_audio(source, sampling_rate, name=name)
