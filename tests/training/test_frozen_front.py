"""The frozen front, run once: the same training, on every family, and refusals where nothing stays the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES
from torch import nn

from mambavox.adapters import METHODS, apply_method
from mambavox.data import read_examples
from mambavox.errors import ConfigError
from mambavox.training.classify.backbone import load_backbone
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.features import Collator, FeatureDataset
from mambavox.training.frozen_front import CachedCollator, CachedFeatures, FrozenFront
from mambavox.training.run import run as train

LABELS = ["high", "low"]
LAST = {"layers_to_transform": [1]}
_TRAIN_EVERYTHING = ("full", "mambadapter", "linear")
CASES = [
    *((family, "mambadapter", {}) for family in FAMILIES),
    *((family, "bottleneck", LAST) for family in FAMILIES),
    *((family, "linear", {}) for family in FAMILIES),
    *((family, method, {}) for method in METHODS for family in ("ast", "hubert") if method not in _TRAIN_EVERYTHING),
]


@pytest.mark.parametrize(("family", "method", "options"), CASES)
def test_cached_logits_and_gradients_are_those_of_the_whole_model(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, family: str, method: str, options: dict[str, Any]
) -> None:
    loaded = load_backbone(backbone(family), LABELS, 0.3)
    model = apply_method(loaded.model, method, options)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "norm" not in name:
            nn.init.normal_(parameter, std=0.2)  # nothing is to be hidden by an up projection at zero
    dataset = FeatureDataset(read_examples(tones), LABELS, loaded.front_end)
    cached = CachedFeatures(dataset, FrozenFront(model), 5, tmp_path)
    assert len(cached) == len(dataset) == 12
    assert not any(tmp_path.iterdir()), "the file has no name"
    rows = [3, 0, 10]
    figures = []
    for collate, source in ((Collator, dataset), (CachedCollator, cached)):
        batch = collate(loaded.front_end)([source[row] for row in rows])
        model.zero_grad()
        output = model.eval()(**batch)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        figures.append((output.logits.detach(), gradients))
    (logits, gradients), (cached_logits, cached_gradients) = figures
    torch.testing.assert_close(cached_logits, logits, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == cached_gradients.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(cached_gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("family", "method", "options", "first"),
    [
        ("ast", "mambadapter", {}, 0),
        ("ast", "bottleneck", LAST, 1),
        ("whisper", "linear", {}, 2),
        ("hubert", "bottleneck", LAST, 1),
        ("wavlm", "bottleneck", LAST, 0),
        ("wavlm", "linear", {}, 2),
    ],
)
def test_only_what_is_trained_is_run(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, family: str, method: str, options: Any, first: int
) -> None:
    loaded = load_backbone(backbone(family), LABELS, 0.3)
    model = apply_method(loaded.model, method, options)
    front = FrozenFront(model)
    assert front.first_layer == first
    dataset = FeatureDataset(read_examples(tones)[:3], LABELS, loaded.front_end)
    cached = CachedFeatures(dataset, front, 3, tmp_path)
    ran = []
    host: Any = model.get_base_model()  # type: ignore[operator]
    for name, module in host.named_modules():
        if isinstance(module, nn.MultiheadAttention | nn.Conv1d | nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(**CachedCollator(loaded.front_end)([cached[0]]))
    assert not any("feature_extractor" in name or "patch" in name for name in ran)
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in ran if "layers." in name}
    assert layers == set(range(first, 2))
    ran.clear()
    model(**Collator(loaded.front_end)([dataset[0]]))
    assert any("layers.0." in name for name in ran), "without what is kept the whole model runs"


@pytest.mark.parametrize(("family", "options"), [("ast", LAST), ("hubert", {}), ("whisper", {})])
def test_a_run_is_the_same_with_the_front_cached(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    def run(**changes: Any) -> Any:
        return train(
            ClassifyConfig(
                data=tones,
                backbone=backbone(family),
                output=str(tmp_path / str(changes)),
                method="bottleneck",
                method_options={"dropout": 0.1, **options},
                epochs=3,
                batch_size=2,
                learning_rate=0.02,
                tensorboard=False,
                device="cpu",
                **changes,
            )
        )

    whole, cached = run(), run(cache_features=True)
    for row, other in zip(whole.learning_curve, cached.learning_curve, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert row["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-5)
    assert whole.scores == cached.scores
    assert whole.learning_curve[0]["train_loss"] != pytest.approx(whole.learning_curve[2]["train_loss"], rel=1e-4)


def test_the_front_is_run_once(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    compute = FrozenFront.hidden_states

    def hidden_states(self: FrozenFront, batch: Any) -> Any:
        found = compute(self, batch)
        rows.append(len(found))
        return found

    monkeypatch.setattr(FrozenFront, "hidden_states", hidden_states)
    config = ClassifyConfig(data=tones, backbone=backbone("ast"), output=str(tmp_path / "run"), epochs=4, device="cpu")
    train(config.replace(cache_features=True, tensorboard=False))
    assert sum(rows) == 8, "train and valid, once each"
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"metrics.json", "run.yaml"}


def test_bf16(backbone: Callable[[str], str], tones: str, tmp_path: Path) -> None:
    values = {
        "data": tones,
        "backbone": backbone("ast"),
        "tensorboard": False,
        "device": "cpu",
        "precision": "bfloat16",
        "epochs": 2,
    }
    whole = train(ClassifyConfig(**values, output=str(tmp_path / "whole")))
    cached = train(ClassifyConfig(**values, output=str(tmp_path / "cached"), cache_features=True))
    losses = [[row["train_loss"] for row in result.learning_curve] for result in (whole, cached)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("ast", {"method": "full"}, "trains every layer"),
        ("ast", {"spec_augment": True}, "masks every clip anew"),
        ("wav2vec2", {"method_options": {"placement": "attention"}}, r"layer_norm.* is trained, which lies below"),
    ],
)
def test_where_nothing_stays_the_same_it_is_refused(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    config = ClassifyConfig(data=tones, backbone=backbone(family), output=str(tmp_path / "run"), cache_features=True)
    with pytest.raises(ConfigError, match=reason):
        train(config.replace(**changes))
    assert not (tmp_path / "run").exists()


def test_a_head_that_reads_all_layers_is_refused(backbone: Callable[[str], str]) -> None:
    model = load_backbone(backbone("hubert"), LABELS, 0.3).model
    adapted = apply_method(model, "linear")
    model.config.use_weighted_layer_sum = True
    with pytest.raises(ConfigError, match="sum of all layers"):
        FrozenFront(adapted)
