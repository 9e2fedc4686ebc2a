"""CTC training: from recordings to a folder that transcribes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.errors import ConfigError, DataError, HostError, RunError
from mambavox.runs.predictions import of_split, read_predictions
from mambavox.runs.result import RunResult
from mambavox.training.ctc.config import CtcConfig
from mambavox.training.ctc.objective import CtcTrainer, tri_stage
from mambavox.training.run import run as train
from mambavox.training.transcripts import load_transcripts


def make_config(data, backbone, output, **changes):
    values = {
        "data": data,
        "backbone": backbone,
        "output": str(output),
        "epochs": 2,
        "batch_size": 3,
        "learning_rate": 3e-3,
        "tensorboard": False,
        "device": "cpu",
        "language": "en",
    }
    return CtcConfig.from_mapping({**values, **changes})


def test_three_clips_are_learned_by_heart(spoken, tiny_mamba, tmp_path):
    config = make_config(
        spoken,
        tiny_mamba,
        tmp_path / "run",
        epochs=150,
        learning_rate=1e-2,
        mask_prob=0.0,
        mask_channel_prob=0.0,
        train_front=True,
        frozen_ratio=0.02,
    )
    result = train(config)
    assert result.scores["test"]["wer"]["rate"] == 0, (tmp_path / "run" / "predictions.csv").read_text()
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


METHODS = [
    ("hubert", "lora", {}),
    ("wav2vec2", "mambadapter", {"bottleneck_dim": 4}),
    ("wavlm", "bottleneck", {"bottleneck_dim": 4}),
    ("wavlm", "linear", {}),
    ("hubert", "full", {}),
    ("mms", "mambadapter", {"bottleneck_dim": 4}),
    ("mms", "linear", {}),
    ("mamba", "linear", {}),
    ("mamba", "lora", {"r": 2}),
    ("mamba", "mambadapter", {"bottleneck_dim": 4, "placement": "attention"}),
]


@pytest.mark.parametrize(("family", "method", "options"), METHODS)
def test_every_host_and_what_is_loaded_is_what_was_trained(
    family, method, options, spoken, tiny_mamba, tiny_mms, backbone, tmp_path
):
    model = {"mamba": tiny_mamba, "mms": tiny_mms}.get(family) or backbone(family)
    config = make_config(
        spoken, model, tmp_path, method=method, frozen_ratio=0.4 if method == "full" else 0.0, **options
    )
    result = train(config)
    recognizer = SpeechRecognizer.from_pretrained(tmp_path, device="cpu")
    for row in of_split(read_predictions(tmp_path / "predictions.csv"), "test"):
        assert recognizer(row["recording"]).text == row["predicted"]
    losses = [row["valid_loss"] for row in result.learning_curve]
    assert losses[0] != losses[1]
    if method != "full":
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert any("lm_head" in key for key in saved)
        assert len(saved[next(key for key in saved if key.endswith("lm_head.weight"))]) == result.details["vocabulary"]


def test_a_pretrained_pieces_vocabulary(spoken, tiny_mamba, tmp_path):
    result = train(make_config(spoken, tiny_mamba, tmp_path, vocabulary="bpe", vocabulary_size=30))
    assert result.details["vocabulary"] <= 30
    assert SpeechRecognizer.from_pretrained(tmp_path, device="cpu").vocabulary.blank == 0


@pytest.mark.parametrize("changes", [{"frozen_ratio": 0.4}, {"method": "lora"}])
def test_a_broken_run_continues_to_the_same_bits(changes, spoken, tiny_mamba, tmp_path, monkeypatch):
    settings = {"epochs": 4, "batch_size": 2, **changes}
    whole = train(make_config(spoken, tiny_mamba, tmp_path / "whole", **settings))
    step, done = CtcTrainer.training_step, 0

    def breaking(self, *args, **kwargs):
        nonlocal done
        done += 1
        if done > 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CtcTrainer, "training_step", breaking)
    broken = make_config(spoken, tiny_mamba, tmp_path / "broken", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    monkeypatch.undo()
    with pytest.raises(RunError, match="--resume"):
        train(broken)
    result = train(broken, resume=True)
    assert replace(result, seconds=0.0) == replace(whole, seconds=0.0)
    name = "adapter_model.safetensors" if "method" in changes else "model.safetensors"
    first, second = load_file(tmp_path / "whole" / name), load_file(tmp_path / "broken" / name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert train(broken, resume=True).scores == result.scores


def write_manifest(folder, rows):
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_is_left_out_is_named_with_the_reason(spoken, tiny_mamba, tmp_path):
    rows = [json.loads(line) for line in (Path(spoken) / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        row["path"] = str(Path(spoken) / row["path"])
    copies = {}
    for name in ("silent", "impossible", "none", "unheard"):
        copies[name] = str(tmp_path / f"{name}.wav")
        shutil.copy(rows[0]["path"], copies[name])
    rows += [
        {"path": copies["silent"], "text": "...", "split": "train"},
        {"path": copies["impossible"], "text": "a" * 500, "split": "train"},
        {"path": copies["none"], "text": None, "split": "train"},
        {"path": copies["unheard"], "text": "", "split": "test"},
    ]
    result = train(make_config(write_manifest(tmp_path, rows), tiny_mamba, tmp_path / "run", epochs=1, on_error="skip"))
    reasons = {Path(row["name"]).stem: row["reason"] for row in result.left_out}
    assert reasons.keys() == {"silent", "impossible", "none"}
    assert "its transcript is empty" in reasons["silent"]
    assert "needs 999 frames" in reasons["impossible"]
    assert "no transcript in column 'text'" in reasons["none"]
    assert result.scores["test"]["empty_references"] == 1


def test_limits_of_seconds(spoken, tiny_mamba, tmp_path):
    result = train(make_config(spoken, tiny_mamba, tmp_path / "a", epochs=1, test_seconds=1.0, train_seconds=1.0))
    assert 1 <= result.recordings["test"] < 3
    assert result.hours["train"] <= 1.0 / 3600 + 1e-4
    with pytest.raises(DataError, match=r"no training recording is left, such as .*is longer than 0.1 s"):
        train(make_config(spoken, tiny_mamba, tmp_path / "b", drop_longer_than=0.1))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text_column": "words"}, DataError, "words.*--text-column"),
        ({"backbone": "/nowhere/at/all"}, ConfigError, "^/nowhere/at/all: there is no such folder"),
        ({"backbone": "nowhere/at-all"}, ConfigError, "could not be fetched"),
        ({"method": "nothing"}, ConfigError, "method=nothing; expected"),
        ({"method": "mambadapter"}, HostError, "no sublayer fits where='encoder', placement='ffn'; the backbone has"),
        (
            {"train_split": "train-clean-100"},
            DataError,
            "no recording has subset or split 'train-clean-100'; it has train",
        ),
        ({"train_split": "train", "test_split": "train"}, DataError, "test_split names 'train'"),
        ({"train_split": "train", "valid_split": "train"}, DataError, "valid shares recordings with train"),
        ({"warmup_ratio": 0.6}, ConfigError, "less than 1 together"),
        ({"learning_rate": 1e30, "epochs": 5}, RunError, "diverged"),
    ],
)
def test_mistakes_are_told(changes, error, message, spoken, tiny_mamba, tmp_path):
    with pytest.raises(error, match=message):
        train(make_config(spoken, **{"backbone": tiny_mamba, "output": tmp_path, **changes}))


def test_a_named_training_part_gives_a_share_for_validation(spoken, tiny_mamba, tmp_path):
    config = make_config(spoken, tiny_mamba, tmp_path / "run", epochs=1, train_split="train", valid_fraction=0.3)
    result = train(config)
    assert result.recordings["train"] == 2 and result.recordings["valid"] == 1
    assert result.learning_curve[0]["valid_wer"] > 0
    assert "valid: 1 of 3 training recordings, drawn with seed 0" in result.notes
    parts = load_transcripts(make_config(spoken, tiny_mamba, tmp_path, train_split="train", valid_fraction=0.0))
    assert len(parts.train) == 3 and len(parts.splits["valid"]) == 0
    assert any("--valid-fraction 0 draws none; the last epoch is kept" in note for note in parts.notes)
    with pytest.raises(DataError, match=r"one group .*; valid needs one of its own"):
        load_transcripts(make_config(spoken, tiny_mamba, tmp_path, train_split="train", group_column="speaker"))
    parts = load_transcripts(make_config(spoken, tiny_mamba, tmp_path, train_split="train", valid_split="valid"))
    assert len(parts.train) == len(parts.splits["valid"]) == 3


def test_tri_stage():
    factor = tri_stage(100, 0.1, 0.4)
    assert factor(0) == pytest.approx(0.01)
    assert factor(10) == factor(30) == factor(50) == 1.0
    assert factor(75) == pytest.approx(0.05**0.5)
    assert factor(100) == pytest.approx(0.05)


def test_missing_result_is_told(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        RunResult.load(tmp_path)
