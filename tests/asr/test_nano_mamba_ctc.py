"""The embedded recogniser."""

import json
import string
from pathlib import Path

import pytest
import soundfile
import torch
from typer.testing import CliRunner

from mambavox import assets
from mambavox.asr.metrics import score_transcripts
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.cli import app
from mambavox.data import read_audio
from mambavox.data.synth import synthesize

SENTENCES = (
    "the old man went down to the river",
    "come back to the house before the night",
    "she gave the water to her brother and her sister",
    "all people have the right to work",
)
"""Of everyday words; none is in the texts that it learned from."""


@pytest.fixture(scope="module")
def recognizer():
    return SpeechRecognizer.from_pretrained(assets.RECOGNISER, device="cpu")


def test_it_is_small_and_causal(recognizer):
    folder = Path(assets.path(assets.RECOGNISER))
    assert (folder / "model.safetensors").stat().st_size <= 10e6
    assert recognizer.model.dtype == torch.float32 and recognizer.model.config.causal
    assert set(string.ascii_lowercase + "'") <= set(recognizer.vocabulary.tokens)


def test_it_understands_synthesised_speech(recognizer):
    heard = [item.text for item in recognizer.transcribe([synthesize(text) for text in SENTENCES])]
    scores = score_transcripts(SENTENCES, heard)
    assert scores.rates["cer"] < 0.4, heard


def test_a_stream_hears_what_the_whole_recording_says(recognizer):
    samples = torch.from_numpy(synthesize(SENTENCES[0]))[None]
    with torch.inference_mode():
        whole = recognizer.model(samples).logits
        state, pieces = recognizer.model.init_streaming_state(1), []
        for piece in samples.split(5000, dim=1):
            output, state = recognizer.model.stream(piece, state)
            pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_transcribe_takes_it_where_no_model_is_named(tmp_path):
    soundfile.write(tmp_path / "said.wav", synthesize(SENTENCES[0]), 16_000)
    result = CliRunner().invoke(app, ["transcribe", str(tmp_path / "said.wav"), "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    heard = json.loads(result.stdout)[0]["text"]
    assert score_transcripts(SENTENCES[:1], [heard]).rates["cer"] < 0.5, heard


def test_of_real_speech_it_hears_some_letters(recognizer, recordings):
    rows = [json.loads(line) for line in (recordings / "librispeech_subset" / "manifest.jsonl").open(encoding="utf-8")]
    rows = [row for row in rows if row["split"] == "test_other"][:10]
    waveforms = [read_audio(recordings / "librispeech_subset" / row["path"], 16_000) for row in rows]
    scores = score_transcripts([row["text"] for row in rows], [t.text for t in recognizer.transcribe(waveforms)])
    assert scores.rates["cer"] < 0.65
