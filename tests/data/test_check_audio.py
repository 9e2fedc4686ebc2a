"""Checking a data set, and keeping its waveforms."""

import numpy as np
import pytest
import soundfile

from mambavox.data import Example, check_audio
from mambavox.errors import AudioError, DataError


@pytest.fixture
def examples(tmp_path, write_tone):
    """Good, corrupt, good, NaN, short."""
    (tmp_path / "corrupt.wav").write_bytes(b"nothing like audio")
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    write_tone(tmp_path / "good.wav", seconds=1)
    write_tone(tmp_path / "fine.flac", seconds=1, rate=44_100, channels=2)
    write_tone(tmp_path / "short.wav", seconds=0.01)
    return [Example(tmp_path / name) for name in ("good.wav", "corrupt.wav", "fine.flac", "nan.wav", "short.wav")]


def test_all_problems_in_one_error(examples):
    with pytest.raises(AudioError) as error:
        check_audio(examples, min_seconds=0.1)
    message = str(error.value)
    assert message.startswith("3 of 5 recordings cannot be used")
    assert all(name in message for name in ("corrupt.wav", "nan.wav", "short.wav"))
    assert "good.wav" not in message and "fine.flac" not in message
    assert "is 0.010 s long; expected at least 0.1 s" in message


@pytest.mark.parametrize("num_workers", [None, 1, 3])
def test_problems_are_skipped_and_counted(examples, num_workers):
    seen = []
    usable, problems = check_audio(
        examples,
        min_seconds=0.1,
        on_error="skip",
        progress=lambda done, total: seen.append((done, total)),
        num_workers=num_workers,
    )
    assert usable == [examples[0], examples[2]]
    assert [problem.name for problem in problems] == [examples[row].name for row in (1, 3, 4)]
    assert all(problem.reason.startswith(problem.name) for problem in problems)
    assert seen == [(done, 5) for done in range(1, 6)]


def test_nothing_usable_is_an_error_either_way(examples):
    with pytest.raises(DataError, match="none of 2 recordings can be used"):
        check_audio([examples[1], examples[3]], on_error="skip")


def test_every_clip_of_a_real_pack_is_usable(recordings):
    from mambavox.data import read_examples

    examples = read_examples(recordings / "coffee_intents")
    assert check_audio(examples) == (examples, [])


def test_an_example_in_memory_has_a_name():
    example = Example((np.zeros(0, np.float32), 16_000), name="take 3")
    with pytest.raises(AudioError, match=r"^take 3: has no samples"):
        example.read()
    assert Example(b"").name == "a recording held in memory"
