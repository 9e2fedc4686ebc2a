"""Configurations refuse what does not fit, and survive a round trip."""

from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig, PeftType

from mambavox.adapters import (
    AdapterConfig,
    BottleneckConfig,
    ConformerAdapterConfig,
    ConvPassConfig,
    MambAdapterConfig,
    register_method,
)
from mambavox.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "middle"}, "where is 'middle'; expected one of encoder, decoder, both"),
        ({"placement": "mlp"}, "placement is 'mlp'; expected one of ffn, attention, both"),
        ({"insertion": "before"}, "insertion is 'before'"),
        ({"sharing": "some"}, "sharing is 'some'; expected one of all, placement, groups:<k>"),
        ({"sharing": "groups"}, "sharing is 'groups'"),
        ({"sharing": "groups:0"}, "sharing is 'groups:0'"),
        ({"sharing": "all:2"}, "sharing is 'all:2'"),
        ({"sharing": "low-rank-delta:-1"}, "sharing is 'low-rank-delta:-1'"),
        ({"sharing": "low-rank-delta:13"}, "a rank of at most bottleneck_dim"),
        ({"gate": "frame"}, "gate is 'frame'; expected one of scalar, channel, token, none"),
        ({"gate": "token", "scale_init": 1.0}, "scale_init is 1.0; expected 0 < scale_init < 1 for gate='token'"),
        ({"mixer": "lstm"}, "mixer is 'lstm'; expected one of mamba, mamba2, bimamba, none"),
        ({"token_order": "bands"}, "token_order is 'bands'; expected one of frequency, time, both"),
        ({"token_order": "time", "mixer": "none"}, "sees one token at a time"),
        ({"mixer": "bimamba", "where": "both"}, "where is 'both', and this adapter lets a frame see those after it"),
        ({"init": "zeros"}, "init is 'zeros'; expected one of mamba, paper"),
        ({"down_init": "zeros"}, "down_init is 'zeros'; expected one of paper, unit"),
        ({"residual": "relu"}, "residual is 'relu'; expected one of none, linear, gelu"),
        ({"mixer_norm": "layer"}, "mixer_norm is 'layer'; expected one of none, rms"),
        ({"mixer": "none", "residual": "gelu"}, "there is no mixer that they could stand at"),
        ({"mixer_dim": 0, "residual": "gelu"}, "mixer_dim is 0; expected a whole number of at least 1"),
        ({"mixer_dim": 13, "residual": "gelu"}, "mixer_dim is 13.*expected at most bottleneck_dim"),
        ({"mixer_dim": 4}, "expected at most bottleneck_dim, and a residual"),
        ({"bottleneck_dim": 0}, "bottleneck_dim is 0; expected a whole number of at least 1"),
        ({"d_conv": 2.5}, "d_conv is 2.5"),
        ({"d_state": True}, "d_state is True"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"scale_init": 0.0}, "scale_init is 0.0"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'.*input_ids"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MambAdapterConfig(**options)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (ConformerAdapterConfig, {"kernel_size": 0}, "kernel_size is 0"),
        (ConformerAdapterConfig, {"where": "decoder"}, "expected where='encoder'"),
        (ConvPassConfig, {"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        (ConvPassConfig, {"where": "both"}, "expected where='encoder'"),
    ],
)
def test_bad_values_of_the_convolutions(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_scale_init_is_free_without_a_scale() -> None:
    assert MambAdapterConfig(gate="none", scale_init=0.0).scale_init == 0.0


@pytest.mark.parametrize(
    "config",
    [
        MambAdapterConfig(bottleneck_dim=7, where="both", layers_to_transform=[0, 2], target_modules={"mlp", "fc2"}),
        MambAdapterConfig(residual="gelu", mixer_norm="rms", mixer_dim=8, down_init="unit", scale_init=1.0),
        BottleneckConfig(insertion="sequential", exclude_modules=r".*\.0\..*", modules_to_save=["classifier"]),
        ConformerAdapterConfig(kernel_size=8, sharing="groups:2", token_order="time"),
        ConvPassConfig(kernel_size=5, gate="token"),
    ],
    ids=["mambadapter", "residual", "bottleneck", "conformer", "convpass"],
)
def test_round_trip_with_the_lines_that_load_it(config: AdapterConfig, tmp_path: Path) -> None:
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert type(loaded) is type(config)
    assert loaded == config
    config.save_pretrained(str(tmp_path))
    assert (tmp_path / "README.md").read_text().count("import mambavox") == 1


def test_methods_are_members_of_pefts_enumeration() -> None:
    for config in (MambAdapterConfig(), BottleneckConfig(), ConformerAdapterConfig(), ConvPassConfig()):
        member = config.peft_type
        assert isinstance(member, PeftType) and member in list(PeftType)
        assert PeftType(member.value) is member is PeftType[member.name] is getattr(PeftType, member.name)


def test_a_taken_name_is_not_registered_twice() -> None:
    with pytest.raises(KeyError, match="mambadapter"):
        register_method(MambAdapterConfig)
    with pytest.raises(ConfigError, match=r"Odd\.method is 'Odd one'; expected an upper-case word"):
        register_method(type("Odd", (MambAdapterConfig,), {"method": "Odd one"}))
