"""Delays of words are what they are said to be; long recordings are measured in processes of their own."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import train_tokenizer
from mambavox.benchmarks import long_form, recognition
from mambavox.benchmarks.long_form import write_recording
from mambavox.benchmarks.recognition import Delays, measure_recognition, speak
from mambavox.cli import app
from mambavox.errors import ConfigError
from mambavox.hubert import MambaHubertForCTC
from mambavox.units.phones import SENTENCES

pytest.importorskip("espeakng_loader")
TOKENIZER = train_tokenizer(["abcdefghijklmnopqrstuvwxyz"])
WAITS = 0.05  # seconds


def recognizer_of():
    config = tiny_config(vocab_size=len(TOKENIZER), pad_token_id=0, conv_kernel=(10, 8, 8), conv_stride=(5, 8, 8))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return SpeechRecognizer(MambaHubertForCTC(config), extractor, TOKENIZER)


def knows_it_all(recognizer, spoken, leave_out=()):
    """Let a recogniser say each word some time after its end, its last letter then and a space behind."""
    model, tokens = recognizer.model, recognizer.vocabulary.tokens
    frames = {}
    for word in spoken.words:
        if word.end is None or word.text in leave_out:
            continue
        last = round((word.end + WAITS) / recognizer.frame_seconds)
        for back, letter in enumerate([" ", *reversed(word.text)]):
            frames[last + 1 - back] = tokens.index(letter)
    stream = model.stream

    def oracle(samples, state, **options):
        output, new = stream(samples, state, **options)
        first = (state.samples[0] - model.config.receptive_field) // model.config.inputs_to_logits_ratio + 1
        logits = torch.zeros_like(output.logits)
        for frame in range(logits.shape[1]):
            logits[0, frame, frames.get(max(first, 0) + frame, 0)] = 20.0
        output.logits = logits
        return output, new

    model.stream = oracle


def test_words_of_synthesised_speech_have_times():
    spoken = speak(SENTENCES[0], "m4")
    assert " ".join(word.text for word in spoken.words) == "the old ferry leaves the harbour at a quarter past seven"
    starts = [word.start for word in spoken.words]
    assert starts[7] is None and spoken.words[6].end is None  # espeak-ng runs "at a" into one
    known = [word for word in spoken.words if word.end is not None]
    assert len(known) == 9
    assert all(word.start < word.end for word in known)
    assert all(one.end <= other.start + 1e-6 for one, other in itertools.pairwise(known))
    silent = spoken.waveform[round(16_000 * (spoken.words[-1].end + 0.1)) :]
    assert np.abs(silent).max() < 0.05 and len(silent) > 1.4 * 16_000


def test_delays_are_those_of_the_words(monkeypatch):
    recognizer, spoken = recognizer_of(), speak(SENTENCES[0], "m4")
    knows_it_all(recognizer, spoken, leave_out=("ferry",))
    clock = iter(np.arange(0, 100, 0.01))  # each step takes 10 ms
    monkeypatch.setattr(recognition.time, "perf_counter", lambda: next(clock))
    row = Delays(0.1, 0.1)
    recognition._hear(recognizer, spoken, row, None)
    assert row.words == 11 and row.recognized == 8 == len(row.word)
    # A frame ends up to 10 ms after the word's last letter, waits for its block, and that for the work.
    assert all(WAITS + 0.01 - 0.03 <= delay <= WAITS + 0.03 + 0.1 + 0.02 for delay in row.word), row.word
    assert row.final_word == row.word[-1:]
    assert row.final_text[0] == pytest.approx(0.8 + WAITS, abs=0.15)
    assert 0 < row.first_token[0] < 0.3
    assert row.working == pytest.approx(0.01 * len(row.steps))
    assert row.real_time_factor == pytest.approx(0.1, rel=0.05)


def test_work_that_takes_longer_than_its_block_adds_up(monkeypatch):
    recognizer, spoken = recognizer_of(), speak("yes", "m4")
    knows_it_all(recognizer, spoken)
    clock = iter(np.arange(0, 1000, 0.3))
    monkeypatch.setattr(recognition.time, "perf_counter", lambda: next(clock))
    row = Delays(0.1, 0.1)
    recognition._hear(recognizer, spoken, row, None)
    blocks = round((spoken.words[0].end + WAITS) / 0.1)
    assert row.final_word[0] == pytest.approx(0.3 * blocks - spoken.words[0].end, abs=0.7)
    assert row.final_word[0] > 0.5


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="sentences=0"):
        measure_recognition(recognizer_of(), sentences=0)
    with pytest.raises(ConfigError, match="blocks"):
        measure_recognition(recognizer_of(), blocks=[0.001])
    for flags in (["long-form"], ["scan", "--seconds", "3"], ["long-form", "--seconds", "x"]):
        assert CliRunner().invoke(app, ["bench", *flags]).exit_code == 2


def test_the_command_writes_a_report(tmp_path):
    recognizer = recognizer_of()
    for part in (recognizer.model, recognizer.extractor, TOKENIZER):
        part.save_pretrained(tmp_path / "run")
    flags = ["--model", str(tmp_path / "run"), "--seconds", "0.32", "--sentences", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", "recognition", *flags])
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "recognition.json").read_text())["rows"]
    assert row["algorithmic"] == pytest.approx(0.32 + (recognizer.model.config.receptive_field - 320) / 16_000)
    assert len(row["steps"]) >= 10 and row["working"] > 0 and row["words"] == 11
    assert "| 320 ms |" in (tmp_path / "recognition.md").read_text()


def test_a_long_recording_is_transcribed_in_a_process_of_its_own(tmp_path, monkeypatch):
    recognizer = recognizer_of()
    for part in (recognizer.model, recognizer.extractor, TOKENIZER):
        part.save_pretrained(tmp_path / "run")
    (tmp_path / "clips").mkdir()
    clip = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000).astype(np.float32)
    soundfile.write(tmp_path / "clips" / "one.wav", clip, 16_000)
    write_recording(tmp_path / "joined.flac", [tmp_path / "clips" / "one.wav"], 2.5)
    joined, rate = soundfile.read(tmp_path / "joined.flac")
    assert rate == 16_000 and len(joined) == 40_000
    np.testing.assert_allclose(joined[16_000:32_000], clip, atol=1e-4)
    flags = ["--data", str(tmp_path / "clips"), "--model", str(tmp_path / "run"), "--seconds", "70"]
    result = CliRunner().invoke(app, ["bench", "long-form", *flags, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (run,) = json.loads((tmp_path / "long_form.json").read_text())["runs"]
    assert run["seconds"] == 70 and run["peak_bytes"] > 100 << 20 and run["wall"] > 0.1
    assert "| 1.16667 min |" in result.stdout
    monkeypatch.setattr(long_form, "_COMMAND", "raise SystemExit('no such luck')")
    result = CliRunner().invoke(app, ["bench", "long-form", *flags, "--output", str(tmp_path)])
    assert result.exit_code == 1 and "the transcription of 70 s ended with 1: no such luck" in result.stderr
    result = CliRunner().invoke(app, ["bench", "long-form", "--data", str(tmp_path / "run")])
    assert result.exit_code == 1 and "holds no clips" in result.stderr
