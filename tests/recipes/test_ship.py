"""A trained model becomes an embedded one."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_hubert import tiny_config
from transformers import AutoModel

from mambavox import assets
from mambavox.hubert import MambaHubertForPreTraining


@pytest.fixture
def ship():
    path = Path(__file__).parents[2] / "recipes" / "ship.py"
    spec = importlib.util.spec_from_file_location("ship", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ship


def test_half_the_bytes_and_nothing_else_changes(ship, tmp_path, monkeypatch):
    model = MambaHubertForPreTraining(tiny_config("mamba")).eval()
    model.save_pretrained(tmp_path / "run")
    ship(tmp_path / "run", tmp_path / "assets" / "tiny")
    assert {path.name for path in (tmp_path / "assets" / "tiny").iterdir()} == {"config.json", "model.safetensors"}
    monkeypatch.setattr(assets, "_FOLDER", tmp_path / "assets")
    assert assets.locate("tiny") == str(tmp_path / "assets" / "tiny") and assets.locate("other/name") == "other/name"
    loaded = AutoModel.from_pretrained(assets.locate("tiny")).eval()
    assert loaded.dtype == torch.float32
    waveform = torch.randn(1, 4000)
    with torch.no_grad():
        expected = model.mamba_hubert(waveform).last_hidden_state
        torch.testing.assert_close(loaded(waveform).last_hidden_state, expected, atol=2e-2, rtol=2e-2)


def test_too_large_a_model_is_not_written(ship, tmp_path):
    MambaHubertForPreTraining(tiny_config("mamba")).save_pretrained(tmp_path / "run")
    with pytest.raises(SystemExit, match="bytes in float16"):
        ship(tmp_path / "run", tmp_path / "asset", most_bytes=1000)
    assert not (tmp_path / "asset").exists()
