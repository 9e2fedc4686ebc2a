"""GC-LoRA by its definition, its size, and where it is refused."""

import pytest
import torch
import torch.nn.functional as F
from adapters.conftest import HOSTS, Host, make_hubert, make_wavlm, trainable
from adapters.test_lengths import adapted, check_rows
from peft import get_peft_model
from transformers import WhisperConfig, WhisperModel

from mambavox.adapters import GCLoraConfig
from mambavox.adapters.gc_lora import GatedConvolutionUpdate, GCLoraLayer
from mambavox.errors import ConfigError, HostError


def test_the_update_is_its_definition() -> None:
    update = GatedConvolutionUpdate(GCLoraConfig(r=4, alpha=6, kernel_size=5), 16).double()
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    z = x @ update.down.weight.T
    values, gates = F.linear(z, update.expand.weight, update.expand.bias).chunk(2, -1)
    conv, norm = update.convolution.conv, update.convolution.norm
    local = F.conv1d((values * gates.sigmoid()).mT, conv.weight, conv.bias, padding=2, groups=4)
    local = F.silu(F.group_norm(local, 1, norm.weight, norm.bias)).mT
    expected = 6 / 4 * (z + F.linear(local, update.mix.weight, update.mix.bias)) @ update.up.weight.T
    torch.testing.assert_close(update(x, None, None), expected)


def test_parameter_count() -> None:
    """Whisper-medium: 24 layers of 1024 channels. The paper prints 447k (see the configuration)."""
    sizes = {"d_model": 1024, "encoder_layers": 24, "decoder_layers": 1, "encoder_attention_heads": 16}
    with torch.device("meta"):
        model = WhisperModel(WhisperConfig(**sizes, decoder_attention_heads=16))
    count = sum(p.numel() for p in trainable(get_peft_model(model, GCLoraConfig())).values())
    assert count == 24 * (2 * 1024 * 8 + 3 * 8**2 + 8 * (31 + 6)) == 404_928


@pytest.mark.parametrize("host", HOSTS[:4], ids=lambda host: host.name)
def test_it_stands_at_every_output_projection_of_the_encoder(host: Host) -> None:
    model = get_peft_model(host.model(), GCLoraConfig(r=2)).get_base_model()
    names = [name.split("layers.")[1] for name, module in model.named_modules() if isinstance(module, GCLoraLayer)]
    attention, projection = {
        "ast": ("attention", "o_proj"),
        "whisper": ("self_attn", "out_proj"),
    }.get(host.name, ("attention", "out_proj"))
    assert names == [f"{layer}.{attention}.{projection}" for layer in range(2)]
    assert not any("norm" in name and "gclora" not in name for name in trainable(model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_row_alone_and_in_a_padded_batch(attention: str) -> None:
    model = adapted(make_hubert(), "gc-lora", {"r": 4, "kernel_size": 7})
    model.get_base_model().set_attn_implementation(attention)
    check_rows(model)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HostError, match=r"cannot be put at the output projection of WavLM.*placement='attention'"):
        get_peft_model(make_wavlm(), GCLoraConfig())
    with pytest.raises(HostError, match=r"fits layers_to_transform=\[5\].*the backbone has: encoder"):
        get_peft_model(HOSTS[0].model(), GCLoraConfig(layers_to_transform=[5]))
    with pytest.raises(ConfigError, match="kernel_size is 0; expected a whole number of at least 1"):
        GCLoraConfig(kernel_size=0)
