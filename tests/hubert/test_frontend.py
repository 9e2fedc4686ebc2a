"""The convolutional feature extractor: silence, and its memory layout in training."""

import pytest
import torch
from tiny_hubert import tiny_config

from mambavox.hubert import MambaHubertConfig, MambaHubertForPreTraining
from mambavox.hubert.frontend import ConvLayer, FeatureExtractor


def test_biases_go_with_layer_norms() -> None:
    assert MambaHubertConfig().conv_bias is True
    assert MambaHubertConfig(feat_extract_norm="group").conv_bias is False
    assert MambaHubertConfig(conv_bias=False).conv_bias is False


@pytest.mark.parametrize("silent", [0.0, 1e-6])
def test_silence_has_a_gradient_like_that_of_sound(silent: float) -> None:
    # Seven layers, as published: each norm of zeros multiplies the gradient by 316.
    model = MambaHubertForPreTraining(MambaHubertConfig.nano(num_clusters=4, num_hidden_layers=1)).train()
    norms = []
    for waveforms in (0.1 * torch.randn(2, 8000), silent * torch.randn(2, 8000)):
        torch.manual_seed(0)
        model.zero_grad()
        model(waveforms, labels=torch.randint(0, 4, (2, 24))).loss.backward()
        parameters = model.mamba_hubert.feature_extractor.parameters()
        norms.append(torch.stack([parameter.grad.norm() for parameter in parameters]).norm().item())
    assert norms[1] < 20 * norms[0]


def test_biases_begin_at_the_level_of_what_they_are_added_to() -> None:
    # Speech has samples of about 0.02 to 0.1, and layers after the first are normalised.
    model = MambaHubertForPreTraining(MambaHubertConfig.nano(num_hidden_layers=1))
    layers = [layer.conv for layer in model.mamba_hubert.feature_extractor.conv_layers]
    for index, conv in enumerate(layers):
        bound = (conv.in_channels * conv.kernel_size[0]) ** -0.5 * (1.0 if index else 0.02)
        largest = float(conv.bias.detach().abs().max())
        assert 0.9 * bound < largest <= bound
    speech = 0.05 * torch.randn(1, 1, 8000)
    heard = (layers[0](speech) - layers[0].bias[:, None]).std()
    assert layers[0].bias.std() < 0.1 * heard


def test_digital_silence_has_a_finite_gradient() -> None:
    model = MambaHubertForPreTraining(MambaHubertConfig.nano(num_clusters=4, num_hidden_layers=1)).train()
    for silence in (torch.zeros(2, 8000), torch.cat([torch.zeros(2, 4000), 0.05 * torch.randn(2, 4000)], dim=1)):
        model.zero_grad()
        model(silence, labels=torch.randint(0, 4, (2, 24))).loss.backward()
        assert all(tensor.grad.isfinite().all() for tensor in model.parameters())
        assert all(layer.conv.weight.grad.any() for layer in model.mamba_hubert.feature_extractor.conv_layers[1:])


def results_of(model: FeatureExtractor, waveforms: torch.Tensor, training: bool, half: bool) -> list[torch.Tensor]:
    model.train(training).zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = model(waveforms)
    output.float().square().mean().backward()
    return [output, *(parameter.grad.clone() for parameter in model.parameters())]


def test_training_computes_what_evaluation_does() -> None:
    model = FeatureExtractor(tiny_config(feat_extract_norm="layer"))
    waveforms = torch.randn(2, 600)
    expected, found = (results_of(model, waveforms, training, half=False) for training in (False, True))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_channels_last_in_bfloat16_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FeatureExtractor(tiny_config(feat_extract_norm="layer"))
    waveforms = torch.randn(2, 600)
    exact = results_of(model, waveforms, True, half=False)
    plain = results_of(model, waveforms, False, half=True)
    convolve, taken = ConvLayer._convolve_channels_last, []
    monkeypatch.setattr(
        ConvLayer, "_convolve_channels_last", lambda layer, frames: taken.append(layer) or convolve(layer, frames)
    )
    found = results_of(model, waveforms, True, half=True)
    assert taken == list(model.conv_layers)
    for truth, ours, other in zip(exact, found, plain, strict=True):
        scale = truth.abs().max()
        assert (ours - truth).abs().max() <= 2 * (other - truth).abs().max() + 1e-3 * scale
