"""Recordings and labels: reading audio, data sets, splits and checks."""

from mambavox.data.audio import SAMPLING_RATE, AudioSource, Waveform, duration, read_audio
from mambavox.data.example import Example

__all__ = ["SAMPLING_RATE", "AudioSource", "Example", "Waveform", "duration", "read_audio"]
