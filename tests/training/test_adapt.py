"""One run: what it writes, and what a user is told about mistakes."""

import errno
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import write_recordings
from tiny_corpora import write_esc50, write_urbansound8k
from transformers import AutoModelForAudioClassification

from mambavox.errors import AudioError, ConfigError, DataError, RunError
from mambavox.runs.predictions import read_predictions
from mambavox.runs.result import RunResult
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.classify.data import fitting_seconds, load_labelled, natural_order
from mambavox.training.engine import EpochTrainer
from mambavox.training.run import run as train
from mambavox.training.splits import Split


@pytest.fixture
def config(backbone: Callable[[str], str], tones: str, tmp_path: Path) -> Callable[..., ClassifyConfig]:
    """A quick run, with whatever is to be different."""

    def make(**changes: Any) -> ClassifyConfig:
        values = {
            "data": tones,
            "backbone": backbone("ast"),
            "output": str(tmp_path / "run"),
            "epochs": 2,
            "batch_size": 4,
            "tensorboard": False,
            "device": "cpu",
        }
        return ClassifyConfig.from_mapping({**values, **changes})

    return make


def test_the_run_folder(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    result = train(config(tensorboard=True, bottleneck_dim=4))
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "labels.json",
        "metrics.json",
        "predictions.csv",
        "preprocessor_config.json",
        "run.yaml",
        "tensorboard",
    ]
    assert any((run / "tensorboard").iterdir())
    assert json.loads((run / "labels.json").read_text()) == ["high", "low"]
    assert ClassifyConfig.load(run / "run.yaml") == config(tensorboard=True, bottleneck_dim=4)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["scores"]["test"]["recordings"] == metrics["recordings"]["test"] == 4
    assert [row["epoch"] for row in metrics["learning_curve"]] == [1, 2]
    assert {"train_loss", "valid_loss", "valid_accuracy"} < metrics["learning_curve"][0].keys()
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["parameters"]["adapter"] > 0
    assert result.parameters == metrics["parameters"]
    predictions = read_predictions(run / "predictions.csv")
    assert sorted(Path(row["recording"]).name for row in predictions if row["split"] == "test") == [
        "high_2.wav",
        "high_5.wav",
        "low_2.wav",
        "low_5.wav",
    ]
    for split, scores in result.scores.items():
        rows = [row for row in predictions if row["split"] == split]
        right = sum(row["target"] == row["predicted"] for row in rows)
        assert (len(rows), right) == (scores["recordings"], scores["correct"])
        assert all(Path(row["recording"]).name.startswith(row["target"]) for row in rows)
    card = (run / "README.md").read_text()
    assert "import mambavox" in card
    assert f'AudioClassifier.from_pretrained("{run}")' in card


def test_full_fine_tuning_saves_a_plain_model(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    train(config(method="full"))
    assert not (tmp_path / "run" / "adapter_config.json").exists()
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "high", 1: "low"}
    assert model.config.max_length == 32


