"""When a search has failed, and what is done about endless repetition."""

import zlib

import pytest
import torch

from mambavox.asr.whisper_decoding import (
    CAREFUL,
    RepetitionGuard,
    WhisperDecoding,
    compression_ratio,
    without_repetition,
)
from mambavox.errors import ConfigError

STAMP = 1000


@pytest.mark.parametrize(
    ("cycle", "times"), [([7], 20), ([7, 8], 10), ([7, 8, 9], 7), (list(range(20, 32)), 6), (list(range(32)), 6)]
)
def test_endless_repetition_ends_a_row_and_is_cut_to_its_first_round(cycle: list[int], times: int) -> None:
    begin = [500, 501, 502]
    endless, often = begin + cycle * times, begin + cycle * (times - 1)
    assert without_repetition(endless) == (begin + cycle, True)
    assert without_repetition([*endless, *cycle[: len(cycle) // 2]]) == (begin + cycle, True)
    assert without_repetition(often) == (often, False)
    guard, length = RepetitionGuard(), -(-len(endless) // 4) * 4
    rows = [(cycle * 40)[:length], list(range(2000, 2000 + length))]
    assert guard(torch.tensor(rows), None).tolist() == [True, False]


def test_timestamps_count_as_one() -> None:
    tokens = [token for number in range(8) for token in (STAMP + number, 5, 6, STAMP + number + 1)]
    assert without_repetition(tokens) == (tokens, False)
    assert without_repetition(tokens, STAMP) == (tokens[:4], True)
    assert RepetitionGuard(STAMP)(torch.tensor([tokens]), None).tolist() == [True]
    assert RepetitionGuard()(torch.tensor([tokens]), None).tolist() == [False]


def test_every_script_shrinks_alike() -> None:
    text = " ".join(["the cat sat on a mat and saw that it was far from home again"] * 2)
    assert compression_ratio(text) == pytest.approx(len(text) / len(zlib.compress(text.encode())))
    ethiopic = text.translate({code: code - 97 + 0x1208 for code in range(97, 123)})
    assert compression_ratio(ethiopic) == pytest.approx(compression_ratio(text), rel=0.1)
    assert compression_ratio("አበ " * 60) > 2.4 > compression_ratio(ethiopic)
    assert compression_ratio("") == 1.0


def test_what_fails() -> None:
    assert CAREFUL.fails("a " * 100, -0.1) and CAREFUL.fails("some words", -1.1)
    assert not CAREFUL.fails("some words", -0.9)
    assert CAREFUL.is_silent(0.7, -1.1) and not CAREFUL.is_silent(0.7, -0.5) and not CAREFUL.is_silent(0.5, -2.0)
    assert WhisperDecoding(no_speech_threshold=0.6).is_silent(0.7, -0.1)
    assert not WhisperDecoding().fails("a " * 100, -9.0) and not WhisperDecoding().judges


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beams": 0}, "num_beams=0; expected at least 1"),
        ({"temperatures": ()}, "expected at least one"),
        ({"temperatures": (0.0, -1.0)}, "each from 0 to 2"),
        ({"no_speech_threshold": 2.0}, "expected a probability"),
        ({"task": "transcibe"}, "task=transcibe; expected transcribe or translate"),
    ],
)
def test_mistakes(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WhisperDecoding(**values)
