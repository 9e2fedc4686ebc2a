"""Mamba-HuBERT as a host: every kind of layer, norms before and after, what is refused."""

from typing import Any

import pytest
import torch
from adapters.conftest import SMALL
from peft import PeftModel, get_peft_model
from tiny_hubert import HYBRID, KINDS, padded_batch, tiny_config

from mambavox.adapters import GCLoraConfig, MambAdapterConfig, PrefixConfig, PromptConfig, apply_method
from mambavox.adapters.hosts import find_stacks, lora_targets
from mambavox.errors import HostError
from mambavox.hubert import ENCODER_KINDS, MambaHubertForCTC

ALL = [*KINDS, HYBRID]


def make(encoder: Any, **changes: Any) -> MambaHubertForCTC:
    return MambaHubertForCTC(tiny_config(encoder, **changes)).eval()


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("encoder", ALL)
def test_sublayers_and_the_norms_that_they_read(encoder: Any, pre_norm: bool) -> None:
    """By running the host: the norm's output is the sublayer's input, tensor for tensor."""
    model = make(encoder, do_stable_layer_norm=pre_norm)
    (stack,) = find_stacks(model)
    names = [encoder] * 2 if isinstance(encoder, str) else encoder
    roles = [role for name in names for role in (("attention", "ffn") if ENCODER_KINDS[name].mlp else ("attention",))]
    assert [sublayer.role for sublayer in stack.sublayers()] == roles
    seen: dict[str, torch.Tensor] = {}
    for sublayer in stack.sublayers():
        model.get_submodule(sublayer.norm).register_forward_hook(
            lambda module, args, output, name=sublayer.norm: seen.setdefault(name, output)
        )
        model.get_submodule(sublayer.input_of).register_forward_pre_hook(
            lambda module, args, name=sublayer.target: seen.setdefault(name, args[0])
        )
    last = []
    model.get_submodule(stack.final_norm).register_forward_hook(lambda module, args, output: last.append(output))
    with torch.no_grad():
        hidden = model.mamba_hubert(torch.randn(1, 200)).last_hidden_state
    for sublayer in stack.sublayers():
        torch.testing.assert_close(seen[sublayer.target], seen[sublayer.norm], rtol=0, atol=0)
    assert torch.equal(last[-1], hidden)


@pytest.mark.parametrize("mixer", ["mamba", "bimamba"])
@pytest.mark.parametrize("encoder", ALL)
def test_an_adapter_is_told_the_lengths(encoder: Any, mixer: Any) -> None:
    model = get_peft_model(make(encoder), MambAdapterConfig(**SMALL, mixer=mixer, placement="attention")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        waveforms, mask = padded_batch([800, 300], 800, padding=3.0)
        together = model(waveforms, attention_mask=mask).logits[1, :14]
        torch.testing.assert_close(together, model(waveforms[1:, :300]).logits[0], rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(together, model(waveforms, attention_mask=mask).logits[1, :14], atol=1e-3)


@pytest.mark.parametrize("encoder", ALL)
def test_lora_reaches_every_layer(encoder: Any) -> None:
    model = make(encoder)
    expected = lora_targets(model)
    adapted = apply_method(model, "lora", {"r": 2})
    layers = {name.split(".lora_A")[0] for name, p in adapted.named_parameters() if "lora_A" in name}
    number = 2 if isinstance(encoder, str) else len(encoder)
    assert {name.split("layers.")[1].split(".")[0] for name in layers} == {str(index) for index in range(number)}
    assert len(layers) == (2 * number if encoder not in ("ext-bimamba", "ext-bimamba-mlp") else 4 * number), expected


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    model = get_peft_model(make(HYBRID), MambAdapterConfig(**SMALL, placement="both"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    host = make(HYBRID)
    host.load_state_dict({k.replace("base_model.model.", ""): v for k, v in _host_states(model).items()})
    back = PeftModel.from_pretrained(host, tmp_path).eval()
    waveform = torch.randn(1, 300)
    torch.testing.assert_close(back(waveform).logits, model.eval()(waveform).logits, rtol=0, atol=0)


def _host_states(model: PeftModel) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        bare = {}
        for name, tensor in model.state_dict().items():
            if "mambadapter" not in name:
                bare[name.replace(".base_layer", "")] = tensor
    return bare


def test_layers_without_a_feed_forward_sublayer_say_so() -> None:
    with pytest.raises(
        HostError, match=r"placement='ffn'.*layers 0\.\.1, no ffn, attention such as '.*layers\.0\.mamba'"
    ):
        get_peft_model(make("mamba"), MambAdapterConfig(**SMALL))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PromptConfig(), "virtual tokens cannot be put into a Mamba-HuBERT"),
        (PrefixConfig(), "virtual tokens cannot be put into a Mamba-HuBERT"),
        (GCLoraConfig(r=2), r"layers\.0\.mamba, a Mamba block"),
    ],
)
def test_what_is_refused(config: Any, words: str) -> None:
    with pytest.raises(HostError, match=words):
        get_peft_model(make(HYBRID), config)