def test_a_run_folder_runs_again(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    first = train(config())
    again = train(ClassifyConfig.load(tmp_path / "run" / "run.yaml", {"output": str(tmp_path / "again")}))
    assert again.learning_curve == first.learning_curve
    other = train(config(seed=1, output=str(tmp_path / "other")))
    assert other.learning_curve != first.learning_curve


def test_checkpoints_stay_when_asked(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    train(config(), keep_checkpoints=True)
    last = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    # Adapter-sized: neither the backbone nor pickled arguments.
    assert not (last / "model.safetensors").exists()
    assert (last / "adapter_model.safetensors").exists()
    assert not (last / "training_args.bin").exists()


def test_it_learns(config: Callable[..., ClassifyConfig]) -> None:
    result = train(config(epochs=40, method="full", learning_rate=5e-3))
    assert result.learning_curve[-1]["train_loss"] < 0.2 < result.learning_curve[0]["train_loss"]
    assert result.scores["test"]["accuracy"] == 1.0


def test_the_best_epoch_is_kept(config: Callable[..., ClassifyConfig]) -> None:
    result = train(config(epochs=8, method="full", learning_rate=5e-3))
    best = max(result.learning_curve, key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    assert result.best_epoch == best["epoch"]
    assert result.scores["valid"]["accuracy"] == best["valid_accuracy"]


def test_mistakes_about_data(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        train(config(data=None))
    with pytest.raises(DataError, match="nowhere"):
        train(config(data=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=r"'word'.*label.*--label-column"):
        train(config(label_column="word"))
    one = write_recordings(tmp_path / "one")
    rows = [json.loads(line) for line in (one / "manifest.jsonl").read_text().splitlines()]
    (one / "manifest.jsonl").write_text("".join(json.dumps({**row, "label": "low"}) + "\n" for row in rows))
    with pytest.raises(DataError, match="only class is 'low'"):
        train(config(data=str(one)))
    (one / "manifest.jsonl").write_text("".join(json.dumps({**row, "label": None}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"'label' is empty.*--label-column"):
        train(config(data=str(one)))
    assert not (tmp_path / "run").exists()


def test_bad_recordings_are_fatal_or_skipped_by_name(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    data = write_recordings(tmp_path / "data")
    (data / "low_0.wav").write_bytes(b"no audio at all")
    soundfile.write(data / "high_3.wav", np.zeros(100), 16_000)
    with pytest.raises(AudioError) as raised:
        train(config(data=str(data), min_seconds=0.1))
    assert "low_0.wav" in str(raised.value)
    assert "high_3.wav" in str(raised.value)
    result = train(config(data=str(data), min_seconds=0.1, on_error="skip"))
    assert sorted(Path(row["name"]).name for row in result.left_out) == ["high_3.wav", "low_0.wav"]
    assert sum(result.recordings.values()) == 10


def test_very_short_and_very_long_recordings(
    config: Callable[..., ClassifyConfig], backbone: Callable[[str], str], tmp_path: Path
) -> None:
    data = write_recordings(tmp_path / "data")
    soundfile.write(data / "low_0.wav", np.full(5, 0.1), 16_000)
    soundfile.write(data / "high_1.wav", np.full(48_000, 0.1), 16_000)
    for family in ("ast", "hubert", "wav2vec2"):
        result = train(config(data=str(data), backbone=backbone(family), output=str(tmp_path / family), epochs=1))
        assert result.details["cut"] >= 1
        assert any("recordings are longer than" in note for note in result.notes)
        assert result.details["crop_seconds"] < 0.4


@pytest.mark.filterwarnings("ignore:ESC-50 has 2000 recordings:UserWarning")
def test_few_shots_of_a_fold(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    data = f"esc50:{write_esc50(tmp_path / 'corpus')}"
    first = load_labelled(config(data=data, fold=3, shots=2))
    assert Counter(first.train.targets) == {"dog": 2, "rooster": 2, "pig": 2}
    assert {example.fields["fold"] for example in first.train.examples} <= {"4", "5", "1"}
    assert (len(first.splits["valid"]), len(first.splits["test"])) == (6, 6)
    same = load_labelled(config(data=data, fold=3, shots=2, seed=1))
    assert [example.name for example in same.train.examples] == [example.name for example in first.train.examples]
    other = load_labelled(config(data=data, fold=3, shots=2, split_seed=1))
    assert [example.name for example in other.train.examples] != [example.name for example in first.train.examples]
    assert [example.name for example in other.splits["test"].examples] == [
        example.name for example in first.splits["test"].examples
    ]
    assert "ESC-50 has 2000 recordings and 30 were found: 1970 are missing" in first.notes


@pytest.mark.filterwarnings("ignore:ESC-50 has 2000 recordings:UserWarning")
def test_columns_go_before_the_protocol_of_a_corpus(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    data = str(write_esc50(tmp_path / "corpus"))
    splits = load_labelled(config(data=data, test_fold=2, valid_fold=4))
    assert {example.fields["fold"] for example in splits.splits["valid"].examples} == {"4"}


@pytest.mark.filterwarnings("ignore:UrbanSound8K has 8732 recordings:UserWarning")
def test_selection_on_the_test_part_is_told_wherever_the_score_is(
    config: Callable[..., ClassifyConfig], tmp_path: Path
) -> None:
    data = str(write_urbansound8k(tmp_path / "corpus"))
    result = train(config(data=data, protocol="paper", fold=3, epochs=4, method="full", learning_rate=5e-3))
    assert result.selects_on_test
    assert result.scores.keys() == {"test"}
    assert result.scores["test"]["accuracy"] == max(row["valid_accuracy"] for row in result.learning_curve)
    assert RunResult.load(tmp_path / "run") == result
    assert any(note.startswith("OPTIMISTIC") for note in result.notes)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| test (optimistic: the epoch was chosen on this split) | 4 |" in card
    assert "the best on the test split" in card
    assert "- OPTIMISTIC: protocol paper chooses the best epoch" in card

    plain = train(config(data=data, fold=3, epochs=1, output=str(tmp_path / "plain")))
    assert plain.scores.keys() == {"valid", "test"}
    assert not plain.selects_on_test
    assert "ptimistic" not in (tmp_path / "plain" / "README.md").read_text().lower()


def test_a_protocol_of_other_data_is_a_mistake(config: Callable[..., ClassifyConfig]) -> None:
    with pytest.raises(ConfigError, match=r"fold=1 is asked of a corpus, .*tones.*esc50.*--test-fold"):
        train(config(fold=1))
    with pytest.raises(ConfigError, match=r"^protocol=paper is asked of a corpus"):
        train(config(protocol="paper"))
    with pytest.raises(ConfigError, match="no data given"):
        train(config(data=None, output="x", fold=1))


def test_mistakes_about_the_method(config: Callable[..., ClassifyConfig]) -> None:
    with pytest.raises(ConfigError, match="method=magic"):
        train(config().replace(method="magic"))
    with pytest.raises(ConfigError, match="bottleneck_dim is 0"):
        train(config(bottleneck_dim=0))
    with pytest.raises(ConfigError, match="patience=1"):
        train(config(patience=1, split_column="none", valid_fraction=0.0))


def test_masks_need_a_spectrogram(config: Callable[..., ClassifyConfig], backbone: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=r"hears waveforms.*--no-spec-augment"):
        train(config(backbone=backbone("hubert"), spec_augment=True))


def test_buckets_need_clips_of_several_lengths(
    config: Callable[..., ClassifyConfig], backbone: Callable[[str], str], tmp_path: Path
) -> None:
    for family in ("ast", "wav2vec2"):
        with pytest.raises(ConfigError, match=r"hears every clip at one length.*--no-length-buckets"):
            train(config(backbone=backbone(family), length_buckets=True))
    bucketed = train(config(backbone=backbone("hubert"), batch_size=2, length_buckets=True))
    other = train(config(backbone=backbone("hubert"), batch_size=2, output=str(tmp_path / "other")))
    assert bucketed.learning_curve != other.learning_curve


def test_a_gpu_that_is_not_there(config: Callable[..., ClassifyConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        train(config(device="cuda"))


def test_divergence_ends_the_run(config: Callable[..., ClassifyConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mambavox.training.classify.task.mean_cross_entropy",
        lambda outputs, labels, num_items_in_batch=None: outputs["logits"].sum() * float("nan"),
    )
    with pytest.raises(RunError, match=r"diverged.*--learning-rate"):
        train(config())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 101824 vs 101744"),  # torch.save's
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_last_checkpoint(
    config: Callable[..., ClassifyConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save = EpochTrainer._save_optimizer_and_scheduler

    def fails_later(self: EpochTrainer, output_dir: str) -> None:
        if output_dir.endswith("checkpoint-3"):
            raise error
        save(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(EpochTrainer, "_save_optimizer_and_scheduler", fails_later)
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(RunError, match=r"disk is full.*checkpoint-2 is kept.*--resume"):
            train(config(epochs=4))
    assert (
        train(config(epochs=4), resume=True).learning_curve
        == train(config(epochs=4, output=str(tmp_path / "whole"))).learning_curve
    )


def test_lengths_and_labels() -> None:
    assert natural_order({"10", "2", "1"}) == ["1", "2", "10"]
    assert natural_order({"b", "a2", "a10", "a"}) == ["a", "a2", "a10", "b"]


def test_fitting_seconds() -> None:
    seconds = [1.0] * 98 + [2.0, 9.0]
    assert fitting_seconds(Split(seconds=seconds), 30.0) == 2.0
    assert fitting_seconds(Split(seconds=seconds), 0.5) == 0.5
    assert fitting_seconds(Split(seconds=seconds[:40] + seconds[-1:]), 30.0) == 9.0


def test_yaml_of_a_run_is_plain(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    train(config(epochs=1))
    content = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert content["learning_rate"] is None
    assert content["method"] == "mambadapter"


def test_bf16_autocast_trains_float32_weights(config: Callable[..., ClassifyConfig], tmp_path: Path) -> None:
    result = train(config(precision="bfloat16", learning_rate=0.01))
    assert np.isfinite([row["train_loss"] for row in result.learning_curve]).all()
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    plain = train(config(precision="float32", learning_rate=0.01, output=str(tmp_path / "plain")))
    assert plain.learning_curve != result.learning_curve
