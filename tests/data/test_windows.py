"""Windows cover a recording, whatever its length and form."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambavox.data import cut_windows, read_audio
from mambavox.errors import AudioError


@pytest.mark.parametrize("samples", [1, 999, 1000, 1001, 1999, 2000, 2001, 90_001])
def test_windows_cover_the_recording(tmp_path: Path, samples: int) -> None:
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", waveform, 16_000, subtype="FLOAT")
    for source in (waveform, tmp_path / "a.wav"):
        windows = list(cut_windows(source, 1000, 16_000))
        assert len(windows) == -(-samples // 1000)
        assert {len(window.waveform) for window in windows} == {min(samples, 1000)}
        heard = np.full(samples, np.nan, dtype=np.float32)
        for window in windows:
            heard[round(window.start * 16_000) : round(window.end * 16_000)] = window.waveform
        np.testing.assert_array_equal(heard, waveform)


def test_windows_of_another_rate(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 44_100), 44_100)
    windows = list(cut_windows(tmp_path / "a.flac", 7000, 16_000))
    assert [(window.start, window.end) for window in windows] == [(0, 0.4375), (0.4375, 0.875), (0.5625, 1.0)]
    whole = read_audio(tmp_path / "a.flac")
    np.testing.assert_allclose(windows[2].waveform, whole[9000:], atol=1e-4)


def test_windows_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"gone\.wav"):
        next(cut_windows(tmp_path / "gone.wav", 1000, 16_000))
