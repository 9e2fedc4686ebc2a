"""Where adapters go, and the errors where they cannot."""

from typing import Any

import pytest
import torch
from adapters.conftest import HOSTS, SMALL, Host, make_hubert, make_wavlm, make_whisper_seq2seq
from peft import get_peft_model
from torch import nn
from transformers import ASTModel, BertConfig, BertModel, HubertForCTC, PreTrainedModel

from mambavox.adapters import BottleneckConfig, MambAdapterConfig
from mambavox.adapters.hosts import find_stacks, head_modules
from mambavox.adapters.layers import AdaptedNorm
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.errors import HostError
from mambavox.hubert import MambaHubertConfig, MambaHubertModel


def adapted(model: nn.Module, kind: type) -> list[str]:
    return [name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, kind)]


@pytest.mark.parametrize(
    ("model", "norms"),
    [
        (HOSTS[0].model(), ["layers.0.layernorm_after", "layers.1.layernorm_after", "layernorm"]),
        (HOSTS[1].model(), ["layers.0.final_layer_norm", "layers.1.final_layer_norm", "layer_norm"]),
        (make_hubert(), ["layer_norm", "layers.0.final_layer_norm", "layers.1.final_layer_norm"]),
        (HOSTS[2].model(), ["layers.0.layer_norm", "layers.1.layer_norm", "layers.1.final_layer_norm"]),
        (make_wavlm(), ["layers.0.layer_norm", "layers.1.layer_norm", "layers.1.final_layer_norm"]),
        (
            make_wavlm(feat_extract_norm="layer", do_stable_layer_norm=True),
            ["layer_norm", "layers.0.final_layer_norm", "layers.1.final_layer_norm"],
        ),
    ],
    ids=["ast", "whisper", "hubert-pre-norm", "wav2vec2-post-norm", "wavlm-post-norm", "wavlm-pre-norm"],
)
def test_norms_that_feed_the_adapted_sublayers_and_the_last_one(model: PreTrainedModel, norms: list[str]) -> None:
    found = adapted(get_peft_model(model, MambAdapterConfig(**SMALL)), AdaptedNorm)
    holder = {name.split("layers.")[0] for name in found if "layers." in name}.pop()
    assert sorted(name.removeprefix(holder) for name in found) == sorted(norms)


def test_each_norm_is_what_its_sublayer_reads(host: Host) -> None:
    """By running the host: the norm's output is the sublayer's input, tensor for tensor."""
    model = host.model()
    seen: dict[str, Any] = {}
    stack = find_stacks(model)[0]

    def record(name: str, value: torch.Tensor) -> None:
        seen.setdefault(name, value)

    for sublayer in stack.sublayers():
        model.get_submodule(sublayer.norm).register_forward_hook(
            lambda module, args, output, name=sublayer.norm: record(name, output)
        )
        model.get_submodule(sublayer.input_of).register_forward_pre_hook(
            lambda module, args, kwargs, name=f"{sublayer.role} {sublayer.layer}": record(
                name, args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(**host.inputs())
    for sublayer in stack.sublayers():
        torch.testing.assert_close(seen[f"{sublayer.role} {sublayer.layer}"], seen[sublayer.norm], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["model.encoder.layers.0.fc2", "model.encoder.layers.1.fc2"]),
        (
            {"where": "decoder", "placement": "attention", "layers_to_transform": 1},
            ["model.decoder.layers.1.self_attn"],
        ),
        ({"where": "both", "layers_to_transform": [0]}, ["model.encoder.layers.0.fc2", "model.decoder.layers.0.fc2"]),
        ({"where": "both", "target_modules": r".*decoder.*\.1\..*"}, ["model.decoder.layers.1.fc2"]),
        ({"exclude_modules": ["layers.0.fc2"]}, ["model.encoder.layers.1.fc2"]),
    ],
)
def test_choice_of_sublayers(options: dict[str, Any], expected: list[str]) -> None:
    model = get_peft_model(make_whisper_seq2seq(), BottleneckConfig(bottleneck_dim=2, **options))
    assert adapted(model, SublayerAdapter) == expected


def test_a_backbone_without_feed_forward_layers_names_what_it_has() -> None:
    model = MambaHubertModel(MambaHubertConfig.nano(encoder="mamba", num_hidden_layers=1, hidden_size=32))
    with pytest.raises(
        HostError, match=r"no ffn, attention such as .*\. Put them at attention instead, with placement"
    ):
        get_peft_model(model, MambAdapterConfig(bottleneck_dim=2))


@pytest.mark.parametrize("options", [{"where": "decoder"}, {"layers_to_transform": [7]}, {"target_modules": ["fc9"]}])
def test_nothing_fits(options: dict[str, Any]) -> None:
    with pytest.raises(HostError, match=r"no sublayer fits.*the backbone has: encoder.*layers 0\.\.1.*mlp"):
        get_peft_model(HOSTS[0].model(), MambAdapterConfig(**options))


def test_unknown_host() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(HostError, match=r"BertModel is not a known backbone; expected .*AST, Whisper, wav2vec2"):
        get_peft_model(BertModel(config), MambAdapterConfig())


def test_a_host_inside_another_module() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.upstream = HOSTS[0].model().base_model
            self.downstream = nn.Linear(16, 2)

        def forward(self, waveform: torch.Tensor) -> torch.Tensor:
            return self.downstream(self.upstream(waveform).last_hidden_state.mean(1))

    config = MambAdapterConfig(**SMALL, modules_to_save=["downstream"])
    model = get_peft_model(Probe(), config)
    assert isinstance(model.get_base_model().upstream, ASTModel)
    model(HOSTS[0].inputs()["input_values"]).sum().backward()
    assert adapted(model, SublayerAdapter) == ["upstream.layers.0.mlp", "upstream.layers.1.mlp"]


def test_heads() -> None:
    assert head_modules(HOSTS[0].model()) == ["classifier"]
    assert head_modules(make_hubert()) == ["projector", "classifier"]
    assert head_modules(make_whisper_seq2seq()) == []
    assert head_modules(HubertForCTC(make_hubert().config)) == ["lm_head"]
    assert head_modules(HOSTS[0].model().base_model) == []


def test_attributes_of_a_wrapped_sublayer(host: Host) -> None:
    model = get_peft_model(host.model(), MambAdapterConfig(**SMALL, placement="attention"))
    layer = model.get_submodule("base_model.model." + adapted(model, SublayerAdapter)[0])
    projection = "in_proj" if host.name == "mamba-hubert" else "q_proj"
    assert getattr(layer, projection) is getattr(layer.base_layer, projection)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = layer.no_such_thing
    layer.base_layer._hf_hook = "another framework's"
    assert not hasattr(layer, "_hf_hook")
