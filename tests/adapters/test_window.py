"""Whisper's window: the padding behind a short clip changes nothing that an adapter does to the clip."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adapters.conftest import METHOD_OPTIONS, make_whisper, make_whisper_seq2seq, train_without_dropout, trainable
from peft import get_peft_model
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from mambavox.adapters import METHODS
from mambavox.adapters.hosts import window_lengths
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.asr.whisper_window import TrimmedEncoder

FRAMES, VALID = 40, (24, 40, 9)
"""Frames of the window, and those that hold sound; the encoder has half as many."""
TEMPORAL: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": METHOD_OPTIONS["mambadapter-both"],
    "residual": METHOD_OPTIONS["residual-part-own"],
    "bimamba": METHOD_OPTIONS["bimamba-groups-token"],
    "conformer": METHOD_OPTIONS["conformer"],
    "convpass": METHOD_OPTIONS["convpass"],
    "moa-soft": METHOD_OPTIONS["moa-soft"],
    "gc-lora": METHOD_OPTIONS["gc-lora"],
}


def adapted(method: str, make: Callable[[], Any] = make_whisper_seq2seq) -> nn.Module:
    torch.manual_seed(0)
    name, options = TEMPORAL[method]
    config = METHODS[name].config
    assert config is not None
    model = get_peft_model(make(), config(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def windows(padding: float = -1.0) -> Tensor:
    features = torch.randn(len(VALID), 8, FRAMES, generator=torch.Generator().manual_seed(5))
    for row, frames in enumerate(VALID):
        features[row, :, frames:] = padding
    return features


def branches(model: nn.Module, features: Tensor) -> list[tuple[nn.Module, tuple[Any, ...], Tensor]]:
    """What each adapter in the encoder is called with and gives."""
    seen: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []
    hooks = [
        branch.register_forward_hook(lambda module, args, output: seen.append((module, args, output)))
        for layer in model.modules()
        if isinstance(layer, SublayerAdapter)
        for branch in layer._part("branch").values()
    ]
    with torch.no_grad():
        model.get_base_model().get_encoder()(features)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("padding", [-1.0, 0.0])
@pytest.mark.parametrize("method", TEMPORAL)
def test_an_adapter_gives_a_clip_what_it_gives_without_the_padding(method: str, padding: float) -> None:
    model = adapted(method).double()
    seen = branches(model, windows(padding).double())
    assert len(seen) >= 2
    for branch, (inputs, projections, lengths, *_), output in seen:
        assert lengths.tolist() == [12, 20, 5]
        for row, frames in enumerate(lengths.tolist()):
            alone = branch(inputs[row : row + 1, :frames], projections, None)
            torch.testing.assert_close(output[row, :frames], alone[0], rtol=1e-9, atol=1e-11)


def test_an_extractors_padding_is_found() -> None:
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.standard_normal(samples) for samples in (800, 4000, 12_345, 16_000, 40)]
    sounds.append(1e-4 * rng.standard_normal(4000))
    features = extractor(sounds, sampling_rate=16_000, return_tensors="pt").input_features
    for frames, sound in zip(window_lengths(features).tolist(), sounds, strict=True):
        # A window of 400 samples reaches 200 samples beyond its middle.
        assert len(sound) / 160 <= frames <= min((len(sound) + 200) // 160 + 1, 100)
    assert window_lengths(torch.zeros(2, 8, 10)).tolist() == [1, 1], "silence"


def test_generation_and_classification_see_it_too() -> None:
    model = adapted("conformer")
    lengths: list[Any] = []
    branch = next(m for m in model.modules() if isinstance(m, SublayerAdapter))._part("branch")["default"]
    branch.register_forward_hook(lambda module, args, output: lengths.append(args[2].tolist()))
    model.generate(input_features=windows(), max_new_tokens=2)
    model.generate(input_features=windows(), max_new_tokens=2, num_beams=2)
    assert lengths == [[12, 20, 5]] * 2
    classifier = adapted("conformer", make_whisper)
    lengths.clear()
    branch = next(m for m in classifier.modules() if isinstance(m, SublayerAdapter))._part("branch")["default"]
    branch.register_forward_hook(lambda module, args, output: lengths.append(args[2].tolist()))
    classifier(input_features=windows())
    assert lengths == [[12, 20, 5]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_with_checkpointing_and_two_batches_in_flight(attention: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = adapted("conformer")
        host = model.get_base_model()
        host.set_attn_implementation(attention)
        if checkpointing:
            host.gradient_checkpointing_enable({"use_reentrant": False})
        train_without_dropout(model)
        encoder = host.get_encoder()
        losses = [encoder(windows().flip(flips)).last_hidden_state.square().sum() for flips in ([], [0])]
        sum(losses).backward()
        gradients.append({name: p.grad for name, p in trainable(model).items() if p.grad is not None})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_trimmed_encoder() -> None:
    """Each frame is computed at its own position; a full window is left alone; nothing stays changed."""
    model = adapted("conformer")
    host = model.get_base_model()
    encoder, config = host.get_encoder(), host.config
    with torch.no_grad():
        whole = encoder(windows()).last_hidden_state
        trimmed = TrimmedEncoder(model, step=4)
        assert torch.equal(encoder(windows()).last_hidden_state, whole), "one clip fills the window"
        short = encoder(windows()[[0, 2]]).last_hidden_state
        assert short.shape[1] == 12 and config.max_source_positions == 20
        assert encoder.embed_positions.num_embeddings == 20 and encoder.config is config
        # What a window of 12 frames is to a Whisper that was made for one.
        config.max_source_positions = 12
        table = encoder.embed_positions.weight
        encoder.embed_positions.weight = nn.Parameter(table[:12])
        encoder.embed_positions.num_embeddings = 12
        trimmed.remove()
        torch.testing.assert_close(encoder(windows()[[0, 2], :, :24]).last_hidden_state, short)
    model = adapted("conformer")
    TrimmedEncoder(model, step=4)
    features = windows()[[2]]
    assert model.generate(input_features=features, max_new_tokens=3).shape[0] == 1
    model(input_features=features, decoder_input_ids=torch.ones(1, 2).long()).logits.sum().backward()
