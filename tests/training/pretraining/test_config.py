"""Configuration of a pre-training: the paper's values, presets, and every mistake told in words."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mambavox.errors import ConfigError
from mambavox.training.pretraining.config import PretrainConfig


def test_every_field_has_its_line() -> None:
    for spec in fields(PretrainConfig):
        assert spec.metadata["help"], spec.name


def test_the_papers_values() -> None:
    first = PretrainConfig(preset="mamba-base")
    assert (first.num_steps, first.units, first.seconds_a_step, first.peak_learning_rate) == (250_000, 100, 700, 5e-4)
    assert (first.crop_seconds, first.warmup_ratio, first.max_grad_norm, first.weight_decay) == (15.6, 0.08, 10, 0.01)
    second = PretrainConfig(preset="ext-bimamba-base", targets="runs/it1:6")
    assert (second.num_steps, second.units, second.peak_learning_rate) == (400_000, 500, 5e-5)
    assert PretrainConfig(preset="transformer-base").peak_learning_rate == 5e-4
    model = second.model_config()
    assert (model.encoder, model.hidden_size, model.num_clusters) == ("ext-bimamba", 768, 500)


def test_fields_of_the_model_override_the_preset(tmp_path: Path) -> None:
    config = PretrainConfig.from_mapping(
        {"preset": "mamba-nano", "layerdrop": "0.2", "encoder": ["mamba", "transformer"], "num_hidden_layers": 2}
    )
    model = config.model_config()
    assert (model.layerdrop, model.encoder, model.hidden_size) == (0.2, ["mamba", "transformer"], 192)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert PretrainConfig.load(tmp_path / "run.yaml") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "mamba-nanno"}, "did you mean mamba-nano"),
        ({"preset": "mamba"}, "expected a kind .* and a size"),
        ({"targets": "runs/it1"}, "expected mfcc, or a model and its layer"),
        ({"layer_drop": 0.1}, "did you mean layerdrop"),
        ({"steps": 0}, "steps=0; expected at least 1"),
        ({"cluster_fraction": 1.5}, "expected above 0 and at most 1"),
        ({"precision": "float16"}, "did you mean bfloat16 or float32"),
        ({"device_batch_seconds": 10}, "below crop_seconds=15.6"),
        ({"batch_seconds": 100, "device_batch_seconds": 40}, "whole number of times, such as --batch-seconds 80"),
        ({"crop_seconds": 1.0, "min_seconds": 2.0}, "below min_seconds"),
    ],
)
def test_mistakes_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PretrainConfig.from_mapping(values)


def test_another_rate_is_refused() -> None:
    """Recordings would be read at 16 kHz all the same."""
    config = PretrainConfig.from_mapping({"sampling_rate": 8000})
    with pytest.raises(ConfigError, match="sampling_rate=8000: recordings of any rate are read at 16000 Hz"):
        config.model_config()
    assert PretrainConfig.from_mapping({"sampling_rate": 16_000}).model_config().sampling_rate == 16_000
