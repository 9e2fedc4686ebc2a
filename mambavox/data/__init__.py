"""Recordings and labels: reading audio, data sets, splits and checks."""

from mambavox.data.audio import SAMPLING_RATE, AudioSource, Waveform, duration, read_audio
from mambavox.data.checks import AudioProblem, check_audio
from mambavox.data.example import Example
from mambavox.data.sources import read_examples
from mambavox.data.splits import Splits, make_splits

__all__ = [
    "SAMPLING_RATE",
    "AudioProblem",
    "AudioSource",
    "Example",
    "Splits",
    "Waveform",
    "check_audio",
    "duration",
    "make_splits",
    "read_audio",
    "read_examples",
]
