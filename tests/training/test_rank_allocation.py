"""AdaLoRA in a run: ranks move, the budget is kept, and an interrupted run ends as an unbroken one does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mambavox.adapters import apply_method
from mambavox.errors import ConfigError
from mambavox.training.classify.backbone import load_backbone
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.engine import EpochTrainer
from mambavox.training.rank_allocation import RankAllocation
from mambavox.training.run import run as train

LABELS = ["high", "low"]


def config(backbone: Callable[[str], str], data: str, output: Path, **options: Any) -> ClassifyConfig:
    return ClassifyConfig.from_mapping(
        {
            "data": data,
            "backbone": backbone("ast"),
            "output": str(output),
            "method": "adalora",
            "epochs": 6,
            "batch_size": 2,
            "learning_rate": 0.02,
            "tensorboard": False,
            "device": "cpu",
            "valid_fraction": 0.0,
            "split_column": "none",
            "test_fraction": 0.3,
            "init_r": 4,
            "target_r": 1,
            **options,
        }
    )


def ranks(folder: Path) -> list[int]:
    """Ranks that are left in each adapted projection."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return [int((tensor != 0).sum()) for name, tensor in tensors.items() if "lora_E" in name]


def test_ranks_go_where_they_help(backbone: Callable[[str], str], tones: str, tmp_path: Path) -> None:
    train(config(backbone, tones, tmp_path / "run"))
    left = ranks(tmp_path / "run")
    assert sum(left) == len(left), "target_r for each projection, on average"
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    steps = 6 * 4
    assert (saved["total_step"], saved["tinit"], saved["tfinal"]) == (steps, steps // 10, 3 * steps // 10)
    assert saved["rank_pattern"] is None, "pruned ranks stay, at zero"


@pytest.mark.parametrize("batch", [18, 22], ids=["while ranks are taken away", "after that"])
def test_interrupted_it_ends_as_an_unbroken_run(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    step, done = EpochTrainer.training_step, 0

    def training_step(self: EpochTrainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done == batch:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    broken = config(backbone, tones, tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(EpochTrainer, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken, resume=True)
    train(broken.replace(output=str(tmp_path / "whole")))
    resumed, whole = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_penalty_is_pefts(backbone: Callable[[str], str]) -> None:
    """PEFT adds it only to a loss that the host computes, and only when called through its tuner."""
    model = apply_method(load_backbone(backbone("ast"), LABELS, 0.3).model, "adalora").eval()
    allocation = RankAllocation.of(model)
    assert allocation is not None
    inputs = torch.randn(2, model.config.max_length, model.config.num_mel_bins)
    labels = torch.tensor([0, 1])
    with_penalty = model.base_model(inputs, labels=labels).loss
    plain = model.base_model.model(inputs, labels=labels).loss
    torch.testing.assert_close(allocation.penalty(), with_penalty - plain, rtol=1e-4, atol=1e-6)
    assert RankAllocation.of(model.base_model.model) is None


def test_the_penalty_is_part_of_the_loss(backbone: Callable[[str], str], tones: str, tmp_path: Path) -> None:
    losses = [
        train(config(backbone, tones, tmp_path / str(weight), epochs=1, orth_reg_weight=weight)).learning_curve[0]
        for weight in (0.0, 2.0)
    ]
    # Near the start every matrix is about 0, whose distance from orthogonal is the root of its rank, 4.
    assert losses[1]["train_loss"] - losses[0]["train_loss"] == pytest.approx(2 * 4**0.5, rel=0.1)


def test_nothing_to_take_away_is_refused(backbone: Callable[[str], str]) -> None:
    model = apply_method(load_backbone(backbone("ast"), LABELS, 0.3).model, "adalora", {"init_r": 2, "target_r": 2})
    with pytest.raises(ConfigError, match="init_r is 2 and target_r is 2; expected init_r above target_r"):
        RankAllocation.of(model)
