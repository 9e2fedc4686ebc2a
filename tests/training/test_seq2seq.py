"""Adaptation of Whisper to transcribed recordings."""

import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny import save_whisper
from training.devices import pretend_two_gpus
from transformers import Trainer, WhisperForConditionalGeneration

from mambavox.asr.whisper import load_whisper
from mambavox.data import checks, duration
from mambavox.errors import ConfigError, DataError, HostError, RunError
from mambavox.runs.result import RunResult
from mambavox.training.run import run as train
from mambavox.training.transcripts import load_transcripts
from mambavox.training.whisper.config import WhisperConfig
from mambavox.training.whisper.data import TranscriptDataset, as_written
from mambavox.training.whisper.objective import WhisperTrainer

WORDS = {"low": 300.0, "high": 2500.0}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_whisper(tmp_path_factory.mktemp("whisper")))


@pytest.fixture(scope="module")
def sayings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve tones of two kinds, whose names are what is said in them."""
    folder, generator = tmp_path_factory.mktemp("sayings"), np.random.default_rng(0)
    rows = []
    for word, frequency in WORDS.items():
        for number in range(6):
            samples = round(16_000 * (0.4 + 0.05 * number))
            tone = np.sin(2 * np.pi * frequency * np.arange(samples) / 16_000)
            path = f"{word}_{number}.wav"
            soundfile.write(folder / path, 0.3 * tone + 0.01 * generator.standard_normal(samples), 16_000)
            split = ("train", "train", "train", "valid", "test", "train")[number]
            rows.append({"path": path, "sentence": f"{word.title()}.", "lang": "ckb", "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def config(whisper: str, sayings: str, output: Path, **changes: Any) -> WhisperConfig:
    options = {"bottleneck_dim": 4, "d_state": 3, "d_conv": 4, "where": "both"}
    values: dict[str, Any] = {
        "data": sayings,
        "output": str(output),
        "backbone": whisper,
        "language": "ckb",
        "epochs": 2,
        "batch_size": 4,
        "max_new_tokens": 6,
        "tensorboard": False,
        "device": "cpu",
        "method_options": options,
    }
    return WhisperConfig(**{**values, **changes})


def test_a_run_and_what_its_folder_holds(whisper: str, sayings: str, tmp_path: Path) -> None:
    run = config(whisper, sayings, tmp_path / "run", language_column="lang")
    result = train(run)
    assert result.details["new_token"] == "<|ckb|>" and result.recordings == {"train": 8, "valid": 2, "test": 2}
    assert set(result.scores) == {"valid", "test"} and result.scores["test"]["wer"]["low"] <= 1
    assert [row["epoch"] for row in result.learning_curve] == [1, 2]
    assert {"train_loss", "valid_loss", "valid_wer", "valid_cer"} <= set(result.learning_curve[-1])
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", "run.yaml", "metrics.json", "predictions.csv"} <= files
    assert "checkpoints" not in files and ".partial" not in files
    assert RunResult.load(tmp_path / "run") == result
    assert train(run, resume=True) == result, "finished"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "language: ckb" in card and "WER" in card
    with pytest.raises(RunError, match="holds a finished run"):
        train(run)
    assert WhisperConfig.load(tmp_path / "run" / "run.yaml") == run


def test_it_learns(whisper: str, sayings: str, tmp_path: Path) -> None:
    run = config(whisper, sayings, tmp_path / "run", method="full", method_options={}, epochs=50, learning_rate=1e-2)
    result = train(run)
    curve = result.learning_curve
    assert curve[-1]["train_loss"] < 0.3 * curve[0]["train_loss"]
    best = min(row["valid_wer"] for row in curve)
    assert result.scores["valid"]["wer"]["rate"] == pytest.approx(best) and best < 1.0
    assert result.best_epoch == min(range(50), key=lambda index: curve[index]["valid_wer"]) + 1
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("rate", ["wer", "cer"])
def test_the_error_rate_that_is_asked_for_chooses_the_epoch(
    whisper: str, sayings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    """Of three epochs the second has the fewest wrong words, the first the fewest wrong characters."""
    rates = iter([(0.9, 0.1), (0.2, 0.3), (0.8, 0.2), (0.5, 0.5), (0.5, 0.5)])
    fixed = property(lambda scores: dict(zip(("wer", "cer"), next(rates), strict=True)))
    monkeypatch.setattr("mambavox.asr.metrics.TranscriptScores.rates", fixed)
    run = config(whisper, sayings, tmp_path / "run", epochs=3, metric_for_best_model=rate)
    assert train(run).best_epoch == {"wer": 2, "cer": 1}[rate]


@pytest.mark.parametrize(
    "options", [{"gradient_checkpointing": True}, {"precision": "bfloat16"}, {"trim_encoder": True}]
)
def test_other_ways_of_computing(whisper: str, sayings: str, tmp_path: Path, options: dict[str, Any]) -> None:
    plain = train(config(whisper, sayings, tmp_path / "plain", epochs=1))
    other = train(config(whisper, sayings, tmp_path / "other", epochs=1, **options))
    assert other.learning_curve[0]["train_loss"] == pytest.approx(plain.learning_curve[0]["train_loss"], rel=0.02)
    if "gradient_checkpointing" in options:
        assert other.learning_curve == plain.learning_curve


def test_checkpointing_really_computes_layers_again(
    whisper: str, sayings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def counting(name: str) -> Any:
        model, processor = load_whisper(name)
        model.model.encoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        return model, processor

    monkeypatch.setattr("mambavox.training.whisper.task.load_whisper", counting)
    counts = []
    for checkpointing in (False, True):
        calls.clear()
        train(config(whisper, sayings, tmp_path / str(checkpointing), epochs=1, gradient_checkpointing=checkpointing))
        counts.append(sum(calls))
    check, steps = 1, 2
    assert counts == [check + steps, check + 2 * steps]


def test_the_loss_chooses_the_epoch_and_nothing_is_transcribed_before(
    whisper: str, sayings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the mean over all targets of the valid split, whatever batches they came in."""
    heard = []
    transcribe = WhisperTrainer.transcribe
    monkeypatch.setattr(WhisperTrainer, "transcribe", lambda self, split: heard.append(1) or transcribe(self, split))
    monkeypatch.setattr(WhisperForConditionalGeneration, "generate", counted := _Counted("generate"))
    seen = {}
    figures = WhisperTrainer._figures

    def kept(self: WhisperTrainer, prediction: Any) -> dict[str, float]:
        if not self.args.predict_with_generate:
            seen[len(seen)] = (np.asarray(prediction.predictions), np.asarray(prediction.label_ids), counted.calls)
        return figures(self, prediction)

    monkeypatch.setattr(WhisperTrainer, "_figures", kept)
    chosen = config(whisper, sayings, tmp_path / "run", metric_for_best_model="loss", eval_batch_size=1)
    result = train(chosen, console=Console(file=(told := StringIO())))
    assert [calls for *_, calls in seen.values()] == [0, 0] and len(heard) == 2
    losses = [row["valid_loss"] for row in result.learning_curve]
    assert losses == pytest.approx([values[labels != -100].mean() for values, labels, _ in seen.values()])
    assert result.best_epoch == 1 + int(np.argmin(losses)) and "wer" in result.scores["valid"]
    assert f"valid loss {losses[0]:.4f}" in told.getvalue()


