"""From recordings to a model that transformers loads, in two iterations."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from training.pretraining.conftest import TINY, tiny_run, write_speech
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoModelForPreTraining
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.hubert import MambaHubertForPreTraining
from mambavox.runs.result import RunResult
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.pretraining.figures import UnitFigures
from mambavox.training.pretraining.plan import plan
from mambavox.training.pretraining.progress import read_history
from mambavox.training.run import run as train
from mambavox.units import UnitLabels, UnitQuantizer


def test_two_iterations(speech: str, tmp_path: Path) -> None:
    first = train(tiny_run(speech, tmp_path / "it1", steps=60, layerdrop=0.0, save_every=30, tensorboard=True))
    config = tiny_run(speech, tmp_path / "it2", targets=f"{tmp_path / 'it1'}:1", num_clusters=8, steps=3)
    second = train(config)
    assert (first.details["num_clusters"], second.details["num_clusters"]) == (6, 8)
    assert first.recordings == {"train": 13, "valid": 3}

    history = [line for line in read_history(tmp_path / "it1" / "metrics.jsonl") if "loss" in line]
    assert history[-1]["prediction_loss"] < history[0]["prediction_loss"] - 0.3
    assert first.scores["valid"]["masked_accuracy"] > 1.5 / 6
    assert history[-1]["hours"] > 0 and history[-1]["grad_norm"] > 0 and history[-1]["target_perplexity"] > 2

    model = AutoModel.from_pretrained(tmp_path / "it2")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "it2")
    frames = model(**extractor(np.zeros(8000, np.float32), sampling_rate=16_000, return_tensors="pt")).last_hidden_state
    assert frames.shape == (1, 24, 16)
    assert AutoModelForPreTraining.from_pretrained(tmp_path / "it2").codebook.shape == (8, 8)
    assert AutoModelForCTC.from_pretrained(tmp_path / "it2").lm_head.out_features == 32
    for name in ("run.yaml", "metrics.json", "README.md", "curve.png", "targets/kmeans.safetensors", "tensorboard"):
        assert (tmp_path / "it1" / name).exists(), name
    card = (tmp_path / "it2" / "README.md").read_text()
    assert f"8 units of layer 1 of {tmp_path / 'it1'}" in card
    assert f"masked_accuracy {second.scores['valid']['masked_accuracy']:.4g}" in card
    assert not (tmp_path / "it1" / "checkpoints").exists()


def test_command(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text(tiny_run(speech, tmp_path / "run", steps=2).to_yaml())
    options = ["pretrain", "--config", str(tmp_path / "run.yaml")]
    dry = CliRunner().invoke(app, [*options, "--dry-run", "--layerdrop", "0.1", "--steps", "13"])
    assert dry.exit_code == 0, dry.output
    assert "13 updates of at most 4 s (2 batches of a device)" in dry.output and "13 recordings" in dry.output
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["details"]["steps"] == 2
    assert "h to train on" in done.output and "(3 recordings) held back, by a draw of recordings" in done.output
    assert f"mambavox adapt --task ctc --backbone {tmp_path / 'run'}" in done.output.replace("\n", " ")
    monkeypatch.setattr("mambavox.training.run.is_first_process", lambda: False)
    again = CliRunner().invoke(app, [*options, "--resume"])
    assert again.exit_code == 0 and "load it with" not in again.output
    wrong = CliRunner().invoke(app, ["pretrain", "--data", speech, "--preset", "mamba-tiny"])
    assert wrong.exit_code == 1 and "did you mean" in wrong.output


def test_plan_counts(speech: str, tmp_path: Path) -> None:
    found = plan(tiny_run(speech, tmp_path / "run", crop_seconds=2.0))
    lengths = [soundfile.info(path).frames for path in sorted(Path(speech).iterdir())]
    assert found.hours + found.held_back == pytest.approx(sum(lengths) / 16_000 / 3600) and found.recordings == 13
    assert found.parameters["whole"] == sum(
        parameter.numel()
        for parameter in MambaHubertForPreTraining(tiny_run(speech, tmp_path).model_config()).parameters()
    )
    assert 0.8 < found.heard <= 1


def test_plan_counts_what_is_trained_on(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "dev", "test")):
        write_speech(tmp_path / "data" / part, clips=4, seed=number)
    torn = tmp_path / "data" / "train" / "torn.wav"
    torn.write_bytes(b"RIFF and nothing else")
    with pytest.raises(AudioError, match=r"torn\.wav"):
        plan(tiny_run(str(tmp_path / "data"), tmp_path / "run"))
    found = plan(tiny_run(str(tmp_path / "data"), tmp_path / "run", on_error="skip"))
    hours = {
        part: sum(soundfile.info(path).duration for path in (tmp_path / "data" / part).glob("clip*")) / 3600
        for part in ("train", "dev")
    }
    assert (found.recordings, found.unreadable) == (4, 1)
    assert (found.hours, found.held_back) == pytest.approx((hours["train"], hours["dev"]), rel=1e-4)


def test_units_are_fitted_to_what_is_trained_on(tmp_path: Path) -> None:
    """And the test split is neither read nor labelled."""
    for number, part in enumerate(("train", "dev", "test")):
        write_speech(tmp_path / "data" / part, clips=4, seed=number)
    (tmp_path / "data" / "test" / "clip00.wav").write_bytes(b"RIFF and nothing else")
    result = train(tiny_run(str(tmp_path / "data"), tmp_path / "run", steps=1))
    labels = UnitLabels.load(tmp_path / "run" / "targets")
    assert result.recordings == {"train": 4, "valid": 4}
    assert sorted({key.split("/")[0] for key in labels}) == ["dev", "train"]
    seen = sum(labels.num_frames(key) for key in labels if key.startswith("train"))
    assert UnitQuantizer.load(tmp_path / "run" / "targets").metadata.frames_seen == seen


def test_what_cannot_be_done_leaves_the_old_run(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny_run(speech, tmp_path / "run", steps=1)
    result = train(old)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    wrong: list[tuple[PretrainConfig, type[Exception], str]] = [
        (old.replace(targets=f"{tmp_path}/nowhere:1"), ConfigError, "nowhere: there is no such folder"),
        (old.replace(targets=f"{shutil.copytree(tmp_path / 'run', tmp_path / 'it1')}:3"), ConfigError, "layer 3"),
        (old.replace(num_clusters=100_000), DataError, "frames for 100000 clusters.*--cluster-fraction"),
        (old.replace(targets=f"{tmp_path / 'run'}:1"), ConfigError, "lies there.*choose another --output"),
        (old.replace(teacher=str(tmp_path / "run"), num_clusters=None), ConfigError, "lies there"),
        (old.replace(targets=f"{tmp_path / 'it1'}:1"), AudioError, "minutes long.*--cut-seconds"),
    ]
    for config, error, message in wrong:
        if error is AudioError:
            monkeypatch.setattr("mambavox.units.features.MAX_SECONDS", 1.0)
        with pytest.raises(error, match=message):
            train(config, overwrite=True)
        with pytest.raises(error, match=message):
            train(config if "lies" in message else config.replace(output=str(tmp_path / "new")), overwrite=True)
        assert not (tmp_path / "new").exists()
    shutil.rmtree(tmp_path / "it1")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == files
    assert RunResult.load(tmp_path / "run") == result


def test_unusable_recordings(speech: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"good{number}.wav", np.random.default_rng(number).normal(size=16_000) / 10, 16_000)
    soundfile.write(folder / "short.wav", np.zeros(500), 16_000)
    config = tiny_run(str(folder), tmp_path / "run", num_clusters=2, steps=2)
    (folder / "torn.wav").write_bytes((folder / "good0.wav").read_bytes()[:9000])
    with pytest.raises(AudioError, match=r"torn\.wav: is cut off.*"):
        train(config)
    assert not (tmp_path / "run").exists()  # nothing was begun
    result = train(config.replace(on_error="skip"))
    assert (result.details["short"], len(result.left_out), sum(result.recordings.values())) == (1, 1, 3)
    with pytest.raises(DataError, match=r"none of 5 recordings can be used"):
        train(config.replace(on_error="skip", min_seconds=1.5, crop_seconds=1.6, output=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="no data given"):
        train(tiny_run(speech, tmp_path / "x").replace(data=None))


def test_silence_is_learned_from(tmp_path: Path) -> None:
    """Digital silence, which once made all gradients NaN."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        wave = np.random.default_rng(number).normal(size=16_000) / 10
        wave[4000:12_000] = 0
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
    result = train(tiny_run(str(folder), tmp_path / "run", steps=4, num_clusters=3))
    assert math.isfinite(result.scores["valid"]["prediction_loss"])


