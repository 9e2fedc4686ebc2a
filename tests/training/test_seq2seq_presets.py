"""The paper's settings for Whisper-small."""

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from mambavox.adapters import apply_method, trainable_parameters
from mambavox.errors import ConfigError
from mambavox.runs.learning_rates import WHISPER_GRID
from mambavox.training.whisper.presets import PRESETS, mambadapter, same_grid

SMALL = WhisperConfig(
    d_model=768,
    encoder_layers=12,
    decoder_layers=12,
    encoder_attention_heads=12,
    decoder_attention_heads=12,
    encoder_ffn_dim=3072,
    decoder_ffn_dim=3072,
    vocab_size=51865,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)
PRINTED = {"full": 241e6, "lora": 1.2e6, "bottleneck": 1.2e6, "conformer": 1.4e6, "mambadapter": 1.1e6}
"""Parameters in the paper's Table 2."""
COUNTED = {"lora": 1_179_648, "bottleneck": 1_189_632, "mambadapter": 1_121_588}


@pytest.mark.parametrize("method", PRESETS)
def test_parameters(method: str) -> None:
    """Without a new language's row, without norms."""
    config = PRESETS[method]()
    with torch.device("meta"):
        model = apply_method(WhisperForConditionalGeneration(SMALL), method, config.method_options, check=False)
    count = trainable_parameters(model)["total"]
    assert count == pytest.approx(PRINTED[method], rel=0.05)
    assert count == COUNTED.get(method, count)


def test_one_grid_for_all() -> None:
    grid = same_grid(language="ckb", seed=3)
    assert len(grid) == len(PRESETS) * len(WHISPER_GRID)
    for method in PRESETS:
        assert [config.learning_rate for config in grid if config.method == method] == list(WHISPER_GRID)
    assert {config.language for config in grid} == {"ckb"} and {config.seed for config in grid} == {3}
    assert mambadapter(epochs=2).epochs == 2
    with pytest.raises(ConfigError, match="bottleneck_dim: no field of WhisperConfig"):
        mambadapter(bottleneck_dim=3)


@pytest.mark.slow
def test_whisper_small_trains_a_step_and_generates() -> None:
    """The sizes are Whisper-small's but for the window, of four seconds."""
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**SMALL.to_dict(), "max_source_positions": 200}))
    model.resize_token_embeddings(51866, mean_resizing=False)
    model = apply_method(model, "mambadapter", mambadapter().method_options, token_rows=[51865], check=False)
    assert trainable_parameters(model)["total"] == pytest.approx(1_121_588 + 768, rel=1e-3)
    features = torch.randn(1, 80, 400)
    features[..., 300:] = -1.0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        loss = model(input_features=features, labels=torch.tensor([[51865, 5, 6, 7]])).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
    tokens = model.eval().generate(input_features=features, max_new_tokens=4)
    assert 1 <= tokens.shape[1] <= 5
