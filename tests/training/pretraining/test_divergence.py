"""A run that diverges ends before the broken update, and what was good stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training.pretraining.conftest import tiny_run
from training.pretraining.test_resume import assert_same

from mambavox.errors import DivergedError, RunError
from mambavox.runs.folder import RunFolder
from mambavox.training.pretraining.divergence import DivergenceGuard
from mambavox.training.pretraining.objective import PretrainTrainer
from mambavox.training.run import run as train


def _checkpoints(folder: Path, *steps: int) -> Path:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").touch()
    return folder


def test_a_norm_that_is_no_number(tmp_path: Path) -> None:
    guard = DivergenceGuard(_checkpoints(tmp_path, 5, 10), 1e-3)
    guard.check(1.0, 11)
    for norm in (float("nan"), float("inf")):
        with pytest.raises(
            DivergedError, match=rf"norm is {norm} in update 12.*checkpoint-10, is kept.*--learning-rate"
        ):
            guard.check(norm, 12)


def test_norms_that_stay_high(tmp_path: Path) -> None:
    guard = DivergenceGuard(_checkpoints(tmp_path, 60, 80), 1e-3)
    for step in range(1, 71):
        guard.check(2.0, step)
    for step in range(71, 90):
        guard.check(201.0, step)
    # The twentieth; what was written after the first of them is not called good.
    assert guard.is_exploding
    with pytest.raises(DivergedError, match=r"201 in update 90 .* 100 times its usual 2 .* checkpoint-60, is kept"):
        guard.check(201.0, 90)
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-60"]  # with which --resume begins


def test_a_norm_that_is_no_number_after_high_ones(tmp_path: Path) -> None:
    guard = DivergenceGuard(_checkpoints(tmp_path, 60, 72), 1e-3)
    for step in range(1, 71):
        guard.check(2.0, step)
    assert not guard.is_exploding
    for step in range(71, 74):
        guard.check(201.0, step)
    with pytest.raises(DivergedError, match="checkpoint-60, is kept"):
        guard.check(float("nan"), 74)
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-60"]


def test_single_peaks_and_beginnings_are_no_divergence(tmp_path: Path) -> None:
    guard = DivergenceGuard(tmp_path, 1e-3)
    for step in range(40):
        guard.check(1000.0, step)
    for step in range(40, 300):
        guard.check(1000.0 if step % 15 == 0 else 1.0, step)


def test_a_diverged_run_keeps_its_checkpoint(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(speech, tmp_path / "run")
    compute = PretrainTrainer.compute_loss

    def compute_loss(self: PretrainTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        return compute(self, *args, **kwargs) * (float("nan") if self.state.global_step == 5 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "compute_loss", compute_loss)
        with pytest.raises(DivergedError, match=r"nan in update 6.*checkpoint-4, is kept"):
            train(config)
    result = train(config, resume=True)  # without what broke it
    assert result.details["steps"] == 8


def test_a_run_that_exploded_resumes_with_the_good_checkpoint(
    speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though three come after it, of which two are kept otherwise."""
    for name, value in (("_NEEDED", 3), ("_PATIENCE", 4)):
        monkeypatch.setattr(f"mambavox.training.pretraining.divergence.{name}", value)
    config = tiny_run(speech, tmp_path / "run", steps=10, save_every=1, eval_every=100)
    compute = PretrainTrainer.compute_loss

    def compute_loss(self: PretrainTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        return compute(self, *args, **kwargs) * (1e5 if self.state.global_step >= 5 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "compute_loss", compute_loss)
        with pytest.raises(DivergedError, match=r"in update 9 .*checkpoint-5, is kept"):
            train(config)
    assert sorted(folder.name for folder in RunFolder(config.output_path).checkpoints.iterdir()) == [
        "checkpoint-4",
        "checkpoint-5",
    ]
    train(config, resume=True)
    train(config.replace(output=str(tmp_path / "whole")))
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("file", ["run.yaml", "recordings.json"])
def test_a_full_disk_at_the_beginning(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    config = tiny_run(speech, tmp_path / "run", steps=1)
    write = Path.write_text

    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        if file in self.name:
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match=r"the disk is full\. Make room and start with --resume"):
            train(config)
    assert train(config, resume=True).details["steps"] == 1


def test_a_full_disk_leaves_the_last_checkpoint(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(speech, tmp_path / "run")
    save = torch.save

    def full(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(path):
            raise OSError(28, "No space left on device")
        save(content, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match=r"the disk is full\. checkpoint-2 is kept.*--resume"):
            train(config)
    assert train(config, resume=True).details["steps"] == 8
