"""Mel-frequency cepstral coefficients and their deltas, as Kaldi and the first iteration of HuBERT have them."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank, window_function

SAMPLING_RATE = 16_000
WINDOW = 400  # samples, 25 ms
SHIFT = 160  # samples, 10 ms
FFT = 512
MEL_BINS = 23
CEPSTRA = 13
LOWEST_FREQUENCY = 20.0  # Hz
PREEMPHASIS = 0.97
LIFTER = 22
DELTA_REACH = 2  # frames on either side
_FLOOR = float(np.finfo(np.float32).eps)
_BLOCK = 6000  # frames at a time, a minute: the spectra of a long recording are never all in memory


def num_frames(samples: int) -> int:
    """Frames of a recording of so many samples: whole windows only, so none where it is shorter than one."""
    return 1 + (samples - WINDOW) // SHIFT if samples >= WINDOW else 0


def mfcc(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cepstra of a recording.

    Args:
        waveform: ``(samples,)`` at 16 kHz, full scale 1.

    Returns:
        ``(time, 13)``, one frame in 10 ms; the first coefficient is that of the log energy's mean over mel bins.

    Source:
        Kaldi's compute-mfcc-feats with use-energy=false and dither=0, which HuBERT (arXiv 2106.07447) has by way of
        torchaudio, on waveforms in -1..1.
    """
    frames = num_frames(len(waveform))
    if not frames:
        return np.zeros((0, CEPSTRA), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::SHIFT]
    blocks = [_cepstra(windows[start : start + _BLOCK]) for start in range(0, frames, _BLOCK)]
    return np.concatenate(blocks)


def _cepstra(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    taper, filters, transform = _tables()
    windows = windows - windows.mean(axis=1, keepdims=True)
    before = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    spectrum = np.fft.rfft((windows - PREEMPHASIS * before) * taper, FFT)
    power = spectrum.real**2 + spectrum.imag**2
    return (np.log(np.maximum(power @ filters, _FLOOR)) @ transform).astype(np.float32)


@cache
def _tables() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Window ``(400,)``, mel filters ``(257, 23)``, and cosine transform with lifter ``(23, 13)``."""
    filters = mel_filter_bank(
        FFT // 2 + 1,
        MEL_BINS,
        LOWEST_FREQUENCY,
        SAMPLING_RATE / 2,
        SAMPLING_RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    orders = np.arange(CEPSTRA)
    transform = np.cos(np.pi / MEL_BINS * (np.arange(MEL_BINS)[:, None] + 0.5) * orders) * np.sqrt(2 / MEL_BINS)
    transform[:, 0] = np.sqrt(1 / MEL_BINS)
    lifter = 1 + LIFTER / 2 * np.sin(np.pi * orders / LIFTER)
    return window_function(WINDOW, "povey", periodic=False), filters, transform * lifter


def deltas(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Slopes of features over time, by regression over two frames on either side; the ends are repeated.

    Args:
        features: ``(time, dim)``.

    Returns:
        ``(time, dim)``.

    Source:
        torchaudio's ``compute_deltas``: sum of ``n * (c[t + n] - c[t - n])`` over ``2 * sum of n^2``, n = 1, 2.
    """
    if not len(features):
        return features
    padded = np.pad(features, ((DELTA_REACH, DELTA_REACH), (0, 0)), mode="edge")
    time = len(features)
    total = np.zeros_like(features)
    for n in range(1, DELTA_REACH + 1):
        total += n * (padded[DELTA_REACH + n :][:time] - padded[DELTA_REACH - n :][:time])
    return total / np.float32(2 * sum(n**2 for n in range(1, DELTA_REACH + 1)))
