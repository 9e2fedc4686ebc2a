"""Where speech is in a recording, and the windows in which it is heard."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from mambavox.data import Waveform
from mambavox.errors import ConfigError

Span: TypeAlias = tuple[int, int]
"""First sample, and the one behind the last."""

_QUIET_SECONDS = 0.2  # that are looked at for a place to cut
_LONGEST_PAUSE = 2.0  # seconds within a window


class SpeechDetector:
    """silero's voice activity detection (extra ``vad``).

    Raises:
        ConfigError: the extra is not installed.
    """

    RATE = 16_000

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            import silero_vad
        except ImportError as error:
            raise ConfigError("voice activity detection needs silero-vad: pip install 'mambavox[vad]'") from error
        finally:
            torch.set_num_threads(threads)  # silero-vad sets one thread for the whole process
        self._find = silero_vad.get_speech_timestamps
        self._model: Any = silero_vad.load_silero_vad()

    def __call__(self, waveform: Waveform, sampling_rate: int) -> list[Span]:
        """Spans of speech, with 0.4 s around each; less than a second at the edges of a recording is left to it.

        Raises:
            ConfigError: the recording is not at 16 kHz.
        """
        if sampling_rate != self.RATE:
            raise ConfigError(f"voice activity detection hears {self.RATE} Hz, and the model {sampling_rate} Hz")
        found = self._find(
            torch.from_numpy(np.ascontiguousarray(waveform)),
            self._model,
            sampling_rate=sampling_rate,
            min_silence_duration_ms=300,
            speech_pad_ms=400,
        )
        spans = [(int(span["start"]), int(span["end"])) for span in found]
        if spans and spans[0][0] < sampling_rate:
            spans[0] = (0, spans[0][1])
        if spans and len(waveform) - spans[-1][1] < sampling_rate:
            spans[-1] = (spans[-1][0], len(waveform))
        return spans


def cut_windows(waveform: Waveform, spans: Sequence[Span], longest: int, sampling_rate: int) -> list[Span]:
    """Windows that hold all spans: each as long as may be, cut in pauses, or else where it is quietest.

    Args:
        waveform: ``(samples,)``.
        spans: of speech, in their order; the whole recording where nothing is known of it.
        longest: samples of a window at most.
        sampling_rate: in Hz.
    """
    pieces: list[Span] = []
    for start, end in spans:
        while end - start > longest:
            cut = quietest(waveform, start + longest * 2 // 3, start + longest, sampling_rate)
            pieces.append((start, cut))
            start = cut
        pieces.append((start, end))
    windows: list[Span] = []
    for start, end in pieces:
        pause = start - windows[-1][1] if windows else 0
        if windows and pause <= _LONGEST_PAUSE * sampling_rate and end - windows[-1][0] <= longest:
            windows[-1] = (windows[-1][0], end)
        else:
            windows.append((start, end))
    return windows


def quietest(waveform: Waveform, start: int, end: int, sampling_rate: int) -> int:
    """Sample between two others around which it is quietest."""
    width = max(round(_QUIET_SECONDS * sampling_rate), 1)
    power = np.concatenate([[0.0], np.cumsum(np.square(waveform[start:end], dtype=np.float64))])
    if len(power) <= width:
        return (start + end) // 2
    energies = power[width:] - power[:-width]
    # Of equally quiet places, as in digital silence, the last.
    return start + len(energies) - 1 - int(energies[::-1].argmin()) + width // 2
