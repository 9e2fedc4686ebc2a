"""A run that is killed and continued ends as an unbroken one does."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mambavox.errors import RunError
from mambavox.runs.folder import RunFolder, seal_checkpoint
from mambavox.runs.result import RunResult
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.engine import EpochTrainer
from mambavox.training.run import run as train


def _config(backbone: str, data: str, output: Path, **changes: Any) -> ClassifyConfig:
    values: dict[str, Any] = {
        "data": data,
        "backbone": backbone,
        "output": str(output),
        "epochs": 4,
        "batch_size": 2,
        "learning_rate": 0.02,
        "tensorboard": False,
        "device": "cpu",
    }
    values.update(changes)
    if values.get("method") != "full":
        values["dropout"] = 0.2  # random numbers in every step
    return ClassifyConfig.from_mapping(values)


def _assert_same(broken: Path, whole: Path) -> None:
    """Same figures, learning curve included, and the same weights, bit by bit."""
    first, second = (RunResult.load(folder).to_mapping() for folder in (broken, whole))
    for figures in (first, second):
        assert figures.pop("seconds") > 0
    assert first == second
    names = [name for name in ("adapter_model.safetensors", "model.safetensors") if (whole / name).is_file()]
    for name in names:
        weights, others = load_file(broken / name), load_file(whole / name)
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert names


def _break_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Interrupt a training in the middle of an epoch."""
    step, done = EpochTrainer.training_step, 0

    def training_step(self: EpochTrainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done > batches:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(EpochTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("hubert", {"method": "full", "gradient_accumulation": 2, "batch_size": 1}),
        ("whisper", {"patience": 2}),
        ("wav2vec2", {"valid_fraction": 0.0, "split_column": "none", "test_fraction": 0.3}),
    ],
)
def test_interrupted_in_the_middle_of_an_epoch(
    backbone: Callable[[str], str],
    tones: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    changes: dict[str, Any],
) -> None:
    config = _config(backbone(family), tones, tmp_path / "broken", **changes)
    with monkeypatch.context() as patch:
        _break_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config, resume=True)
    train(config.replace(output=str(tmp_path / "whole")))
    _assert_same(tmp_path / "broken", tmp_path / "whole")


def test_killed_after_early_stopping(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(backbone("ast"), tones, tmp_path / "broken", patience=1, learning_rate=0.5, epochs=12)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config, resume=True)
    result = train(config.replace(output=str(tmp_path / "whole")))
    assert len(result.learning_curve) < 12
    _assert_same(tmp_path / "broken", tmp_path / "whole")


def test_torn_checkpoints_are_not_used(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.last_checkpoint() is None
    for number, whole in ((9, True), (10, True), (11, False)):
        checkpoint = folder.checkpoints / f"checkpoint-{number}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
        if whole:
            seal_checkpoint(checkpoint)
    assert folder.last_checkpoint() == folder.checkpoints / "checkpoint-10"
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-9"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_told(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    config = _config(backbone("ast"), tones, tmp_path / "broken", epochs=5)
    with monkeypatch.context() as patch:
        _break_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    newest = RunFolder(tmp_path / "broken").last_checkpoint()
    assert newest is not None
    file = newest / "optimizer.pt"
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    told = Console(record=True, file=io.StringIO(), width=1000)
    train(config, resume=True, console=told)
    assert f"{newest}: is damaged (optimizer.pt" in told.export_text()
    train(config.replace(output=str(tmp_path / "whole")))
    _assert_same(tmp_path / "broken", tmp_path / "whole")


def test_when_every_checkpoint_is_damaged_nothing_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    checkpoint = folder.checkpoints / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("old")
    seal_checkpoint(checkpoint)
    (checkpoint / "weights").write_text("new")
    with pytest.raises(RunError, match=r"every checkpoint is damaged.*weights is not as it was written.*--overwrite"):
        folder.last_checkpoint()
    assert checkpoint.is_dir()