class _Counted:
    """A method that counts its calls."""

    def __init__(self, name: str) -> None:
        self.plain, self.calls = getattr(WhisperForConditionalGeneration, name), 0

    def __get__(self, model: Any, kind: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.plain(model, *args, **kwargs)

        return call


def test_a_single_update_with_a_warm_up(whisper: str, sayings: str, tmp_path: Path) -> None:
    result = train(config(whisper, sayings, tmp_path / "run", epochs=1, batch_size=8, warmup_ratio=0.1))
    assert result.learning_curve[0]["train_loss"] > 0


def test_transcripts_are_written_as_whisper_writes_them(whisper: str, sayings: str, tmp_path: Path) -> None:
    """A space stands before the first word, but in scripts without spaces."""
    assert as_written(["low", "", "high tone"], "ckb") == [" low", "", " high tone"]
    assert as_written(["低"], "zh-CN") == ["低"] and as_written(["低"], "yue") == ["低"]
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        make = TranscriptDataset.__init__
        patched.setattr(
            TranscriptDataset, "__init__", lambda *args, **options: (seen.append(args[2]), make(*args, **options))[1]
        )
        train(config(whisper, sayings, tmp_path / "run", epochs=1))
    assert {text for texts in seen for text in texts} == {" low", " high"}


def test_as_many_tokens_are_generated_as_transcripts_may_need(whisper: str, sayings: str, tmp_path: Path) -> None:
    result = train(config(whisper, sayings, tmp_path / "run", epochs=1, max_new_tokens=None))
    longest = len([257, 1, 2, 3]) + len(" high") + len(["end"])  # start, language, task, no timestamps; bytes
    assert result.details["max_new_tokens"] == math.ceil(1.5 * longest)


def test_seconds_of_each_part_are_drawn_before_recordings_are_decoded(
    whisper: str, sayings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = checks.decode_audio
    monkeypatch.setattr(checks, "decode_audio", lambda source, name: decoded.append(name) or decode(source, name=name))
    run = config(whisper, sayings, tmp_path / "run", train_seconds=1.0, valid_seconds=0.1, test_seconds=0.7)
    data = load_transcripts(run, longest=1.0)
    seconds = {name: sum(duration(item.source) for item in split.examples) for name, split in data.splits.items()}
    assert 0.4 < seconds["train"] <= 1.0 and len(data.splits["valid"]) == 1 and len(data.splits["test"]) == 1
    drawn = [item.name for split in data.splits.values() for item in split.examples]
    assert sorted(decoded) == sorted(drawn) and not data.left_out


def test_recordings_without_a_transcript_can_be_skipped(whisper: str, sayings: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (Path(sayings) / "manifest.jsonl").read_text().splitlines()]
    rows[0]["sentence"] = None
    rows = [{**row, "path": str(Path(sayings) / row["path"])} for row in rows]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = config(whisper, str(tmp_path / "data.jsonl"), tmp_path / "run")
    with pytest.raises(DataError, match=r"no transcript in column 'sentence' of .*low_0.*--on-error skip"):
        load_transcripts(run, longest=1.0)
    data = load_transcripts(run.replace(on_error="skip"), longest=1.0)
    assert len(data.train) == 7 and ["low_0" in row["name"] for row in data.left_out] == [True]


def test_transcripts_that_the_decoder_cannot_take_can_be_skipped(whisper: str, sayings: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (Path(sayings) / "manifest.jsonl").read_text().splitlines()]
    rows[0]["sentence"] = "low " * 500
    rows = [{**row, "path": str(Path(sayings) / row["path"])} for row in rows]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = config(whisper, str(tmp_path / "manifest.jsonl"), tmp_path / "run", epochs=1)
    with pytest.raises(DataError, match=r"transcripts of 1 recordings have more than .*--on-error skip"):
        train(chosen)
    result = train(chosen.replace(on_error="skip"))
    assert result.recordings["train"] == 7 and "the decoder takes" in result.left_out[0]["reason"]


def test_a_multilingual_whisper_must_be_told_the_language(whisper: str, sayings: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no language is given, and .* knows 2; .*--language"):
        train(config(whisper, sayings, tmp_path / "run", language=None))


def test_adalora_moves_its_ranks(whisper: str, sayings: str, tmp_path: Path) -> None:
    parts = {"split_column": "none", "valid_fraction": 0.0, "test_fraction": 0.2}
    options = {"init_r": 4, "target_r": 1}
    train(config(whisper, sayings, tmp_path, method="adalora", method_options=options, epochs=8, **parts))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    left = [int((tensor != 0).sum()) for name, tensor in tensors.items() if "lora_E" in name]
    assert sum(left) == len(left) > 0, "target_r for each projection, on average"


def test_mistakes(whisper: str, sayings: str, tmp_path: Path, backbone: Any) -> None:
    for changes, error, message in (
        ({"text_column": "words"}, DataError, "words.*--text-column"),
        ({"drop_longer_than": 2.0}, ConfigError, "drop_longer_than=2; expected at most 1, which"),
        ({"drop_longer_than": 0.1}, DataError, "no training recording is left, .* longer than 0.1 s"),
        ({"language_column": "nope"}, DataError, "no recording has ckb in column 'nope'"),
        ({"method": "ia3", "method_options": {}}, ConfigError, "ia3 cannot train rows"),
        ({"backbone": backbone("hubert")}, HostError, "of type 'hubert'; expected a Whisper"),
        ({"data": None}, ConfigError, "no data given"),
    ):
        with pytest.raises(error, match=message):
            train(config(whisper, sayings, tmp_path / "run", **changes))
    for changes, message in (
        ({"learning_rate": 1e-3, "final_learning_rate": 1e-3}, "is not below learning_rate"),
        ({"language": None, "language_like": "en"}, "give --language, too"),
        ({"epochs": 0}, "epochs=0; expected at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(whisper, sayings, tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=r"did you mean bottleneck_dim"):
        WhisperConfig.from_mapping({"bottlneck_dim": 3})


def test_one_process_takes_one_of_several_gpus(
    whisper: str, sayings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_two_gpus(monkeypatch)
    used: list[int] = []
    monkeypatch.setattr(Trainer, "train", lambda trainer, **_: used.append(trainer.args.n_gpu) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config(whisper, sayings, tmp_path / "run"))
    assert used == [1]


def test_endless_repetition_is_ended_cut_and_told(whisper: str, sayings: str, tmp_path: Path) -> None:
    """A learning rate at which the decoder loses its way: it says one thing for ever."""
    changes: dict[str, Any] = {"learning_rate": 3.0, "epochs": 1, "max_new_tokens": 80}
    out = StringIO()
    result = train(config(whisper, sayings, tmp_path / "run", **changes), console=Console(file=out, width=200))
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()
    assert result.details["repeats"] == {"valid": 2, "test": 2}, rows
    assert (
        "test: 2 of 2 transcripts repeated themselves without end and were cut behind the first round" in out.getvalue()
    )
    assert max(len(row) for row in rows) < 150
