"""CTC training: from recordings to a folder that transcribes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.errors import ConfigError, DataError, RunError
from mambavox.training.recognition.config import RecognitionConfig
from mambavox.training.recognition.finetune import RecognitionResult, finetune
from mambavox.training.recognition.trainer import RecognitionTrainer, tri_stage


def make_config(data, model, output, **changes):
    values = {
        "data": data,
        "model": model,
        "output": str(output),
        "epochs": 2,
        "batch_size": 3,
        "learning_rate": 3e-3,
        "tensorboard": False,
        "device": "cpu",
        "language": "en",
    }
    return RecognitionConfig.from_mapping({**values, **changes})


def test_three_clips_are_learned_by_heart(spoken, tiny_mamba, tmp_path):
    config = make_config(
        spoken, tiny_mamba, tmp_path / "run", epochs=150, learning_rate=1e-2, mask_prob=0.0, mask_channel_prob=0.0,
        train_front=True, frozen_ratio=0.02,
    )
    result = finetune(config)
    assert result.scores["test"].wer.rate == 0, [item.hypothesis for item in result.scores["test"].utterances]
    recognizer = SpeechRecognizer.from_pretrained(tmp_path / "run", device="cpu")
    transcript = recognizer(Path(spoken) / "test_2.wav")
    assert transcript.text == "seven cats"
    first, second = transcript.words
    assert 0 <= first.start < first.end <= second.start < second.end <= transcript.seconds
    assert recognizer(Path(spoken) / "test_2.wav", beam_size=4).text == "seven cats"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["scores"]["test"]["wer"]["rate"] == 0
    assert any("speakers of test are in train" in note for note in metrics["notes"])
    assert not (tmp_path / "run" / "checkpoints").exists()