@pytest.mark.parametrize("unmasked_weight", [0.0, 1.0])
def test_figures_are_those_of_the_union_of_hidden_frames(unmasked_weight: float) -> None:
    config = tiny_run("x", Path("y"), unmasked_weight=unmasked_weight).model_config()
    model = MambaHubertForPreTraining(config).eval()
    waveforms = torch.randn(3, 8000)
    labels = torch.randint(0, 6, (3, 24))
    mask = torch.rand(3, 24) < 0.5
    labels[0, :4] = -100
    if not unmasked_weight:
        labels = labels.masked_fill(~mask, -100)
    figures = UnitFigures(TINY["num_clusters"], torch.device("cpu"), 16_000)
    correct = total = 0
    losses: list[float] = []
    for row in range(3):
        one = slice(row, row + 1)
        with torch.no_grad():
            output = model(waveforms[one], labels=labels[one], mask_time_indices=mask[one])
        figures.add(output, labels[one], 8000)
        hidden = mask[one] & (labels[one] != -100)
        correct += int((output.logits.argmax(-1) == labels[one])[hidden].sum())
        total += int(hidden.sum())
        losses += torch.nn.functional.cross_entropy(
            output.logits[hidden], labels[one][hidden], reduction="none"
        ).tolist()
    found = figures.take()
    assert found["masked_accuracy"] == pytest.approx(correct / total)
    assert found["prediction_loss"] == pytest.approx(sum(losses) / total, rel=1e-5)
    assert found["hours"] == pytest.approx(1.5 / 3600)
    counts = torch.bincount(labels[mask & (labels >= 0)]).double()
    shares = counts[counts > 0] / total
    assert found["target_perplexity"] == pytest.approx(float(2 ** -(shares * shares.log2()).sum()), rel=1e-6)
    assert figures.take()["hours"] == 0


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_precisions(speech: str, tmp_path: Path, precision: str) -> None:
    result = train(tiny_run(speech, tmp_path / "run", steps=2, device="auto", precision=precision))
    assert math.isfinite(result.scores["valid"]["prediction_loss"])
    assert AutoModel.from_pretrained(tmp_path / "run").dtype == torch.float32
