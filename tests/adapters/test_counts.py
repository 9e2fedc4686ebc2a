"""Parameter counts of the paper, exactly; the head is never counted. Weights are not needed, so they are not made."""

from typing import Any

import pytest
import torch
from adapters.conftest import METHOD_OPTIONS, Host
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import ASTConfig, ASTModel, WhisperConfig, WhisperModel

from mambavox.adapters import (
    AdapterConfig,
    BottleneckConfig,
    ConformerAdapterConfig,
    ConvPassConfig,
    MambAdapterConfig,
    apply_method,
    trainable_parameters,
)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def ast() -> ASTModel:
    with torch.device("meta"):
        return ASTModel(ASTConfig())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 64_824),
        ({"placement": "both"}, 108_900),
        ({"sharing": "none", "gate": "none"}, 276_144),
        ({"train_norms": False}, 64_824 - 19_968),
    ],
)
def test_paper_ast(options: dict, expected: int) -> None:
    config = MambAdapterConfig(**{"bottleneck_dim": 12, "d_state": 8, "d_conv": 24, "expand": 2, **options})
    assert count(get_peft_model(ast(), config)) == expected


# Figure 2 of the paper: 12 layers of 768, placement ffn, norms counted.
MAMBADAPTER_POINTS = {
    12: 64_824,
    16: 84_124,
    21: 112_497,
    24: 130_788,
    32: 185_900,
    38: 235_106,
    48: 326_076,
    64: 504_652,
    77: 678_713,
    96: 977_004,
}
BOTTLENECK_POINTS = {
    2: 66_072,
    3: 84_516,
    4: 102_960,
    6: 139_848,
    8: 176_736,
    12: 250_512,
    16: 324_288,
    21: 416_508,
    24: 471_840,
    32: 619_392,
    38: 730_056,
    48: 914_496,
}
CONFORMER_POINTS = {
    2: 103_776,
    3: 131_856,
    4: 159_936,
    6: 216_096,
    8: 272_256,
    12: 384_576,
    16: 496_896,
    21: 637_296,
    24: 721_536,
    32: 946_176,
}


@pytest.mark.parametrize(("bottleneck_dim", "expected"), MAMBADAPTER_POINTS.items())
def test_paper_figure_2_mambadapter(bottleneck_dim: int, expected: int) -> None:
    assert count(get_peft_model(ast(), MambAdapterConfig(bottleneck_dim=bottleneck_dim))) == expected


@pytest.mark.parametrize(("bottleneck_dim", "expected"), BOTTLENECK_POINTS.items())
def test_paper_figure_2_bottleneck(bottleneck_dim: int, expected: int) -> None:
    assert count(get_peft_model(ast(), BottleneckConfig(bottleneck_dim=bottleneck_dim))) == expected


@pytest.mark.parametrize(("bottleneck_dim", "expected"), CONFORMER_POINTS.items())
def test_paper_figure_2_conformer(bottleneck_dim: int, expected: int) -> None:
    assert count(get_peft_model(ast(), ConformerAdapterConfig(bottleneck_dim=bottleneck_dim))) == expected


FINAL_NORM = 2 * 768


@pytest.mark.parametrize(
    ("config", "thousands"),
    [
        (BottleneckConfig(bottleneck_dim=12), 249),
        (BottleneckConfig(bottleneck_dim=12, placement="both"), 498),
        (ConformerAdapterConfig(bottleneck_dim=8), 271),
    ],
)
def test_predecessor_table_1(config: AdapterConfig, thousands: int) -> None:
    """Printed without the norm that ends the encoder (arXiv 2312.03694).

    The 542 thousand printed for the Conformer at both sublayers are twice the rounded 271; the count is 541,440.
    """
    assert round((count(get_peft_model(ast(), config)) - FINAL_NORM) / 1000) == thousands


