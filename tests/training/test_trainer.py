"""What is decayed, what is in training mode, and the loss over accumulated batches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from training.devices import pretend_two_gpus
from transformers import Trainer, TrainingArguments

from mambavox.adapters import apply_method
from mambavox.training.classify.backbone import load_backbone
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.classify.objective import score
from mambavox.training.engine import EpochTrainer
from mambavox.training.modes import set_training_mode
from mambavox.training.parameter_groups import parameter_groups
from mambavox.training.run import run as train

LABELS = ["high", "low"]


def test_weight_decay_leaves_out_what_it_should(backbone: Callable[[str], str]) -> None:
    model = apply_method(load_backbone(backbone("ast"), LABELS, 0.3).model, "mambadapter")
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed_names = [names[id(parameter)] for parameter in decayed["params"]]
    free_names = [names[id(parameter)] for parameter in free["params"]]
    assert any(name.endswith("A_log") for name in free_names)
    assert any("scale" in name for name in free_names)
    assert any(name.endswith(".D") for name in free_names)
    assert any("norm" in name for name in free_names)
    assert any("in_proj" in name for name in decayed_names)
    assert not any("norm" in name or name.endswith(("bias", "A_log", ".D")) for name in decayed_names)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {*decayed_names, *free_names} == trainable


def test_the_frozen_backbone_stays_in_evaluation_mode(backbone: Callable[[str], str]) -> None:
    model = apply_method(load_backbone(backbone("hubert"), LABELS, 0.3).model, "mambadapter", {"dropout": 0.5})
    set_training_mode(model)
    training = {name for name, module in model.named_modules() if module.training}
    dropouts = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p}
    assert any("mixer" in name or "adapter" in name or "default" in name for name in training)
    assert dropouts & training, "the adapter's own dropout must act"
    # The encoder asks its own mode whether to drop layers.
    assert not model.base_model.model.hubert.encoder.training
    for name in dropouts & training:
        assert "default" in name
    full = load_backbone(backbone("hubert"), LABELS, 0.3).model
    set_training_mode(full)
    assert full.hubert.encoder.training


@pytest.mark.parametrize("family", ["ast", "wavlm"])
def test_accumulated_batches_equal_one_large_batch(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, family: str
) -> None:
    def curve(**sizes: int) -> list[dict[str, float]]:
        config = ClassifyConfig(
            data=tones,
            backbone=backbone(family),
            output=str(tmp_path / "-".join(map(str, sizes.values()))),
            method="linear",
            epochs=3,
            learning_rate=0.1,
            tensorboard=False,
            device="cpu",
            **sizes,
        )
        return train(config).learning_curve

    whole = curve(batch_size=4)
    parts = curve(batch_size=3, gradient_accumulation=2)  # batches of 3 and 1: a mean of means would differ
    for row, other in zip(whole, parts, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-4)
    assert whole[0]["train_loss"] != pytest.approx(whole[2]["train_loss"], rel=1e-3)


def test_one_process_takes_one_of_several_gpus(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_two_gpus(monkeypatch)
    used: list[tuple[int, int]] = []
    monkeypatch.setattr(Trainer, "train", lambda trainer, **_: used.append(_batches(trainer)) or 1 / 0)
    config = ClassifyConfig(
        data=tones, backbone=backbone("ast"), output=str(tmp_path), method="linear", batch_size=3, device="cpu"
    )
    with pytest.raises(ZeroDivisionError):
        train(config)
    assert used == [(1, 3)]


def test_only_one_process_writes_a_checkpoint(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Trainer`` calls ``_save`` in every process: two of them would write the same files at a time."""
    written = []
    save = EpochTrainer._save

    def saved_by_two(self: EpochTrainer, output_dir: str | None = None, *rest: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingArguments, "should_save", False)
            save(self, str(tmp_path / "other"))
        written.append((tmp_path / "other").exists())
        save(self, output_dir)

    monkeypatch.setattr(EpochTrainer, "_save", saved_by_two)
    train(ClassifyConfig(data=tones, output=str(tmp_path / "run"), backbone=backbone("ast"), epochs=1, device="cpu"))
    assert written == [False]


def _batches(trainer: Trainer) -> tuple[int, int]:
    return trainer.args.n_gpu, trainer.args.train_batch_size


def test_scores() -> None:
    scores = score([0, 0, 1, 1, 2], np.array([0, 1, 1, 1, 0]))
    assert (scores.recordings, scores.correct, scores.accuracy) == (5, 3, 0.6)
    # Wilson: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    z, n, p = 1.959964, 5, 0.6
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    for end, sign in ((scores.accuracy_low, -1), (scores.accuracy_high, 1)):
        assert end == pytest.approx((p + z * z / (2 * n) + sign * half) / (1 + z * z / n), abs=1e-6)
    assert scores.macro_f1 == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    assert score([1], [1]).accuracy_high == pytest.approx(1.0)
    assert score([1], [1]).accuracy_low < 0.3
