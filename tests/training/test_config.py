"""Configuration: YAML round trip, overrides, and every mistake told in words."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from mambavox.errors import ConfigError
from mambavox.training.classify.config import ClassifyConfig


def test_every_field_has_its_line() -> None:
    for spec in fields(ClassifyConfig):
        assert spec.metadata["help"], spec.name


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = ClassifyConfig.from_mapping(
        {
            "data": "some where/ä",
            "epochs": 3,
            "test_fold": 4,
            "bottleneck_dim": 6,
            "train_norms": False,
            "precision": "bfloat16",
        }
    )
    assert config.method_options == {"bottleneck_dim": 6, "train_norms": False}
    (tmp_path / "run.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert ClassifyConfig.load(tmp_path / "run.yaml") == config


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: x\nepochs: 3\nlearning_rate: 1e-3\nbottleneck_dim: 6\n")  # YAML reads 1e-3 as text
    assert ClassifyConfig.load(file).learning_rate == 1e-3
    changed = ClassifyConfig.load(file, {"epochs": 5, "bottleneck_dim": 8})
    assert (changed.epochs, changed.method_options, changed.data) == (5, {"bottleneck_dim": 8}, "x")


def test_another_method_drops_the_options_of_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: x\nmethod: mambadapter\nd_state: 4\n")
    assert ClassifyConfig.load(file, {"method": "lora", "r": 4}).method_options == {"r": 4}


def test_unknown_key_suggests_the_right_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rte: 1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml.*'learning_rte'.*did you mean learning_rate"):
        ClassifyConfig.load(file)
    with pytest.raises(ConfigError, match="did you mean bottleneck_dim"):
        ClassifyConfig.from_mapping({"bottelneck-dim": 3})


def test_options_belong_to_their_method() -> None:
    with pytest.raises(ConfigError, match=r"'d_state'.*method: lora"):
        ClassifyConfig.from_mapping({"method": "lora", "d_state": 4})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs=0; expected at least 1"),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"learning_rate": -1}, "learning_rate=-1.0; expected above 0"),
        ({"learning_rate": "fast"}, "expected a number"),
        ({"valid_fraction": 1.0}, "valid_fraction=1.0; expected at least 0 and below 1"),
        ({"on_error": "ignore"}, "on_error=ignore; expected one of raise, skip"),
        ({"device": "tpu"}, "device=tpu; did you mean cpu"),
        ({"spec_augment": "yes"}, "expected true or false"),
        ({"data": ["a"]}, "expected text"),
        ({"min_seconds": 2, "crop_seconds": 1}, "below min_seconds"),
        ({"shots": 0}, "shots=0; expected above 0"),
        ({"fold": 3, "test_fold": 2}, "fold=3 divides a corpus as it is published, test_fold in another way"),
        ({"protocol": "paper", "fold": 3, "group_column": "fsID"}, "protocol=paper and fold=3 .*, group_column in"),
        ({"method": "magic", "x": 1}, "method=magic; expected one of mambadapter"),
    ],
)
def test_wrong_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifyConfig.from_mapping(values)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "just words"])
def test_no_mapping(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        ClassifyConfig.load(tmp_path / "x.yaml")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ClassifyConfig.load(tmp_path / "none.yaml")


def test_output_is_named_after_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "fsdd"
    folder.mkdir()
    (folder / "manifest.jsonl").touch()
    for data in (folder, f"{folder}/", folder / "manifest.jsonl"):
        assert ClassifyConfig(data=str(data)).output_path == Path("runs/fsdd")
    assert ClassifyConfig(data="hf:me/words").output_path == Path("runs/words")
    with pytest.raises(ConfigError, match="--data"):
        _ = ClassifyConfig().output_path


def test_output_of_a_corpus_is_named_after_protocol_and_fold() -> None:
    assert ClassifyConfig(data="esc50:ESC-50-master").output_path == Path("runs/esc50")
    assert ClassifyConfig(data="esc50:/x/ESC-50", fold="3").output_path == Path("runs/esc50-fold3")
    config = ClassifyConfig(data="/x/UrbanSound8K", protocol="paper", fold="10")
    assert config.output_path == Path("runs/UrbanSound8K-paper-fold10")


def test_yaml_is_flat() -> None:
    content = yaml.safe_load(ClassifyConfig.from_mapping({"bottleneck_dim": 6}).to_yaml())
    assert content["bottleneck_dim"] == 6
    assert "method_options" not in content
