"""Windows in which recordings are heard."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambavox.asr.speech_windows import SpeechDetector, cut_windows, quietest
from mambavox.data import read_audio
from mambavox.errors import ConfigError

RATE = 100


def test_windows_hold_every_sample_once_and_end_where_it_is_quiet() -> None:
    sound = np.ones(1000, np.float32)
    sound[[range(270, 290), range(560, 580)]] = 0.01
    windows = cut_windows(sound, [(0, 1000)], 300, RATE)
    assert windows[:2] == [(0, 280), (280, 570)]
    assert [start for start, _ in windows[1:]] == [end for _, end in windows[:-1]] and windows[-1][1] == 1000
    assert all(end - start <= 300 for start, end in windows)
    assert cut_windows(sound[:300], [(0, 300)], 300, RATE) == [(0, 300)]


def test_spans_share_a_window_unless_it_is_full_or_the_pause_long() -> None:
    sound = np.ones(2000, np.float32)
    spans = [(10, 100), (110, 200), (450, 600), (650, 800)]
    assert cut_windows(sound, spans, 300, RATE) == [(10, 200), (450, 600), (650, 800)]
    assert cut_windows(sound, spans, 400, RATE) == [(10, 200), (450, 800)]
    assert cut_windows(sound, [], 300, RATE) == []


def test_the_quietest_place() -> None:
    sound = np.ones(100, np.float32)
    assert 0 <= quietest(sound, 10, 20, RATE) - 10 <= 10
    sound[40:70] = 0
    assert 50 <= quietest(sound, 0, 100, RATE) <= 60


def test_speech_is_found(recordings: Path) -> None:
    pytest.importorskip("silero_vad")
    threads = torch.get_num_threads()
    detector = SpeechDetector()
    assert torch.get_num_threads() == threads
    speech = read_audio(recordings / "librispeech_subset/audio/test-other/1688-142285-0007.flac", 16_000)
    silence = np.zeros(48_000, np.float32)
    spans = detector(np.concatenate([silence, speech, silence]), 16_000)
    assert spans[0][0] >= 40_000 and spans[-1][1] <= len(speech) + 56_000
    assert sum(end - start for start, end in spans) > 0.7 * len(speech)
    assert detector(silence, 16_000) == []
    edge = silence[:8_000]
    near = detector(np.concatenate([edge, speech, edge]), 16_000)
    assert near[0][0] == 0 and near[-1][1] == len(speech) + 16_000, "half a second at the edges is left"
    with pytest.raises(ConfigError, match="hears 16000 Hz, and the model 8000 Hz"):
        detector(silence, 8_000)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "silero_vad":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'mambavox\[vad\]'"):
        SpeechDetector()
