"""A microphone is a stream like any other."""

import sys

import numpy as np
import pytest
import soxr
import torch
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mambavox.asr import microphone
from mambavox.asr.live import Endpointing
from mambavox.asr.microphone import Microphone
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import train_tokenizer
from mambavox.cli import app
from mambavox.cli.transcribe_microphone import transcribe_microphone
from mambavox.errors import AudioError, ConfigError
from mambavox.hubert import MambaHubertForCTC

TOKENIZER = train_tokenizer(["abc de"])


class FakeStream:
    """Gives a sound as soon as it is started; ``then`` is put behind it."""

    def __init__(self, waveform, rate=16_000):
        self.waveform, self.samplerate = waveform, rate
        self.calls = []

    def open(self, **options):
        self.options = options
        return self

    def start(self):
        self.calls.append("start")
        size = self.options["blocksize"]
        for begin in range(0, len(self.waveform), size):
            block = self.waveform[begin : begin + size, None]
            self.options["callback"](block, len(block), None, None)

    def stop(self):
        self.calls.append("stop")

    def close(self):
        self.calls.append("close")


def recognizer_of():
    torch.manual_seed(1)
    model = MambaHubertForCTC(tiny_config(vocab_size=len(TOKENIZER), pad_token_id=0))
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return SpeechRecognizer(model, extractor, TOKENIZER)


def noise(samples):
    return np.random.default_rng(0).standard_normal(samples, dtype=np.float32)


def interrupted(monkeypatch):
    """What the device gives after its last block: Ctrl-C."""

    def end(*_, **__):
        raise KeyboardInterrupt

    get = microphone.queue.Queue.get
    monkeypatch.setattr(
        microphone.queue.Queue, "get", lambda self, **options: end() if self.empty() else get(self, **options)
    )


@pytest.mark.parametrize("timestamps", [False, True])
def test_what_is_said_is_what_the_recording_says(monkeypatch, capsys, timestamps):
    interrupted(monkeypatch)
    recognizer, waveform = recognizer_of(), noise(8000)
    fake = FakeStream(waveform)
    said, failure = transcribe_microphone(
        recognizer,
        endpointing=Endpointing(1e6, 1e6),
        device="3",
        timestamps=timestamps,
        quiet=False,
        open_stream=fake.open,
    )
    assert failure is None and fake.calls == ["start", "stop", "close"]
    assert fake.options["device"] == 3 and fake.options["channels"] == 1 and fake.options["samplerate"] == 16_000
    expected = recognizer.transcribe([waveform])[0]
    assert said.text == expected.text and said.seconds == 0.5
    assert len(said.words) == len(expected.words) > 20
    out = capsys.readouterr().out
    assert out.startswith("[00:00:00.") if timestamps else out.strip() == expected.text


def test_another_rate_is_resampled():
    fake = FakeStream(np.sin(np.arange(48_000) / 48_000 * 2 * np.pi * 440).astype(np.float32), 48_000)
    with (microphone := Microphone(16_000, 0.1, open_stream=fake.open)) as blocks:
        heard = next(blocks)
        assert 15_000 < len(heard) < 16_000  # a second; a resampler holds back its last samples
        heard = np.concatenate([heard, microphone.rest()])
    assert len(heard) == 16_000
    assert np.argmax(np.abs(np.fft.rfft(heard, 16_000))) == 440


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_what_was_said_before_the_microphone_failed_is_kept(monkeypatch, tmp_path, rate):
    recognizer, waveform = recognizer_of(), noise(rate // 2)
    for part in (recognizer.model, recognizer.extractor, TOKENIZER):
        part.save_pretrained(tmp_path / "run")
    fake = FakeStream(waveform, rate)
    fake.close = fake.stop = lambda: 1 / 0  # a device that is gone
    monkeypatch.setattr(Microphone, "_sounddevice", lambda self: (fake.open, rate))
    monkeypatch.setattr(microphone, "_WAIT_SECONDS", 0.01)
    flags = ("--model", str(tmp_path / "run"), "--output", str(tmp_path / "out"))
    result = CliRunner().invoke(app, ["transcribe", "--microphone", *flags])
    expected = recognizer.transcribe([soxr.resample(waveform, rate, 16_000)])[0]
    assert result.exit_code == 1, result.output
    assert "is it plugged in and allowed? What was heard before is kept" in result.stderr
    (written,) = (tmp_path / "out").iterdir()
    assert "".join(written.read_text().split()) == "".join(expected.text.split())
    assert written.read_text() == result.stdout


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ConfigError, match=r"pip install 'mambavox\[microphone\]'"), Microphone(16_000):
        pass

    def refuse(**_):
        raise ValueError("No input device matching 'nothing'")

    with pytest.raises(AudioError, match=r"no microphone 'nothing' can be opened \(No input device"):
        Microphone(16_000, device="nothing", open_stream=refuse).__enter__()
    monkeypatch.setattr(microphone, "_WAIT_SECONDS", 0.01)
    with (
        Microphone(16_000, open_stream=FakeStream(noise(0)).open) as blocks,
        pytest.raises(AudioError, match="plugged"),
    ):
        next(blocks)


def test_flags_that_do_not_fit_are_refused():
    def run(*flags):
        return CliRunner().invoke(app, ["transcribe", *flags])

    assert run("--model", "x").exit_code == 2
    assert run("a.wav", "--microphone", "--model", "x").exit_code == 2
    assert run("--microphone", "--model", "x", "--beam-size", "4").exit_code == 2
    assert run("--microphone", "--model-dir", "x").exit_code == 2
    assert run("a.wav", "--model", "x", "--device-name", "3").exit_code == 2
