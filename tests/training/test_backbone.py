"""Backbones: loading, the position table, and what may be missing from a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES
from transformers import ASTConfig, AutoModel

from mambavox.errors import ConfigError, HostError
from mambavox.training.classify.backbone import backbone_limit, load_backbone, resized_positions
from mambavox.training.front_end import patched_frames

LABELS = ["a", "b", "c"]


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_checkpoint_becomes_a_classifier(
    backbone: Callable[[str], str], family: str, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_backbone(backbone(family), LABELS)
    assert loaded.model.config.id2label == dict(enumerate(LABELS))
    pretrained = dict(AutoModel.from_pretrained(backbone(family)).named_parameters())
    inner = loaded.model.base_model if family != "whisper" else loaded.model
    weights = dict(inner.named_parameters())
    shared = [name for name in pretrained if name in weights and "position_embeddings" not in name]
    assert len(shared) > 20
    for name in shared:
        assert torch.equal(weights[name], pretrained[name]), name
    assert "newly initialized" not in capfd.readouterr().err
    assert not recwarn.list


@pytest.mark.parametrize("family", FAMILIES)
def test_one_clip_through_the_front_end(backbone: Callable[[str], str], family: str) -> None:
    loaded = load_backbone(backbone(family), LABELS, 0.4)
    waveform = torch.randn(5000).numpy()
    batch = loaded.front_end.collate([loaded.front_end.features(waveform), loaded.front_end.features(waveform[:100])])
    assert loaded.model(**batch).logits.shape == (2, 3)


def test_position_table_is_cropped_to_the_first_columns() -> None:
    table = torch.randn(1, 2 + 3 * 5, 4)
    assert torch.equal(resized_positions(table, (3, 5), (3, 5)), table)
    cropped = resized_positions(table, (3, 5), (3, 2))
    assert torch.equal(cropped[:, :2], table[:, :2])
    for frequency in range(3):
        for column in range(2):
            assert torch.equal(cropped[:, 2 + 2 * frequency + column], table[:, 2 + 5 * frequency + column])


def test_position_table_is_stretched_where_it_is_too_short() -> None:
    ramp = torch.arange(5.0).repeat(3)[None, :, None]
    table = torch.cat([torch.full((1, 2, 1), 9.0), ramp], dim=1)
    stretched = resized_positions(table, (3, 5), (3, 10))
    assert stretched.shape == (1, 2 + 30, 1)
    assert torch.equal(stretched[:, :2], table[:, :2])
    rows = stretched[0, 2:, 0].reshape(3, 10)
    assert torch.allclose(rows[0], rows[2])
    assert (rows[0].diff() >= 0).all()
    assert rows[0, 0] == 0
    assert rows[0, -1] == 4


def test_ast_hears_as_long_as_the_data(backbone: Callable[[str], str]) -> None:
    folder = backbone("ast")
    whole = load_backbone(folder, LABELS)
    assert whole.front_end.extractor.max_length == whole.model.config.max_length == 96
    short = load_backbone(folder, LABELS, 0.3)  # 28 frames: 16 + 2 * 8 covers them
    assert short.front_end.extractor.max_length == short.model.config.max_length == 32
    old = whole.model.base_model.embeddings.position_embeddings
    new = short.model.base_model.embeddings.position_embeddings
    assert new.shape[1] == 2 + 2 * 3
    assert torch.equal(new[:, 2:5], old[:, 2:5])
    assert torch.equal(new[:, 5:8], old[:, 13:16])
    long = load_backbone(folder, LABELS, 2.0)
    assert long.front_end.extractor.max_length == long.model.config.max_length > 198
    assert backbone_limit(folder) == pytest.approx(0.975)


def test_whisper_hears_no_more_than_its_window(backbone: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match="at most 1"):
        load_backbone(backbone("whisper"), LABELS, 2.0)


def test_a_head_for_other_classes_is_replaced(backbone: Callable[[str], str], tmp_path: Path) -> None:
    first = load_backbone(backbone("ast"), LABELS)
    first.model.save_pretrained(tmp_path)
    first.front_end.extractor.save_pretrained(tmp_path)
    second = load_backbone(str(tmp_path), ["x", "y"])
    assert second.model.classifier.dense.out_features == 2
    positions = (model.base_model.embeddings.position_embeddings for model in (first.model, second.model))
    assert torch.equal(*positions)


def test_a_checkpoint_without_pretrained_weights_is_an_error(backbone: Callable[[str], str], tmp_path: Path) -> None:
    for file in Path(backbone("ast")).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["embeddings.position_embeddings"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HostError, match="position_embeddings"):
        load_backbone(str(tmp_path), LABELS)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'no-such/model'.*could not be fetched.*folder of a downloaded copy"):
        load_backbone("no-such/model", LABELS)
    with pytest.raises(ConfigError, match="holds no model"):
        load_backbone(str(tmp_path), LABELS)


def test_other_families_are_refused(tmp_path: Path, backbone: Callable[[str], str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    extractor = Path(backbone("hubert")) / "preprocessor_config.json"
    (tmp_path / "preprocessor_config.json").write_bytes(extractor.read_bytes())
    with pytest.raises(HostError, match=r"'bert'.*expected AST, Whisper"):
        load_backbone(str(tmp_path), LABELS)


def test_frames_that_no_patch_covers_do_not_stretch_the_table() -> None:
    config = ASTConfig()  # 1024 frames; 101 patches of 16 in steps of 10 end at 1016
    assert patched_frames(config, 1024) == 1024
    assert patched_frames(config, 1016) == 1016
    assert patched_frames(config, 1015) == 1016
    assert patched_frames(config, 3) == 16
    assert patched_frames(config, 1025) == 1026


def test_the_papers_pooling(backbone: Callable[[str], str]) -> None:
    """One linear layer on the mean of all tokens after the final norm."""
    model = load_backbone(backbone("ast"), LABELS, 0.3, pooling="mean").model.eval()
    inputs = torch.randn(2, model.config.max_length, 32)
    tokens = model.base_model(inputs).last_hidden_state
    expected = tokens.mean(dim=1) @ model.classifier.dense.weight.T + model.classifier.dense.bias
    torch.testing.assert_close(model(inputs).logits, expected)
    assert sum(p.numel() for p in model.classifier.parameters()) == 3 * 16 + 3


def test_the_papers_positions(backbone: Callable[[str], str]) -> None:
    model = load_backbone(backbone("ast"), LABELS, 0.3, position_embeddings="zero").model
    assert not model.base_model.embeddings.position_embeddings.any()
    assert load_backbone(backbone("ast"), LABELS, 0.3).model.base_model.embeddings.position_embeddings.any()


@pytest.mark.parametrize("option", [{"pooling": "mean"}, {"position_embeddings": "zero"}])
def test_the_papers_settings_are_asts(backbone: Callable[[str], str], option: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="is no AST; expected backbone and kept"):
        load_backbone(backbone("whisper"), LABELS, **option)