def test_predecessor_table_1_lora() -> None:
    """221 thousand: rank 6 at the query and value projections, no norms."""
    model = get_peft_model(ast(), LoraConfig(r=6, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    assert count(model) == 221_184


PAIR, NORMS = 2 * 768 * 12 + 12 + 768, 19_968
"""A pair of projections at the paper's bottleneck_dim, and the norms of placement ffn."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mixer": "none"}, PAIR + 12 + NORMS),
        ({"mixer": "mamba2"}, PAIR + 12 * (2_125 + 1) + NORMS),
        ({"mixer": "bimamba"}, PAIR + 12 * (2 * 2_136 + 1) + NORMS),
        ({"sharing": "groups:3"}, 64_824 + 2 * PAIR),
        ({"sharing": "placement", "placement": "both"}, 108_900 + PAIR),
        ({"sharing": "low-rank-delta:2"}, 64_824 + 12 * 2 * 2 * (768 + 12)),
        ({"gate": "channel"}, 64_824 + 12 * 767),
        ({"gate": "token"}, 64_824 + 12 * 12),
        ({"token_order": "both"}, 64_824),
        ({"residual": "gelu", "mixer_norm": "rms", "down_init": "unit"}, 64_824 + 12 * 12),
        ({"residual": "linear", "mixer_dim": 4, "mixer_norm": "rms"}, 64_824 - 12 * (2_136 - 520) + 12 * 4),
    ],
)
def test_options_of_mambadapter(options: dict[str, Any], expected: int) -> None:
    assert count(get_peft_model(ast(), MambAdapterConfig(**options))) == expected


def test_convpass() -> None:
    """Down, a 3 x 3 kernel from every channel to every other, up."""
    adapter = 768 * 8 + 8 + 8 * 8 * 9 + 8 + 8 * 768 + 768
    assert count(get_peft_model(ast(), ConvPassConfig())) == 12 * adapter + NORMS


def test_paper_whisper_small() -> None:
    """The printed 1.1 M fits the count without norms."""
    sizes = {
        "d_model": 768,
        "encoder_layers": 12,
        "decoder_layers": 1,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
    }
    for train_norms, expected in ((False, 1_121_588), (True, 1_121_588 + 19_968)):
        with torch.device("meta"):
            model = WhisperModel(WhisperConfig(**sizes, encoder_attention_heads=12, decoder_attention_heads=12))
        config = MambAdapterConfig(bottleneck_dim=104, d_state=16, d_conv=8, train_norms=train_norms)
        assert count(get_peft_model(model, config)) == expected


def test_norms_number_the_same_in_pre_norm_and_post_norm_hosts(host: Host) -> None:
    """One norm for each adapted sublayer, and the one that ends the encoder."""
    config = MambAdapterConfig(bottleneck_dim=2, placement="both")
    model = get_peft_model(host.model(), config)
    norms = {name.rsplit(".", 1)[0] for name, p in model.named_parameters() if ".mambadapter_norm." in name}
    adapted = [name for name, p in model.named_parameters() if name.endswith(".scale")]
    assert len(norms) == len(adapted) + 1


def test_trainable_parameters_sums_up(host: Host, method: tuple) -> None:
    plain = host.model()
    head = sum(p.numel() for name, p in plain.named_parameters() if name.split(".")[0] in ("projector", "classifier"))
    backbone = sum(p.numel() for p in plain.parameters()) - head
    model = apply_method(plain, *method, check=False)
    counts = trainable_parameters(model)
    assert counts["head"] == head
    assert counts["total"] == counts["adapter"] + head == count(model)
    assert counts["share_of_backbone"] == counts["adapter"] / backbone
    assert (counts["adapter"] == 0) == (method == METHOD_OPTIONS["linear"])


def test_trainable_parameters_of_full_fine_tuning(host: Host) -> None:
    model = apply_method(host.model(), "full")
    counts = trainable_parameters(model)
    assert counts["total"] == count(model)
    assert counts["head"] > 0
    fixed = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert counts["share_of_backbone"] == counts["adapter"] / (counts["adapter"] + fixed)
