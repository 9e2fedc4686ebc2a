"""Counting without weights, and sizing methods to a budget."""

import pytest
from transformers import ASTConfig, ViTConfig, WhisperConfig

from mambavox.adapters.budget import count_parameters, fit_budget, size_option
from mambavox.errors import ConfigError, HostError

SMALL = ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_mel_bins=32)


def test_counts_leave_the_head_out() -> None:
    counts = count_parameters(ASTConfig(num_labels=50), "mambadapter", {"bottleneck_dim": 12})
    assert counts["adapter"] == 64_824
    assert counts["head"] == 2 * 768 + 768 * 50 + 50


@pytest.mark.parametrize("budget", [1, 700, 5_000, 20_000])
@pytest.mark.parametrize("method", ["mambadapter", "bottleneck", "lora"])
def test_no_other_size_is_nearer_to_the_budget(method: str, budget: int) -> None:
    name = size_option(method)
    options = fit_budget(SMALL, method, {}, budget)

    def distance(size: int) -> int:
        return abs(count_parameters(SMALL, method, {**options, name: size})["adapter"] - budget)

    size = options[name]
    assert all(distance(size) <= distance(other) for other in (size - 1, size + 1) if other)
    if method == "lora":
        assert options["lora_alpha"] == 2 * size


def test_other_options_are_kept_and_counted() -> None:
    options = fit_budget(SMALL, "mambadapter", {"placement": "both", "d_conv": 4}, 8_000)
    assert (options["placement"], options["d_conv"]) == ("both", 4)
    alone = fit_budget(SMALL, "mambadapter", {}, 8_000)
    assert options["bottleneck_dim"] < alone["bottleneck_dim"]
    assert fit_budget(SMALL, "lora", {"lora_alpha": 5}, 5_000)["lora_alpha"] == 5


def test_what_cannot_be_sized() -> None:
    with pytest.raises(ConfigError, match="linear has no size"):
        fit_budget(SMALL, "linear", {}, 5_000)
    with pytest.raises(ConfigError, match=r"bottleneck_dim=3 and a budget of 5,000"):
        fit_budget(SMALL, "bottleneck", {"bottleneck_dim": 3}, 5_000)


def test_every_family_is_counted() -> None:
    whisper = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
    )
    assert count_parameters(whisper, "bottleneck", {"bottleneck_dim": 2})["adapter"] > 0
    with pytest.raises(HostError, match="vit does not classify audio"):
        count_parameters(ViTConfig(), "bottleneck", {})
